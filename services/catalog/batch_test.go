package catalog_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// countUpdates lets the database count how often rows of events are written.
func (s *shop) countUpdates(t *testing.T) (count func() int) {
	t.Helper()
	if _, err := s.db.Exec(t.Context(), `
		CREATE TABLE catalog.written (n int);
		CREATE FUNCTION catalog.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
		BEGIN
			INSERT INTO catalog.written VALUES (1);
			RETURN NULL;
		END $$;
		CREATE TRIGGER note AFTER UPDATE ON catalog.events FOR EACH ROW EXECUTE FUNCTION catalog.note()`); err != nil {
		t.Fatal(err)
	}
	return func() (n int) {
		t.Helper()
		if err := s.db.QueryRow(t.Context(), `WITH gone AS (DELETE FROM catalog.written RETURNING n) SELECT count(*) FROM gone`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// All requests of a batch that are about one event write its row once.
func TestABatchWritesAnEventOnce(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	first, second := s.create(t, 20), s.create(t, 5)
	written := s.countUpdates(t)
	var updates []contracts.UpdateEventInventory
	var gone []contracts.ReleaseEventInventory
	var kept []contracts.CommitEventInventory
	for i := range 12 {
		event, booking := first.ID, uuid.New()
		if i >= 6 {
			event = second.ID // two of the six get tickets
		}
		updates = append(updates, asks(event, booking, 2))
		switch {
		case i%2 == 0:
			gone = append(gone, releases(event, booking))
		case i < 8:
			kept = append(kept, commits(event, booking))
		}
	}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"take", func() error { return handle(s, s.service.Reserve, updates...) }},
		{"release", func() error { return handle(s, s.service.Release, gone...) }},
		{"sell", func() error { return handle(s, s.service.Commit, kept...) }},
	} {
		for again, want := range []int{2, 0} {
			if err := c.do(); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			if n := written(); n != want {
				t.Errorf("%s, done %d times before: the rows of events were written %d times, want %d", c.what, again, n, want)
			}
		}
	}
	if got := s.counts(t, first.ID) + ", " + s.counts(t, second.ID); got != "14 0 6, 3 0 2" {
		t.Error(got)
	}
	s.addsUp(t)
}

// TestABatchAnswersAsOneByOne takes tickets of one event in one batch and of another one by one, and wants the same answers. Only how
// many tickets are left, as told to those that got none, is that of the batch's end.
func TestABatchAnswersAsOneByOne(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	rapid.Check(t, func(r *rapid.T) {
		capacity := rapid.IntRange(1, 12).Draw(r, "capacity")
		quantities := rapid.SliceOfN(rapid.IntRange(1, 6), 1, 8).Draw(r, "quantities")
		already := rapid.IntRange(0, len(quantities)).Draw(r, "of them asked before")
		var answers [2][]string
		for i, together := range []bool{false, true} {
			e := s.create(t, capacity)
			var requests []contracts.UpdateEventInventory
			for _, n := range quantities {
				requests = append(requests, asks(e.ID, uuid.New(), n))
			}
			for _, request := range requests[:already] {
				must(r, handle(s, s.service.Reserve, request))
			}
			// Those that asked before stand among the others.
			slices.SortStableFunc(requests, func(a, b contracts.UpdateEventInventory) int { return a.QuantityReduced%2 - b.QuantityReduced%2 })
			if together {
				must(r, handle(s, s.service.Reserve, requests...))
			} else {
				for _, request := range requests {
					must(r, handle(s, s.service.Reserve, request))
				}
			}
			for _, request := range requests {
				for _, m := range s.published(t, uuid.MustParse(request.BookingID)) {
					answer := m.Topic
					if m.Topic == contracts.TypeInventoryUpdated {
						told := only[contracts.InventoryUpdated](t, []stored{m})
						answer = fmt.Sprint(told.PreviousAvailableTickets, "->", told.CurrentAvailableTickets, " version ", told.Version)
					}
					answers[i] = append(answers[i], answer)
				}
			}
			answers[i] = append(answers[i], s.counts(t, e.ID))
		}
		if !slices.Equal(answers[0], answers[1]) {
			r.Fatalf("one by one %q, together %q", answers[0], answers[1])
		}
	})
	s.addsUp(t)
}

func must(r *rapid.T, err error) {
	if err != nil {
		r.Fatal(err)
	}
}

// However many reservations there are said to be, those that are asked for are looked up by the index.
func TestTakingTicketsReadsNoOtherReservations(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e := s.create(t, 100_000)
	take := func() {
		if err := handle(s, s.service.Reserve, asks(e.ID, uuid.New(), 1)); err != nil {
			t.Fatal(err)
		}
	}
	looked := func() (byIndex, inTurn int) {
		if err := s.db.QueryRow(t.Context(), `
			SELECT coalesce(idx_scan, 0), seq_tup_read FROM pg_stat_user_tables WHERE relid = 'catalog.reservations'::regclass`).Scan(&byIndex, &inTurn); err != nil {
			t.Fatal(err)
		}
		return byIndex, inTurn
	}
	for range 10 { // after five the plan is kept
		take()
	}
	const many, takes = 1000, 20
	if _, err := s.db.Exec(t.Context(), `
		INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome) SELECT gen_random_uuid(), $1, 1, 'sold_out' FROM generate_series(1, $2::int)`, e.ID, many); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.Exec(t.Context(), `ANALYZE catalog.reservations`); err != nil { // all plans are made anew
		t.Fatal(err)
	}
	before, read := looked()
	outboxtest.Eventually(t, 20*time.Second, func() bool { take(); n, _ := looked(); return n >= before+takes }, "the database counts") // some seconds late
	if _, n := looked(); n-read >= many {
		t.Errorf("%d reservations were read one after the other", n-read)
	}
}
