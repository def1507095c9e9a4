package joint_test

import (
	"fmt"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking/life"
	"github.com/jcp/ticketwave/services/saga"
)

// bookings is the smallest machine that behaves as the decider does for a booking that is led, whatever it hears in whatever order.
// Such a booking only notes most of what it hears, which would make many worlds of one.
type bookings struct {
	states []life.State // one of those that a number stands for
	after  []map[life.Event]outcome
	// inert is what changes nothing and sends nothing, now and after whatever else is heard.
	inert []map[life.Event]bool
}

// events are all that a booking can hear.
func events() (all []life.Event) {
	for _, e := range meaning {
		all = append(all, e)
	}
	for _, outcome := range []contracts.SagaOutcome{
		contracts.OutcomeConfirmed, contracts.OutcomeSoldOut, contracts.OutcomePaymentUnavailable, contracts.OutcomePaymentFailed,
		contracts.OutcomeExpired, contracts.OutcomeCancelled,
	} {
		all = append(all, life.Event{Kind: life.SettlementArrived, Outcome: outcome})
	}
	return append(all, life.Event{Kind: life.DeadlinePassed}, life.Event{Kind: life.CancelRequested})
}

// meaning is what a booking understands.
func (l letter) meaning() life.Event {
	if e, plain := meaning[l.Answer]; plain {
		return e
	}
	return life.Event{Kind: life.SettlementArrived, Outcome: contracts.SagaOutcome(l.Told)}
}

func newBookings(decide func(life.State, life.Event) (life.State, []life.Effect)) *bookings {
	states, number, all := []life.State{life.Begin(true)}, map[life.State]int32{life.Begin(true): 0}, events()
	var after []map[life.Event]outcome
	for at := 0; at < len(states); at++ {
		after = append(after, map[life.Event]outcome{})
		for _, e := range all {
			s, effects := decide(states[at], e)
			n, known := number[s]
			if !known {
				n = int32(len(states))
				number[s], states = n, append(states, s)
			}
			after[at][e] = said(states[at], s, n, effects)
		}
	}
	class := classes(states, after, all)
	b := &bookings{}
	for at, c := range class {
		if int(c) < len(b.states) {
			continue
		}
		b.states, b.after = append(b.states, states[at]), append(b.after, after[at])
		for e, o := range after[at] {
			o.after = class[o.after]
			after[at][e] = o
		}
	}
	b.findInert(all)
	return b
}

// said is what comes of an event. That it contradicts the booking need not be looked for: then the world is wrong.
func said(before, after life.State, number int32, effects []life.Effect) outcome {
	o := outcome{after: number}
	if before.Status.Final() && after.Status != before.Status {
		o.wrong = fmt.Sprintf("a booking that was %s is %s", before.Status, after.Status)
	}
	for _, effect := range effects {
		if effect != life.Tell {
			o.wrong = fmt.Sprintf("a booking that is led sends %s", effect)
		}
		told := saga.Answer{Type: words[after.Status]}
		switch after.Status {
		case life.Rejected:
			told.Told = after.Reason
		case life.PaymentFailed:
			told.Told = string(contracts.BookingPaymentFailed)
		}
		o.sent = append(o.sent, letter{toSaga, told})
	}
	return o
}

// classes numbers the states so that those with one number cannot be told apart by what they send and how they end. Numbers begin in
// the order of the states.
func classes(states []life.State, after []map[life.Event]outcome, all []life.Event) []int32 {
	class, count := make([]int32, len(states)), 0
	for {
		known, next := map[string]int32{}, make([]int32, len(states))
		for at, s := range states {
			key := fmt.Sprint(class[at], s.Status.Final(), s.Status == life.Confirmed)
			for _, e := range all {
				o := after[at][e]
				key += fmt.Sprint(";", class[o.after], o.sent, o.wrong)
			}
			n, found := known[key]
			if !found {
				n = int32(len(known))
				known[key] = n
			}
			next[at] = n
		}
		if class = next; len(known) == count {
			return class
		}
		count = len(known)
	}
}

func (b *bookings) findInert(all []life.Event) {
	for at := range b.states {
		b.inert = append(b.inert, map[life.Event]bool{})
		for _, e := range all {
			o := b.after[at][e]
			b.inert[at][e] = int(o.after) == at && len(o.sent) == 0 && o.wrong == ""
		}
	}
	for more := true; more; {
		more = false
		for at := range b.states {
			for _, e := range all {
				for _, other := range all {
					if b.inert[at][e] && !b.inert[b.after[at][other].after][e] {
						b.inert[at][e], more = false, true
					}
				}
			}
		}
	}
}
