// Package chaos shows what TicketWave promises by breaking it: every row of the fault matrix, against real servers and
// real processes, with real kills.
//
//	make chaos              every row; ends with a table and "37 rows: N passed, M not run"
//	make chaos ONLY=3,20    these rows
//	make chaos SEED=7       the same random choices again; each run prints its seed
//	make chaos SAGA=both    bookings led by a coordinator as well
//	make soak FOR=30m       random faults, one upon the other, under load
//	make test               a few quick rows among the other tests, and the tests of the checks themselves
//
// The harness starts a PostgreSQL server and a RabbitMQ node of its own in a temporary directory, as its children, so
// that it can kill and reap them; "make up" is not needed and not touched. It builds the programs with the tag
// failpoints (see outbox/internal/failpoint) and runs them as they are run in production, one process each. Their
// logs stay in .run/chaos. What it has started is gone when it ends, by Ctrl-C too.
//
// # A row
//
// Clients book over HTTP, each under an idempotency key that it repeats until it is answered. Most pay then; others decline, pay
// too late, cancel, pay and cancel at once, or leave it: a booking expires within seconds. With -saga=orchestration a coordinator
// leads the bookings, with -saga=both that changes whenever booking is started. Beside the clients, writers with
// the services' own roles append many messages to a few keys, so that there is an order to lose. Then the fault is
// injected and healed, the time is taken until a new booking has every answer, the load ends, and all must come to rest
// within a deadline. The rows share a world (databases, a vhost, programs) while it stays sound, so the checks look at all
// that has ever happened in it.
//
// # The invariants
//
// All are checked after every row, by SQL, by the broker's management API, and by a queue ("the tap") that gets a copy of
// everything that is published.
//
//   - I1: every row of every outbox is in the inbox of each consumer that the stored topology binds to its type, and was
//     published; nothing was published, and nothing is in an inbox, that is in no outbox; nothing that was confirmed to
//     a client or a writer is missing.
//   - I2: every handled request has exactly one answer, an answer exactly one handled request (what becomes of a payment
//     later is told once, too); an idempotency key has one booking; what booking has handled, its bookings show.
//   - I3: first publications of a key follow the ids of its outbox; the participants' answers, written while they handle,
//     follow the requests; a trigger notes in which order booking takes over an event's versions, none may be left out.
//   - I4: available, held and sold tickets are the capacity, held and sold are what the reservations say, and each
//     reservation is that of a booking which has ended as it has: sold for a confirmed one, and nothing held for any other.
//   - I5: every cent that was captured belongs to the completed payment of a confirmed booking, or went back; the books say
//     the same: captured - refunded = completed.
//   - I6: the cursors have passed every row, queues are empty, nothing is stuck or dead but what the row meant to be, no
//     prepared transaction is left; every booking and every saga has ended, with everything undone that is to be, no call to
//     the gateway and no webhook is left.
//   - I7: goroutines of every program, and connections and channels at the broker, are what they were.
//
// A row that this machine cannot inject (it cannot mount a disk, or has no C compiler) counts as "not run", with the reason.
package chaos
