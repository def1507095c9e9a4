// Package inbox handles each message once in effect, in the order of its key.
//
// A handler runs in a transaction whose first statement is the message's inbox row. The row, what the handler
// changes, and what it appends to the outbox are committed together, and only then is the message acknowledged:
// a message that comes again finds its row and is acknowledged without effect.
//
// # The states of a message
//
//	            handler ok                      retry ok
//	received ---------------> done <---------------------------.
//	   |                        ^                               |
//	   | row exists             |                               |
//	   |------------------------'                               |
//	   | handler fails, or its key waits already                |
//	   '-------------------------------------------------> stuck (waits for its turn and its time)
//	                                                            | permanent error, attempts used up, or an operator
//	                                                            '--> parked (waits for an operator)
//
// A handler that keeps failing after a few quick tries puts its message into inbox.stuck, and later messages of
// the same key queue up behind it; every other key goes on. Only the oldest message of a key is ever tried, so
// order holds through any failure. A message without a readable id or key can neither be remembered nor ordered:
// it goes to the dead-letter queue with the reason in a header. Nothing is ever rejected to the broker.
//
// A type without a handler, a body that does not fit, or what a handler calls Unreadable waits like any failure, so that order
// survives a rolling upgrade: when another build of the program takes the partition over, it tries at once what it may be
// able to read, parked or not.
//
// While the database is away, or the dead-letter queue takes nothing, the consumer holds the message and waits (Held); that
// counts as nobody's failure. When the lease may have passed on meanwhile, everything goes back to the broker once.
//
// # Who handles what
//
// Partitions are shared out among the processes of one consumer by leases (package lease) and handled in
// order. What is there together shares a transaction, up to Config.Batch messages. Order of a key within its
// partition is the queue's, which is the order of commit.
package inbox
