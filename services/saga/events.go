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
			NotificationType: i.letter(), RequestedAt: at,
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

// letters are what users are told of a decision: the same that booking tells them where it leads.
var letters = map[Answer]contracts.NotificationType{
	{Type: contracts.TypeBookingConfirmed}:                                  contracts.NotificationBookingConfirmed,
	{Type: contracts.TypeBookingRejected}:                                   contracts.NotificationBookingRejected,
	{contracts.TypeBookingRejected, string(contracts.BookingPaymentFailed)}: contracts.NotificationPaymentFailed,
	{Type: contracts.TypeBookingCancelled}:                                  contracts.NotificationBookingCancelled,
	{Type: contracts.TypeBookingExpired}:                                    contracts.NotificationBookingExpired,
}

// letter is what the user is to be told now.
func (i Instance) letter() contracts.NotificationType {
	if i.Verdict.Type == "" {
		return contracts.NotificationBookingCreated
	}
	letter, _ := lookup(letters, i.Verdict) // check has looked for all of them
	return letter
}

// Handlers says what the coordinator listens to.
func (s *Service) Handlers(c *inbox.Consumer) {
	inbox.HandleAll(c, contracts.TypeBookingCreated, s.OnBookingCreated)
	answers[contracts.InventoryUpdated](c, s)
	answers[contracts.InventoryUpdateRejected](c, s)
	answers[contracts.InventoryReleased](c, s)
	answers[contracts.InventoryCommitted](c, s)
	answers[contracts.PaymentDataPrepared](c, s)
	answers[contracts.PaymentPreparationFailed](c, s)
	answers[contracts.PaymentCompleted](c, s)
	answers[contracts.PaymentFailed](c, s)
	answers[contracts.PaymentExpired](c, s)
	answers[contracts.PaymentCancelled](c, s)
	answers[contracts.PaymentRefunded](c, s)
	answers[contracts.BookingConfirmed](c, s)
	answers[contracts.BookingRejected](c, s)
	answers[contracts.BookingCancelled](c, s)
	answers[contracts.BookingExpired](c, s)
}

// answers adds the handler of a type that says something of a booking.
func answers[E contracts.Event](c *inbox.Consumer, s *Service) {
	var of E
	inbox.HandleAll(c, of.EventType(), func(ctx context.Context, tx pgx.Tx, items []inbox.Item[E]) error {
		all := make([]heard, len(items))
		for i, item := range items {
			all[i] = heard{item.Context(), item.Event}
		}
		return s.hear(ctx, tx, all)
	})
}

// heard is an answer and the context of its message.
type heard struct {
	ctx   context.Context
	event contracts.Event
}

// read is what the coordinator needs of an answer.
func read(event contracts.Event) Event {
	e := Event{Answer: Answer{Type: event.EventType()}}
	switch answer := event.(type) {
	case contracts.InventoryUpdated:
		e.Told = string(answer.UpdateType)
	case contracts.InventoryUpdateRejected:
		e.Told = string(answer.Reason)
	case contracts.PaymentDataPrepared:
		e.PaymentID = answer.PaymentID
	case contracts.PaymentPreparationFailed:
		e.Told = string(answer.Reason)
	case contracts.PaymentCompleted:
		e.PaymentID = answer.PaymentID
	case contracts.PaymentFailed:
		e.Told, e.PaymentID = string(answer.Reason), answer.PaymentID
	case contracts.PaymentExpired:
		e.PaymentID = answer.PaymentID
	case contracts.PaymentRefunded:
		e.PaymentID = answer.PaymentID
	case contracts.BookingRejected:
		e.Told = string(answer.Reason)
	}
	if e.Answer == (Answer{contracts.TypeInventoryUpdated, string(contracts.UpdateReleased)}) {
		e.Type = "" // InventoryReleased says it
	}
	return e
}

// cause is the message that is handled under ctx, and the flow that it belongs to.
func cause(ctx context.Context) (uuid.UUID, outbox.Causality, error) {
	c := outbox.CausalityFrom(ctx)
	id, err := uuid.Parse(c.CausationID)
	if err != nil {
		return id, c, errors.New("the context carries no message")
	}
	return id, c, nil
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
			s.tell(changes[i])
		}
	}
	if len(fresh) == 0 {
		return nil
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
	message, flow, err := cause(ctx)
	if err != nil {
		return change{}, nil, err
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
		ID: id, Version: s.newest.Version, Body: body, CorrelationID: flow.CorrelationID, TraceParent: flow.TraceParent, CausedBy: message, CreatedAt: now,
	}
	c, messages, err := s.apply(ctx, r, Event{Answer: Answer{Type: Begin}, At: now}, kindHeard, message, "")
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
		ids[i] = h.event.EventKey()
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
		r, led := records[h.event.EventKey()]
		e := read(h.event)
		if !led || e.Type == "" {
			continue
		}
		message, _, err := cause(h.ctx)
		if err != nil {
			return err
		}
		e.At = r.Now
		c, m, err := s.apply(h.ctx, r, e, kindHeard, message, "")
		switch {
		case errors.Is(err, ErrContradiction):
			return inbox.Permanent(err)
		case errors.Is(err, errVersion):
			return inbox.Unreadable(err)
		case err != nil:
			return err
		}
		changes, messages = append(changes, c), append(messages, m...)
	}
	return s.write(ctx, tx, changes, messages)
}
