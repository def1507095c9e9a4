// Package payment prepares the payment of a booking: who pays how much, where, and until when.
//
// # Guarantees
//
// A booking has one payment. It is stored in the transaction that publishes PaymentDataPrepared; a booking that is
// asked for again, under whatever message id, is answered with the same payment.
//
//	PreparePaymentData ---> prepared      PaymentDataPrepared
//
// A transaction takes locks in one order: the booking's payment, then the outbox's key.
package payment
