package payment

import (
	"context"
	"fmt"
	"sync"
	"time"

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
	var loops sync.WaitGroup
	loops.Go(func() {
		loop.Run(ctx, loop.Config{Name: "payment expiry", Logger: s.log, Wake: loop.NewBell(), Idle: expiryIdle, Step: s.Expire})
	})
	loops.Go(func() {
		loop.Run(ctx, loop.Config{Name: "payment tasks", Logger: s.log, Wake: s.tasks, Idle: tasksIdle, Step: s.Work})
	})
	err := s.sandbox.Run(ctx)
	loops.Wait()
	return err
}

// Expire ends some payments whose time is over and returns how many. A payment whose session is still being opened becomes
// Unavailable. The time is the database's.
func (s *Service) Expire(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), expiryTimeout)
	defer cancel()
	err = outbox.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		n = 0
		over, err := expirePayments(ctx, tx, expiryBatch)
		if err != nil {
			return err
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
		return 0, fmt.Errorf("expire payments: %w", err)
	}
	return n, nil
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
