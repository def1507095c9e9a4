package catalog

import (
	"context"
	"log/slog"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// The messages of the log; what they are about stands in the attributes.
const (
	logCreated           = "🎪 Event on sale"
	logProcessing        = "🎫 Processing UpdateEventInventoryIntegrationEvent"
	logUpdated           = "✅ Inventory updated successfully"
	logPublished         = "📊 Published InventoryUpdatedIntegrationEvent"
	logRejected          = "⛔ Inventory update rejected"
	logPublishedRejected = "📊 Published InventoryUpdateRejectedIntegrationEvent"
	logRepeated          = "🔁 Booking asked before, repeating its first answer"
)

// Handlers says what the catalog listens to.
func (s *Service) Handlers(c *inbox.Consumer) {
	inbox.HandleAll(c, contracts.TypeUpdateEventInventory, s.Reserve,
		inbox.Locks(func(e contracts.UpdateEventInventory) string { return e.EventID }))
}

func (e Event) published() contracts.CatalogEventPublished {
	return contracts.CatalogEventPublished{
		EventID: e.ID.String(), Name: e.Name, StartsAt: e.StartsAt, Price: e.Price, Currency: e.Currency,
		Capacity: e.Capacity, Version: e.Version, PublishedAt: e.CreatedAt,
	}
}

// answer is the event that tells the booking, and the log line that goes with it.
func (r reservation) answer() (outbox.Event, string) {
	if r.Outcome == outcomeReserved {
		return contracts.InventoryUpdated{
			EventID: r.EventID.String(), BookingID: r.BookingID.String(),
			PreviousAvailableTickets: r.AvailableBefore, CurrentAvailableTickets: r.AvailableAfter,
			UpdateType: contracts.UpdateReserved, Version: r.Version, UpdatedAt: r.AnsweredAt.UTC(),
		}, logPublished
	}
	return contracts.InventoryUpdateRejected{
		EventID: r.EventID.String(), BookingID: r.BookingID.String(),
		QuantityRequested: r.Quantity, AvailableTickets: r.AvailableAfter,
		Reason: contracts.RejectReason(r.Outcome), RejectedAt: r.AnsweredAt.UTC(),
	}, logPublishedRejected
}

func (r reservation) log(ctx context.Context, log *slog.Logger, isFirst bool) {
	switch {
	case !isFirst:
		log.InfoContext(ctx, logRepeated, "outcome", r.Outcome)
	case r.Outcome == outcomeReserved:
		log.InfoContext(ctx, logUpdated, "previous", r.AvailableBefore, "new", r.AvailableAfter)
	default:
		log.InfoContext(ctx, logRejected, "reason", r.Outcome, "requested", r.Quantity, "available", r.AvailableAfter)
	}
}
