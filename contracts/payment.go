package contracts

import "time"

// TypePaymentDataPrepared is the type of what the payment service publishes.
const TypePaymentDataPrepared = "ticketwave.payment.payment-data-prepared.v1"

// PaymentDataPrepared (PaymentDataPreparedIntegrationEvent) says where and until when a booking can be paid.
type PaymentDataPrepared struct {
	BookingID string `json:"bookingId"`
	PaymentID string `json:"paymentId"`
	Amount    Amount `json:"amount"`
	// Currency is an ISO 4217 code.
	Currency  string    `json:"currency"`
	ExpiresAt time.Time `json:"expiresAt"`
	// PaymentURL is where the user pays, http or https.
	PaymentURL string    `json:"paymentUrl"`
	PreparedAt time.Time `json:"preparedAt"`
}

// EventType is TypePaymentDataPrepared.
func (PaymentDataPrepared) EventType() string { return TypePaymentDataPrepared }

// EventKey is the booking.
func (e PaymentDataPrepared) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e PaymentDataPrepared) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("paymentId", e.PaymentID),
		checkAmount("amount", e.Amount),
		checkCurrency("currency", e.Currency),
		checkTime("expiresAt", e.ExpiresAt),
		checkURL("paymentUrl", e.PaymentURL),
		checkTime("preparedAt", e.PreparedAt),
	)
}
