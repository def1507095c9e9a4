// Package life decides how a booking goes on. It is pure: no database, no clock, no message. The handlers of package
// booking read a booking's state under its lock, ask [Next], and store and send what it says, so that what is tested
// here in every order is what runs.
//
//	                      tickets held,                   the money is there
//	pending --------------- payment prepared --> awaiting_payment ---------> confirmed   commit the tickets
//	   |                                              |
//	   |-- tickets refused, payment cannot be --> rejected                   undo
//	   |-- the payment failed ------------------------'---> payment_failed   undo
//	   |-- the payment or the booking's time is over -'---> expired          undo
//	   '-- the user gives it up ----------------------'---> cancelled        undo
//
// Answers come in any order: a payment can fail, expire or be complete before the catalog's answer is there. Every end is
// final. To undo is to release tickets that are held or may yet be, to cancel a payment that may yet be made, and
// to ask for money back that was taken; money that shows up after the end is asked back when it does.
//
// # Who leads
//
// In choreography the booking goes by what it hears. Where a coordinator leads (State.Led) the same answers are noted, and an
// end comes from the coordinator's word, the user, or the deadline; whichever came first is told, and told again at
// every further word of the coordinator, who does the undoing. Its word that a booking is confirmed waits until the
// booking itself has heard of tickets and money.
//
// # What is proved
//
// The test of this package explores every state that a booking, the catalog, the payment, the user and, where it leads, a
// coordinator can reach together, with every order and repetition of messages. Where nothing is under way any more:
// tickets are sold and money is kept for a confirmed booking alone, nothing is held, nothing can be paid, and the
// user was told once. Every state can reach such an end, and the deadline alone ends every open booking. The
// participants' models are what their services promise.
package life
