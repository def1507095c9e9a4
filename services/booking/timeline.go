package booking

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/booking/life"
	"github.com/jcp/ticketwave/services/internal/web"
)

// Steps that are no event of a booking's life.
const (
	stepCreated            = "created"
	stepNotified life.Kind = "notified"
	ownService             = "booking"
)

// entry is one step of a booking.
type entry struct {
	BookingID uuid.UUID `db:"booking_id" json:"-"`
	At        time.Time `db:"at" json:"at"`
	// Step is what happened.
	Step string `db:"step" json:"step"`
	// Service is who did it.
	Service string `db:"service" json:"service"`
	// Cause is the message that told of it; null for a request or a deadline.
	Cause         *uuid.UUID `db:"cause" json:"cause"`
	CorrelationID *string    `db:"correlation_id" json:"correlationId"`
	// Detail is the reason, the outcome, or the kind of notification.
	Detail *string `db:"detail" json:"detail"`
	// Status is the booking's after the step.
	Status life.Status `db:"status" json:"status"`
	// Sent are the messages that booking sent on it.
	Sent []eventView `db:"sent" json:"sent"`
}

// newEntry is a step that the message under ctx, or else booking itself, has brought about.
func newEntry(ctx context.Context, b *Booking, now time.Time, step string, detail *string, sent []outbox.Message) entry {
	e := entry{BookingID: b.ID, At: now, Step: step, Service: ownService, Detail: detail, Status: b.Status, Sent: eventViews(sent)}
	if flow := outbox.CausalityFrom(ctx).CorrelationID; flow != "" {
		e.CorrelationID = &flow
	}
	if m, ok := inbox.MetaFrom(ctx); ok {
		e.Cause, e.Service = &m.ID, cmp.Or(m.Source, "unknown")
	}
	return e
}

// detail is what an event says beside its kind.
func detail(e life.Event) *string {
	text := e.Reason
	if e.Kind == life.SettlementArrived {
		text = string(e.Outcome)
	}
	if text == "" {
		return nil
	}
	return &text
}

func (s *Service) getTimeline(w http.ResponseWriter, r *http.Request) error {
	id, err := web.PathID(r, "id")
	if err != nil {
		return err
	}
	if _, err := bookingByID(r.Context(), s.pool, id.String()); errors.Is(err, pgx.ErrNoRows) {
		return web.NotFound("there is no booking %s", id)
	} else if err != nil {
		return fmt.Errorf("read booking %s: %w", id, err)
	}
	steps, err := timelineOf(r.Context(), s.pool, id)
	if err != nil {
		return fmt.Errorf("read the timeline of booking %s: %w", id, err)
	}
	for i := range steps {
		steps[i].At = steps[i].At.UTC()
	}
	return web.WriteJSON(w, http.StatusOK, web.List[entry]{Items: steps})
}
