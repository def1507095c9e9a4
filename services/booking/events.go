package booking

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/booking/life"
)

// The log lines of the flow, in their order.
const (
	logStarting     = "🚀 Starting integration events example flow"
	logProcessing   = "📅 Processing BookingCreatedDomainEvent for BookingId"
	logInventory    = "🎫 Publishing UpdateEventInventoryIntegrationEvent"
	logNotification = "📧 Publishing SendBookingNotificationIntegrationEvent"
	logPayment      = "💰 Publishing PreparePaymentDataIntegrationEvent"
	logHandOver     = "🧭 Publishing BookingCreatedIntegrationEvent"
	logProcessed    = "✅ Successfully processed BookingCreatedDomainEvent for BookingId"

	// typeCreated is the domain event's name in logs; it never leaves the service.
	typeCreated = "BookingCreatedDomainEvent"
)

// onCreated maps the domain event to the three requests that a booking sets off, and appends them in tx.
func (s *Service) onCreated(ctx context.Context, tx pgx.Tx, e Created) ([]outbox.Message, error) {
	log := s.log.With("booking_id", e.BookingID.String())
	log.InfoContext(ctx, logProcessing, "event_type", typeCreated)
	if e.Led {
		return s.handOver(ctx, tx, e)
	}
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

// handOver leaves the requests to the coordinator.
func (s *Service) handOver(ctx context.Context, tx pgx.Tx, e Created) ([]outbox.Message, error) {
	log, made := s.log.With("booking_id", e.BookingID.String()), e.made()
	messages, err := outbox.Encode(ctx, made)
	if err != nil {
		return nil, err
	}
	log.InfoContext(ctx, logHandOver, "event_type", made.EventType())
	if err := outbox.Write(ctx, tx, messages...); err != nil {
		return nil, err
	}
	log.InfoContext(ctx, logProcessed, "event_type", typeCreated)
	return messages, nil
}

// made is what a coordinator begins with.
func (e Created) made() contracts.BookingCreated {
	return contracts.BookingCreated{
		BookingID: e.BookingID.String(), EventID: e.EventID.String(), UserID: e.UserID.String(), Quantity: e.Quantity,
		TotalAmount: e.TotalAmount, Currency: e.Currency, ExpiresAt: e.ExpiresAt, CreatedAt: e.At,
	}
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
	inbox.HandleAll(c, contracts.TypeInventoryReleased, s.OnInventoryReleased)
	inbox.HandleAll(c, contracts.TypeInventoryCommitted, s.OnInventoryCommitted)
	inbox.HandleAll(c, contracts.TypePaymentDataPrepared, s.OnPaymentDataPrepared)
	inbox.HandleAll(c, contracts.TypePaymentPreparationFailed, s.OnPaymentPreparationFailed)
	inbox.HandleAll(c, contracts.TypePaymentCompleted, s.OnPaymentCompleted)
	inbox.HandleAll(c, contracts.TypePaymentFailed, s.OnPaymentFailed)
	inbox.HandleAll(c, contracts.TypePaymentExpired, s.OnPaymentExpired)
	inbox.HandleAll(c, contracts.TypePaymentCancelled, s.OnPaymentCancelled)
	inbox.HandleAll(c, contracts.TypePaymentRefunded, s.OnPaymentRefunded)
	inbox.HandleAll(c, contracts.TypeNotificationSent, s.OnNotificationSent)
	inbox.HandleAll(c, contracts.TypeSettleBooking, s.OnSettleBooking)
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

// OnInventoryUpdated hears that the bookings' tickets are held. Tickets given back are told of by InventoryReleased.
func (s *Service) OnInventoryUpdated(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.InventoryUpdated]) error {
	return hear(ctx, s, tx, items, func(e contracts.InventoryUpdated) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.TicketsHeld}, func(b *Booking) (bool, error) {
			taken := e.PreviousAvailableTickets - e.CurrentAvailableTickets
			if e.EventID != b.EventID.String() || taken != b.TicketCount {
				return false, contradicts(b, "%d tickets of event %s were reserved, booked were %d of %s", taken, e.EventID, b.TicketCount, b.EventID)
			}
			return false, nil
		}}, e.UpdateType == contracts.UpdateReserved
	})
}

// OnInventoryUpdateRejected hears that bookings get no tickets.
func (s *Service) OnInventoryUpdateRejected(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.InventoryUpdateRejected]) error {
	return hear(ctx, s, tx, items, func(e contracts.InventoryUpdateRejected) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.TicketsRefused, Reason: string(e.Reason)}, ofEvent(e.EventID, "refused")}, true
	})
}

// OnInventoryReleased hears that nothing is held for bookings any more.
func (s *Service) OnInventoryReleased(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.InventoryReleased]) error {
	return hear(ctx, s, tx, items, func(e contracts.InventoryReleased) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.TicketsReleased}, ofEvent(e.EventID, "released")}, true
	})
}

// OnInventoryCommitted hears that the tickets of confirmed bookings are sold.
func (s *Service) OnInventoryCommitted(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.InventoryCommitted]) error {
	return hear(ctx, s, tx, items, func(e contracts.InventoryCommitted) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.TicketsSold}, ofEvent(e.EventID, "sold")}, true
	})
}

