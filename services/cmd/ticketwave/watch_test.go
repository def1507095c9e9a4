package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

type seatsTaken struct{}

func (seatsTaken) EventType() string { return "ticketwave.catalog.seats-taken.v1" }
func (seatsTaken) EventKey() string  { return "k" }

// The demo shows what is committed, however many events a transaction has, and nothing that is rolled back.
func TestTheWatcherSeesCommits(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	var out bytes.Buffer
	config, err := pgxpool.ParseConfig(db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.Tracer = newWatcher(&out).tracer("catalog")
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx := context.WithoutCancel(t.Context())
	rollback := errors.New("rolled back")
	for events, outcome := range map[int]error{1: nil, 3: nil, 20: nil, 5: rollback} {
		err := outbox.InTx(ctx, pool, func(tx pgx.Tx) error {
			for range events {
				if err := outbox.Append(ctx, tx, seatsTaken{}); err != nil {
					return err
				}
			}
			return outcome
		})
		if !errors.Is(err, outcome) {
			t.Fatal(err)
		}
	}
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, seatsTaken{}) }); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "catalog       committed  SeatsTaken"); n != 25 {
		t.Errorf("%d commits are shown, want 25:\n%s", n, out.String())
	}
}
