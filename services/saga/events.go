package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// requests make what the coordinator sends.
var requests = map[string]func(i Instance, at time.Time) outbox.Event{
	contracts.TypeUpdateEventInventory: func(i Instance, at time.Time) outbox.Event {
		b := i.Booking
		return contracts.UpdateEventInventory{EventID: b.EventID, BookingID: b.BookingID, QuantityReduced: b.Quantity, RequestedAt: at}
	},
	contracts.TypeSendBookingNotification: func(i Instance, at time.Time) outbox.Event {
		b := i.Booking
		return contracts.SendBookingNotification{
			BookingID: b.BookingID, UserID: b.UserID, EventID: b.EventID, Quantity: b.Quantity, TotalAmount: b.TotalAmount,
			NotificationType: contracts.NotificationBookingCreated, RequestedAt: at,
		}
	},
	contracts.TypePreparePaymentData: func(i Instance, at time.Time) outbox.Event {
		b := i.Booking
		return contracts.PreparePaymentData{
			BookingID: b.BookingID, Amount: b.TotalAmount, Currency: b.Currency, UserID: b.UserID, ExpiresAt: b.ExpiresAt, RequestedAt: at,
		}
	},
	contracts.TypeReleaseEventInventory: func(i Instance, at time.Time) outbox.Event {
		return contracts.ReleaseEventInventory{EventID: i.Booking.EventID, BookingID: i.Booking.BookingID, Reason: i.Reason, RequestedAt: at}
	},
	contracts.TypeCancelPayment: func(i Instance, at time.Time) outbox.Event {
		return contracts.CancelPayment{BookingID: i.Booking.BookingID, Reason: i.Reason, RequestedAt: at}
	},
	contracts.TypeRefundPayment: func(i Instance, at time.Time) outbox.Event {
		return contracts.RefundPayment{BookingID: i.Booking.BookingID, PaymentID: i.PaymentID, Reason: i.Reason, RequestedAt: at}
	},
	contracts.TypeSettleBooking: func(i Instance, at time.Time) outbox.Event {
		return contracts.SettleBooking{BookingID: i.Booking.BookingID, Outcome: i.Outcome, RequestedAt: at}
	},
	contracts.TypeCommitEventInventory: func(i Instance, at time.Time) outbox.Event {
		return contracts.CommitEventInventory{EventID: i.Booking.EventID, BookingID: i.Booking.BookingID, RequestedAt: at}
	},
}

// listen adds the handlers.
func (s *Service) listen(c *inbox.Consumer) {
	inbox.HandleAll(c, contracts.TypeBookingCreated, s.OnBookingCreated)
	answer(c, s, func(e contracts.InventoryUpdated) (told, payment string) { return string(e.UpdateType), "" })
	answer(c, s, func(e contracts.InventoryUpdateRejected) (told, payment string) { return string(e.Reason), "" })
	answer(c, s, func(contracts.InventoryReleased) (told, payment string) { return "", "" })
	answer(c, s, func(contracts.InventoryCommitted) (told, payment string) { return "", "" })
	answer(c, s, func(e contracts.PaymentDataPrepared) (told, payment string) { return "", e.PaymentID })
	answer(c, s, func(e contracts.PaymentPreparationFailed) (told, payment string) { return string(e.Reason), "" })
	answer(c, s, func(e contracts.PaymentCompleted) (told, payment string) { return "", e.PaymentID })
	answer(c, s, func(e contracts.PaymentFailed) (told, payment string) { return string(e.Reason), e.PaymentID })
	answer(c, s, func(e contracts.PaymentExpired) (told, payment string) { return "", e.PaymentID })
	answer(c, s, func(contracts.PaymentCancelled) (told, payment string) { return "", "" })
	answer(c, s, func(e contracts.PaymentRefunded) (told, payment string) { return "", e.PaymentID })
	answer(c, s, func(contracts.BookingConfirmed) (told, payment string) { return "", "" })
	answer(c, s, func(e contracts.BookingRejected) (told, payment string) { return string(e.Reason), "" })
	answer(c, s, func(contracts.BookingCancelled) (told, payment string) { return "", "" })
	answer(c, s, func(contracts.BookingExpired) (told, payment string) { return "", "" })
}

// answer adds the handler of what says something of a booking.
func answer[E contracts.Event](c *inbox.Consumer, s *Service, read func(e E) (told, payment string)) {
	var of E
	inbox.HandleAll(c, of.EventType(), func(ctx context.Context, tx pgx.Tx, items []inbox.Item[E]) error {
		return s.hear(ctx, tx, heardOf(items, read))
	})
}

