package booking

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/booking/life"
	"github.com/jcp/ticketwave/services/internal/loop"
)

const (
	// dueAtOnce is how many bookings expire in one transaction.
	dueAtOnce  = 20
	dueTimeout = 30 * time.Second
)

// Run expires bookings whose deadline has passed, until ctx ends; then it returns nil. Any number of processes may: each
// takes what no other has. While the database is away it looks more and more rarely.
func (s *Service) Run(ctx context.Context) error {
	loop.Run(ctx, loop.Config{Name: "booking deadlines", Logger: s.log, Idle: s.cfg.Look, Step: s.ExpireDue})
	return nil
}

// ExpireDue expires some bookings whose deadline has passed, by the database's clock, and returns how many it took. One that
// fails is put off, longer each time, and holds up no other.
func (s *Service) ExpireDue(ctx context.Context) (n int, err error) {
	return loop.Due{Do: s.expire, List: s.due, PutOff: s.putOff}.Step(ctx)
}

// expire expires one booking if it is due, or some, in one transaction, and returns how many.
func (s *Service) expire(ctx context.Context, which uuid.NullUUID) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	err = outbox.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		due, err := lockDue(ctx, tx, which, dueAtOnce)
		if err != nil {
			return fmt.Errorf("look for bookings that are due: %w", err)
		}
		c := s.course(tx)
		for _, b := range due {
			if err := c.goOn(b.flow(ctx), b, life.Event{Kind: life.DeadlinePassed}, false); err != nil {
				return err
			}
		}
		n = len(due)
		return c.write(ctx)
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (s *Service) due(ctx context.Context) ([]uuid.UUID, error) {
	ctx, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	return dueBookings(ctx, s.pool, dueAtOnce)
}

func (s *Service) putOff(ctx context.Context, id uuid.UUID, cause error) error {
	s.log.ErrorContext(ctx, "a booking that is due does not expire and is put off", "booking_id", id.String(), "error", cause)
	ctx, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	if _, err := s.pool.Exec(ctx, putOffDeadline, id); err != nil {
		return fmt.Errorf("put off the deadline of booking %s: %w", id, err)
	}
	return nil
}

// flow is the context of what a booking does without being told: it belongs to the flow that the booking began with, and what
// changed the booking last caused it.
func (b *Booking) flow(ctx context.Context) context.Context {
	return outbox.WithCausality(ctx, outbox.Causality{CorrelationID: b.CorrelationID, CausationID: b.CausationID, TraceParent: b.TraceParent})
}
