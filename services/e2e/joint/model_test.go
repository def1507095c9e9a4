package joint_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking/life"
	"github.com/jcp/ticketwave/services/saga"
)

// deciders are those in question.
type deciders struct {
	booking func(life.State, life.Event) (life.State, []life.Effect)
	saga    func(saga.Definition, saga.Instance, saga.Event) (saga.Instance, []saga.Command, error)
}

// world is one booking and all that has to do with it. It is small, for there are many.
type world struct {
	net     uint64 // which letters are under way; two that are the same are not told apart
	saga    int32  // number of an instance; 0 before it begins
	booking uint8  // number of a state
	copies  uint8  // how many more deliveries may be repeated
	seats   seats
	money   money
}

type seats uint8

const (
	untouched seats = iota
	held
	refused
	released
	sold
)

type money uint8

const (
	nothing money = iota
	prepared
	impossible
	completed
	failed
	expired
	cancelled
	refunded
)

type receiver uint8

const (
	toCatalog receiver = iota
	toPayment
	toBooking
	toSaga
)

// letter is a message to one receiver, or something else that happens to the coordinator: of a timeout it tells the step.
type letter struct {
	to receiver
	saga.Answer
}

// move is something that may happen next. What is extra need not.
type move struct {
	what  string
	extra bool
	to    world
	wrong string
}

// explorer has a number for every letter, state and instance, and what was decided before.
type explorer struct {
	deciders
	d         saga.Definition
	calm      bool
	letters   []letter
	names     []string
	toSaga    uint64   // those to the coordinator
	vain      []uint64 // those that change nothing, by the booking's state
	bits      map[letter]uint8
	bookings  *bookings
	instances []saga.Instance
	due       [][]uint8 // the letters of their timeouts
	instance  map[string]int32
	told      map[told]*outcome
}

// told is what an instance is told, by number.
type told struct {
	instance, letter int32
}

// outcome is what a decider says, by numbers.
type outcome struct {
	after int32
	sent  []letter
	wrong string
	none  bool // it is refused, and nothing happens
}

var (
	past   = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	future = past.Add(time.Hour)
)

func newExplorer(by deciders, d saga.Definition, b bound) *explorer {
	x := &explorer{
		deciders: by, d: b.patient(d), calm: b.calm, bits: map[letter]uint8{}, instance: map[string]int32{}, told: map[told]*outcome{}, bookings: newBookings(by.booking),
	}
	x.vain = make([]uint64, len(x.bookings.states))
	x.number(saga.Instance{Booking: contracts.BookingCreated{BookingID: "booking", ExpiresAt: past}})
	return x
}

func (x *explorer) send(w *world, all ...letter) {
	for _, l := range all {
		w.net |= 1 << x.bit(l)
	}
}

func (x *explorer) bit(l letter) uint8 {
	n, known := x.bits[l]
	if !known {
		n = uint8(len(x.letters))
		x.bits[l], x.letters, x.names = n, append(x.letters, l), append(x.names, l.String())
		if l.to == toSaga {
			x.toSaga |= 1 << n
		}
		for state := range x.vain {
			if l.to == toBooking && x.bookings.inert[state][l.meaning()] {
				x.vain[state] |= 1 << n
			}
		}
	}
	return n
}

// number is the same for instances that behave the same: any deadline may pass at any time.
func (x *explorer) number(i saga.Instance) int32 {
	key, due := fmt.Sprint(i.Phase, i.Outcome, i.Verdict, i.Reason, i.PaymentID), []uint8(nil)
	for _, name := range slices.Sorted(maps.Keys(i.Steps)) {
		p := i.Steps[name]
		if p.Due != nil {
			p.Due = &future
			i.Steps[name] = p
			due = append(due, x.bit(letter{toSaga, saga.Answer{Type: saga.Timeout, Told: name}}))
		}
		key += fmt.Sprint(";", name, p.Forward, "|", p.Back, p.Seen, p.Outcome, p.Tries, p.Due != nil)
	}
	n, known := x.instance[key]
	if !known {
		n = int32(len(x.instances))
		x.instance[key], x.instances, x.due = n, append(x.instances, i), append(x.due, due)
	}
	return n
}

// tell gives the coordinator something to decide; false when it is refused.
func (x *explorer) tell(w *world, n uint8) (wrong string, done bool) {
	key := told{w.saga, int32(n)}
	o, known := x.told[key]
	if !known {
		o = x.ask(w.saga, x.letters[n].Answer)
		x.told[key] = o
	}
	w.saga = o.after
	x.send(w, o.sent...)
	return o.wrong, !o.none
}

