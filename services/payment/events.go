package payment

import (
	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// The messages of the log; what they are about stands in the attributes.
const (
	logProcessing = "💰 Processing PreparePaymentDataIntegrationEvent"
	logPrepared   = "✅ Payment prepared"
	logRepeated   = "🔁 Booking asked before, repeating its payment"
	logPublished  = "📊 Published PaymentDataPreparedIntegrationEvent"
)

// Handlers says what payment listens to.
func (s *Service) Handlers(c *inbox.Consumer) {
	inbox.HandleAll(c, contracts.TypePreparePaymentData, s.Prepare)
}

func (p Payment) prepared() contracts.PaymentDataPrepared {
	return contracts.PaymentDataPrepared{
		BookingID: p.BookingID.String(), PaymentID: p.ID.String(), Amount: p.Amount, Currency: p.Currency,
		ExpiresAt: p.ExpiresAt, PaymentURL: p.URL, PreparedAt: p.PreparedAt,
	}
}
