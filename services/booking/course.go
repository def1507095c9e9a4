package booking

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/booking/life"
)

// news is what a message says about a booking.
type news struct {
	bookingID string
	event     life.Event
	fact      fact
}

// fact notes what the message says beside the event and reports whether that changed the booking; it is the error of a
// message that cannot be about it.
type fact func(b *Booking) (changed bool, err error)

// hear reads what messages say, locks their bookings, and lets each go on; an error takes all changes back. read is
// false for a message that concerns no booking.
func hear[E contracts.Event](ctx context.Context, s *Service, tx pgx.Tx, items []inbox.Item[E], read func(e E) (news, bool)) error {
	heard, contexts, ids := []news{}, []context.Context{}, []uuid.UUID{}
	for _, i := range items {
		if err := valid(i.Event); err != nil {
			return err
		}
		n, concerns := read(i.Event)
		if !concerns {
			continue
		}
		id, err := uuid.Parse(n.bookingID)
		if err != nil {
			return inbox.Permanent(fmt.Errorf("booking id %q: %w", n.bookingID, err))
		}
		heard, contexts, ids = append(heard, n), append(contexts, i.Context()), append(ids, id)
	}
	if len(ids) == 0 {
		return nil
	}
	bookings, err := lockBookings(ctx, tx, ids)
	if err != nil {
		return fmt.Errorf("lock %d bookings: %w", len(ids), err)
	}
	found := make(map[uuid.UUID]*locked, len(bookings))
	for _, b := range bookings {
		found[b.ID] = b
	}
	c := s.course(tx)
	for i, n := range heard {
		b := found[ids[i]]
		if b == nil { // there is one for every answer: the request and the booking were committed together
			return inbox.Permanent(fmt.Errorf("there is no booking %s", ids[i]))
		}
		if err := c.hear(contexts[i], b, n); err != nil {
			return err
		}
	}
	return c.write(ctx)
}

// course gathers what becomes of bookings in a transaction, so that it is written in one round trip.
type course struct {
	s      *Service
	tx     pgx.Tx
	writes *pgx.Batch
}

func (s *Service) course(tx pgx.Tx) *course { return &course{s: s, tx: tx, writes: &pgx.Batch{}} }

// hear lets a booking go on with what a message says of it.
func (c *course) hear(ctx context.Context, b *locked, n news) error {
	changed, err := n.fact(&b.Booking)
	if err != nil {
		return err
	}
	return c.goOn(ctx, b, n.event, changed)
}

// goOn decides what an event does to a locked booking. This is the only place where a booking's life is decided. What
// changes nothing leaves no trace.
func (c *course) goOn(ctx context.Context, b *locked, e life.Event, changed bool) error {
	before := b.state()
	if why := life.Contradiction(before, e); why != "" {
		return contradicts(&b.Booking, "%s: %s", e.Kind, why)
	}
	after, effects := life.Next(before, e)
	if after != before || len(effects) > 0 {
		changed = true
	}
	if changed {
		b.become(after, b.Now)
		b.CausationID = cmp.Or(outbox.CausalityFrom(ctx).CausationID, b.CausationID)
		sent, err := c.send(ctx, b, effects)
		if err != nil {
			return err
		}
		b.update(c.writes)
		newEntry(ctx, &b.Booking, b.Now, string(e.Kind), detail(e), sent).insert(c.writes)
	}
	c.s.log.InfoContext(ctx, "booking went on", "booking_id", b.ID.String(), "event_id", b.EventID.String(), "step", string(e.Kind),
		"status", string(b.Status), "notified", b.Notified != nil && *b.Notified, "changed", changed)
	return nil
}

// write writes what was gathered.
func (c *course) write(ctx context.Context) error {
	if c.writes.Len() == 0 {
		return nil
	}
	if err := c.tx.SendBatch(ctx, c.writes).Close(); err != nil {
		return fmt.Errorf("write what became of bookings: %w", err)
	}
	return nil
}

// send appends the messages of the effects.
func (c *course) send(ctx context.Context, b *locked, effects []life.Effect) ([]outbox.Message, error) {
	var events []outbox.Event
	for _, effect := range effects {
		event, err := c.s.message(b, effect)
		if err != nil {
			return nil, fmt.Errorf("booking %s: %w", b.ID, err)
		}
		if event != nil {
			events = append(events, event)
		}
	}
	if len(events) == 0 {
		return nil, nil
	}
	messages, err := outbox.Encode(ctx, events...)
	if err != nil {
		return nil, err
	}
	return messages, outbox.Write(ctx, c.tx, messages...)
}

