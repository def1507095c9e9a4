// Package payment takes the money for bookings, and gives it back: who pays how much, where, until when, and what became of it.
//
// # Guarantees
//
// A booking has one payment, and it ends once. Who ends it is decided by one guarded update of its row; whatever comes later is
// answered with that end. A request is answered however often it comes, under whatever message id, in any order: a cancellation
// that overtakes its request leaves a mark, and the late request is then answered with PaymentCancelled. Money that comes for a
// payment that has ended, a wrong amount, and a second charge go back by themselves. The books (payment.ledger) are only added
// to: when nothing is under way, captured - refunded = what completed payments cost.
//
//	PreparePaymentData
//	   |
//	   |--> unavailable                 no time left, currency or gateway refuses    PaymentPreparationFailed
//	   v        ^
//	preparing --'-----------.           the gateway is being asked; the sandbox skips this
//	   v                    |
//	prepared                |                                                        PaymentDataPrepared
//	   |--> expired         |           ExpiresAt is over                            PaymentExpired
//	   |--> failed          |           declined, or the wrong amount                PaymentFailed
//	   |--> cancelled <-----'           CancelPayment                                PaymentCancelled
//	   '--> completed                   captured                                     PaymentCompleted
//	           '--> refunded            RefundPayment, and the gateway has done it   PaymentRefunded
//
// Expired, failed, cancelled and unavailable payments whose late money went back stay what they are; that is told as
// PaymentRefunded too.
//
// # Calls to the gateway
//
// No transaction waits for a gateway. A handler's transaction stores what is to be done (payment.tasks: open, close, refund)
// together with the state that asks for it. A loop claims tasks by moving their time ahead, calls the gateway, and records the
// outcome in a transaction of its own: the task's end, the payment's state, the books, and what is published. The task's id is the
// idempotency key, so that after a crash anywhere between the claim and the record the same call is made again when the claim runs
// out, and takes effect once. The record is guarded by the task being due still: a second one, of a process that was paused,
// changes nothing. A payment that ended while its session was being opened is not told of as prepared, and the session is closed. A
// failure that may pass, and one of the reading or the record, is tried again with backoff and jitter; a refund, which is owed, also
// when it is refused, under another key, for a week. It is done when the gateway says that it succeeded, not when it is pending. What
// else the gateway refuses, or what was tried for too long, stays as refused with its error, for somebody to look at. RefundPayment,
// asked for again, tries it anew.
//
// A payment belongs to the gateway that was active when it was made, and goes on there when another is: that one has only to be
// configured still. At most 16 calls are under way in a process. A slow one, and a payment that fails always, hold up no other;
// one whose expiry fails is put off by itself.
//
// The sandbox's sessions are rows of the same database: they are opened in the payment's own transaction, which spares a call
// and a commit for each booking. Closing and refunding are tasks there too.
//
// # Webhooks
//
// A webhook takes effect in one transaction with its id, so a repeated one has none, and is answered with 204 only after the
// commit. One that comes before its session is recorded, or for a payment that is not there, is refused so that it is sent again.
// The first to reach the row wins. Money that comes after ExpiresAt by the database's clock expires the payment where nobody has yet,
// and goes back: whether the program was away meanwhile makes no difference.
//
// # Locks
//
// A transaction takes locks in one order: the booking's advisory lock, the webhook's id, the payment's row, its tasks and books,
// then the outbox's key. The advisory lock stands for the payment that is not there yet: a request and its cancellation, at the
// same time, see each other's marks.
package payment