// heard is an answer with what the coordinator needs of it.
type heard struct {
	ctx     context.Context
	booking string
	event   Event
}

func heardOf[E contracts.Event](items []inbox.Item[E], read func(e E) (told, payment string)) []heard {
	all := make([]heard, 0, len(items))
	for _, i := range items {
		told, payment := read(i.Event)
		if told == string(contracts.UpdateReleased) && i.Event.EventType() == contracts.TypeInventoryUpdated {
			continue // InventoryReleased says it
		}
		all = append(all, heard{i.Context(), i.Event.EventKey(), Event{Answer: Answer{i.Event.EventType(), told}, PaymentID: payment}})
	}
	return all
}

// OnBookingCreated begins an instance of the newest version for each booking that has none.
func (s *Service) OnBookingCreated(ctx context.Context, tx pgx.Tx, items []inbox.Item[contracts.BookingCreated]) error {
	if len(items) == 0 {
		return nil
	}
	now, err := clock(ctx, tx)
	if err != nil {
		return err
	}
	changes, messages := make([]change, len(items)), make([][]outbox.Message, len(items))
	records := make([]record, len(items))
	for i, item := range items {
		if changes[i], messages[i], err = s.begin(item.Context(), item.Event, now); err != nil {
			return err
		}
		records[i] = changes[i].record
	}
	inserted, err := insertAll(ctx, tx, records)
	if err != nil {
		return fmt.Errorf("insert %d sagas: %w", len(records), err)
	}
	var (
		fresh []change
		sent  []outbox.Message
	)
	for i := range inserted {
		if inserted[i] {
			fresh, sent = append(fresh, changes[i]), append(sent, messages[i]...)
		}
	}
	if err := appendAll(ctx, tx, fresh); err != nil {
		return fmt.Errorf("write the history of %d sagas: %w", len(fresh), err)
	}
	return outbox.Write(ctx, tx, sent...)
}

// begin makes an instance and its first requests.
func (s *Service) begin(ctx context.Context, e contracts.BookingCreated, now time.Time) (change, []outbox.Message, error) {
	if err := e.Validate(); err != nil {
		return change{}, nil, inbox.Permanent(fmt.Errorf("%s: %w", e.EventType(), err))
	}
	meta, ok := inbox.MetaFrom(ctx)
	if !ok {
		return change{}, nil, errors.New("begin: the context carries no message")
	}
	id, err := uuid.Parse(e.BookingID)
	if err != nil {
		return change{}, nil, inbox.Permanent(err)
	}
	body, err := json.Marshal(Instance{Booking: e})
	if err != nil {
		return change{}, nil, fmt.Errorf("saga %s: %w", id, err)
	}
	r := record{
		ID: id, Version: s.newest.Version, Body: body, CorrelationID: meta.CorrelationID, TraceParent: meta.TraceParent, CausedBy: meta.ID, CreatedAt: now,
	}
	c, messages, err := s.apply(ctx, r, Event{Answer: Answer{Type: Begin}, At: now}, kindHeard, meta.ID, "")
	if err == nil {
		c.entries[0].Type = e.EventType()
	}
	return c, messages, err
}

func clock(ctx context.Context, tx pgx.Tx) (now time.Time, err error) {
	err = tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now)
	return now.UTC(), err
}

// hear tells instances of answers. A booking without one is led by booking itself, and is none of the coordinator's business.
func (s *Service) hear(ctx context.Context, tx pgx.Tx, all []heard) error {
	if len(all) == 0 {
		return nil
	}
	ids := make([]string, len(all))
	for i, h := range all {
		ids[i] = h.booking
	}
	records, err := locked(ctx, tx, ids)
	if err != nil {
		return fmt.Errorf("lock %d sagas: %w", len(ids), err)
	}
	var (
		changes  []change
		messages []outbox.Message
	)
	for _, h := range all {
		r, led := records[h.booking]
		if !led {
			continue
		}
		meta, ok := inbox.MetaFrom(h.ctx)
		if !ok {
			return errors.New("hear: the context carries no message")
		}
		h.event.At = r.Now
		c, m, err := s.apply(h.ctx, r, h.event, kindHeard, meta.ID, "")
		if errors.Is(err, ErrContradiction) {
			err = inbox.Permanent(err)
		}
		if err != nil {
			return err
		}
		changes, messages = append(changes, c), append(messages, m...)
	}
	return write(ctx, tx, changes, messages)
}
