// Package booking takes bookings and follows them to their end.
//
// A booking is priced from the service's own read model of the catalog and stored in one transaction with the
// three requests that it sets off: to the catalog for tickets, to payment for payment data, to notification for a
// message to the user. Answers, the user's cancel and deadlines arrive in any order and any number of times; package
// life decides what they do:
//
//	pending --> awaiting_payment --> confirmed
//	   |              '-- payment_failed | expired | cancelled
//	   '-- rejected (with its reason) | confirmed | payment_failed | expired | cancelled
//
// Every end but the first undoes what was asked for: tickets are released, a payment is cancelled, money that was taken
// goes back. Ends are final. The booking's row is locked, the event decided, and row, timeline and messages
// written in that one transaction (course.go), so whatever comes at the same moment finds it decided.
//
// Every booking that waits has a deadline: its payment's expiry and a grace, by the database's clock, so that normally
// payment's own word comes first. [Service.Run] expires what is due.
//
// What an answer says is recorded once; an answer that changes nothing is a fact and no error. An answer to a booking
// that does not exist, or that contradicts it, can never be handled and is parked.
//
// With Config.Orchestration a coordinator leads the bookings made from then on: booking publishes BookingCreated
// instead of the requests, notes the answers, and ends as SettleBooking, the user or the deadline says, whichever comes
// first. It tells how (BookingConfirmed, BookingRejected, BookingCancelled, BookingExpired) and leaves all requests, undoing
// and notifications included, to the coordinator.
//
// Within one database bookings are listed in the order of their ids, which are UUIDv7: the order of creation, to
// the clocks of the processes that made them.
package booking
