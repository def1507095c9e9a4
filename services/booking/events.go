package booking

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// The log lines of the flow, in their order.
const (
	logStarting     = "🚀 Starting integration events example flow"
	logProcessing   = "📅 Processing BookingCreatedDomainEvent for BookingId"
	logInventory    = "🎫 Publishing UpdateEventInventoryIntegrationEvent"
	logNotification = "📧 Publishing SendBookingNotificationIntegrationEvent"
	logPayment      = "💰 Publishing PreparePaymentDataIntegrationEvent"
	logProcessed    = "✅ Successfully processed BookingCreatedDomainEvent for BookingId"

	// typeCreated is the domain event's name in logs; it never leaves the service.
	typeCreated = "BookingCreatedDomainEvent"
)

// onCreated maps the domain event to the three requests that a booking sets off, and appends them in tx.
func (s *Service) onCreated(ctx context.Context, tx pgx.Tx, e Created) ([]outbox.Message, error) {
	log := s.log.With("booking_id", e.BookingID.String())
	log.InfoContext(ctx, logProcessing, "event_type", typeCreated)
	inventory, notification, payment := e.requests()
	messages, err := outbox.Encode(ctx, inventory, notification, payment)
	if err != nil {
		return nil, err
	}
	log.InfoContext(ctx, logInventory, "event_type", inventory.EventType(), "event_id", inventory.EventID, "quantity", inventory.QuantityReduced)
	log.InfoContext(ctx, logNotification, "event_type", notification.EventType(), "user_id", notification.UserID)
	log.InfoContext(ctx, logPayment, "event_type", payment.EventType(), "amount", payment.Amount.String(), "currency", payment.Currency)
	if err := outbox.Write(ctx, tx, messages...); err != nil {
		return nil, err
	}
	log.InfoContext(ctx, logProcessed, "event_type", typeCreated)
	return messages, nil
}

// requests are the integration events of a new booking.
func (e Created) requests() (contracts.UpdateEventInventory, contracts.SendBookingNotification, contracts.PreparePaymentData) {
	booking, event, user := e.BookingID.String(), e.EventID.String(), e.UserID.String()
	return contracts.UpdateEventInventory{EventID: event, BookingID: booking, QuantityReduced: e.Quantity, RequestedAt: e.At},
		contracts.SendBookingNotification{
			BookingID: booking, UserID: user, EventID: event, Quantity: e.Quantity, TotalAmount: e.TotalAmount,
			NotificationType: contracts.NotificationBookingCreated, RequestedAt: e.At,
		},
		contracts.PreparePaymentData{
			BookingID: booking, Amount: e.TotalAmount, Currency: e.Currency, UserID: user, ExpiresAt: e.ExpiresAt, RequestedAt: e.At,
		}
}

// Handlers adds what booking does with the other services' events. The consumer has validated them.
func (s *Service) Handlers(c *inbox.Consumer) {
	inbox.Handle(c, contracts.TypeCatalogEventPublished, s.OnCatalogEventPublished)
	inbox.HandleAll(c, contracts.TypeInventoryUpdated, s.OnInventoryUpdated)
	inbox.HandleAll(c, contracts.TypeInventoryUpdateRejected, s.OnInventoryUpdateRejected)
	inbox.HandleAll(c, contracts.TypePaymentDataPrepared, s.OnPaymentDataPrepared)
	inbox.HandleAll(c, contracts.TypeNotificationSent, s.OnNotificationSent)
}

// OnCatalogEventPublished keeps the newest version of an event in the read model.
func (s *Service) OnCatalogEventPublished(ctx context.Context, tx pgx.Tx, e contracts.CatalogEventPublished) error {
	if err := valid(e); err != nil {
		return err
	}
	isNewer, err := upsertEvent(ctx, tx, e)
	if err != nil {
		return fmt.Errorf("store event %s: %w", e.EventID, err)
	}
	s.log.InfoContext(ctx, "event on sale", "event_id", e.EventID, "version", e.Version, "newer", isNewer)
	return nil
}

