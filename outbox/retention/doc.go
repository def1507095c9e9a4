// Package retention keeps the daily partitions of an outbox or inbox: it makes them ahead and drops what is old.
//
// What may go is decided by functions in the database, under the lock that the deed itself needs. In an outbox it
// is what has been relayed for the retention time: visible in the newest cursor, and in the one of that time ago. A
// transaction that is still open, a prepared one too, holds the lock that dropping its partition needs. When the
// cursor belongs to another cluster, as after a restore, nothing is dropped. In an inbox it is what is older than the
// retention time, and the drop is recorded: a message from before it is never taken for a new one.
//
// Time is counted in rounds that took place, a gap for two hours at most. A clock that jumps, ahead or back, makes
// nothing old.
//
// Nobody waits for a round: it waits for a lock 50 ms at most, because everybody else queues behind it for so long,
// tries a few times, and leaves the rest to the next round. An outbox partition is emptied first, which needs that
// partition alone, and dropped when the whole table can be locked for a moment; a transaction that stays open delays
// the second only.
//
// Rows that fall outside all days, because a clock was wrong or nobody made partitions for a month, are kept in the
// default partition: relayed and remembered like any, and deleted when old.
package retention