func (x *explorer) ask(instance int32, a saga.Answer) *outcome {
	i, e := x.instances[instance], saga.Event{Answer: a, At: past}
	if a.Type == saga.Timeout {
		i.Steps, e.Told = maps.Clone(i.Steps), ""
		p := i.Steps[a.Told]
		p.Due = &past
		i.Steps[a.Told] = p
	}
	if slices.Contains(ofPayment, a.Type) {
		e.PaymentID = "payment"
	}
	after, commands, err := x.saga(x.d, i, e)
	switch {
	case err != nil && (a.Type == saga.Resume || a.Type == saga.GiveUp):
		return &outcome{after: instance, none: true}
	case err != nil:
		return &outcome{after: instance, wrong: err.Error()}
	}
	o := &outcome{after: x.number(after)}
	for _, c := range commands {
		switch to, known := askedOf[c.Type]; {
		case c.Type == contracts.TypeSettleBooking:
			o.sent = append(o.sent, letter{toBooking, saga.Answer{Type: c.Type, Told: string(after.Outcome)}})
		case known:
			o.sent = append(o.sent, letter{to, saga.Answer{Type: c.Type}})
		}
	}
	return o
}

var (
	askedOf = map[string]receiver{
		contracts.TypeUpdateEventInventory: toCatalog, contracts.TypeReleaseEventInventory: toCatalog, contracts.TypeCommitEventInventory: toCatalog,
		contracts.TypePreparePaymentData: toPayment, contracts.TypeCancelPayment: toPayment, contracts.TypeRefundPayment: toPayment,
	}
	ofPayment = []string{
		contracts.TypePaymentDataPrepared, contracts.TypePaymentCompleted, contracts.TypePaymentFailed,
		contracts.TypePaymentExpired, contracts.TypePaymentRefunded,
	}
	// meaning is what a booking understands.
	meaning = map[saga.Answer]life.Event{
		{Type: contracts.TypeInventoryUpdated}:         {Kind: life.TicketsHeld},
		soldOut:                                        {Kind: life.TicketsRefused, Reason: soldOut.Told},
		{Type: contracts.TypeInventoryReleased}:        {Kind: life.TicketsReleased},
		{Type: contracts.TypeInventoryCommitted}:       {Kind: life.TicketsSold},
		{Type: contracts.TypePaymentDataPrepared}:      {Kind: life.MoneyPrepared},
		{Type: contracts.TypePaymentPreparationFailed}: {Kind: life.MoneyUnavailable},
		{Type: contracts.TypePaymentCompleted}:         {Kind: life.MoneyCompleted},
		{Type: contracts.TypePaymentFailed}:            {Kind: life.MoneyFailed, Reason: string(contracts.PaymentDeclined)},
		{Type: contracts.TypePaymentExpired}:           {Kind: life.MoneyExpired},
		{Type: contracts.TypePaymentCancelled}:         {Kind: life.MoneyCancelled},
		{Type: contracts.TypePaymentRefunded}:          {Kind: life.MoneyRefunded},
	}
	soldOut = saga.Answer{Type: contracts.TypeInventoryUpdateRejected, Told: string(contracts.RejectSoldOut)}
	// words are what a booking says of its end.
	words = map[life.Status]string{
		life.Confirmed: contracts.TypeBookingConfirmed, life.Rejected: contracts.TypeBookingRejected, life.PaymentFailed: contracts.TypeBookingRejected,
		life.Cancelled: contracts.TypeBookingCancelled, life.Expired: contracts.TypeBookingExpired,
	}
)

// hear lets something happen to the booking.
func (x *explorer) hear(w *world, e life.Event) (wrong string) {
	o := x.bookings.after[w.booking][e]
	w.booking = uint8(o.after)
	x.send(w, o.sent...)
	return o.wrong
}

// settled takes from the net what its receiver hears in vain, now and ever after: there are fewer worlds without it.
func (x *explorer) settled(w *world) {
	w.net &^= x.vain[w.booking]
	if x.instances[w.saga].Phase == saga.Committed {
		w.net &^= x.toSaga
	}
}

