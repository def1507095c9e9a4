package saga

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/contracts"
)

// The model is the coordinator's Next, run against the participants as their contracts describe them, over a network
// that delivers in any order and repeats, while any wait may run out, and the user pays, declines, gives up or does
// nothing. All its states are visited. rules_test.go has what must be true of the coordinator itself, in each of its states and
// whatever it is told there; here is what must be true of everybody together.

// next is Next, or a mutant.
type next func(d Definition, i Instance, e Event) (Instance, []Command, error)

// world is one state of everything. It is small, for there are millions.
type world struct {
	instance int32  // number of an instance
	network  uint64 // which messages are under way, to whomever; two that are the same are not told apart
	copies   uint8  // how many more deliveries may be repeated
	catalog  seats
	payment  money
	booking  uint8 // number of the answer that it decided on; 0 for none
}

// quiet is whether nothing is under way.
func (w world) quiet() bool { return w.network == 0 }

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

// ended is what a payment says that is asked for its end.
var ended = map[money]string{
	impossible: contracts.TypePaymentPreparationFailed, completed: contracts.TypePaymentCompleted, failed: contracts.TypePaymentFailed,
	expired: contracts.TypePaymentExpired, cancelled: contracts.TypePaymentCancelled, refunded: contracts.TypePaymentRefunded,
}

var (
	past   = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	future = past.Add(time.Hour)
)

// explorer knows instances and messages by number, and what Next said before.
type explorer struct {
	next      next
	d         Definition
	instances []Instance
	numbers   map[string]int32
	answers   []Answer
	bits      map[Answer]uint8
	before    map[question]*reply
	odd       string // what is wrong with the instance that was made last, or empty
}

type question struct {
	instance int32
	typ      Answer
	late     string // the step whose time is up
}

type reply struct {
	instance int32
	sent     []Answer
	err      error
}

func newExplorer(n next, d Definition) *explorer {
	return &explorer{next: n, d: d, numbers: map[string]int32{}, answers: []Answer{{}}, bits: map[Answer]uint8{}, before: map[question]*reply{}}
}

// bit is the number of a message, from 1.
func (x *explorer) bit(a Answer) uint8 {
	n, known := x.bits[a]
	if !known {
		n = uint8(len(x.answers))
		x.bits[a], x.answers = n, append(x.answers, a)
	}
	return n
}

// send adds to what is under way.
func (x *explorer) send(w *world, a Answer) { w.network |= 1 << x.bit(a) }

// number is the same for instances that behave the same: deadlines are not told apart, for any may pass at any time.
func (x *explorer) number(i Instance) int32 {
	for name, p := range i.Steps {
		if p.Due != nil {
			p.Due = &future
			i.Steps[name] = p
		}
	}
	key := fmt.Sprint(i.Phase, i.Outcome, i.Verdict, i.Reason, i.PaymentID)
	for _, name := range slices.Sorted(maps.Keys(i.Steps)) {
		p := i.Steps[name]
		key += fmt.Sprint(";", name, p.Forward, "|", p.Back, p.Seen, p.Outcome, p.Tries, p.Due != nil)
	}
	n, known := x.numbers[key]
	if !known {
		n = int32(len(x.instances))
		x.numbers[key], x.instances = n, append(x.instances, i)
		x.odd = cmp.Or(x.odd, x.d.odd(i), x.unruly(i))
	}
	return n
}

// tell gives the coordinator an event, and sends what it asks for.
func (x *explorer) tell(w *world, q question) error {
	q.instance = w.instance
	r, known := x.before[q]
	if !known {
		r = x.ask(q)
		x.before[q] = r
	}
	if r.err != nil {
		return r.err
	}
	w.instance = r.instance
	for _, a := range r.sent {
		x.send(w, a)
	}
	return nil
}

func (x *explorer) ask(q question) *reply {
	i := x.instances[q.instance]
	changed, commands, err := x.next(x.d, i.late(q.late), q.event())
	if why := x.d.astray(i, q, changed, commands, err); why != "" {
		return &reply{err: errors.New(why)}
	}
	if err != nil {
		return &reply{err: err}
	}
	r := &reply{instance: x.number(changed)}
	if x.odd != "" {
		return &reply{err: errors.New(x.odd)}
	}
	for _, c := range commands {
		switch c.Type {
		case contracts.TypeSendBookingNotification:
		case contracts.TypeSettleBooking:
			r.sent = append(r.sent, Answer{c.Type, string(changed.Outcome)})
		default:
			r.sent = append(r.sent, Answer{Type: c.Type})
		}
	}
	return r
}

