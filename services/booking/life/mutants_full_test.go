//go:build full

package life_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking/life"
)

// mutant is a decider with one mistake.
type mutant struct {
	name   string
	led    bool
	decide next
}

// forgets drops an effect where it is sent.
func forgets(effect life.Effect, where func(before life.State, e life.Event, after life.State) bool) next {
	return func(s life.State, e life.Event) (life.State, []life.Effect) {
		after, effects := life.Next(s, e)
		if where(s, e, after) {
			effects = slices.DeleteFunc(slices.Clone(effects), func(f life.Effect) bool { return f == effect })
		}
		return after, effects
	}
}

// takesFor decides about an event as if the state were another one: the guard that tells them apart is gone.
func takesFor(kind life.Kind, lie func(s *life.State)) next {
	return func(s life.State, e life.Event) (life.State, []life.Effect) {
		if e.Kind == kind {
			lie(&s)
		}
		return life.Next(s, e)
	}
}

// ignores does not hear an event.
func ignores(kind life.Kind) next {
	return func(s life.State, e life.Event) (life.State, []life.Effect) {
		if e.Kind == kind {
			return s, nil
		}
		return life.Next(s, e)
	}
}

// reopened forgets that the booking has ended.
func reopened(s *life.State) {
	if s.Status.Final() {
		s.Status = life.AwaitingPayment
	}
}

// guards are deciders without one of the guards.
var guards = []mutant{
	{"a booking that has ended is cancelled", false, takesFor(life.CancelRequested, reopened)},
	{"a booking that has ended runs out of time", false, takesFor(life.DeadlinePassed, reopened)},
	{"a booking that has ended fails with its payment", false, takesFor(life.MoneyFailed, reopened)},
	{"a booking that has ended expires with its payment", false, takesFor(life.MoneyExpired, reopened)},
	{"a booking that has ended is rejected", false, takesFor(life.TicketsRefused, reopened)},
	{"a booking that has ended is rejected for its payment", false, takesFor(life.MoneyUnavailable, reopened)},
	{"a booking that has ended is confirmed by money", false, takesFor(life.MoneyCompleted, reopened)},
	{"money confirms without tickets", false, takesFor(life.MoneyCompleted, func(s *life.State) { s.Inventory = life.InventoryHeld })},
	{"tickets confirm without money", false, takesFor(life.TicketsHeld, func(s *life.State) { s.Payment = life.PaymentCompleted })},
	{"released tickets are held again", false, takesFor(life.TicketsHeld, func(s *life.State) {
		if s.Inventory == life.InventoryReleased {
			s.Inventory = life.InventoryAsked
		}
	})},
	{"money that comes after the end is kept", false, func(s life.State, e life.Event) (life.State, []life.Effect) {
		after, effects := life.Next(s, e)
		if s.Status.Final() && e.Kind == life.MoneyCompleted {
			effects = nil
		}
		return after, effects
	}},
	{"the deadline passes unheard", false, ignores(life.DeadlinePassed)},
	{"the user is not heard", false, ignores(life.CancelRequested)},
	{"a booking that has ended is cancelled", true, takesFor(life.CancelRequested, reopened)},
	{"a booking that has ended runs out of time", true, takesFor(life.DeadlinePassed, reopened)},
	{"a booking that has ended is settled otherwise", true, takesFor(life.SettlementArrived, reopened)},
	{"the coordinator is believed before tickets and money are heard of", true, func(s life.State, e life.Event) (life.State, []life.Effect) {
		if !s.Status.Final() && e.Outcome == contracts.OutcomeConfirmed {
			s.Status = life.Confirmed
			return s, []life.Effect{life.Tell}
		}
		return life.Next(s, e)
	}},
	{"the coordinator's word is forgotten", true, func(s life.State, e life.Event) (life.State, []life.Effect) {
		after, effects := life.Next(s, e)
		after.Settling = false
		return after, effects
	}},
	{"a led booking is confirmed by what it hears", true, takesFor(life.MoneyCompleted, func(s *life.State) { s.Settling = true })},
	{"the deadline passes unheard", true, ignores(life.DeadlinePassed)},
	{"the user is not heard", true, ignores(life.CancelRequested)},
	{"how it ended is not told", true, forgets(life.Tell, func(before life.State, _ life.Event, _ life.State) bool { return !before.Status.Final() })},
	{"how it ended is told once", true, forgets(life.Tell, func(before life.State, _ life.Event, _ life.State) bool { return before.Status.Final() })},
}

// place is where an effect is sent.
type place struct {
	before life.Status
	event  life.Kind
	effect life.Effect
}

// places are all of them where nobody leads, but for what is told to a coordinator.
func places(t *testing.T) []place {
	t.Helper()
	found := map[place]bool{}
	x := explore(false, life.Next)
	if x.wrong != "" {
		t.Fatal(x.wrong)
	}
	for b, asked := range x.asked {
		for e, decided := range asked {
			for _, f := range decided.effects {
				if f != life.Tell {
					found[place{x.states[b].Status, e.Kind, f}] = true
				}
			}
		}
	}
	return slices.Collect(maps.Keys(found))
}

// mutants are the guards, and for every effect at every place the decider that forgets it there.
func mutants(t *testing.T) []mutant {
	t.Helper()
	all := slices.Clone(guards)
	for _, p := range places(t) {
		all = append(all, mutant{
			fmt.Sprintf("a %s booking forgets %s after %s", p.before, p.effect, p.event), false,
			forgets(p.effect, func(before life.State, e life.Event, _ life.State) bool {
				return before.Status == p.before && e.Kind == p.event
			}),
		})
	}
	return all
}

// The model finds every mistake: each guard and each effect is needed.
func TestEveryMutantIsCaught(t *testing.T) {
	t.Parallel()
	for _, m := range mutants(t) {
		x := explore(m.led, m.decide)
		if x.wrong == "" {
			t.Errorf("led %v, %s: goes unnoticed in %d worlds", m.led, m.name, len(x.worlds))
			continue
		}
		t.Logf("led %v, %s: %d worlds, %s", m.led, m.name, len(x.worlds), strings.SplitN(x.wrong, "\n", 2)[0])
	}
}