// moves are all that may happen.
func (x *explorer) moves(w world) (all []move) {
	add := func(what string, extra bool, to world, wrong string) {
		x.settled(&to)
		all = append(all, move{what, extra, to, wrong})
	}
	for n := range len(x.letters) {
		if w.net&(1<<n) == 0 {
			continue
		}
		once, again := w, w
		once.net &^= 1 << n
		x.deliver(once, x.letters[n], func(to world, wrong string) { add(x.names[n], false, to, wrong) })
		if w.copies > 0 {
			again.copies--
			x.deliver(again, x.letters[n], func(to world, wrong string) { add(x.names[n], true, to, wrong) })
		}
	}
	if w.saga == 0 {
		begun := w
		wrong, _ := x.tell(&begun, x.bit(letter{toSaga, saga.Answer{Type: saga.Begin}}))
		add("BookingCreated", false, begun, wrong)
	}
	for _, n := range x.due[w.saga] {
		late := w
		wrong, _ := x.tell(&late, n)
		add(x.names[n], false, late, wrong)
	}
	x.order(w, add)
	for _, e := range []life.Event{{Kind: life.DeadlinePassed}, {Kind: life.CancelRequested}} {
		if to := w; !x.bookings.inert[w.booking][e] {
			wrong := x.hear(&to, e)
			add(string(e.Kind), e.Kind == life.CancelRequested, to, wrong)
		}
	}
	x.pay(w, add)
	return all
}

// order is what an operator may do.
func (x *explorer) order(w world, add func(what string, extra bool, to world, wrong string)) {
	verbs := []string{saga.Resume, saga.GiveUp}
	if x.calm {
		verbs = verbs[:1]
	}
	for _, verb := range verbs {
		to := w
		if wrong, done := x.tell(&to, x.bit(letter{toSaga, saga.Answer{Type: verb}})); done {
			add(verb, verb == saga.GiveUp, to, wrong)
		}
	}
}

// pay is what the user and the clock do to a payment.
func (x *explorer) pay(w world, add func(what string, extra bool, to world, wrong string)) {
	becomes := func(what string, extra bool, state money, told string) {
		to := w
		to.money = state
		x.answer(&to, saga.Answer{Type: told})
		add(what, extra, to, "")
	}
	switch w.money {
	case prepared:
		becomes("the user pays", true, completed, contracts.TypePaymentCompleted)
		becomes("the payment is declined", true, failed, contracts.TypePaymentFailed)
		becomes("the payment's time is up", false, expired, contracts.TypePaymentExpired)
	case expired, cancelled, failed:
		if !x.calm {
			becomes("money comes late and goes back", true, refunded, contracts.TypePaymentRefunded)
		}
	}
}

// answer is heard by the booking and the coordinator.
func (x *explorer) answer(w *world, a saga.Answer) {
	x.send(w, letter{toBooking, a}, letter{toSaga, a})
}

// deliver gives a letter to its receiver.
func (x *explorer) deliver(w world, l letter, reach func(to world, wrong string)) {
	switch l.to {
	case toCatalog:
		x.catalog(w, l.Type, reach)
	case toPayment:
		x.payment(w, l.Type, reach)
	case toBooking:
		wrong := x.hear(&w, l.meaning())
		reach(w, wrong)
	case toSaga:
		if w.saga == 0 { // the request to begin comes first: it has the booking's key, and so has this
			return
		}
		wrong, _ := x.tell(&w, x.bit(l))
		reach(w, wrong)
	}
}

// catalog is what the catalog promises.
func (x *explorer) catalog(w world, typ string, reach func(to world, wrong string)) {
	then := func(state seats, a saga.Answer) {
		to := w
		to.seats = state
		x.answer(&to, a)
		reach(to, "")
	}
	updated, gone := saga.Answer{Type: contracts.TypeInventoryUpdated}, saga.Answer{Type: contracts.TypeInventoryReleased}
	switch {
	case typ == contracts.TypeUpdateEventInventory && w.seats == untouched:
		then(held, updated)
		then(refused, soldOut)
	case typ == contracts.TypeUpdateEventInventory:
		then(w.seats, map[seats]saga.Answer{held: updated, sold: updated, refused: soldOut, released: gone}[w.seats])
	case typ == contracts.TypeReleaseEventInventory && w.seats != sold:
		then(released, gone)
	case typ == contracts.TypeCommitEventInventory && (w.seats == held || w.seats == sold):
		then(sold, saga.Answer{Type: contracts.TypeInventoryCommitted})
	default:
		reach(w, "the catalog must not be asked for that")
	}
}

// ended is what a payment says that is asked for its end.
var ended = map[money]string{
	impossible: contracts.TypePaymentPreparationFailed, completed: contracts.TypePaymentCompleted, failed: contracts.TypePaymentFailed,
	expired: contracts.TypePaymentExpired, cancelled: contracts.TypePaymentCancelled, refunded: contracts.TypePaymentRefunded,
}

