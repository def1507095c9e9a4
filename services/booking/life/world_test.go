package life_test

import (
	"slices"
	"strings"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking/life"
)

// message is a kind of message about the one booking of a world. Two of a kind are one: it can be delivered any number of
// times anyway.
type message uint8

// The messages.
const (
	reserve message = iota
	release
	commit
	prepare
	cancelPayment
	refund
	created
	// What the participants answer is heard by the booking, and toSaga further on by the coordinator.
	held
	refused
	released
	sold
	prepared
	unavailable
	completed
	failed
	expired
	cancelled
	refunded
	// The coordinator's word, and booking's.
	settleConfirmed message = iota + toSaga
	settleSoldOut
	settleUnavailable
	settleFailed
	settleExpired
	saidConfirmed
	saidRejected
	saidCancelled
	saidExpired
	messages

	toSaga = refunded - held + 1
)

// network is the messages under way.
type network uint64

func (n network) has(m message) bool { return n&(1<<m) != 0 }

func (n *network) send(all ...message) {
	for _, m := range all {
		*n |= 1 << m
	}
}

// tickets is what the catalog has for the booking.
type tickets uint8

const (
	ticketsUnasked tickets = iota
	ticketsHeld
	ticketsRefused
	ticketsReleased // also before they were asked for
	ticketsSold
)

// money is what the payment service has for the booking.
type money uint8

const (
	moneyUnasked money = iota
	moneyNever         // was cancelled before it was asked for
	moneyUnavailable
	moneyPrepared
	moneyCancelled
	moneyExpired
	moneyFailed
	moneyCompleted
	moneyLate // came in after the payment had ended: it goes back
	moneyLateRefunded
	moneyRefunded
)

// world is one booking and all that has to do with it.
type world struct {
	net      network
	booking  booking
	notified uint8 // of the end; 2 is more often than once
	tickets  tickets
	money    money
	saga     saga
}

// booking is a life.State by its number in a decider.
type booking uint16

// decider is what decides, with all that it was asked so far.
type decider struct {
	next
	led    bool
	states []life.State
	number map[life.State]booking
	asked  []map[life.Event]decision
	// broken is the promise that was broken in the step before.
	broken string
}

type decision struct {
	after         booking
	effects       []life.Effect
	contradiction string
}

// next is the function in question.
type next func(life.State, life.Event) (life.State, []life.Effect)

func newDecider(led bool, f next) *decider {
	return &decider{next: f, led: led, number: map[life.State]booking{}}
}

func (d *decider) numberOf(s life.State) booking {
	b, ok := d.number[s]
	if !ok {
		b = booking(len(d.states))
		d.number[s], d.states, d.asked = b, append(d.states, s), append(d.asked, map[life.Event]decision{})
	}
	return b
}

func (d *decider) decide(b booking, e life.Event) decision {
	found, ok := d.asked[b][e]
	if !ok {
		s, effects := d.next(d.states[b], e)
		found = decision{d.numberOf(s), effects, life.Contradiction(d.states[b], e)}
		d.asked[b][e] = found
	}
	return found
}

func (d *decider) breaks(promise string) { d.broken = promise }

// saga is the coordinator's instance.
type saga struct {
	phase          phase
	tickets, money message // the answer that counts, or 0
	word           message // how the booking shall end, or 0
	ended          message // how it did, or 0
}

type phase uint8

const (
	sagaUnborn phase = iota
	sagaRunning
	sagaSettling
	sagaOver
)

// begin is the world just after a booking was made.
func (d *decider) begin() world {
	w := world{booking: d.numberOf(life.Begin(d.led))}
	if d.led {
		w.net.send(created)
	} else {
		w.net.send(reserve, prepare)
	}
	return w
}

// answer sends what a participant says to who hears it.
func (d *decider) answer(w *world, m message) {
	w.net.send(m)
	if d.led {
		w.net.send(m + toSaga)
	}
}

// step is something that can happen next.
type step struct {
	what   message // that is delivered, or one of the following
	to     world
	broken string
}

const (
	byUser message = messages + iota
	byTime
	byGateway
	bySagaTime
)

// steps are all of them.
func (d *decider) steps(w world) []step {
	all := make([]step, 0, 32)
	add := func(what message, worlds ...world) {
		for _, to := range worlds {
			if d.led {
				to.forget()
			}
			all = append(all, step{what, to, d.broken})
		}
		d.broken = ""
	}
	for m := range messages {
		if w.net.has(m) {
			add(m, d.deliver(w, m)...) // and a copy is left
			last := w
			last.net &^= 1 << m
			add(m, d.deliver(last, m)...)
		}
	}
	add(byUser, d.booked(w, life.Event{Kind: life.CancelRequested}))
	add(byTime, d.booked(w, life.Event{Kind: life.DeadlinePassed}))
	add(byGateway, d.gateway(w)...)
	if d.led {
		add(bySagaTime, w.sagaTimer())
	}
	return all
}

