package catalog_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

func releases(event, booking uuid.UUID) contracts.ReleaseEventInventory {
	return contracts.ReleaseEventInventory{
		EventID: event.String(), BookingID: booking.String(), Reason: contracts.UndoBookingExpired, RequestedAt: time.Now().UTC(),
	}
}

func commits(event, booking uuid.UUID) contracts.CommitEventInventory {
	return contracts.CommitEventInventory{EventID: event.String(), BookingID: booking.String(), RequestedAt: time.Now().UTC()}
}

// handle calls a handler with one request as a consumer does.
func handle[E any](s *shop, handler func(context.Context, pgx.Tx, []inbox.Item[E]) error, requests ...E) error {
	ctx := context.Background()
	return outbox.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		var items []inbox.Item[E]
		for _, r := range requests {
			items = append(items, inbox.One(ctx, r)...)
		}
		return handler(ctx, tx, items)
	})
}

// ask sends one request, named by a letter, of a booking of two tickets: u update, r release, c commit.
func (s *shop) ask(event, booking uuid.UUID, what rune) error {
	switch what {
	case 'u':
		return handle(s, s.service.Reserve, asks(event, booking, 2))
	case 'r':
		return handle(s, s.service.Release, releases(event, booking))
	case 'c':
		return handle(s, s.service.Commit, commits(event, booking))
	}
	return fmt.Errorf("there is no request %c", what)
}

// heard are the answers so far, by the letters: h held, x refused, 2 and 0 released so many, s sold.
func heard(t *testing.T, messages []stored) string {
	t.Helper()
	var answers strings.Builder
	for _, m := range messages {
		switch m.Topic {
		case contracts.TypeInventoryUpdated:
			answers.WriteRune('h')
		case contracts.TypeInventoryUpdateRejected:
			answers.WriteRune('x')
		case contracts.TypeInventoryReleased:
			e := only[contracts.InventoryReleased](t, []stored{m})
			fmt.Fprint(&answers, e.QuantityReleased)
		case contracts.TypeInventoryCommitted:
			if e := only[contracts.InventoryCommitted](t, []stored{m}); e.QuantityCommitted != 2 {
				t.Errorf("%d tickets are sold", e.QuantityCommitted)
			}
			answers.WriteRune('s')
		}
	}
	return answers.String()
}

// counts are available, held and sold tickets.
func (s *shop) counts(t *testing.T, event uuid.UUID) string {
	t.Helper()
	e := s.event(t, event)
	return fmt.Sprint(e.Available, " ", e.Held, " ", e.Sold)
}