// payment is what the payment service promises.
func (x *explorer) payment(w world, typ string, reach func(to world, wrong string)) {
	then := func(state money, told string) {
		to := w
		to.money = state
		x.answer(&to, saga.Answer{Type: told})
		reach(to, "")
	}
	switch {
	case typ == contracts.TypePreparePaymentData && w.money == nothing:
		then(prepared, contracts.TypePaymentDataPrepared)
		then(impossible, contracts.TypePaymentPreparationFailed)
	case typ == contracts.TypePreparePaymentData && w.money == prepared:
		then(w.money, contracts.TypePaymentDataPrepared)
	case typ == contracts.TypeCancelPayment && (w.money == nothing || w.money == prepared):
		then(cancelled, contracts.TypePaymentCancelled)
	case typ != contracts.TypeRefundPayment:
		then(w.money, ended[w.money])
	case w.money == completed || w.money == refunded:
		then(refunded, contracts.TypePaymentRefunded)
	default:
		reach(w, "money is to be given back that was not taken")
	}
}

// isEnd reports whether nothing is under way and nobody waits for anything.
func (x *explorer) isEnd(w world) bool {
	return w.net == 0 && w.money != prepared && x.bookings.states[w.booking].Status.Final() && x.instances[w.saga].Phase.Ended()
}

// wrong says what must not be, or is empty.
func (x *explorer) wrong(w world) string {
	confirmed, committed := x.bookings.states[w.booking].Status == life.Confirmed, x.instances[w.saga].Phase == saga.Committed
	switch {
	case w.seats == sold && !confirmed:
		return "seats are sold without a confirmed booking"
	case confirmed && w.seats != held && w.seats != sold:
		return "a booking is confirmed without seats"
	case confirmed && w.money != completed:
		return "a booking is confirmed without money"
	case committed && (!confirmed || w.seats != sold):
		return "the coordinator is done with a booking that is not"
	case !x.isEnd(w):
		return ""
	case w.seats == held:
		return "seats are held for ever"
	case confirmed != (w.seats == sold):
		return "a confirmed booking ends without seats"
	case confirmed != (w.money == completed):
		return "money is kept without seats"
	case confirmed != committed:
		return "the coordinator has ended otherwise"
	}
	return ""
}

// String names it.
func (l letter) String() string {
	name := l.Type
	if parts := strings.Split(l.Type, "."); len(parts) > 2 {
		name = parts[2]
	}
	return strings.TrimSpace(name+" "+l.Told) + " to " + [...]string{"catalog", "payment", "booking", "saga"}[l.to]
}

// result is what an exploration has found.
type result struct {
	worlds, ends, instances int
	fault                   string // the first, with the way that leads to it
}

// maxWorlds bounds an exploration.
const maxWorlds = 8_000_000

// explore visits every world that can be reached, until something is wrong. From each an end must be reachable by what comes by
// itself and an operator's resuming.
func explore(by deciders, d saga.Definition, b bound) (r result) {
	x := newExplorer(by, d, b)
	start := world{copies: b.copies}
	known, worlds, from, what := map[world]int32{start: 0}, []world{start}, []int32{-1}, []string{"the booking is made"}
	way := func(at int32, last string) string {
		steps := []string{last}
		for ; at >= 0; at = from[at] {
			steps = append(steps, what[at])
		}
		slices.Reverse(steps)
		return strings.Join(steps, "\n  ")
	}
	var before, after []int32 // the moves that come by themselves
	defer func() { r.worlds, r.instances = len(worlds), len(x.instances) }()
	for at := int32(0); int(at) < len(worlds); at++ {
		w := worlds[at]
		if why := x.wrong(w); why != "" || len(worlds) > maxWorlds {
			r.fault = way(at, cmp.Or(why, "there is no end of worlds"))
			return r
		}
		if x.isEnd(w) {
			r.ends++
		}
		for _, m := range x.moves(w) {
			if m.wrong != "" {
				r.fault = way(at, m.what+": "+m.wrong)
				return r
			}
			there, seen := known[m.to]
			if !seen {
				there = int32(len(worlds))
				known[m.to] = there
				worlds, from, what = append(worlds, m.to), append(from, at), append(what, m.what)
			}
			if !m.extra && there != at {
				before, after = append(before, at), append(after, there)
			}
		}
	}
	if len(x.letters) > 64 {
		r.fault = "there are more letters than bits"
		return r
	}
	if at := stranded(len(worlds), before, after, func(at int32) bool { return x.isEnd(worlds[at]) }); at >= 0 {
		r.fault = way(at, "no end can be reached")
	}
	return r
}

