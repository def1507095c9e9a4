package catalog_test

import (
	"bytes"
	"cmp"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/catalog"
)

func TestReserve(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e, booking := s.create(t, 100), uuid.New()
	s.logs.lines(t)
	s.reserve(t, asks(e.ID, booking, 2))
	messages := s.published(t, booking)
	answer := only[contracts.InventoryUpdated](t, messages)
	want := contracts.InventoryUpdated{
		EventID: e.ID.String(), BookingID: booking.String(), PreviousAvailableTickets: 100, CurrentAvailableTickets: 98,
		UpdateType: contracts.UpdateReserved, Version: 2, UpdatedAt: answer.UpdatedAt,
	}
	if answer != want || time.Since(answer.UpdatedAt).Abs() > time.Minute {
		t.Errorf("published %+v, want %+v", answer, want)
	}
	if m := messages[0].Metadata; m[outbox.HeaderCorrelationID] != "flow-2" || m[outbox.HeaderCausationID] != "request-1" {
		t.Errorf("the metadata is %v", m)
	}
	if left := s.event(t, e.ID); left.Available != 98 || left.Capacity != 100 || left.Version != 2 {
		t.Errorf("the event is %+v", left)
	}
	line := func(msg string, more ...any) map[string]any {
		l := map[string]any{"level": "INFO", "msg": msg, "event_id": e.ID.String(), "booking_id": booking.String()}
		for i := 0; i < len(more); i += 2 {
			l[more[i].(string)] = more[i+1]
		}
		return l
	}
	wantLines := []map[string]any{
		line("🎫 Processing UpdateEventInventoryIntegrationEvent"),
		line("✅ Inventory updated successfully", "previous", 100.0, "new", 98.0),
		line("📊 Published InventoryUpdatedIntegrationEvent"),
	}
	if lines := s.logs.lines(t); !reflect.DeepEqual(lines, wantLines) {
		t.Errorf("logged %v, want %v", lines, wantLines)
	}
}

func TestReserveTheLastTickets(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e, last, late := s.create(t, 3), uuid.New(), uuid.New()
	s.reserve(t, asks(e.ID, last, 3))
	s.reserve(t, asks(e.ID, late, 1))
	if answer := only[contracts.InventoryUpdated](t, s.published(t, last)); answer.CurrentAvailableTickets != 0 {
		t.Errorf("the last got %+v", answer)
	}
	if answer := only[contracts.InventoryUpdateRejected](t, s.published(t, late)); answer.Reason != contracts.RejectSoldOut || answer.AvailableTickets != 0 {
		t.Errorf("the late got %+v", answer)
	}
	s.addsUp(t)
}

func TestReject(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e := s.create(t, 3)
	for _, test := range []struct {
		event     uuid.UUID
		reason    contracts.RejectReason
		available int
	}{{e.ID, contracts.RejectSoldOut, 3}, {uuid.New(), contracts.RejectUnknownEvent, 0}} {
		s.logs.lines(t)
		booking := uuid.New()
		s.reserve(t, asks(test.event, booking, 4))
		answer := only[contracts.InventoryUpdateRejected](t, s.published(t, booking))
		want := contracts.InventoryUpdateRejected{
			EventID: test.event.String(), BookingID: booking.String(), QuantityRequested: 4, AvailableTickets: test.available,
			Reason: test.reason, RejectedAt: answer.RejectedAt,
		}
		if answer != want {
			t.Errorf("published %+v, want %+v", answer, want)
		}
		var said []any
		for _, line := range s.logs.lines(t) {
			said = append(said, line["msg"], line["reason"])
		}
		if wantSaid := []any{
			"🎫 Processing UpdateEventInventoryIntegrationEvent", nil, "⛔ Inventory update rejected", string(test.reason),
			"📊 Published InventoryUpdateRejectedIntegrationEvent", nil,
		}; !slices.Equal(said, wantSaid) {
			t.Errorf("logged %v", said)
		}
	}
	if left := s.event(t, e.ID); left.Available != 3 || left.Version != 1 {
		t.Errorf("the event is %+v", left)
	}
}

// Another message of the same booking, whatever it says, gets the first answer.
func TestBookingAsksAgain(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e, other := s.create(t, 10), s.create(t, 10)
	reserved, rejected, unknown := uuid.New(), uuid.New(), uuid.New()
	for _, request := range []contracts.UpdateEventInventory{
		asks(e.ID, reserved, 4), asks(e.ID, reserved, 4), asks(e.ID, reserved, 1), asks(other.ID, reserved, 4),
		asks(e.ID, rejected, 7), asks(e.ID, rejected, 7), asks(e.ID, rejected, 1),
		asks(uuid.New(), unknown, 1), asks(e.ID, unknown, 1),
	} {
		s.reserve(t, request)
	}
	for booking, times := range map[uuid.UUID]int{reserved: 4, rejected: 3, unknown: 2} {
		messages := s.published(t, booking)
		for _, again := range messages {
			if again.Topic != messages[0].Topic || !bytes.Equal(again.Payload, messages[0].Payload) {
				t.Errorf("%s got %s and then %s", booking, messages[0].Payload, again.Payload)
			}
		}
		if len(messages) != times {
			t.Errorf("%d answers, want %d", len(messages), times)
		}
	}
	if left := s.event(t, e.ID).Available + s.event(t, other.ID).Available; left != 16 {
		t.Errorf("%d tickets are left, want 16", left)
	}
	s.addsUp(t)
}

