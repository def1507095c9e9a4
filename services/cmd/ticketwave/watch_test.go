package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
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
	w := newWatcher(&out)
	config.ConnConfig.Tracer = w.tracer("catalog")
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
	if n, _ := w.count("k"); n != 25 {
		t.Errorf("%d commits are counted, want 25", n)
	}
	if n := strings.Count(out.String(), "catalog       committed  SeatsTaken"); n != 25 {
		t.Errorf("%d commits are shown, want 25:\n%s", n, out.String())
	}
}

// A message is under way until every consumer of its type has handled it, whichever is heard of first.
func TestTheWatcherCountsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := newWatcher(&out)
	w.unheard = "saga"
	id, other := uuid.New(), uuid.New()
	handled := func(id uuid.UUID, consumer string, result inbox.Result) {
		w.outcome(inbox.Outcome{Consumer: consumer, Result: result, Meta: inbox.Meta{ID: id, Type: contracts.TypeInventoryUpdated, Key: "b"}})
	}
	is := func(committed int, underWay ...string) {
		t.Helper()
		if n, left := w.count("b"); n != committed || !slices.Equal(left, underWay) {
			t.Errorf("%d committed, under way %v; want %d, %v", n, left, committed, underWay)
		}
	}
	is(0)
	handled(id, "booking", inbox.Handled)
	is(0, "InventoryUpdated")
	w.committed("catalog", []appended{{id.String(), contracts.TypeInventoryUpdated, "b"}, {other.String(), contracts.TypeInventoryUpdated, "c"}})
	is(1, "InventoryUpdated")
	handled(id, "booking", inbox.Duplicate)
	is(1, "InventoryUpdated")
	handled(id, "saga", inbox.Retried)
	handled(id, "saga", inbox.Held)
	is(1, "InventoryUpdated")
	handled(id, "saga", inbox.Handled)
	is(1)
	if strings.Contains(out.String(), "saga          handled") || !strings.Contains(out.String(), "saga          retried") {
		t.Error(out.String())
	}
	if _, trouble := w.state(); trouble != nil {
		t.Error(trouble)
	}
	handled(other, "booking", inbox.Parked)
	if _, trouble := w.state(); trouble == nil || !strings.Contains(trouble.Error(), "InventoryUpdated is parked at booking") {
		t.Errorf("%v", trouble)
	}
}
