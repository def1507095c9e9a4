package catalog

import (
	"context"
	"log/slog"
	"time"

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
	logTooLate           = "↩️ Tickets of the booking were released, giving none"
	logPublishedReleased = "📊 Published InventoryReleasedIntegrationEvent"
	logReleased          = "↩️ Tickets released"
	logCommitted         = "🎟️ Tickets sold"
)

// Handlers says what the catalog listens to.
func (s *Service) Handlers(c *inbox.Consumer) {
	inbox.HandleAll(c, contracts.TypeUpdateEventInventory, s.Reserve,
		inbox.Locks(func(e contracts.UpdateEventInventory) string { return e.EventID }))
	inbox.HandleAll(c, contracts.TypeReleaseEventInventory, s.Release,
		inbox.Locks(func(e contracts.ReleaseEventInventory) string { return e.EventID }))
	inbox.HandleAll(c, contracts.TypeCommitEventInventory, s.Commit,
		inbox.Locks(func(e contracts.CommitEventInventory) string { return e.EventID }))
}

func (e Event) published() contracts.CatalogEventPublished {
	return contracts.CatalogEventPublished{
		EventID: e.ID.String(), Name: e.Name, StartsAt: e.StartsAt, Price: e.Price, Currency: e.Currency,
		Capacity: e.Capacity, Version: e.Version, PublishedAt: e.CreatedAt,
	}
}

// answer is the event that tells the booking, and the log line that goes with it.
func (r reservation) answer() (outbox.Event, string) {
	if r.Hold == holdReleased {
		return r.released(), logPublishedReleased
	}
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

// released is what a booking is told whose tickets were released.
func (r reservation) released() contracts.InventoryReleased {
	e := contracts.InventoryReleased{EventID: r.EventID.String(), BookingID: r.BookingID.String(), ReleasedAt: r.settledAt()}
	if r.Outcome == outcomeReserved {
		e.QuantityReleased = r.Quantity
	}
	return e
}

// committed is what a booking is told whose tickets are sold.
func (r reservation) committed() contracts.InventoryCommitted {
	return contracts.InventoryCommitted{
		EventID: r.EventID.String(), BookingID: r.BookingID.String(), QuantityCommitted: r.Quantity, CommittedAt: r.settledAt(),
	}
}

// settledAt is zero while the tickets are neither released nor sold.
func (r reservation) settledAt() time.Time {
	if r.SettledAt == nil {
		return time.Time{}
	}
	return r.SettledAt.UTC()
}

func (r reservation) log(ctx context.Context, log *slog.Logger, isFirst bool) {
	switch {
	case r.Hold == holdReleased:
		log.InfoContext(ctx, logTooLate, "outcome", r.Outcome)
	case !isFirst:
		log.InfoContext(ctx, logRepeated, "outcome", r.Outcome)
	case r.Outcome == outcomeReserved:
		log.InfoContext(ctx, logUpdated, "previous", r.AvailableBefore, "new", r.AvailableAfter)
	default:
		log.InfoContext(ctx, logRejected, "reason", r.Outcome, "requested", r.Quantity, "available", r.AvailableAfter)
	}
}
