package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

const clients = 16

// step is an event of a booking.
type step struct {
	Booking string `json:"booking"`
	Step    int    `json:"step"`
}

func (step) EventType() string  { return made }
func (s step) EventKey() string { return s.Booking }

func writing(b *testing.B, r *Row) {
	db := outboxtest.NewDatabase(b, "bench")
	pool := service(b, db.AdminURL)
	_, err := pool.Exec(b.Context(), `CREATE TABLE public.bookings (id uuid PRIMARY KEY, event_id uuid, user_id uuid, tickets int, created_at timestamptz DEFAULT now())`)
	must(b, err)
	round := time.Second
	rounds := pick(12, 5)
	transactions(b, pool, 3, round)
	var none, three []float64
	for range rounds {
		none = append(none, transactions(b, pool, 0, round))
		three = append(three, transactions(b, pool, 3, round))
	}
	ratio := median(three) / median(none)
	r.add("insert a booking", median(none), "tx/s")
	r.add("insert a booking, append three events", median(three), "tx/s")
	r.add("with / without events", ratio, "ratio")
	r.note("%d clients, rounds of %v in turn, medians of %d; BEGIN, INSERT, COMMIT against the same with the events in COMMIT's round trip", clients, round, rounds)
	r.judge(ratio >= 0.75)
}

// transactions counts what the clients commit in a round, per second.
func transactions(b *testing.B, pool *pgxpool.Pool, events int, round time.Duration) float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), round)
	defer cancel()
	var committed atomic.Int64
	failed := newFailure()
	var wg sync.WaitGroup
	start := time.Now()
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := book(b.Context(), pool, events); err != nil {
					failed.set(err.Error())
					return
				}
				committed.Add(1)
			}
		})
	}
	wg.Wait()
	failed.check(b)
	return float64(committed.Load()) / time.Since(start).Seconds()
}

func book(ctx context.Context, pool *pgxpool.Pool, events int) error {
	return outbox.InTx(ctx, pool, func(tx pgx.Tx) error {
		id := uuid.Must(uuid.NewV7())
		_, err := tx.Exec(ctx, `INSERT INTO public.bookings (id, event_id, user_id, tickets) VALUES ($1, $1, $1, 2)`, id)
		if err != nil {
			return fmt.Errorf("insert: %w", err)
		}
		steps := make([]outbox.Event, events)
		for i := range steps {
			steps[i] = step{id.String(), i}
		}
		return outbox.Append(ctx, tx, steps...)
	})
}
