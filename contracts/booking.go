package contracts

import "time"

// Types of what booking publishes: requests to the other services, each in its receiver's contract, and what became
// of a booking. The coordinator sends the requests in booking's stead where it leads.
const (
	TypeUpdateEventInventory    = "ticketwave.catalog.update-event-inventory.v1"
	TypeSendBookingNotification = "ticketwave.notification.send-booking-notification.v1"
	TypePreparePaymentData      = "ticketwave.payment.prepare-payment-data.v1"
	TypeReleaseEventInventory   = "ticketwave.catalog.release-event-inventory.v1"
	TypeCommitEventInventory    = "ticketwave.catalog.commit-event-inventory.v1"
	TypeCancelPayment           = "ticketwave.payment.cancel-payment.v1"
	TypeRefundPayment           = "ticketwave.payment.refund-payment.v1"
	TypeBookingCreated          = "ticketwave.booking.booking-created.v1"
	TypeBookingConfirmed        = "ticketwave.booking.booking-confirmed.v1"
	TypeBookingRejected         = "ticketwave.booking.booking-rejected.v1"
	TypeBookingCancelled        = "ticketwave.booking.booking-cancelled.v1"
	TypeBookingExpired          = "ticketwave.booking.booking-expired.v1"
)

// UpdateEventInventory (UpdateEventInventoryIntegrationEvent) asks the catalog to take tickets for a booking. The
// catalog answers with InventoryUpdated or InventoryUpdateRejected; the same booking twice gets the first answer.
type UpdateEventInventory struct {
	EventID   string `json:"eventId"`
	BookingID string `json:"bookingId"`
	// QuantityReduced is how many tickets, 1 or more.
	QuantityReduced int       `json:"quantityReduced"`
	RequestedAt     time.Time `json:"requestedAt"`
}

// EventType is TypeUpdateEventInventory.
func (UpdateEventInventory) EventType() string { return TypeUpdateEventInventory }

// EventKey is the booking.
func (e UpdateEventInventory) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e UpdateEventInventory) Validate() error {
	return first(
		checkID("eventId", e.EventID),
		checkID("bookingId", e.BookingID),
		checkCount("quantityReduced", e.QuantityReduced, 1),
		checkTime("requestedAt", e.RequestedAt),
	)
}

// NotificationType is what a notification is about. Values may be added: a build that does not know one keeps the message
// for the next build, and the booking's later messages behind it.
type NotificationType string

// The notification types.
const (
	NotificationBookingCreated   NotificationType = "booking_created"
	NotificationBookingConfirmed NotificationType = "booking_confirmed"
	NotificationBookingRejected  NotificationType = "booking_rejected"
	NotificationBookingCancelled NotificationType = "booking_cancelled"
	NotificationBookingExpired   NotificationType = "booking_expired"
	NotificationPaymentFailed    NotificationType = "payment_failed"
)

// Valid reports whether this version knows the type.
func (t NotificationType) Valid() bool {
	switch t {
	case NotificationBookingCreated, NotificationBookingConfirmed, NotificationBookingRejected, NotificationBookingCancelled,
		NotificationBookingExpired, NotificationPaymentFailed:
		return true
	}
	return false
}

// SendBookingNotification (SendBookingNotificationIntegrationEvent) asks the notification service to tell the user
// about a booking. It answers with NotificationSent. The user may be told more than once, under one Message-ID.
type SendBookingNotification struct {
	BookingID string `json:"bookingId"`
	UserID    string `json:"userId"`
	EventID   string `json:"eventId"`
	// Quantity is how many tickets, 1 or more.
	Quantity int `json:"quantity"`
	// TotalAmount is the price of all of them, in the event's currency.
	TotalAmount      Amount           `json:"totalAmount"`
	NotificationType NotificationType `json:"notificationType"`
	RequestedAt      time.Time        `json:"requestedAt"`
}

// EventType is TypeSendBookingNotification.
func (SendBookingNotification) EventType() string { return TypeSendBookingNotification }

// EventKey is the booking.
func (e SendBookingNotification) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e SendBookingNotification) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("userId", e.UserID),
		checkID("eventId", e.EventID),
		checkCount("quantity", e.Quantity, 1),
		checkAmount("totalAmount", e.TotalAmount),
		checkKnown("notificationType", e.NotificationType),
		checkTime("requestedAt", e.RequestedAt),
	)
}

// PreparePaymentData (PreparePaymentDataIntegrationEvent) asks the payment service to prepare the payment of a
// booking. It answers with PaymentDataPrepared; the same booking twice has one payment.
type PreparePaymentData struct {
	BookingID string `json:"bookingId"`
	Amount    Amount `json:"amount"`
	// Currency is an ISO 4217 code.
	Currency string `json:"currency"`
	UserID   string `json:"userId"`
	// ExpiresAt is until when the tickets are held.
	ExpiresAt   time.Time `json:"expiresAt"`
	RequestedAt time.Time `json:"requestedAt"`
}

