// Package lease shares the partitions of a pool out among the processes that want to work on them.
//
// A pool is a named set of partitions in one database, for example the relay's, or one consumer's. Every
// process that runs [Run] for a pool is a member. Each partition has at most one owner at a time, and the
// partitions are spread evenly over the live members.
//
// Ownership is a row with a token that grows at every change of owner. Whoever writes under a lease carries
// the token and lets the database refuse it when it is no longer the owner's: a member that was paused for
// longer than its lease finds its late writes refused. A member proves that it lives by moving a counter. A
// candidate takes over when the counter has stood still for Timeout on the candidate's own monotonic clock,
// so no clock but its own matters.
//
//	free --take--> held --stop, rebalance--> draining --work returned--> free
//	  ^                |
//	  '---- taken over by another member after Timeout without a beat
package lease