// ofEvent checks that tickets are of the event that was booked.
func ofEvent(event, what string) fact {
	return func(b *Booking) (bool, error) {
		if event != b.EventID.String() {
			return false, contradicts(b, "tickets of event %s were %s, booked were some of %s", event, what, b.EventID)
		}
		return false, nil
	}
}

// OnPaymentDataPrepared hears where and until when bookings can be paid. The first payment is noted whatever the status.
func (s *Service) OnPaymentDataPrepared(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.PaymentDataPrepared]) error {
	return hear(ctx, s, tx, items, func(e contracts.PaymentDataPrepared) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.MoneyPrepared}, func(b *Booking) (bool, error) {
			if err := costs(b, "prepared", e.Amount, e.Currency); err != nil || b.PaymentURL != nil {
				return false, err
			}
			if _, err := paidBy(b, e.PaymentID); err != nil {
				return false, err
			}
			b.PaymentURL = &e.PaymentURL
			if !b.Status.Final() {
				b.waitUntil(e.ExpiresAt, s.cfg.Grace)
			}
			return true, nil
		}}, true
	})
}

// OnPaymentPreparationFailed hears that bookings cannot be paid.
func (s *Service) OnPaymentPreparationFailed(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.PaymentPreparationFailed]) error {
	return hear(ctx, s, tx, items, func(e contracts.PaymentPreparationFailed) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.MoneyUnavailable, Reason: string(e.Reason)}, anything}, true
	})
}

// OnPaymentCompleted hears that bookings are paid.
func (s *Service) OnPaymentCompleted(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.PaymentCompleted]) error {
	return hear(ctx, s, tx, items, func(e contracts.PaymentCompleted) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.MoneyCompleted}, func(b *Booking) (bool, error) {
			if err := costs(b, "completed", e.Amount, e.Currency); err != nil {
				return false, err
			}
			return paidBy(b, e.PaymentID)
		}}, true
	})
}

// OnPaymentFailed hears that payments will not succeed.
func (s *Service) OnPaymentFailed(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.PaymentFailed]) error {
	return hear(ctx, s, tx, items, func(e contracts.PaymentFailed) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.MoneyFailed, Reason: string(e.Reason)}, byPayment(e.PaymentID)}, true
	})
}

// OnPaymentExpired hears that payments were not made in time.
func (s *Service) OnPaymentExpired(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.PaymentExpired]) error {
	return hear(ctx, s, tx, items, func(e contracts.PaymentExpired) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.MoneyExpired}, byPayment(e.PaymentID)}, true
	})
}

// OnPaymentCancelled hears that bookings will not be paid.
func (s *Service) OnPaymentCancelled(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.PaymentCancelled]) error {
	return hear(ctx, s, tx, items, func(e contracts.PaymentCancelled) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.MoneyCancelled}, anything}, true
	})
}

// OnPaymentRefunded hears that money went back.
func (s *Service) OnPaymentRefunded(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.PaymentRefunded]) error {
	return hear(ctx, s, tx, items, func(e contracts.PaymentRefunded) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.MoneyRefunded}, byPayment(e.PaymentID)}, true
	})
}

// OnSettleBooking hears how a coordinator wants bookings to end.
func (s *Service) OnSettleBooking(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.SettleBooking]) error {
	return hear(ctx, s, tx, items, func(e contracts.SettleBooking) (news, bool) {
		return news{e.BookingID, life.Event{Kind: life.SettlementArrived, Outcome: e.Outcome}, anything}, true
	})
}

// OnNotificationSent notes whether users were told of their bookings. Of a new one, told is told.
func (s *Service) OnNotificationSent(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.NotificationSent]) error {
	return hear(ctx, s, tx, items, func(e contracts.NotificationSent) (news, bool) {
		return news{e.BookingID, life.Event{Kind: stepNotified, Reason: string(e.NotificationType)}, func(b *Booking) (bool, error) {
			if e.NotificationType != contracts.NotificationBookingCreated {
				return true, nil
			}
			if b.Notified != nil && *b.Notified {
				return false, nil
			}
			b.Notified, b.NotificationError = &e.Success, e.ErrorMessage
			return true, nil
		}}, true
	})
}

// anything can be true of every booking.
func anything(*Booking) (bool, error) { return false, nil }

// costs checks that a payment is of what the booking costs.
func costs(b *Booking, what string, amount contracts.Amount, currency string) error {
	if amount != b.TotalAmount || currency != b.Currency {
		return contradicts(b, "a payment of %s %s was %s, its total is %s %s", amount, currency, what, b.TotalAmount, b.Currency)
	}
	return nil
}

// byPayment notes the booking's payment, and checks that it has no other.
func byPayment(id string) fact {
	return func(b *Booking) (bool, error) { return paidBy(b, id) }
}

func paidBy(b *Booking, id string) (bool, error) {
	given, err := uuid.Parse(id)
	switch {
	case err != nil:
		return false, contradicts(b, "payment id %q: %v", id, err)
	case b.PaymentID == nil:
		b.PaymentID = &given
		return true, nil
	case *b.PaymentID != given:
		return false, contradicts(b, "its payment is %s, not %s", *b.PaymentID, given)
	}
	return false, nil
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