// deliver gives a message to who hears it.
func (d *decider) deliver(w world, m message) []world {
	switch {
	case m <= commit:
		return d.catalog(w, m)
	case m <= refund:
		return d.payment(w, m)
	case m >= held && m <= refunded:
		return []world{d.booked(w, heard[m])}
	case m >= settleConfirmed && m <= settleExpired:
		return []world{d.booked(w, life.Event{Kind: life.SettlementArrived, Outcome: outcomes[m]})}
	}
	return []world{w.coordinator(m)}
}

var heard = [...]life.Event{
	held: {Kind: life.TicketsHeld}, refused: {Kind: life.TicketsRefused, Reason: "sold_out"},
	released: {Kind: life.TicketsReleased}, sold: {Kind: life.TicketsSold},
	prepared: {Kind: life.MoneyPrepared}, unavailable: {Kind: life.MoneyUnavailable}, completed: {Kind: life.MoneyCompleted},
	failed: {Kind: life.MoneyFailed, Reason: "declined"}, expired: {Kind: life.MoneyExpired},
	cancelled: {Kind: life.MoneyCancelled}, refunded: {Kind: life.MoneyRefunded},
}

var outcomes = [...]contracts.SagaOutcome{
	settleConfirmed: contracts.OutcomeConfirmed, settleSoldOut: contracts.OutcomeSoldOut,
	settleUnavailable: contracts.OutcomePaymentUnavailable, settleFailed: contracts.OutcomePaymentFailed,
	settleExpired: contracts.OutcomeExpired,
}

// booked lets something happen to the booking.
func (d *decider) booked(w world, e life.Event) world {
	found := d.decide(w.booking, e)
	before, after := d.states[w.booking], d.states[found.after]
	if found.contradiction != "" {
		d.breaks(string(e.Kind) + ": " + found.contradiction)
	}
	if before.Status.Final() && (after.Status != before.Status || after.Reason != before.Reason) {
		d.breaks("a booking that was " + string(before.Status) + " is " + string(after.Status))
	}
	w.booking = found.after
	for _, effect := range found.effects {
		switch effect {
		case life.ReleaseTickets:
			w.net.send(release)
		case life.CommitTickets:
			w.net.send(commit)
		case life.CancelPayment:
			w.net.send(cancelPayment)
		case life.RefundPayment:
			w.net.send(refund)
		case life.NotifyOfTheEnd:
			w.notified = min(w.notified+1, 2)
		case life.Tell:
			if d.led {
				w.net.send(said[after.Status])
			}
		}
	}
	return w
}

var said = map[life.Status]message{
	life.Confirmed: saidConfirmed, life.Rejected: saidRejected, life.PaymentFailed: saidRejected,
	life.Cancelled: saidCancelled, life.Expired: saidExpired,
}

var answers = [...]message{ticketsHeld: held, ticketsSold: held, ticketsRefused: refused, ticketsReleased: released}

// catalog is what the catalog promises.
func (d *decider) catalog(w world, m message) []world {
	switch m {
	case reserve:
		if w.tickets == ticketsUnasked {
			soldOut := w
			w.tickets, soldOut.tickets = ticketsHeld, ticketsRefused
			d.answer(&w, held)
			d.answer(&soldOut, refused)
			return []world{w, soldOut}
		}
		d.answer(&w, answers[w.tickets])
	case release:
		if w.tickets == ticketsSold {
			d.breaks("sold tickets are to be released")
		}
		w.tickets = ticketsReleased
		d.answer(&w, released)
	case commit:
		if w.tickets != ticketsHeld && w.tickets != ticketsSold {
			d.breaks("tickets are to be sold that are not held")
		}
		w.tickets = ticketsSold
		d.answer(&w, sold)
	}
	return []world{w}
}