// Requests: u update, r release, c commit, each an answer as heard has it; ! is a request that is parked.
func TestHoldsInEveryOrder(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for requests, want := range map[string]string{
		"u":     "h 8 2 0",
		"uu":    "hh 8 2 0",
		"ur":    "h2 10 0 0",
		"urr":   "h22 10 0 0",
		"urru":  "h222 10 0 0",
		"uurur": "hh222 10 0 0",
		"r":     "0 10 0 0",
		"ru":    "00 10 0 0",
		"rur":   "000 10 0 0",
		"rruu":  "0000 10 0 0",
		"uc":    "hs 8 0 2",
		"ucc":   "hss 8 0 2",
		"ucuc":  "hshs 8 0 2",
		"ucr":   "hs! 8 0 2",
		"ucrc":  "hs!s 8 0 2",
		"urc":   "h2! 10 0 0",
		"c":     "! 10 0 0",
		"cu":    "!h 8 2 0",
		"cuc":   "!hs 8 0 2",
		"rc":    "0! 10 0 0",
		"ruc":   "00! 10 0 0",
	} {
		t.Run(requests, func(t *testing.T) {
			e, booking := s.create(t, 10), uuid.New()
			var got string
			for _, what := range requests {
				before := len(s.published(t, booking))
				if err := s.ask(e.ID, booking, what); err != nil {
					if !strings.Contains(fmt.Sprintf("%#v", err), "permanent") {
						t.Fatalf("%c: %#v", what, err)
					}
					got += "!"
				}
				got += heard(t, s.published(t, booking)[before:])
			}
			if got += " " + s.counts(t, e.ID); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
	s.addsUp(t)
}

// A booking that got no tickets is released of none, and asks in vain ever after.
func TestReleaseOfWhatWasRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e, soldOut, unknown, nowhere := s.create(t, 1), uuid.New(), uuid.New(), uuid.New()
	for _, what := range "urru" {
		for booking, event := range map[uuid.UUID]uuid.UUID{soldOut: e.ID, unknown: nowhere} {
			if err := s.ask(event, booking, what); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, booking := range []uuid.UUID{soldOut, unknown} {
		if got := heard(t, s.published(t, booking)); got != "x000" {
			t.Errorf("the answers are %s", got)
		}
		if err := s.ask(e.ID, booking, 'c'); err == nil {
			t.Error("what was refused is sold")
		}
	}
	if got := s.counts(t, e.ID); got != "1 0 0" {
		t.Error(got)
	}
	s.addsUp(t)
}

func TestRequestsOfAnotherEventAreParked(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e, other, booking := s.create(t, 10), s.create(t, 10), uuid.New()
	if err := s.ask(e.ID, booking, 'u'); err != nil {
		t.Fatal(err)
	}
	for _, what := range "rc" {
		if err := s.ask(other.ID, booking, what); err == nil || !strings.Contains(fmt.Sprintf("%#v", err), "permanent") {
			t.Errorf("%c: %#v", what, err)
		}
	}
	if got := s.counts(t, e.ID) + ", " + s.counts(t, other.ID); got != "8 2 0, 10 0 0" {
		t.Error(got)
	}
}

// Many bookings of several events in one transaction, some of them for the second time.
func TestReleaseAndCommitInBatches(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	first, second := s.create(t, 20), s.create(t, 20)
	var updates []contracts.UpdateEventInventory
	var gone []contracts.ReleaseEventInventory
	var kept []contracts.CommitEventInventory
	for i := range 10 {
		event, booking := first.ID, uuid.New()
		if i >= 5 {
			event = second.ID
		}
		updates = append(updates, asks(event, booking, 2))
		if i%2 == 0 {
			gone = append(gone, releases(event, booking))
		} else {
			kept = append(kept, commits(event, booking))
		}
	}
	early := uuid.New()
	if err := handle(s, s.service.Reserve, updates...); err != nil {
		t.Fatal(err)
	}
	if err := handle(s, s.service.Release, gone[:2]...); err != nil {
		t.Fatal(err)
	}
	if err := handle(s, s.service.Release, append(gone, releases(second.ID, early))...); err != nil {
		t.Fatal(err)
	}
	if err := handle(s, s.service.Commit, kept...); err != nil {
		t.Fatal(err)
	}
	if got := s.counts(t, first.ID) + ", " + s.counts(t, second.ID); got != "16 0 4, 14 0 6" {
		t.Error(got)
	}
	if got := heard(t, s.published(t, early)); got != "0" {
		t.Error(got)
	}
	s.addsUp(t)
}

// One request that cannot be fulfilled takes all of its batch back; the inbox then handles each by itself.
func TestABatchIsAllOrNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e, sold, held := s.create(t, 10), uuid.New(), uuid.New()
	for booking, requests := range map[uuid.UUID]string{sold: "uc", held: "u"} {
		for _, what := range requests {
			if err := s.ask(e.ID, booking, what); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := handle(s, s.service.Release, releases(e.ID, held), releases(e.ID, sold)); err == nil {
		t.Error("sold tickets are released")
	}
	if got := s.counts(t, e.ID); got != "6 2 2" {
		t.Error(got)
	}
	s.addsUp(t)
}

// A release, a sale and a repeated request of the same booking at the same moment: one of them wins, and the books balance.
func TestAtTheSameMoment(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e := s.create(t, 100)
	var wg sync.WaitGroup
	bookings := make([]uuid.UUID, 20)
	for i := range bookings {
		bookings[i] = uuid.New()
		if i%2 == 0 { // the others' releases may overtake their requests
			if err := s.ask(e.ID, bookings[i], 'u'); err != nil {
				t.Fatal(err)
			}
		}
		for _, what := range "ruru" {
			wg.Go(func() {
				if err := s.ask(e.ID, bookings[i], what); err != nil {
					t.Errorf("%c: %v", what, err)
				}
			})
		}
	}
	wg.Wait()
	for _, booking := range bookings {
		messages := s.published(t, booking)
		if last := heard(t, messages); !strings.ContainsAny(last, "02") || strings.HasSuffix(last, "x") {
			t.Errorf("the answers are %s", last)
		}
	}
	if got := s.counts(t, e.ID); got != "100 0 0" {
		t.Error(got)
	}
	s.addsUp(t)
}

// A release that comes while its booking's request is not committed yet waits, and is never parked. Where no event's row is
// there to wait for, it is to be tried again.
func TestAReleaseMeetsItsRequest(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for name, c := range map[string]struct {
		event uuid.UUID
		first string
		then  string
	}{
		"an event on sale": {s.create(t, 10).ID, "", "h2"},
		"no such event":    {uuid.New(), "at the same moment", "x0"},
	} {
		t.Run(name, func(t *testing.T) {
			booking, released := uuid.New(), make(chan error, 1)
			if err := outbox.InTx(t.Context(), s.pool, func(tx pgx.Tx) error {
				if err := s.service.Reserve(t.Context(), tx, inbox.One(t.Context(), asks(c.event, booking, 2))); err != nil {
					return err
				}
				go func() { released <- s.ask(c.event, booking, 'r') }()
				outboxtest.Eventually(t, time.Minute, func() (waits bool) {
					err := s.db.QueryRow(t.Context(), `SELECT EXISTS (
						SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits)
					return err == nil && waits
				}, "the release does not wait")
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			err := <-released
			switch {
			case c.first == "" && err != nil:
				t.Fatal(err)
			case c.first != "":
				if err == nil || !strings.Contains(err.Error(), c.first) || strings.Contains(fmt.Sprintf("%#v", err), "permanent") {
					t.Fatalf("%#v, want to be asked again", err)
				}
				if err := s.ask(c.event, booking, 'r'); err != nil {
					t.Fatal(err)
				}
			}
			if got := heard(t, s.published(t, booking)); got != c.then {
				t.Errorf("the answers are %s, want %s", got, c.then)
			}
		})
	}
	s.addsUp(t)
}

// A released booking hears the same however often it asks.
func TestAnswersAreRepeatedWordForWord(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e := s.create(t, 10)
	for _, requests := range []string{"urrr", "uccc"} {
		booking := uuid.New()
		for _, what := range requests {
			if err := s.ask(e.ID, booking, what); err != nil {
				t.Fatal(err)
			}
		}
		messages := s.published(t, booking)
		for _, again := range messages[2:] {
			if !bytes.Equal(again.Payload, messages[1].Payload) {
				t.Errorf("%s, then %s", messages[1].Payload, again.Payload)
			}
		}
	}
}

// TestHoldsAsAModel compares the catalog with a model of it, over any sequence of requests of several bookings.
func TestHoldsAsAModel(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	rapid.Check(t, func(r *rapid.T) {
		e := s.create(t, 5)
		bookings := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
		holds, available, held, sold := map[uuid.UUID]string{}, 5, 0, 0
		for range rapid.IntRange(1, 9).Draw(r, "requests") {
			booking, what := rapid.SampledFrom(bookings).Draw(r, "booking"), rapid.SampledFrom([]rune("urc")).Draw(r, "request")
			impossible := false
			switch hold := holds[booking]; {
			case what == 'u' && hold == "" && available >= 2:
				holds[booking], available, held = "held", available-2, held+2
			case what == 'u' && hold == "":
				holds[booking] = "refused"
			case what == 'r' && hold == "held":
				holds[booking], available, held = "released", available+2, held-2
			case what == 'r' && hold != "sold":
				holds[booking] = "released"
			case what == 'c' && hold == "held":
				holds[booking], held, sold = "sold", held-2, sold+2
			case what == 'c' && hold != "sold", what == 'r':
				impossible = true
			}
			if err := s.ask(e.ID, booking, what); (err != nil) != impossible {
				r.Fatalf("%c of a booking whose tickets are %q: %v", what, holds[booking], err)
			}
		}
		if got, want := s.counts(t, e.ID), fmt.Sprint(available, " ", held, " ", sold); got != want {
			r.Fatalf("%s, want %s", got, want)
		}
	})
	s.addsUp(t)
}