// state is what the booking's life depends on.
func (b *Booking) state() life.State {
	s := life.State{Led: b.Led, Status: b.Status, Inventory: b.Inventory, Payment: b.Payment, Settling: b.Settling}
	if b.Reason != nil {
		s.Reason = *b.Reason
	}
	return s
}

// become takes a state over.
func (b *Booking) become(s life.State, now time.Time) {
	if s.Inventory == life.InventoryHeld && b.ReservedAt == nil {
		b.ReservedAt = &now
	}
	if s.Status.Final() && b.EndedAt == nil {
		b.EndedAt, b.DeadlineAt = &now, nil
	}
	b.Reason = nil
	if s.Reason != "" {
		b.Reason = &s.Reason
	}
	b.Status, b.Inventory, b.Payment, b.Settling, b.UpdatedAt = s.Status, s.Inventory, s.Payment, s.Settling, now
}

// message is what an effect sends; nil for what nobody listens to.
func (s *Service) message(b *locked, effect life.Effect) (outbox.Event, error) {
	id, event, reason := b.ID.String(), b.EventID.String(), undoReasons[b.Status]
	switch effect {
	case life.Tell:
		if !s.announces(&b.Booking) {
			return nil, nil
		}
		return b.ending()
	case life.ReleaseTickets:
		return contracts.ReleaseEventInventory{EventID: event, BookingID: id, Reason: reason, RequestedAt: b.Now}, nil
	case life.CommitTickets:
		return contracts.CommitEventInventory{EventID: event, BookingID: id, RequestedAt: b.Now}, nil
	case life.CancelPayment:
		return contracts.CancelPayment{BookingID: id, Reason: reason, RequestedAt: b.Now}, nil
	case life.RefundPayment:
		if b.PaymentID == nil {
			return nil, errors.New("money is to go back of a payment that has no id")
		}
		return contracts.RefundPayment{BookingID: id, PaymentID: b.PaymentID.String(), Reason: reason, RequestedAt: b.Now}, nil
	case life.NotifyOfTheEnd:
		return contracts.SendBookingNotification{
			BookingID: id, UserID: b.UserID.String(), EventID: event, Quantity: b.TicketCount, TotalAmount: b.TotalAmount,
			NotificationType: notifications[b.Status], RequestedAt: b.Now,
		}, nil
	}
	return nil, fmt.Errorf("there is no message of effect %q", effect)
}

var undoReasons = map[life.Status]contracts.UndoReason{
	life.Rejected: contracts.UndoBookingRejected, life.Expired: contracts.UndoBookingExpired,
	life.Cancelled: contracts.UndoBookingCancelled, life.PaymentFailed: contracts.UndoPaymentFailed,
}

// notifications are what users are told of how a booking ended.
var notifications = map[life.Status]contracts.NotificationType{
	life.Confirmed: contracts.NotificationBookingConfirmed, life.Rejected: contracts.NotificationBookingRejected,
	life.PaymentFailed: contracts.NotificationPaymentFailed, life.Cancelled: contracts.NotificationBookingCancelled,
	life.Expired: contracts.NotificationBookingExpired,
}

// ending is what is told of how the booking ended, and is the same however often it is told.
func (b *locked) ending() (outbox.Event, error) {
	id, event, user := b.ID.String(), b.EventID.String(), b.UserID.String()
	if b.EndedAt == nil {
		return nil, fmt.Errorf("a %s booking has not ended", b.Status)
	}
	switch at := *b.EndedAt; b.Status {
	case life.Confirmed:
		if b.PaymentID == nil {
			return nil, errors.New("a confirmed booking has no payment")
		}
		return contracts.BookingConfirmed{
			BookingID: id, EventID: event, UserID: user, Quantity: b.TicketCount, TotalAmount: b.TotalAmount, Currency: b.Currency,
			PaymentID: b.PaymentID.String(), ConfirmedAt: at,
		}, nil
	case life.Rejected:
		return contracts.BookingRejected{
			BookingID: id, EventID: event, UserID: user, Reason: contracts.BookingRejection(*b.Reason), RejectedAt: at,
		}, nil
	case life.PaymentFailed:
		return contracts.BookingRejected{BookingID: id, EventID: event, UserID: user, Reason: contracts.BookingPaymentFailed, RejectedAt: at}, nil
	case life.Cancelled:
		return contracts.BookingCancelled{BookingID: id, EventID: event, UserID: user, CancelledAt: at}, nil
	case life.Expired:
		return contracts.BookingExpired{BookingID: id, EventID: event, UserID: user, ExpiredAt: at}, nil
	}
	return nil, fmt.Errorf("a booking does not end as %s", b.Status)
}