// stranded is a world from which no end can be reached, or -1.
func stranded(worlds int, before, after []int32, isEnd func(at int32) bool) int32 {
	good := make([]bool, worlds)
	for at := range good {
		good[at] = isEnd(int32(at))
	}
	for more := true; more; { // most moves lead on to worlds that were found later
		more = false
		for e := len(before) - 1; e >= 0; e-- {
			if !good[before[e]] && good[after[e]] {
				good[before[e]], more = true, true
			}
		}
	}
	return int32(slices.Index(good, false))
}

// bound is how far an exploration goes.
type bound struct {
	// retries is how often the coordinator repeats a request, copies how many deliveries of whatever message are repeated.
	retries int
	copies  uint8
	// calm leaves out money that comes late and operators who give a booking up.
	calm bool
}

// patient bounds the definition's repetitions, so that there are finitely many worlds.
func (b bound) patient(d saga.Definition) saga.Definition {
	d.Steps, d.Finish = slices.Clone(d.Steps), slices.Clone(d.Finish)
	for _, steps := range [][]saga.Step{d.Steps, d.Finish} {
		for i := range steps {
			steps[i].Wait.Retries, steps[i].UndoWait.Retries = min(b.retries, steps[i].Wait.Retries), min(b.retries, steps[i].UndoWait.Retries)
		}
	}
	d.Decision.Wait.Retries = min(b.retries, d.Decision.Wait.Retries)
	return d
}

// bounds, and mutants, take seconds; those of full_test.go take minutes. A message that is lost and delivered again is one that takes long: any
// may come after any other.
var bounds = []bound{{copies: 1, calm: true}}

func TestBookingAndCoordinatorEndTogether(t *testing.T) {
	t.Parallel()
	for _, d := range saga.Definitions() {
		for _, b := range bounds {
			begin := time.Now()
			r := explore(deciders{life.Next, saga.Next}, d, b)
			t.Logf("version %d with %+v: %d worlds, %d ends, %d instances, %s", d.Version, b, r.worlds, r.ends, r.instances, time.Since(begin).Round(time.Millisecond))
			if r.fault != "" || r.ends == 0 {
				t.Errorf("version %d with %+v:\n  %s", d.Version, b, r.fault)
			}
		}
	}
}

// mutants are deciders with one fault each, which only show where the two meet.
var mutants = map[string]deciders{
	"a booking that is confirmed expires": {func(s life.State, e life.Event) (life.State, []life.Effect) {
		if e.Kind == life.DeadlinePassed && s.Status == life.Confirmed {
			s.Status = life.AwaitingPayment
		}
		return life.Next(s, e)
	}, saga.Next},
	"a booking that has ended is settled again": {func(s life.State, e life.Event) (life.State, []life.Effect) {
		if e.Kind == life.SettlementArrived && s.Status == life.Expired {
			s.Status = life.AwaitingPayment
		}
		return life.Next(s, e)
	}, saga.Next},
	"tickets are sold before the booking has confirmed": {life.Next, changed(func(before, after saga.Instance, _ saga.Event, commands []saga.Command) []saga.Command {
		if before.Outcome == "" && after.Outcome == contracts.OutcomeConfirmed {
			commands = append(commands, saga.Command{Step: "sale", Type: contracts.TypeCommitEventInventory, Try: 1})
		}
		return commands
	})},
	"a booking that has expired is taken for confirmed": {life.Next, func(d saga.Definition, i saga.Instance, e saga.Event) (saga.Instance, []saga.Command, error) {
		if e.Type == contracts.TypeBookingExpired && i.Outcome == contracts.OutcomeConfirmed {
			e.Answer = saga.Answer{Type: contracts.TypeBookingConfirmed}
		}
		return saga.Next(d, i, e)
	}},
}

// changed is saga.Next with other commands.
func changed(change func(before, after saga.Instance, e saga.Event, commands []saga.Command) []saga.Command) func(saga.Definition, saga.Instance, saga.Event) (saga.Instance, []saga.Command, error) {
	return func(d saga.Definition, i saga.Instance, e saga.Event) (saga.Instance, []saga.Command, error) {
		after, commands, err := saga.Next(d, i, e)
		return after, change(i, after, e, commands), err
	}
}

func TestTheModelFindsMutants(t *testing.T) {
	t.Parallel()
	for name, by := range mutants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := explore(by, saga.Definitions()[0], bound{calm: true})
			if r.fault == "" || r.worlds > maxWorlds {
				t.Fatalf("not found in %d worlds", r.worlds)
			}
			t.Logf("found after %d worlds:\n  %s", r.worlds, r.fault)
		})
	}
}
