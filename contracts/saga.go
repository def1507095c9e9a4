package contracts

import "time"

// TypeSettleBooking is the type of what the coordinator publishes beside the requests of booking.go.
const TypeSettleBooking = "ticketwave.booking.settle-booking.v1"

// SagaOutcome is how the coordinator wants a booking to end.
type SagaOutcome string

// The outcomes.
const (
	OutcomeConfirmed          SagaOutcome = "confirmed"
	OutcomeSoldOut            SagaOutcome = "sold_out"
	OutcomeUnknownEvent       SagaOutcome = "unknown_event"
	OutcomePaymentUnavailable SagaOutcome = "payment_unavailable"
	OutcomePaymentFailed      SagaOutcome = "payment_failed"
	OutcomeExpired            SagaOutcome = "expired"
	OutcomeCancelled          SagaOutcome = "cancelled"
)

// Valid reports whether this version knows the value.
func (s SagaOutcome) Valid() bool {
	switch s {
	case OutcomeConfirmed, OutcomeSoldOut, OutcomeUnknownEvent, OutcomePaymentUnavailable, OutcomePaymentFailed, OutcomeExpired, OutcomeCancelled:
		return true
	}
	return false
}

// SettleBooking is the coordinator's word to booking on how a booking ends. Booking decides: it answers with BookingConfirmed,
// BookingRejected, BookingCancelled or BookingExpired, whichever came first.
type SettleBooking struct {
	BookingID   string      `json:"bookingId"`
	Outcome     SagaOutcome `json:"outcome"`
	RequestedAt time.Time   `json:"requestedAt"`
}

// EventType is TypeSettleBooking.
func (SettleBooking) EventType() string { return TypeSettleBooking }

// EventKey is the booking.
func (e SettleBooking) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e SettleBooking) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkKnown("outcome", e.Outcome),
		checkTime("requestedAt", e.RequestedAt),
	)
}
