// Package catalog sells no ticket twice: it knows the events on sale and how many tickets of each are left.
//
// # Guarantees
//
// An event's inventory adds up at every moment: capacity = available + held + sold, and held and sold are the tickets of the
// reservations that are. Tickets are taken by one guarded UPDATE, so concurrent bookings queue on the event's row and none
// gets what is not there.
//
// A booking gets one answer. It is stored with the reservation, in the transaction that takes the tickets, and a
// booking that asks again, under whatever message id, gets it again and no more tickets.
//
//	                  enough left                                          CommitEventInventory
//	asked (claimed) ---------------> reserved: held   InventoryUpdated --------------------------> sold       InventoryCommitted
//	      |                                    |       ReleaseEventInventory
//	      |                                    '---------------------------------------------------> released   InventoryReleased
//	      |           too few left
//	      |------------------------> sold_out         InventoryUpdateRejected
//	      |           no such event
//	      '------------------------> unknown_event    InventoryUpdateRejected
//
//	nothing asked yet -- ReleaseEventInventory --> released (a tombstone)                              InventoryReleased
//
// Sold and released are final. A hold ends by a release or a sale and by nothing else: no clock of the catalog's ends it.
// A release is answered however often it is asked; what asks for tickets after it, late or again, takes nothing and gets
// InventoryReleased. A release of sold tickets, and a sale of tickets that are not held, contradict what was promised and
// are parked.
//
// # Locks
//
// A transaction locks the row of an event before it looks at any reservation of the event, and takes events in one order. So
// requests of one booking, of whatever kind, take turns, and each sees what became of those before it. The row of a popular
// event is the one lock that many share; it is held from the first look to the commit. A batch of requests about one event
// locks and writes that row once: its bookings take turns within the statement, so that what a popular event costs is a
// transaction per batch.
package catalog