// late is the instance when the time of a step is up.
func (i Instance) late(step string) Instance {
	if step == "" {
		return i
	}
	i.Steps = maps.Clone(i.Steps)
	p := i.Steps[step]
	p.Due = &past
	i.Steps[step] = p
	return i
}

func (q question) event() Event {
	e := Event{Answer: q.typ, At: past}
	if strings.HasPrefix(e.Type, "ticketwave.payment.") && e.Type != contracts.TypePaymentCancelled && e.Type != contracts.TypePaymentPreparationFailed {
		e.PaymentID = payment
	}
	return e
}

// move is one thing that may happen. Those that are extra need not.
type move struct {
	name  string
	extra bool
	to    world
	err   error
}

// moves are all that may happen now.
func (x *explorer) moves(w world) (all []move) {
	for n := uint8(1); int(n) < len(x.answers); n++ {
		if w.network&(1<<n) == 0 {
			continue
		}
		once, again := w, w
		once.network &^= 1 << n
		all = append(all, x.deliver(once, x.answers[n])...)
		if w.copies > 0 {
			again.copies--
			repeated := x.deliver(again, x.answers[n])
			for i := range repeated {
				repeated[i].name, repeated[i].extra = "again "+repeated[i].name, true
			}
			all = append(all, repeated...)
		}
	}
	for name, p := range x.instances[w.instance].Steps {
		if p.Due != nil {
			late := w
			err := x.tell(&late, question{typ: Answer{Type: Timeout}, late: name})
			all = append(all, move{"timeout of " + name, false, late, err})
		}
	}
	all = append(all, x.outside(w)...)
	for _, operator := range []string{Resume, GiveUp} { // rules_test.go says when they are refused
		asked := w
		if err := x.tell(&asked, question{typ: Answer{Type: operator}}); !errors.Is(err, ErrNotStuck) && !errors.Is(err, ErrTooLate) {
			all = append(all, move{operator, true, asked, err})
		}
	}
	return all
}

// outside is what users and clocks do to participants. Only a payment's expiry comes by itself.
func (x *explorer) outside(w world) (all []move) {
	pay := func(name string, extra bool, state money, told string) {
		then := w
		then.payment = state
		x.send(&then, Answer{Type: told})
		all = append(all, move{name, extra, then, nil})
	}
	switch w.payment {
	case prepared:
		pay("pay", true, completed, contracts.TypePaymentCompleted)
		pay("decline", true, failed, contracts.TypePaymentFailed)
		pay("expire", false, expired, contracts.TypePaymentExpired)
	case expired, cancelled, failed:
		pay("pay late", true, refunded, contracts.TypePaymentRefunded)
	}
	if w.booking == 0 {
		then, told := w, Answer{Type: contracts.TypeBookingCancelled}
		then.booking = x.bit(told)
		x.send(&then, told)
		all = append(all, move{"the user cancels", true, then, nil})
	}
	return all
}

var errForbidden = errors.New("a participant was asked for what must not be")