// OnInventoryUpdated notes that the bookings' tickets are reserved. Tickets given back change nothing here.
func (s *Service) OnInventoryUpdated(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.InventoryUpdated]) error {
	return hear(ctx, s, tx, items, func(e contracts.InventoryUpdated) (change, check) {
		if e.UpdateType != contracts.UpdateReserved {
			return change{}, nil
		}
		return setReserved(e.BookingID, s.now()), func(b *Booking) error {
			taken := e.PreviousAvailableTickets - e.CurrentAvailableTickets
			if e.EventID != b.EventID.String() || taken != b.TicketCount {
				return contradicts(b, "%d tickets of event %s were reserved, booked were %d of %s", taken, e.EventID, b.TicketCount, b.EventID)
			}
			return nil
		}
	})
}

// OnInventoryUpdateRejected rejects bookings that are still pending.
func (s *Service) OnInventoryUpdateRejected(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.InventoryUpdateRejected]) error {
	return hear(ctx, s, tx, items, func(e contracts.InventoryUpdateRejected) (change, check) {
		return setRejected(e.BookingID, string(e.Reason), s.now()), func(b *Booking) error {
			if e.EventID != b.EventID.String() {
				return contradicts(b, "tickets of event %s were refused, booked were some of %s", e.EventID, b.EventID)
			}
			return nil
		}
	})
}

// OnPaymentDataPrepared notes where and until when the bookings can be paid.
func (s *Service) OnPaymentDataPrepared(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.PaymentDataPrepared]) error {
	return hear(ctx, s, tx, items, func(e contracts.PaymentDataPrepared) (change, check) {
		return setPayment(e, s.now()), func(b *Booking) error {
			if e.Amount != b.TotalAmount || e.Currency != b.Currency {
				return contradicts(b, "a payment of %s %s was prepared, its total is %s %s", e.Amount, e.Currency, b.TotalAmount, b.Currency)
			}
			return nil
		}
	})
}

// OnNotificationSent notes whether users were told of their new bookings; once told is told.
func (s *Service) OnNotificationSent(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.NotificationSent]) error {
	return hear(ctx, s, tx, items, func(e contracts.NotificationSent) (change, check) {
		if e.NotificationType != contracts.NotificationBookingCreated {
			return change{}, nil
		}
		return setNotified(e, s.now()), func(*Booking) error { return nil }
	})
}

// check says whether an answer can be about a booking.
type check func(b *Booking) error

// hear applies answers to their bookings, then checks that they can be about them; an error takes all changes back. An
// answer without a check changes nothing.
func hear[E contracts.Event](ctx context.Context, s *Service, tx pgx.Tx, items []inbox.Item[E], apply func(e E) (change, check)) error {
	var (
		changes []change
		checks  []check
		heard   []context.Context
	)
	for _, i := range items {
		if err := valid(i.Event); err != nil {
			return err
		}
		if c, ok := apply(i.Event); ok != nil {
			changes, checks, heard = append(changes, c), append(checks, ok), append(heard, i.Context())
		}
	}
	bookings, err := changeAll(ctx, tx, changes)
	if err != nil {
		return fmt.Errorf("update %d bookings: %w", len(changes), err)
	}
	for i, c := range changes {
		if err := s.heard(heard[i], tx, c.bookingID, bookings[i], checks[i]); err != nil {
			return err
		}
	}
	return nil
}

// heard ends an answer whose change has or has not passed its guard. There is a booking for every answer: the request
// and the booking were committed together.
func (s *Service) heard(ctx context.Context, tx pgx.Tx, id string, changed *Booking, check check) (err error) {
	b := changed
	if b == nil {
		b, err = bookingByID(ctx, tx, id)
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return inbox.Permanent(fmt.Errorf("there is no booking %s", id))
	case err != nil:
		return fmt.Errorf("read booking %s: %w", id, err)
	}
	if err := check(b); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "booking heard an answer", "booking_id", id, "event_id", b.EventID.String(),
		"status", string(b.Status), "notified", b.Notified != nil && *b.Notified, "changed", changed != nil)
	return nil
}

// contradicts is the error of an answer that cannot be about this booking.
func contradicts(b *Booking, format string, args ...any) error {
	return inbox.Permanent(fmt.Errorf("booking %s: %s", b.ID, fmt.Sprintf(format, args...)))
}

// valid parks what has no possible content.
func valid(e contracts.Event) error {
	if err := e.Validate(); err != nil {
		return inbox.Permanent(fmt.Errorf("%s: %w", e.EventType(), err))
	}
	return nil
}