func TestReserveIsPartOfItsTransaction(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e, booking := s.create(t, 10), uuid.New()
	failed := errors.New("what follows fails")
	err := outbox.InTx(t.Context(), s.pool, func(tx pgx.Tx) error {
		return cmp.Or(s.service.Reserve(t.Context(), tx, inbox.One(t.Context(), asks(e.ID, booking, 2))), failed)
	})
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if left := s.event(t, e.ID); left.Available != 10 || len(s.published(t, booking)) != 0 {
		t.Errorf("left is %+v", left)
	}
	s.reserve(t, asks(e.ID, booking, 2))
	only[contracts.InventoryUpdated](t, s.published(t, booking))
}

func Test200BookingsFor100Tickets(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e := s.create(t, 100)
	bookings := make([]uuid.UUID, 200)
	var wg sync.WaitGroup
	for i := range bookings {
		bookings[i] = uuid.New()
		wg.Go(func() { s.reserve(t, asks(e.ID, bookings[i], 1)) })
	}
	wg.Wait()
	var accepted []contracts.InventoryUpdated
	for _, booking := range bookings {
		messages := s.published(t, booking)
		if len(messages) == 1 && messages[0].Topic == contracts.TypeInventoryUpdated {
			accepted = append(accepted, only[contracts.InventoryUpdated](t, messages))
		} else {
			only[contracts.InventoryUpdateRejected](t, messages)
		}
	}
	if left := s.event(t, e.ID); len(accepted) != 100 || left.Available != 0 {
		t.Fatalf("%d accepted, %d left", len(accepted), left.Available)
	}
	slices.SortFunc(accepted, func(a, b contracts.InventoryUpdated) int { return cmp.Compare(a.Version, b.Version) })
	for i, a := range accepted {
		if a.Version != int64(i+2) || a.PreviousAvailableTickets != 100-i || a.CurrentAvailableTickets != 99-i {
			t.Fatalf("answer %d is %+v", i, a)
		}
		if i > 0 && a.UpdatedAt.Before(accepted[i-1].UpdatedAt) {
			t.Fatalf("answer %d is of %s, the one before of %s", i, a.UpdatedAt, accepted[i-1].UpdatedAt)
		}
	}
	s.addsUp(t)
}

// Two processes may hold the same message at once for a moment.
func TestBookingsAskAtTheSameMoment(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	events := []catalog.Event{s.create(t, 40), s.create(t, 5)}
	bookings := make([]uuid.UUID, 40)
	var wg sync.WaitGroup
	for i := range bookings {
		bookings[i] = uuid.New()
		request := asks(events[i%2].ID, bookings[i], 1+rand.IntN(4))
		for range 3 {
			wg.Go(func() { s.reserve(t, request) })
		}
	}
	wg.Wait()
	for _, booking := range bookings {
		messages := s.published(t, booking)
		if len(messages) != 3 || !bytes.Equal(messages[0].Payload, messages[1].Payload) || !bytes.Equal(messages[0].Payload, messages[2].Payload) {
			t.Errorf("%s got %d answers: %s", booking, len(messages), messages)
		}
	}
	s.addsUp(t)
}

// TestReserveAsAModel compares the catalog with a model of it, over any sequence of requests.
func TestReserveAsAModel(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	rapid.Check(t, func(r *rapid.T) {
		capacity := rapid.IntRange(1, 12).Draw(r, "capacity")
		e := s.create(t, capacity)
		bookings := []uuid.UUID{uuid.New(), uuid.New(), uuid.New(), uuid.New(), uuid.New()}
		available, answers := capacity, map[uuid.UUID]string{}
		for range rapid.IntRange(1, 8).Draw(r, "requests") {
			booking := rapid.SampledFrom(bookings).Draw(r, "booking")
			quantity := rapid.IntRange(1, 6).Draw(r, "quantity")
			if _, asked := answers[booking]; !asked && quantity <= available {
				answers[booking] = contracts.TypeInventoryUpdated
				available -= quantity
			} else if !asked {
				answers[booking] = contracts.TypeInventoryUpdateRejected
			}
			s.reserve(t, asks(e.ID, booking, quantity))
			messages := s.published(t, booking)
			if got := messages[len(messages)-1].Topic; got != answers[booking] {
				r.Fatalf("booking %s got %s, want %s", booking, got, answers[booking])
			}
		}
		if left := s.event(t, e.ID).Available; left != available {
			r.Fatalf("%d are left, want %d", left, available)
		}
	})
	s.addsUp(t)
}