// payment is what the payment service promises.
func (d *decider) payment(w world, m message) []world {
	other := w
	switch m {
	case prepare:
		switch w.money {
		case moneyUnasked:
			w.money, other.money = moneyPrepared, moneyUnavailable
			d.answer(&w, prepared)
			d.answer(&other, unavailable)
			return []world{w, other}
		case moneyNever, moneyCancelled:
			d.answer(&w, cancelled)
		case moneyUnavailable:
			d.answer(&w, unavailable)
		default:
			d.answer(&w, prepared)
		}
	case cancelPayment:
		switch w.money {
		case moneyUnasked:
			w.money = moneyNever
			d.answer(&w, cancelled)
		case moneyPrepared:
			w.money = moneyCancelled
			d.answer(&w, cancelled)
		case moneyNever, moneyCancelled, moneyLate:
			d.answer(&w, cancelled)
		case moneyUnavailable:
			d.answer(&w, unavailable)
			d.answer(&other, cancelled)
			return []world{w, other}
		case moneyExpired:
			d.answer(&w, expired)
		case moneyFailed:
			d.answer(&w, failed)
		case moneyCompleted:
			d.answer(&w, completed)
		case moneyLateRefunded:
			d.answer(&w, refunded)
		case moneyRefunded:
			d.answer(&w, refunded)
			d.answer(&other, completed)
			return []world{w, other}
		}
	case refund:
		if w.money != moneyCompleted && w.money != moneyRefunded {
			d.breaks("money is to be given back that was not taken")
		}
		w.money = moneyRefunded
		d.answer(&w, refunded)
	}
	return []world{w}
}

// gateway is what the user, the gateway and the payment's timer can do to a payment.
func (d *decider) gateway(w world) []world {
	switch w.money {
	case moneyPrepared:
		paid, declined, late := w, w, w
		paid.money, declined.money, late.money = moneyCompleted, moneyFailed, moneyExpired
		d.answer(&paid, completed)
		d.answer(&declined, failed)
		d.answer(&late, expired)
		return []world{paid, declined, late}
	case moneyCancelled, moneyExpired, moneyFailed:
		w.money = moneyLate
	case moneyLate:
		w.money = moneyLateRefunded
		d.answer(&w, refunded)
	default:
		return nil
	}
	return []world{w}
}

// coordinator is what a coordinator does that asks, waits, says how the booking ends, and undoes what it asked for when
// the booking has said how it ended.
func (w world) coordinator(m message) world {
	s := &w.saga
	switch m {
	case created:
		if s.phase == sagaUnborn {
			s.phase = sagaRunning
			w.net.send(reserve, prepare)
		}
		return w
	case saidConfirmed, saidRejected, saidCancelled, saidExpired:
		if s.phase == sagaOver {
			return w
		}
		asked := s.phase != sagaUnborn
		s.phase, s.ended = sagaOver, m
		switch {
		case m == saidConfirmed:
			w.net.send(commit)
		case asked:
			w.net.send(release)
			if s.money == completed {
				w.net.send(refund)
			} else {
				w.net.send(cancelPayment)
			}
		}
		return w
	}
	switch m -= toSaga; m {
	case held, refused:
		s.tickets = m
	case unavailable, failed, expired, completed:
		if s.money == 0 {
			s.money = m
		}
	}
	if s.phase == sagaOver && m == completed && s.ended != saidConfirmed {
		w.net.send(refund)
	}
	if s.phase == sagaRunning {
		w.settle()
	}
	return w
}

// settle says how the booking ends, if that is clear.
func (w *world) settle() {
	switch {
	case w.saga.tickets == refused:
		w.say(settleSoldOut)
	case w.saga.money == unavailable:
		w.say(settleUnavailable)
	case w.saga.money == failed:
		w.say(settleFailed)
	case w.saga.money == expired:
		w.say(settleExpired)
	case w.saga.tickets == held && w.saga.money == completed:
		w.say(settleConfirmed)
	}
}

func (w *world) say(word message) {
	w.saga.phase, w.saga.word = sagaSettling, word
	w.net.send(word)
}

// sagaTimer ends what takes too long.
func (w world) sagaTimer() world {
	if w.saga.phase == sagaRunning {
		w.say(settleExpired)
	}
	return w
}

// forget drops copies that the coordinator will never heed again: it is the model's own, and the space stays small.
func (w *world) forget() {
	s := w.saga
	for m := held; m <= refunded; m++ {
		var heeds bool
		switch m {
		case held, refused:
			heeds = s.tickets == 0 && s.phase < sagaSettling
		case unavailable, failed, expired:
			heeds = s.money == 0 && s.phase < sagaSettling
		case completed:
			heeds = s.ended != saidConfirmed && (s.money == 0 || s.phase == sagaOver)
		}
		if !heeds {
			w.net &^= 1 << (m + toSaga)
		}
	}
	if s.phase != sagaUnborn {
		w.net &^= 1 << created
	}
	if s.phase == sagaOver {
		w.net &^= 1<<saidConfirmed | 1<<saidRejected | 1<<saidCancelled | 1<<saidExpired
	}
}

