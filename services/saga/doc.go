// Package saga leads bookings through their process: the coordinator of the orchestration style.
//
// A booking whose BookingCreated is heard gets an instance, and the coordinator sends the requests that booking sends
// itself in the other style. The participants cannot tell. How a booking ends is not decided here but by booking's own row:
// the coordinator says how it should end (SettleBooking), and does what the answer says. A booking without an instance is
// led by booking, and none of the coordinator's business.
//
//	            all done, or one refused or late                 BookingConfirmed            all finished
//	running ---------------------------------------> settling -------------------> committing ----------> committed
//	   |      (or an operator gives the booking up)      |
//	   |                                                 | BookingRejected, BookingCancelled, BookingExpired
//	   |     the same, without being asked               v         all undone
//	   '-------------------------------------------> compensating -----------> compensated
//	                                                     ^                          |
//	                                                     '--------------------------'
//	                                               a step is told to be done after all
//
// definition.go is the process; machine.go is what happens by it, without I/O; the rest stores, sends and shows. The user is
// told at the beginning and of the decision, as booking tells in the other style. What is undone is undone in reverse, one
// step after the other. A request is repeated with growing pauses. When a step is not
// answered at all it is taken for refused, and is undone. When the decision, its finishing, or an undoing is not
// answered, the instance is stuck and says so: an answer that comes after all, or an operator's resume, moves it on.
//
// The inbox row of a message, the change of the instance, its history and what is sent are one transaction. Each change
// goes from one revision to the next. Deadlines are kept by the database's clock; several processes share them out.
//
// An instance goes on under the version of the definition that it began with. A build that does not know the version
// shows it as stuck, keeps none of its deadlines, and leaves its messages in inbox.stuck to one that does.
package saga
