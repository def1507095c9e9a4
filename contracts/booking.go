package contracts

import "time"

// Types of what booking publishes: requests to the other services, each in its receiver's contract.
const (
	TypeUpdateEventInventory    = "ticketwave.catalog.update-event-inventory.v1"
	TypeSendBookingNotification = "ticketwave.notification.send-booking-notification.v1"
	TypePreparePaymentData      = "ticketwave.payment.prepare-payment-data.v1"
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

// NotificationType is what a notification is about.
type NotificationType string

// The notification types.
const (
	NotificationBookingCreated   NotificationType = "booking_created"
	NotificationBookingConfirmed NotificationType = "booking_confirmed"
	NotificationBookingRejected  NotificationType = "booking_rejected"
	NotificationBookingCancelled NotificationType = "booking_cancelled"
)

// Valid reports whether this version knows the type.
func (t NotificationType) Valid() bool {
	switch t {
	case NotificationBookingCreated, NotificationBookingConfirmed, NotificationBookingRejected, NotificationBookingCancelled:
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
