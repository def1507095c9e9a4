package notification

import (
	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// The messages of the log; what they are about stands in the attributes.
const (
	logProcessing = "📧 Processing SendBookingNotificationIntegrationEvent"
	logSent       = "✅ Notification sent"
	logFailed     = "⛔ Notification failed"
	logPublished  = "📊 Published NotificationSentIntegrationEvent"
)

// OneByOne says that no two messages share a transaction, where mails go to a server: a mail that is sent cannot be rolled
// back with those of others. A file written again stays the same.
func (s *Service) OneByOne() bool {
	_, toFiles := s.mailer.(files)
	return !toFiles
}

// Handlers says what notification listens to.
func (s *Service) Handlers(c *inbox.Consumer) {
	inbox.HandleAll(c, contracts.TypeSendBookingNotification, s.Notify)
}

func (n Notification) sent() contracts.NotificationSent {
	return contracts.NotificationSent{
		BookingID: n.BookingID.String(), UserID: n.UserID.String(), NotificationType: n.Type, Channel: n.Channel,
		Success: n.Success, ErrorMessage: n.Error, SentAt: n.SentAt,
	}
}