// EventType is TypePreparePaymentData.
func (PreparePaymentData) EventType() string { return TypePreparePaymentData }

// EventKey is the booking.
func (e PreparePaymentData) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e PreparePaymentData) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkAmount("amount", e.Amount),
		checkCurrency("currency", e.Currency),
		checkID("userId", e.UserID),
		checkTime("expiresAt", e.ExpiresAt),
		checkTime("requestedAt", e.RequestedAt),
	)
}

// UndoReason is why a step of a booking is undone.
type UndoReason string

// The reasons to undo.
const (
	UndoBookingRejected  UndoReason = "booking_rejected"
	UndoBookingExpired   UndoReason = "booking_expired"
	UndoBookingCancelled UndoReason = "booking_cancelled"
	UndoPaymentFailed    UndoReason = "payment_failed"
)

// Valid reports whether this version knows the value.
func (u UndoReason) Valid() bool {
	switch u {
	case UndoBookingRejected, UndoBookingExpired, UndoBookingCancelled, UndoPaymentFailed:
		return true
	}
	return false
}

// BookingRejection is why a booking will not be.
type BookingRejection string

// The reasons of a rejection.
const (
	BookingSoldOut            BookingRejection = "sold_out"
	BookingUnknownEvent       BookingRejection = "unknown_event"
	BookingPaymentUnavailable BookingRejection = "payment_unavailable"
	BookingPaymentFailed      BookingRejection = "payment_failed"
)

// Valid reports whether this version knows the value.
func (b BookingRejection) Valid() bool {
	switch b {
	case BookingSoldOut, BookingUnknownEvent, BookingPaymentUnavailable, BookingPaymentFailed:
		return true
	}
	return false
}

// ReleaseEventInventory asks the catalog to give back what it holds for a booking. The catalog answers with InventoryReleased, however
// often it is asked. A release that overtakes its UpdateEventInventory leaves a mark: that request then takes nothing.
type ReleaseEventInventory struct {
	EventID     string     `json:"eventId"`
	BookingID   string     `json:"bookingId"`
	Reason      UndoReason `json:"reason"`
	RequestedAt time.Time  `json:"requestedAt"`
}

// EventType is TypeReleaseEventInventory.
func (ReleaseEventInventory) EventType() string { return TypeReleaseEventInventory }

// EventKey is the booking.
func (e ReleaseEventInventory) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e ReleaseEventInventory) Validate() error {
	return first(
		checkID("eventId", e.EventID),
		checkID("bookingId", e.BookingID),
		checkKnown("reason", e.Reason),
		checkTime("requestedAt", e.RequestedAt),
	)
}

// CommitEventInventory asks the catalog to turn what it holds for a confirmed booking into sold tickets. The catalog answers with
// InventoryCommitted, however often it is asked. Nothing undoes it.
type CommitEventInventory struct {
	EventID     string    `json:"eventId"`
	BookingID   string    `json:"bookingId"`
	RequestedAt time.Time `json:"requestedAt"`
}

// EventType is TypeCommitEventInventory.
func (CommitEventInventory) EventType() string { return TypeCommitEventInventory }

// EventKey is the booking.
func (e CommitEventInventory) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e CommitEventInventory) Validate() error {
	return first(
		checkID("eventId", e.EventID),
		checkID("bookingId", e.BookingID),
		checkTime("requestedAt", e.RequestedAt),
	)
}

// CancelPayment asks the payment service to take no money for a booking. It answers with PaymentCancelled, or with what ended the
// payment before. A cancellation that overtakes its PreparePaymentData leaves a mark: then nothing is prepared.
type CancelPayment struct {
	BookingID   string     `json:"bookingId"`
	Reason      UndoReason `json:"reason"`
	RequestedAt time.Time  `json:"requestedAt"`
}

// EventType is TypeCancelPayment.
func (CancelPayment) EventType() string { return TypeCancelPayment }

// EventKey is the booking.
func (e CancelPayment) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e CancelPayment) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkKnown("reason", e.Reason),
		checkTime("requestedAt", e.RequestedAt),
	)
}

// RefundPayment asks the payment service to give back all that was captured for a booking. It answers with PaymentRefunded, however
// often it is asked; the money goes back once.
type RefundPayment struct {
	BookingID   string     `json:"bookingId"`
	PaymentID   string     `json:"paymentId"`
	Reason      UndoReason `json:"reason"`
	RequestedAt time.Time  `json:"requestedAt"`
}