// deliver gives a message to its receiver.
func (x *explorer) deliver(w world, a Answer) (all []move) {
	answer := func(name string, then world, told Answer) {
		x.send(&then, told)
		all = append(all, move{name, false, then, nil})
	}
	forbid := func() { all = append(all, move{a.Type, false, w, errForbidden}) }
	hold := func(state seats) (then world) { then = w; then.catalog = state; return then }
	pay := func(state money) (then world) { then = w; then.payment = state; return then }
	soldOut := Answer{contracts.TypeInventoryUpdateRejected, string(contracts.RejectSoldOut)}
	switch a.Type {
	case contracts.TypeUpdateEventInventory:
		switch w.catalog {
		case untouched:
			answer("hold", hold(held), Answer{Type: contracts.TypeInventoryUpdated})
			answer("sold out", hold(refused), soldOut)
		case held, sold:
			answer("held before", w, Answer{Type: contracts.TypeInventoryUpdated})
		case refused:
			answer("sold out before", w, soldOut)
		case released:
			answer("released before", w, Answer{Type: contracts.TypeInventoryReleased})
		}
	case contracts.TypeReleaseEventInventory:
		if w.catalog == sold {
			forbid()
			break
		}
		answer("release", hold(released), Answer{Type: contracts.TypeInventoryReleased})
	case contracts.TypeCommitEventInventory:
		if w.catalog != held && w.catalog != sold {
			forbid()
			break
		}
		answer("sell", hold(sold), Answer{Type: contracts.TypeInventoryCommitted})
	case contracts.TypePreparePaymentData:
		switch w.payment {
		case nothing:
			answer("prepare", pay(prepared), Answer{Type: contracts.TypePaymentDataPrepared})
			answer("cannot prepare", pay(impossible), Answer{Type: contracts.TypePaymentPreparationFailed})
		case impossible, cancelled:
			answer("ended before", w, Answer{Type: ended[w.payment]})
		default:
			answer("prepared before", w, Answer{Type: contracts.TypePaymentDataPrepared})
		}
	case contracts.TypeCancelPayment:
		if w.payment == nothing || w.payment == prepared {
			answer("cancel", pay(cancelled), Answer{Type: contracts.TypePaymentCancelled})
			break
		}
		answer("ended before", w, Answer{Type: ended[w.payment]})
	case contracts.TypeRefundPayment:
		if w.payment != completed && w.payment != refunded {
			forbid()
			break
		}
		answer("refund", pay(refunded), Answer{Type: contracts.TypePaymentRefunded})
	case contracts.TypeSettleBooking:
		if w.booking == 0 {
			w.booking = x.bit(verdict(contracts.SagaOutcome(a.Told)))
		}
		answer("settle "+a.Told, w, x.answers[w.booking])
	default:
		err := x.tell(&w, question{typ: a})
		all = append(all, move{"hear " + a.Type + " " + a.Told, false, w, err})
	}
	return all
}

// verdict is booking's word for an outcome.
func verdict(outcome contracts.SagaOutcome) Answer {
	switch outcome {
	case contracts.OutcomeConfirmed:
		return Answer{Type: contracts.TypeBookingConfirmed}
	case contracts.OutcomeExpired:
		return Answer{Type: contracts.TypeBookingExpired}
	case contracts.OutcomeCancelled:
		return Answer{Type: contracts.TypeBookingCancelled}
	}
	return Answer{contracts.TypeBookingRejected, string(outcome)}
}

// wrong says what must never be, or is empty.
func (x *explorer) wrong(w world) string {
	confirmed := x.answers[w.booking].Type == contracts.TypeBookingConfirmed
	switch x.instances[w.instance].Phase {
	case Committed:
		if !confirmed || w.catalog != sold || w.payment != completed {
			return "committed, but not everything is"
		}
	case Compensated:
		switch {
		case confirmed || w.booking == 0:
			return "compensated, but the booking is not decided so"
		case w.catalog == held || w.catalog == sold:
			return "compensated, but seats are not free"
		case w.payment == completed && w.network&(1<<x.bit(Answer{Type: contracts.TypePaymentCompleted})) == 0:
			return "compensated, but the money is kept"
		case w.payment == prepared:
			return "compensated, but money can be paid"
		}
	case Running:
		if w.quiet() && (w.catalog != held || w.payment != prepared) {
			return "nothing is under way, and the coordinator does not know what is"
		}
	default:
		if w.quiet() {
			return "nothing is under way before the end"
		}
	}
	return ""
}

// result is what an exploration found.
type result struct {
	states, ends int
	instances    int
	fault        string // the first one, with the way that leads to it
}

// maxStates bounds what an exploration takes of memory.
const maxStates = 5_000_000

// node is a world that was reached.
type node struct {
	world world
	from  int32
	by    string
}

