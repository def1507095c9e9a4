package contracts

import "time"

// Types of what the payment service publishes.
const (
	TypePaymentDataPrepared      = "ticketwave.payment.payment-data-prepared.v1"
	TypePaymentPreparationFailed = "ticketwave.payment.payment-preparation-failed.v1"
	TypePaymentCompleted         = "ticketwave.payment.payment-completed.v1"
	TypePaymentFailed            = "ticketwave.payment.payment-failed.v1"
	TypePaymentExpired           = "ticketwave.payment.payment-expired.v1"
	TypePaymentCancelled         = "ticketwave.payment.payment-cancelled.v1"
	TypePaymentRefunded          = "ticketwave.payment.payment-refunded.v1"
)

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

// PreparationFailure is why a payment cannot be prepared.
type PreparationFailure string

// The reasons of a preparation that failed.
const (
	PreparationCurrencyNotSupported PreparationFailure = "currency_not_supported"
	PreparationRefused              PreparationFailure = "gateway_refused"
	PreparationTooLate              PreparationFailure = "too_late"
)

// Valid reports whether this version knows the value.
func (p PreparationFailure) Valid() bool {
	switch p {
	case PreparationCurrencyNotSupported, PreparationRefused, PreparationTooLate:
		return true
	}
	return false
}

// PaymentFailure is why a payment will not succeed.
type PaymentFailure string

// The reasons of a payment that failed.
const (
	PaymentDeclined PaymentFailure = "declined"
	PaymentRefused  PaymentFailure = "gateway_refused"
)

// Valid reports whether this version knows the value.
func (p PaymentFailure) Valid() bool {
	switch p {
	case PaymentDeclined, PaymentRefused:
		return true
	}
	return false
}

// PaymentPreparationFailed says that a booking cannot be paid: its payment was not opened, and will not be.
type PaymentPreparationFailed struct {
	BookingID string             `json:"bookingId"`
	Reason    PreparationFailure `json:"reason"`
	FailedAt  time.Time          `json:"failedAt"`
}

// EventType is TypePaymentPreparationFailed.
func (PaymentPreparationFailed) EventType() string { return TypePaymentPreparationFailed }

// EventKey is the booking.
func (e PaymentPreparationFailed) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e PaymentPreparationFailed) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkKnown("reason", e.Reason),
		checkTime("failedAt", e.FailedAt),
	)
}

// PaymentCompleted says that the whole amount of a booking was captured. It is also the answer to a CancelPayment that comes too
// late; who does not want the money asks for a refund.
type PaymentCompleted struct {
	BookingID string `json:"bookingId"`
	PaymentID string `json:"paymentId"`
	Amount    Amount `json:"amount"`
	// Currency is an ISO 4217 code.
	Currency    string    `json:"currency"`
	CompletedAt time.Time `json:"completedAt"`
}

// EventType is TypePaymentCompleted.
func (PaymentCompleted) EventType() string { return TypePaymentCompleted }

// EventKey is the booking.
func (e PaymentCompleted) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e PaymentCompleted) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("paymentId", e.PaymentID),
		checkAmount("amount", e.Amount),
		checkCurrency("currency", e.Currency),
		checkTime("completedAt", e.CompletedAt),
	)
}

// PaymentFailed says that a payment was tried and will not succeed. Nothing is kept: a wrong amount that was captured is given back.
type PaymentFailed struct {
	BookingID string         `json:"bookingId"`
	PaymentID string         `json:"paymentId"`
	Reason    PaymentFailure `json:"reason"`
	FailedAt  time.Time      `json:"failedAt"`
}

// EventType is TypePaymentFailed.
func (PaymentFailed) EventType() string { return TypePaymentFailed }

// EventKey is the booking.
func (e PaymentFailed) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e PaymentFailed) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("paymentId", e.PaymentID),
		checkKnown("reason", e.Reason),
		checkTime("failedAt", e.FailedAt),
	)
}

// PaymentExpired says that a payment was not made in time. What arrives later the payment service gives back by itself.
type PaymentExpired struct {
	BookingID string    `json:"bookingId"`
	PaymentID string    `json:"paymentId"`
	ExpiredAt time.Time `json:"expiredAt"`
}

// EventType is TypePaymentExpired.
func (PaymentExpired) EventType() string { return TypePaymentExpired }

// EventKey is the booking.
func (e PaymentExpired) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e PaymentExpired) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("paymentId", e.PaymentID),
		checkTime("expiredAt", e.ExpiredAt),
	)
}

// PaymentCancelled says that a booking will not be paid. What arrives later the payment service gives back by itself.
type PaymentCancelled struct {
	BookingID   string    `json:"bookingId"`
	CancelledAt time.Time `json:"cancelledAt"`
}

// EventType is TypePaymentCancelled.
func (PaymentCancelled) EventType() string { return TypePaymentCancelled }

// EventKey is the booking.
func (e PaymentCancelled) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e PaymentCancelled) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkTime("cancelledAt", e.CancelledAt),
	)
}

// PaymentRefunded says that all that was captured for a booking was given back.
type PaymentRefunded struct {
	BookingID string `json:"bookingId"`
	PaymentID string `json:"paymentId"`
	// Amount is what was given back.
	Amount Amount `json:"amount"`
	// Currency is an ISO 4217 code.
	Currency   string    `json:"currency"`
	RefundedAt time.Time `json:"refundedAt"`
}

// EventType is TypePaymentRefunded.
func (PaymentRefunded) EventType() string { return TypePaymentRefunded }

// EventKey is the booking.
func (e PaymentRefunded) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e PaymentRefunded) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("paymentId", e.PaymentID),
		checkAmount("amount", e.Amount),
		checkCurrency("currency", e.Currency),
		checkTime("refundedAt", e.RefundedAt),
	)
}