// EventType is TypeRefundPayment.
func (RefundPayment) EventType() string { return TypeRefundPayment }

// EventKey is the booking.
func (e RefundPayment) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e RefundPayment) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("paymentId", e.PaymentID),
		checkKnown("reason", e.Reason),
		checkTime("requestedAt", e.RequestedAt),
	)
}

// BookingCreated says that a booking was taken. The coordinator begins an instance with it.
type BookingCreated struct {
	BookingID string `json:"bookingId"`
	EventID   string `json:"eventId"`
	UserID    string `json:"userId"`
	// Quantity is how many tickets, 1 or more.
	Quantity int `json:"quantity"`
	// TotalAmount is the price of all of them.
	TotalAmount Amount `json:"totalAmount"`
	// Currency is an ISO 4217 code.
	Currency string `json:"currency"`
	// ExpiresAt is until when the tickets are held.
	ExpiresAt time.Time `json:"expiresAt"`
	CreatedAt time.Time `json:"createdAt"`
}

// EventType is TypeBookingCreated.
func (BookingCreated) EventType() string { return TypeBookingCreated }

// EventKey is the booking.
func (e BookingCreated) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e BookingCreated) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("eventId", e.EventID),
		checkID("userId", e.UserID),
		checkCount("quantity", e.Quantity, 1),
		checkAmount("totalAmount", e.TotalAmount),
		checkCurrency("currency", e.Currency),
		checkTime("expiresAt", e.ExpiresAt),
		checkTime("createdAt", e.CreatedAt),
	)
}

// BookingConfirmed says that a booking is paid and its tickets are its own. It is final.
type BookingConfirmed struct {
	BookingID string `json:"bookingId"`
	EventID   string `json:"eventId"`
	UserID    string `json:"userId"`
	// Quantity is how many tickets, 1 or more.
	Quantity int `json:"quantity"`
	// TotalAmount is the price of all of them.
	TotalAmount Amount `json:"totalAmount"`
	// Currency is an ISO 4217 code.
	Currency    string    `json:"currency"`
	PaymentID   string    `json:"paymentId"`
	ConfirmedAt time.Time `json:"confirmedAt"`
}

// EventType is TypeBookingConfirmed.
func (BookingConfirmed) EventType() string { return TypeBookingConfirmed }

// EventKey is the booking.
func (e BookingConfirmed) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e BookingConfirmed) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("eventId", e.EventID),
		checkID("userId", e.UserID),
		checkCount("quantity", e.Quantity, 1),
		checkAmount("totalAmount", e.TotalAmount),
		checkCurrency("currency", e.Currency),
		checkID("paymentId", e.PaymentID),
		checkTime("confirmedAt", e.ConfirmedAt),
	)
}

// BookingRejected says that a booking will not be, and why. It is final.
type BookingRejected struct {
	BookingID  string           `json:"bookingId"`
	EventID    string           `json:"eventId"`
	UserID     string           `json:"userId"`
	Reason     BookingRejection `json:"reason"`
	RejectedAt time.Time        `json:"rejectedAt"`
}

// EventType is TypeBookingRejected.
func (BookingRejected) EventType() string { return TypeBookingRejected }

// EventKey is the booking.
func (e BookingRejected) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e BookingRejected) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("eventId", e.EventID),
		checkID("userId", e.UserID),
		checkKnown("reason", e.Reason),
		checkTime("rejectedAt", e.RejectedAt),
	)
}

// BookingCancelled says that the user gave a booking up before it was confirmed. It is final.
type BookingCancelled struct {
	BookingID   string    `json:"bookingId"`
	EventID     string    `json:"eventId"`
	UserID      string    `json:"userId"`
	CancelledAt time.Time `json:"cancelledAt"`
}

// EventType is TypeBookingCancelled.
func (BookingCancelled) EventType() string { return TypeBookingCancelled }

// EventKey is the booking.
func (e BookingCancelled) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e BookingCancelled) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("eventId", e.EventID),
		checkID("userId", e.UserID),
		checkTime("cancelledAt", e.CancelledAt),
	)
}

// BookingExpired says that a booking was not paid in time. It is final.
type BookingExpired struct {
	BookingID string    `json:"bookingId"`
	EventID   string    `json:"eventId"`
	UserID    string    `json:"userId"`
	ExpiredAt time.Time `json:"expiredAt"`
}

// EventType is TypeBookingExpired.
func (BookingExpired) EventType() string { return TypeBookingExpired }

// EventKey is the booking.
func (e BookingExpired) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e BookingExpired) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("eventId", e.EventID),
		checkID("userId", e.UserID),
		checkTime("expiredAt", e.ExpiredAt),
	)
}