// explore visits every world that can be reached. Its fault is a wrong world, one in which all is quiet before the end, or a
// way that goes on for ever: without these every way comes to an end, whatever happens that need not.
func explore(n next, d Definition, copies uint8) (r result) {
	x := newExplorer(n, d)
	fresh := Instance{Booking: created(event)}
	fresh.Booking.ExpiresAt = past
	begin := question{typ: Answer{Type: Begin}}
	begun, commands, err := n(d, fresh, begin.event())
	if why := d.astray(fresh, begin, begun, commands, err); why != "" {
		return result{fault: why}
	}
	start := world{copies: copies, instance: x.number(begun)}
	if x.odd != "" {
		return result{fault: x.odd}
	}
	for _, c := range commands {
		if c.Type != contracts.TypeSendBookingNotification {
			x.send(&start, Answer{Type: c.Type})
		}
	}
	nodes, known := []node{{world: start}}, map[world]int32{start: 0}
	way := func(at int32, last string) string {
		steps := []string{last}
		for ; at > 0; at = nodes[at].from {
			steps = append(steps, nodes[at].by)
		}
		slices.Reverse(steps)
		return strings.Join(steps, "\n  ")
	}
	var from, to []int32 // the moves that are not extra
	for at := int32(0); int(at) < len(nodes); at++ {
		w := nodes[at].world
		if r.states = len(nodes); r.states > maxStates {
			r.fault = "too many states"
			return r
		}
		if r.fault = x.wrong(w); r.fault != "" {
			r.fault = way(at, r.fault)
			return r
		}
		goesOn := false
		for _, m := range x.moves(w) {
			if m.err != nil {
				r.fault = way(at, m.name+": "+m.err.Error())
				return r
			}
			there, seen := known[m.to]
			if !seen {
				there = int32(len(nodes))
				known[m.to] = there
				nodes = append(nodes, node{m.to, at, m.name})
			}
			if !m.extra {
				from, to, goesOn = append(from, at), append(to, there), true
			}
		}
		if i := x.instances[w.instance]; i.Phase.Ended() {
			r.ends++
		} else if !goesOn {
			r.fault = way(at, fmt.Sprintf("all is quiet in phase %s, stuck %q", i.Phase, i.Stuck()))
			return r
		}
	}
	r.instances = len(x.instances)
	if cyclic(len(nodes), from, to) {
		r.fault = "there are ways that never end"
	}
	return r
}

// cyclic sorts the graph topologically.
func cyclic(nodes int, from, to []int32) bool {
	first, before := make([]int32, nodes+1), make([]int32, nodes)
	for e := range from {
		first[from[e]+1]++
		before[to[e]]++
	}
	for n := range nodes {
		first[n+1] += first[n]
	}
	var free []int32
	for n := range before {
		if before[n] == 0 {
			free = append(free, int32(n))
		}
	}
	sorted := 0 // from is in order, so that the moves of n are first[n] up to first[n+1]
	for ; len(free) > 0; sorted++ {
		n := free[len(free)-1]
		free = free[:len(free)-1]
		for _, next := range to[first[n]:first[n+1]] {
			if before[next]--; before[next] == 0 {
				free = append(free, next)
			}
		}
	}
	return sorted < nodes
}

// patient bounds the definition's repetitions, so that there are finitely many worlds, and not too many.
func patient(d Definition, retries int) Definition {
	d.Steps, d.Finish = slices.Clone(d.Steps), slices.Clone(d.Finish)
	for _, steps := range [][]Step{d.Steps, d.Finish} {
		for i := range steps {
			steps[i].Wait.Retries, steps[i].UndoWait.Retries = min(retries, steps[i].Wait.Retries), min(retries, steps[i].UndoWait.Retries)
		}
	}
	d.Decision.Wait.Retries = retries
	return d
}

// bound is how far the model goes in one exploration.
type bound struct {
	retries int
	copies  uint8
}

// bounds that take seconds; those of model_full_test.go take minutes under the race detector.
var bounds = []bound{{0, 0}}

func TestModel(t *testing.T) {
	t.Parallel()
	for _, d := range Definitions() {
		for _, b := range bounds {
			begin := time.Now()
			r := explore(Next, patient(d, b.retries), b.copies)
			t.Logf("version %d with %+v: %d states, %d ends, %d instances, %s", d.Version, b, r.states, r.ends, r.instances, time.Since(begin).Round(time.Millisecond))
			if r.fault != "" {
				t.Errorf("version %d with %+v:\n  %s", d.Version, b, r.fault)
			}
		}
	}
}

// changed is Next with a change to what it says; the steps may be written to.
func changed(change func(before Instance, e Event, after *Instance, commands *[]Command)) next {
	return func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		after, commands, err := Next(d, i, e)
		if err == nil {
			after.Steps = maps.Clone(after.Steps)
			change(i, e, &after, &commands)
		}
		return after, commands, err
	}
}

// waitsOn is Next that goes on waiting where it should not any more.
func waitsOn(where func(before, after Instance, was, is Progress) bool) next {
	return changed(func(before Instance, _ Event, after *Instance, _ *[]Command) {
		for name, was := range before.Steps {
			if is := after.Steps[name]; was.Due != nil && is.Due == nil && where(before, *after, was, is) {
				is.Due, is.Tries = was.Due, was.Tries
				after.Steps[name] = is
			}
		}
	})
}

