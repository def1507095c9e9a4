package payment

import (
	"context"
	"time"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// The messages of the log; what they are about stands in the attributes.
const (
	logProcessing = "💰 Processing PreparePaymentDataIntegrationEvent"
	logCancelling = "💰 Processing CancelPayment"
	logRefunding  = "💰 Processing RefundPayment"
	logPrepared   = "✅ Payment prepared"
	logRepeated   = "🔁 Booking asked before, repeating its payment"
	logAsking     = "⏳ Payment waits for its gateway"
	logPublished  = "📊 Published PaymentDataPreparedIntegrationEvent"
	logTold       = "📊 Published what became of the payment"
	logCaptured   = "💶 Money captured"
	logGivenBack  = "↩️ Money given back"
	logWebhook    = "⛔ Webhook refused"
)

// Handlers says what payment listens to.
func (s *Service) Handlers(c *inbox.Consumer) {
	inbox.HandleAll(c, contracts.TypePreparePaymentData, s.Prepare)
	inbox.HandleAll(c, contracts.TypeCancelPayment, s.Cancel)
	inbox.HandleAll(c, contracts.TypeRefundPayment, s.Refund)
}

// flow is ctx with the flow of the request that made the payment.
func (p Payment) flow(ctx context.Context) context.Context {
	return outbox.WithCausality(ctx, outbox.Causality{CorrelationID: p.CorrelationID, CausationID: p.CausationID, TraceParent: p.TraceParent})
}

// told is the event that says where the payment stands; nil while its gateway is asked.
func (p Payment) told() contracts.Event {
	booking, id := p.BookingID.String(), p.ID.String()
	var settled time.Time
	if p.SettledAt != nil {
		settled = *p.SettledAt
	}
	switch p.Status {
	case Prepared:
		return contracts.PaymentDataPrepared{BookingID: booking, PaymentID: id, Amount: p.Amount, Currency: p.Currency,
			ExpiresAt: p.ExpiresAt, PaymentURL: *p.URL, PreparedAt: p.PreparedAt}
	case Completed:
		return contracts.PaymentCompleted{BookingID: booking, PaymentID: id, Amount: p.Amount, Currency: p.Currency, CompletedAt: settled}
	case Failed:
		return contracts.PaymentFailed{BookingID: booking, PaymentID: id, Reason: contracts.PaymentFailure(*p.Reason), FailedAt: settled}
	case Expired:
		return contracts.PaymentExpired{BookingID: booking, PaymentID: id, ExpiredAt: settled}
	case Cancelled:
		return contracts.PaymentCancelled{BookingID: booking, CancelledAt: settled}
	case Unavailable:
		return contracts.PaymentPreparationFailed{BookingID: booking, Reason: contracts.PreparationFailure(*p.Reason), FailedAt: settled}
	case Refunded:
		return contracts.PaymentRefunded{BookingID: booking, PaymentID: id, Amount: p.Amount, Currency: p.Currency, RefundedAt: settled}
	case Preparing:
	}
	return nil
}

// refunded is the event that says that all charges were given back; false while one was not, or where there are none. Its amount is
// in the payment's currency, or, when nothing was charged in it, in that of the first charge.
func (p Payment) refunded(all []charge) (contracts.PaymentRefunded, bool) {
	e := contracts.PaymentRefunded{BookingID: p.BookingID.String(), PaymentID: p.ID.String()}
	for _, c := range all {
		if c.RefundedAt == nil {
			return e, false
		}
		if e.Currency == "" || c.Currency == p.Currency && e.Currency != p.Currency {
			e.Amount, e.Currency = 0, c.Currency
		}
		if c.Currency == e.Currency {
			e.Amount += c.Amount
		}
		if c.RefundedAt.After(e.RefundedAt) {
			e.RefundedAt = c.RefundedAt.UTC()
		}
	}
	return e, len(all) > 0
}
