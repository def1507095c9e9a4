// Package catalog sells no ticket twice: it knows the events on sale and how many tickets of each are left.
//
// # Guarantees
//
// An event's inventory adds up at every moment: capacity = available + the tickets of all reservations. Tickets are
// taken by one guarded UPDATE, so concurrent bookings queue on the event's row and none gets what is not there.
//
// A booking gets one answer. It is stored with the reservation, in the transaction that takes the tickets, and a
// booking that asks again, under whatever message id, gets it again and no more tickets.
//
//	                  enough left
//	asked (claimed) ---------------> reserved        InventoryUpdated
//	      |
//	      |           too few left
//	      |------------------------> sold_out        InventoryUpdateRejected
//	      |           no such event
//	      '------------------------> unknown_event   InventoryUpdateRejected
//
// Every state but the first is final, and the first is never seen outside its transaction.
//
// # Locks
//
// A transaction takes locks in one order: the booking's reservation, the event's row, the outbox's key. The row of a
// popular event is the one lock that many share; it is held from the UPDATE to the commit.
package catalog
