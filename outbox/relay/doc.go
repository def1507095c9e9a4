// Package relay forwards committed outbox messages to a Watermill publisher, each at least once, in the order
// of commit within each key. [Relay] does that; [Subscriber] gives the messages to the program itself.
//
// # The cursor is a snapshot
//
// Neither the sequence of ids nor that of transaction ids is the order in which transactions become visible,
// so no number can say "everything up to here is relayed". The cursor of a partition is a PostgreSQL snapshot:
//
//	relayed = what has been relayed              target = pg_current_snapshot(), in the statement that reads the rows
//	window  = rows of transactions that are visible in target and not in relayed
//	        = tx in [xmax(relayed), xmax(target)) without xip(target), and tx in xip(relayed) without xip(target)
//
// A window goes out in the order of ids, which within a key is the order of commit, because whoever writes a
// key holds its lock from before the id is drawn until the commit. When all of it is confirmed, target becomes
// relayed. A transaction that stays open is merely not in the window: it delays itself and nothing else.
//
// What this rests on:
//
//   - One connection per partition takes the snapshot, reads the rows and stores the cursor. When it breaks,
//     everything in memory is dropped and read again: after a crash the server hands out transaction ids that
//     memory may already have seen.
//   - A window that fits one page goes out at once, and the cursor follows what is confirmed within 200 ms or a flight
//     of messages. A crash repeats what was confirmed since, and what was confirmed behind a message that is not: the
//     cursor passes messages in order. A larger window stores its target first, so that who goes on with it pages
//     through the same rows. Both need writers that commit synchronously: what an asynchronous commit shows may be
//     published and then taken back by a crash of the server.
//   - Transaction ids mean something in one cluster, one database and one timeline only. They are compared when a
//     session begins, and every look asks whether the server has been started again since; when they differ the
//     partition refuses to run with [ErrIdentity].
//   - Every write of the cursor carries the lease's token and is refused when the lease has passed on.
//
// # The states of a partition
//
//	        leased             window not empty; a large one: store target
//	idle ------------> polling --------------------------------------------> relaying
//	  ^                 ^   |                                                 |    |
//	  | lease ends      |   '- nothing new: wait for a wake-up,               |    '- lease ends: finish what is in flight,
//	  |                 |      store what is confirmed                        |       store what is confirmed
//	  '-----------------'------------------------- all confirmed: relayed := target
//
// Messages of different keys are in flight together; the second message of a key waits until the first is
// acknowledged. While the broker is away a message is tried again with a growing pause, without end.
//
// # What is stuck
//
// A message that fails otherwise (see [Class]) goes to outbox.stuck, and so do the later ones of its key, in the statement
// that moves the cursor past them. Until then, 200 ms at most, they are decided in memory alone, so that a key that fails
// for long costs the others nothing: up to 100,000 stuck keys of a partition are known in memory. When there are more, every
// read of up to 1,000 messages asks which of its keys are stuck.
//
//	                    a route's fault                     the route's probe goes through
//	breaker closed ---------------------> breaker open -----------------------------------> draining
//	     ^                                  |      ^  |                                        |    |
//	     | nothing waits for it             '------'  '<---------------------------------------'    |
//	     |                         the probe fails: a longer pause        it fails again            |
//	     '------------------------------------------------------------------------------------------'
//
// A route is a message's type within the partition. While its breaker is open whatever comes to it waits without an
// attempt, but for the oldest, the probe; nothing is ever parked for it but by an operator. When the probe has gone
// through, the keys that waited go, the oldest first.
//
// Runnable is only the oldest stuck message of a key. The relay claims it (outbox.stuck.claim) before it publishes it, and
// an operator changes only what nobody has claimed: both take outbox.lock_stuck first.
package relay
