package payment

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/internal/loop"
)

const (
	expiryBatch   = 100
	expiryTimeout = 10 * time.Second
	expiryIdle    = 500 * time.Millisecond
	tasksIdle     = 500 * time.Millisecond
)

// Run expires payments, does what is to be done at the gateways, and delivers the sandbox's webhooks, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var loops, doing sync.WaitGroup
	loops.Go(func() {
		loop.Run(ctx, loop.Config{Name: "payment expiry", Logger: s.log, Wake: loop.NewBell(), Idle: expiryIdle, Step: s.Expire})
	})
	loops.Go(func() {
		loop.Run(ctx, loop.Config{
			Name: "payment tasks", Logger: s.log, Wake: s.tasks, Idle: tasksIdle,
			Step: func(ctx context.Context) (int, error) { return s.begin(ctx, &doing) },
		})
	})
	err := s.sandbox.Run(ctx)
	loops.Wait()
	doing.Wait()
	return err
}

// Expire ends some payments whose time is over and returns how many it took. A payment whose session is still being opened becomes
// Unavailable. One that fails is put off, longer each time, and holds up no other. The time is the database's.
func (s *Service) Expire(ctx context.Context) (n int, err error) {
	return loop.Due{Do: s.expire, List: s.overdue, PutOff: s.putOffExpiry}.Step(ctx)
}

// expire ends one payment if its time is over, or some, in one transaction, and returns how many.
func (s *Service) expire(ctx context.Context, which uuid.NullUUID) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), expiryTimeout)
	defer cancel()
	err = outbox.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		over, err := expirePayments(ctx, tx, which, expiryBatch)
		if err != nil {
			return fmt.Errorf("expire payments: %w", err)
		}
		for _, p := range over {
			if err := s.expired(ctx, tx, p); err != nil {
				return err
			}
		}
		n = len(over)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (s *Service) overdue(ctx context.Context) ([]uuid.UUID, error) {
	ctx, cancel := context.WithTimeout(ctx, expiryTimeout)
	defer cancel()
	return duePayments(ctx, s.pool, expiryBatch)
}

func (s *Service) putOffExpiry(ctx context.Context, id uuid.UUID, cause error) error {
	s.log.ErrorContext(ctx, "a payment does not expire and is put off", "payment_id", id.String(), "error", cause)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), expiryTimeout)
	defer cancel()
	if err := putOffExpiry(ctx, s.pool, id); err != nil {
		return fmt.Errorf("put off the expiry of payment %s: %w", id, err)
	}
	return nil
}

// expired tells of a payment whose time is over, and has its session closed.
func (s *Service) expired(ctx context.Context, tx pgx.Tx, p Payment) error {
	ctx = p.flow(ctx)
	if p.Session != nil {
		if err := s.addTasks(ctx, tx, newTask{p.ID, taskClose, "", outbox.CausalityFrom(ctx)}); err != nil {
			return err
		}
	}
	return s.tell(ctx, tx, p)
}