// atRest reports whether nothing is under way.
func (d *decider) atRest(w world) bool {
	return w.net == 0 && w.money != moneyLate && d.states[w.booking].Status.Final() && (!d.led || w.saga.phase == sagaOver)
}

// wrong says which invariant does not hold, or is empty.
func (d *decider) wrong(w world) string {
	b := d.states[w.booking]
	confirmed := b.Status == life.Confirmed
	switch {
	case w.tickets == ticketsSold && !confirmed:
		return "tickets are sold without a confirmed booking"
	case confirmed && w.tickets != ticketsHeld && w.tickets != ticketsSold:
		return "a booking is confirmed without tickets"
	case confirmed && w.money != moneyCompleted:
		return "a booking is confirmed without money"
	case confirmed && (b.Inventory != life.InventoryHeld && b.Inventory != life.InventorySold || b.Payment != life.PaymentCompleted):
		return "a booking is confirmed that has not heard of its tickets and money"
	case !b.Status.Final() && !d.states[d.decide(w.booking, life.Event{Kind: life.DeadlinePassed}).after].Status.Final():
		return "the deadline does not end the booking"
	case !b.Status.Final() && d.states[d.decide(w.booking, life.Event{Kind: life.CancelRequested}).after].Status != life.Cancelled:
		return "the user cannot cancel the booking"
	}
	if d.led {
		if why := d.wrongWhereLed(w, b); why != "" {
			return why
		}
	}
	if d.atRest(w) {
		return wrongAtRest(w, b)
	}
	return ""
}

// wrongWhereLed is about the coordinator's word, which decides where nothing else came first.
func (d *decider) wrongWhereLed(w world, b life.State) string {
	confirmed := w.saga.word == settleConfirmed
	switch {
	case b.Status == life.Confirmed && !confirmed:
		return "a booking is confirmed without the coordinator's word"
	case confirmed && !w.net.has(settleConfirmed) && !b.Status.Final() && b.Inventory == life.InventoryHeld && b.Payment == life.PaymentCompleted:
		return "the coordinator's word is forgotten"
	case b.Status.Final():
		word := life.Event{Kind: life.SettlementArrived, Outcome: contracts.OutcomeExpired}
		if !slices.Equal(d.decide(w.booking, word).effects, []life.Effect{life.Tell}) {
			return "the coordinator's word is not answered with how the booking ended"
		}
	}
	return ""
}

func wrongAtRest(w world, b life.State) string {
	confirmed := b.Status == life.Confirmed
	switch {
	case w.tickets == ticketsHeld:
		return "a seat is held for ever"
	case confirmed != (w.tickets == ticketsSold):
		return "tickets are not sold to a confirmed booking"
	case confirmed != (w.money == moneyCompleted):
		return "money is kept without a confirmed booking"
	case w.money == moneyPrepared:
		return "a booking that has ended can be paid"
	case !b.Led && w.notified != 1:
		return "the user was not told once how it ended"
	case knownTickets[w.tickets] != b.Inventory && w.tickets != ticketsUnasked:
		return "the booking has " + string(b.Inventory) + " tickets, the catalog has them otherwise"
	case b.Payment == life.PaymentCompleted && !confirmed:
		return "the booking does not know that the money went back"
	}
	return ""
}

var knownTickets = map[tickets]life.Inventory{
	ticketsRefused: life.InventoryRefused, ticketsReleased: life.InventoryReleased, ticketsSold: life.InventorySold,
}

// String lists the messages.
func (n network) String() string {
	var all []string
	for m := range messages {
		if n.has(m) {
			all = append(all, m.String())
		}
	}
	return strings.Join(all, ", ")
}

var names = []string{
	"UpdateEventInventory", "ReleaseEventInventory", "CommitEventInventory", "PreparePaymentData", "CancelPayment", "RefundPayment", "BookingCreated",
	"InventoryUpdated", "InventoryUpdateRejected", "InventoryReleased", "InventoryCommitted", "PaymentDataPrepared", "PaymentPreparationFailed",
	"PaymentCompleted", "PaymentFailed", "PaymentExpired", "PaymentCancelled", "PaymentRefunded",
}

// String is the message's name.
func (m message) String() string {
	switch {
	case int(m) < len(names):
		return names[m]
	case m < settleConfirmed:
		return names[m-toSaga] + " to the coordinator"
	case m <= settleExpired:
		return "SettleBooking " + string(outcomes[m])
	}
	return []string{
		"BookingConfirmed", "BookingRejected", "BookingCancelled", "BookingExpired",
		"the user cancels", "the booking's deadline passes", "something happens to the payment", "the coordinator's deadline passes",
	}[m-saidConfirmed]
}
