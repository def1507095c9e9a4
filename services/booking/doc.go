// Package booking takes bookings and follows them until they can be paid.
//
// A booking is priced from the service's own read model of the catalog and stored in one transaction with the
// three requests that it sets off: to the catalog for tickets, to payment for payment data, to notification for a
// message to the user. Their answers arrive in any order and any number of times:
//
//	          tickets reserved AND payment data prepared
//	pending ---------------------------------------------> awaiting_payment
//	   |
//	   '---------------------------------------------------> rejected (with the catalog's reason)
//	          tickets refused
//
// Both ends are final here. What an answer says is recorded once; an answer that changes nothing is a fact and no
// error. Payment data that arrives after a rejection is recorded and not shown as payable. An answer to a booking
// that does not exist, or that contradicts it, can never be handled and is parked.
//
// Within one database bookings are listed in the order of their ids, which are UUIDv7: the order of creation, to
// the clocks of the processes that made them.
package booking
