package contracts

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// TypeNotificationSent is the type of what the notification service publishes.
const TypeNotificationSent = "ticketwave.notification.notification-sent.v1"

// Channel is how a user was told.
type Channel string

// ChannelEmail is the only channel so far.
const ChannelEmail Channel = "email"

// Valid reports whether this version knows the channel.
func (c Channel) Valid() bool { return c == ChannelEmail }

// NotificationSent (NotificationSentIntegrationEvent) says that a user was told about a booking, or why not.
type NotificationSent struct {
	BookingID        string           `json:"bookingId"`
	UserID           string           `json:"userId"`
	NotificationType NotificationType `json:"notificationType"`
	Channel          Channel          `json:"channel"`
	Success          bool             `json:"success"`
	// ErrorMessage says why there was no success; null exactly when there was.
	ErrorMessage *string   `json:"errorMessage"`
	SentAt       time.Time `json:"sentAt"`
}

// EventType is TypeNotificationSent.
func (NotificationSent) EventType() string { return TypeNotificationSent }

// EventKey is the booking.
func (e NotificationSent) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e NotificationSent) Validate() error {
	return first(
		checkID("bookingId", e.BookingID),
		checkID("userId", e.UserID),
		checkKnown("notificationType", e.NotificationType),
		checkKnown("channel", e.Channel),
		e.checkErrorMessage(),
		checkTime("sentAt", e.SentAt),
	)
}

func (e NotificationSent) checkErrorMessage() error {
	if e.ErrorMessage == nil {
		return check(e.Success, "errorMessage", "given without success")
	}
	return first(
		check(!e.Success, "errorMessage", "null with success"),
		check(utf8.RuneCountInString(*e.ErrorMessage) <= MaxErrorMessage, "errorMessage", fmt.Sprintf("at most %d characters", MaxErrorMessage)),
	)
}