// forgives is Next that takes what it should refuse, and does nothing.
func forgives(refused error) next {
	return func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		after, commands, err := Next(d, i, e)
		if errors.Is(err, refused) {
			return i, nil, nil
		}
		return after, commands, err
	}
}

// mutants are processes and coordinators with one fault each, which the model must find.
var mutants = map[string]struct {
	change func(d *Definition)
	next   next
}{
	"tickets are never given back":     {change: func(d *Definition) { d.Steps[0].Undo = "" }},
	"a payment is never cancelled":     {change: func(d *Definition) { d.Steps[2].Undo = "" }},
	"money is never given back":        {change: func(d *Definition) { d.Steps[3].Undo = "" }},
	"nobody waits for the money":       {change: func(d *Definition) { d.Steps = d.Steps[:3] }},
	"nothing is sold":                  {change: func(d *Definition) { d.Finish = nil }},
	"a hold is taken for a release":    {change: func(d *Definition) { d.Steps[0].Over = append(d.Steps[0].Over, contracts.TypeInventoryUpdated) }},
	"a capture does not end a payment": {change: func(d *Definition) { d.Steps[2].Over = d.Steps[2].Over[:2] }},
	"a refund is not heard":            {change: func(d *Definition) { d.Steps[3].Over = nil }},
	"an expired booking is kept":       {change: func(d *Definition) { d.Decision.Commit = contracts.TypeBookingExpired }},
	"a cancelled booking is not heard": {change: func(d *Definition) {
		d.Decision.Undo = maps.Clone(d.Decision.Undo)
		delete(d.Decision.Undo, Answer{Type: contracts.TypeBookingCancelled})
	}},
	"what is late is not heard": {next: func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		if e.Type == contracts.TypePaymentCompleted && i.Phase == Compensating {
			return i, nil, nil
		}
		return Next(d, i, e)
	}},
	"what is stuck hears nothing": {next: func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		if i.Stuck() != "" && e.Type != Resume {
			return i, nil, nil
		}
		return Next(d, i, e)
	}},
	"a request is lost": {next: func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		i, commands, err := Next(d, i, e)
		return i, slices.DeleteFunc(commands, func(c Command) bool { return c.Type == contracts.TypeReleaseEventInventory }), err
	}},
	"repetitions never end": {next: func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		i, commands, err := Next(patient(d, 1), i, e)
		for name, p := range i.Steps {
			p.Tries = min(p.Tries, 1)
			i.Steps[name] = p
		}
		return i, commands, err
	}},
	"sold before it is decided": {next: func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		i, commands, err := Next(d, i, e)
		if i.Outcome == contracts.OutcomeConfirmed && i.Verdict.Type == "" && i.Phase == Settling {
			commands = append(commands, Command{Step: "sale", Type: contracts.TypeCommitEventInventory})
		}
		return i, commands, err
	}},
	"undone before it is decided": {next: func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		i, commands, err := Next(d, i, e)
		if i.Outcome != contracts.OutcomeConfirmed && i.Phase == Settling {
			i.Phase = Compensating
		}
		return i, commands, err
	}},
	"what was undone is not undone again": {next: changed(func(before Instance, _ Event, after *Instance, commands *[]Command) {
		if is := after.Steps["tickets"]; before.Steps["tickets"].Back == Done && is.Back != Done {
			is.Back = Done
			is.rest()
			after.Steps["tickets"], after.Phase, *commands = is, before.Phase, nil
		}
	})},
	"what is undone is waited for": {next: waitsOn(func(_, _ Instance, was, is Progress) bool { return was.Back == Asked && is.Back == Done })},
	"what is done is waited for": {next: waitsOn(func(_, after Instance, _, is Progress) bool {
		return is.Forward == Done && after.Phase == Running
	})},
	"what is stuck is waited for": {next: waitsOn(func(_, _ Instance, _, is Progress) bool { return is.Forward == Stuck || is.Back == Stuck })},
	"steps are waited for while it is decided": {next: waitsOn(func(before, after Instance, _, is Progress) bool {
		return before.Phase == Running && after.Phase == Settling && is.Forward == Asked
	})},
	"steps are waited for after the decision": {next: waitsOn(func(before, after Instance, _, _ Progress) bool {
		return before.Verdict.Type == "" && after.Verdict.Type != ""
	})},
	"an undoing is not waited for when its step is done": {next: changed(func(before Instance, _ Event, after *Instance, _ *[]Command) {
		if is := after.Steps["tickets"]; is.Back == Asked && is.Seen && !before.Steps["tickets"].Seen {
			is.rest()
			after.Steps["tickets"] = is
		}
	})},
	"an undoing is asked for at every answer": {next: changed(func(before Instance, e Event, after *Instance, commands *[]Command) {
		if e.Type != Timeout && before.Steps["payment"].Back == Asked && after.Steps["payment"].Back == Asked {
			*commands = append(*commands, Command{Step: "payment", Type: contracts.TypeCancelPayment, Try: 1})
		}
	})},
	"everything is undone at once": {next: changed(func(before Instance, _ Event, after *Instance, commands *[]Command) {
		if p := after.Steps["tickets"]; after.Phase == Compensating && before.Phase != Compensating && p.Back == "" && p.Seen {
			p.Back, p.Tries, p.Due = Asked, 1, &future
			after.Steps["tickets"] = p
			*commands = append(*commands, Command{Step: "tickets", Type: contracts.TypeReleaseEventInventory, Try: 1})
		}
	})},
	"what comes before its step begins is lost": {next: changed(func(before Instance, e Event, after *Instance, _ *[]Command) {
		if before.Steps["money"].Forward == "" && e.Type == contracts.TypePaymentFailed {
			*after = before
		}
	})},
	"a refusal of what was done is not heard": {next: func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		if e.Type == contracts.TypeInventoryReleased && i.Phase == Running && i.Steps["tickets"].Forward == Done {
			return i, nil, nil
		}
		return Next(d, i, e)
	}},
	"an undoing outlives a refusal": {next: changed(func(before Instance, e Event, after *Instance, _ *[]Command) {
		if was := before.Steps["tickets"]; e.Type == contracts.TypeInventoryUpdateRejected && was.Back == Asked {
			is := after.Steps["tickets"]
			is.Back, is.Due, is.Tries = Asked, was.Due, was.Tries
			after.Steps["tickets"] = is
		}
	})},
	"the user is not told how it ended": {next: changed(func(_ Instance, _ Event, after *Instance, commands *[]Command) {
		*commands = slices.DeleteFunc(*commands, func(c Command) bool {
			return after.Verdict.Type != "" && c.Type == contracts.TypeSendBookingNotification
		})
	})},
	"the user is told again": {next: changed(func(_ Instance, e Event, after *Instance, commands *[]Command) {
		if e.Type == after.Verdict.Type && len(*commands) == 0 {
			*commands = []Command{{Step: "last letter", Type: contracts.TypeSendBookingNotification, Try: 1}}
		}
	})},
	"the payment is forgotten":       {next: changed(func(_ Instance, e Event, after *Instance, _ *[]Command) { after.PaymentID = e.PaymentID })},
	"there is no reason":             {next: changed(func(_ Instance, _ Event, after *Instance, _ *[]Command) { after.Reason = "" })},
	"two decisions":                  {next: forgives(ErrContradiction)},
	"what is not stuck is resumed":   {next: forgives(ErrNotStuck)},
	"it can be given up at any time": {next: forgives(ErrTooLate)},
	"the first refusal is enough": {next: func(d Definition, i Instance, e Event) (Instance, []Command, error) {
		i, commands, err := Next(d, i, e)
		if p := i.Steps["tickets"]; p.Forward == Refused && len(commands) > 0 && commands[0].Type == contracts.TypeCancelPayment {
			p := i.Steps["payment"]
			p.Back, i.Phase = Done, Compensated
			i.Steps["payment"] = p
			commands = nil
		}
		return i, commands, err
	}},
}

func TestTheModelFindsMutants(t *testing.T) {
	t.Parallel()
	for name, m := range mutants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := patient(first, 0)
			if m.change != nil {
				m.change(&d)
			}
			if m.next == nil {
				m.next = Next
			}
			r := explore(m.next, d, 0)
			if r.fault == "" || r.fault == "too many states" {
				t.Fatalf("the fault is not found in %d states: %s", r.states, r.fault)
			}
			t.Logf("found after %d states:\n  %s", r.states, r.fault)
		})
	}
}
