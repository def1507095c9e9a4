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

const (
	clients = 16
	rounds  = 8
	round   = time.Second
)

// step is an event of the benchmark.
type step struct {
	Booking string `json:"booking"`
	Step    int    `json:"step"`
}

func (step) EventType() string  { return "bench.bookings.step.v1" }
func (s step) EventKey() string { return s.Booking }

// BenchmarkAppend compares transactions that insert a booking: without events, and with three of them. The
// variants alternate in one run.
func BenchmarkAppend(b *testing.B) {
	db := outboxtest.NewDatabase(b, "bench")
	config := db.Config()
	config.MaxConns = clients
	pool, err := pgxpool.NewWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	must(b, pool, `CREATE TABLE public.bookings (id uuid PRIMARY KEY, event_id uuid, user_id uuid, tickets int, created_at timestamptz DEFAULT now())`)
	variants := []struct {
		name   string
		events int
	}{{"no events", 0}, {"three events", 3}}
	rates := make([]float64, len(variants))
	for b.Loop() {
		for range rounds {
			for i, v := range variants {
				rates[i] += float64(transactions(b, pool, v.events)) / round.Seconds() / rounds
			}
		}
	}
	for i, v := range variants {
		b.Logf("%-28s %8.0f transactions/s  %.2f of no events", v.name, rates[i]/float64(b.N), rates[i]/rates[0])
	}
	b.ReportMetric(rates[1]/rates[0], "three/none")
}

// transactions counts what the clients commit in one round.
func transactions(b *testing.B, pool *pgxpool.Pool, events int) int64 {
	ctx, cancel := context.WithTimeout(b.Context(), round)
	defer cancel()
	var committed atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := book(b.Context(), pool, events); err != nil {
					b.Error(err)
					return
				}
				committed.Add(1)
			}
		})
	}
	wg.Wait()
	return committed.Load()
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

func must(b *testing.B, pool *pgxpool.Pool, statement string) {
	b.Helper()
	if _, err := pool.Exec(b.Context(), statement); err != nil {
		b.Fatal(err)
	}
}
