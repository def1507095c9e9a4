package booking

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

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
	inbox.Handle(c, contracts.TypeInventoryUpdated, s.OnInventoryUpdated)
	inbox.Handle(c, contracts.TypeInventoryUpdateRejected, s.OnInventoryUpdateRejected)
	inbox.Handle(c, contracts.TypePaymentDataPrepared, s.OnPaymentDataPrepared)
	inbox.Handle(c, contracts.TypeNotificationSent, s.OnNotificationSent)
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

// OnInventoryUpdated notes that the booking's tickets are reserved. Tickets given back change nothing here.
func (s *Service) OnInventoryUpdated(ctx context.Context, tx pgx.Tx, e contracts.InventoryUpdated) error {
	if err := valid(e); err != nil {
		return err
	}
	if e.UpdateType != contracts.UpdateReserved {
		return nil
	}
	b, err := lockBooking(ctx, tx, e.BookingID)
	if err != nil {
		return err
	}
	taken := e.PreviousAvailableTickets - e.CurrentAvailableTickets
	if e.EventID != b.EventID.String() || taken != b.TicketCount {
		return contradicts(b, "%d tickets of event %s were reserved, booked were %d of %s", taken, e.EventID, b.TicketCount, b.EventID)
	}
	status, changed, err := setReserved(ctx, tx, b.ID, s.now())
	return s.settled(ctx, b, status, changed, err)
}

// OnInventoryUpdateRejected rejects a booking that is still pending.
func (s *Service) OnInventoryUpdateRejected(ctx context.Context, tx pgx.Tx, e contracts.InventoryUpdateRejected) error {
	if err := valid(e); err != nil {
		return err
	}
	b, err := lockBooking(ctx, tx, e.BookingID)
	if err != nil {
		return err
	}
	if e.EventID != b.EventID.String() {
		return contradicts(b, "tickets of event %s were refused, booked were some of %s", e.EventID, b.EventID)
	}
	status, changed, err := setRejected(ctx, tx, b.ID, string(e.Reason), s.now())
	return s.settled(ctx, b, status, changed, err)
}

// OnPaymentDataPrepared notes where and until when the booking can be paid.
func (s *Service) OnPaymentDataPrepared(ctx context.Context, tx pgx.Tx, e contracts.PaymentDataPrepared) error {
	if err := valid(e); err != nil {
		return err
	}
	b, err := lockBooking(ctx, tx, e.BookingID)
	if err != nil {
		return err
	}
	if e.Amount != b.TotalAmount || e.Currency != b.Currency {
		return contradicts(b, "a payment of %s %s was prepared, its total is %s %s", e.Amount, e.Currency, b.TotalAmount, b.Currency)
	}
	status, changed, err := setPayment(ctx, tx, b.ID, e, s.now())
	return s.settled(ctx, b, status, changed, err)
}

// OnNotificationSent notes whether the user was told of the new booking; once told is told.
func (s *Service) OnNotificationSent(ctx context.Context, tx pgx.Tx, e contracts.NotificationSent) error {
	if err := valid(e); err != nil {
		return err
	}
	if e.NotificationType != contracts.NotificationBookingCreated {
		return nil
	}
	b, err := lockBooking(ctx, tx, e.BookingID)
	if err != nil {
		return err
	}
	changed, err := setNotified(ctx, tx, b.ID, e, s.now())
	if err != nil {
		return fmt.Errorf("note that the user of booking %s was told: %w", b.ID, err)
	}
	s.logAnswer(ctx, b, slog.Bool("success", e.Success), slog.Bool("changed", changed))
	return nil
}

// settled logs what an answer did to the booking.
func (s *Service) settled(ctx context.Context, b *Booking, status Status, changed bool, err error) error {
	if err != nil {
		return fmt.Errorf("update booking %s: %w", b.ID, err)
	}
	s.logAnswer(ctx, b, slog.String("status", string(status)), slog.Bool("changed", changed))
	return nil
}

func (s *Service) logAnswer(ctx context.Context, b *Booking, attrs ...slog.Attr) {
	attrs = append([]slog.Attr{slog.String("booking_id", b.ID.String()), slog.String("event_id", b.EventID.String())}, attrs...)
	s.log.LogAttrs(ctx, slog.LevelInfo, "booking heard an answer", attrs...)
}

// lockBooking is the booking that an answer is about, locked until tx ends. One that does not exist can never be
// answered: the request and the booking were committed together.
func lockBooking(ctx context.Context, tx pgx.Tx, id string) (*Booking, error) {
	b, err := bookingForUpdate(ctx, tx, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, inbox.Permanent(fmt.Errorf("there is no booking %s", id))
	case err != nil:
		return nil, fmt.Errorf("read booking %s: %w", id, err)
	}
	return b, nil
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
