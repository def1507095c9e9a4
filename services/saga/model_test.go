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
// nothing. All its states are visited.

// next is Next, or a mutant.
type next func(d Definition, i Instance, e Event) (Instance, []Command, error)

// world is one state of everything.
type world struct {
	instance Instance
	catalog  string   // "", held, refused, released, sold
	payment  string   // "", prepared, impossible, completed, failed, expired, cancelled, refunded
	booking  Answer   // what it decided
	network  []Answer // sorted; what is under way, to whomever
	copies   int      // how many more deliveries may be repeated
}

var (
	past   = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	future = past.Add(time.Hour)
)

// key is the same for worlds that behave the same.
func (w *world) key() string {
	var b strings.Builder
	i := w.instance
	fmt.Fprint(&b, w.catalog, "|", w.payment, "|", w.booking, w.copies, "|", i.Phase, i.Outcome, i.Verdict, i.Reason, i.PaymentID != "", "|")
	for _, name := range slices.Sorted(maps.Keys(i.Steps)) {
		p := i.Steps[name]
		fmt.Fprint(&b, name, p.Forward, p.Seen, p.Back, p.Outcome, p.Tries, p.Due != nil, ";")
	}
	for _, a := range w.network {
		b.WriteString(a.Type[len(contracts.TypePrefix):])
		b.WriteString(a.Told)
		b.WriteByte(';')
	}
	return b.String()
}

func (w *world) send(a Answer) {
	at, _ := slices.BinarySearchFunc(w.network, a, compare)
	w.network = slices.Insert(slices.Clone(w.network), at, a)
}

func compare(a, b Answer) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Told, b.Told))
}

// tell gives the coordinator an event, and sends what it asks for.
func (w *world) tell(n next, d Definition, e Event) error {
	e.At = past
	changed, commands, err := n(d, w.instance, e)
	if err != nil {
		return err
	}
	for name, p := range changed.Steps {
		if p.Due != nil {
			p.Due = &future
			changed.Steps[name] = p
		}
	}
	w.instance = changed
	for _, c := range commands {
		told := ""
		if c.Type == contracts.TypeSettleBooking {
			told = string(changed.Outcome)
		}
		if c.Type != contracts.TypeSendBookingNotification {
			w.send(Answer{c.Type, told})
		}
	}
	return nil
}

// move is one thing that may happen. Those that are extra need not.
type move struct {
	name  string
	extra bool
	to    world
	err   error
}

// moves are all that may happen now.
func (w *world) moves(n next, d Definition) (all []move) {
	for i, a := range w.network {
		if i > 0 && w.network[i-1] == a {
			continue
		}
		once := *w
		once.network = slices.Delete(slices.Clone(w.network), i, i+1)
		all = append(all, once.deliver(n, d, a, "", false)...)
		if w.copies > 0 {
			again := *w
			again.copies--
			all = append(all, again.deliver(n, d, a, "again ", true)...)
		}
	}
	for name, p := range w.instance.Steps {
		if p.Due != nil {
			late := *w
			late.instance.Steps = maps.Clone(w.instance.Steps)
			p.Due = &past
			late.instance.Steps[name] = p
			err := late.tell(n, d, Event{Answer: Answer{Type: Timeout}})
			all = append(all, move{"timeout of " + name, false, late, err})
		}
	}
	all = append(all, w.outside()...)
	for _, operator := range []string{Resume, GiveUp} {
		asked := *w
		err := asked.tell(n, d, Event{Answer: Answer{Type: operator}})
		if errors.Is(err, ErrNotStuck) || errors.Is(err, ErrTooLate) {
			continue
		}
		all = append(all, move{operator, true, asked, err})
	}
	return all
}

// outside is what users and clocks do to participants.
func (w *world) outside() (all []move) {
	act := func(name string, do func(*world)) {
		then := *w
		do(&then)
		all = append(all, move{name, true, then, nil})
	}
	pay := func(state, told string) func(*world) {
		return func(w *world) { w.payment = state; w.send(Answer{Type: told}) }
	}
	switch w.payment {
	case "prepared":
		act("pay", pay("completed", contracts.TypePaymentCompleted))
		act("decline", pay("failed", contracts.TypePaymentFailed))
		act("expire", pay("expired", contracts.TypePaymentExpired))
		all[len(all)-1].extra = false // the one that comes by itself
	case "expired", "cancelled", "failed":
		act("pay late", pay("refunded", contracts.TypePaymentRefunded))
	}
	if w.booking.Type == "" {
		for _, told := range []string{contracts.TypeBookingCancelled, contracts.TypeBookingExpired} {
			act("booking decides "+told, func(w *world) { w.booking = Answer{Type: told}; w.send(w.booking) })
		}
	}
	return all
}

var errForbidden = errors.New("a participant was asked for what must not be")

// deliver gives a message to its receiver.
func (w *world) deliver(n next, d Definition, a Answer, prefix string, extra bool) (all []move) {
	answer := func(name string, do func(*world), told string) {
		then := *w
		do(&then)
		then.send(Answer{Type: told})
		all = append(all, move{prefix + name, extra, then, nil})
	}
	same := func(*world) {}
	forbid := func() { all = append(all, move{prefix + a.Type, extra, *w, errForbidden}) }
	switch a.Type {
	case contracts.TypeUpdateEventInventory:
		switch w.catalog {
		case "":
			answer("hold", func(w *world) { w.catalog = "held" }, contracts.TypeInventoryUpdated)
			then := *w
			then.catalog = "refused"
			then.send(Answer{contracts.TypeInventoryUpdateRejected, "sold_out"})
			all = append(all, move{prefix + "sold out", extra, then, nil})
		case "held", "sold":
			answer("held before", same, contracts.TypeInventoryUpdated)
		case "refused":
			then := *w
			then.send(Answer{contracts.TypeInventoryUpdateRejected, "sold_out"})
			all = append(all, move{prefix + "sold out before", extra, then, nil})
		case "released":
			answer("released before", same, contracts.TypeInventoryReleased)
		}
	case contracts.TypeReleaseEventInventory:
		if w.catalog == "sold" {
			forbid()
			break
		}
		answer("release", func(w *world) { w.catalog = "released" }, contracts.TypeInventoryReleased)
	case contracts.TypeCommitEventInventory:
		if w.catalog != "held" && w.catalog != "sold" {
			forbid()
			break
		}
		answer("sell", func(w *world) { w.catalog = "sold" }, contracts.TypeInventoryCommitted)
	case contracts.TypePreparePaymentData:
		switch w.payment {
		case "":
			answer("prepare", func(w *world) { w.payment = "prepared" }, contracts.TypePaymentDataPrepared)
			answer("cannot prepare", func(w *world) { w.payment = "impossible" }, contracts.TypePaymentPreparationFailed)
		case "impossible":
			answer("impossible before", same, contracts.TypePaymentPreparationFailed)
		case "cancelled":
			answer("cancelled before", same, contracts.TypePaymentCancelled)
		default:
			answer("prepared before", same, contracts.TypePaymentDataPrepared)
		}
	case contracts.TypeCancelPayment:
		if w.payment == "" || w.payment == "prepared" {
			answer("cancel", func(w *world) { w.payment = "cancelled" }, contracts.TypePaymentCancelled)
			break
		}
		answer("ended before", same, map[string]string{
			"impossible": contracts.TypePaymentPreparationFailed, "completed": contracts.TypePaymentCompleted,
			"failed": contracts.TypePaymentFailed, "expired": contracts.TypePaymentExpired,
			"cancelled": contracts.TypePaymentCancelled, "refunded": contracts.TypePaymentRefunded,
		}[w.payment])
	case contracts.TypeRefundPayment:
		if w.payment != "completed" && w.payment != "refunded" {
			forbid()
			break
		}
		answer("refund", func(w *world) { w.payment = "refunded" }, contracts.TypePaymentRefunded)
	case contracts.TypeSettleBooking:
		then := *w
		if then.booking.Type == "" {
			then.booking = verdict(contracts.SagaOutcome(a.Told))
		}
		then.send(then.booking)
		all = append(all, move{prefix + "settle " + a.Told, extra, then, nil})
	default: // an answer
		then := *w
		e := Event{Answer: a}
		if strings.HasPrefix(a.Type, "ticketwave.payment.") && a.Type != contracts.TypePaymentCancelled && a.Type != contracts.TypePaymentPreparationFailed {
			e.PaymentID = "payment"
		}
		err := then.tell(n, d, e)
		all = append(all, move{prefix + "hear " + a.Type + " " + a.Told, extra, then, err})
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
func (w *world) wrong() string {
	switch {
	case w.instance.Phase == Committed && (w.booking.Type != contracts.TypeBookingConfirmed || w.catalog != "sold" || w.payment != "completed"):
		return "committed, but not everything is"
	case w.instance.Phase == Compensated && w.booking.Type == contracts.TypeBookingConfirmed:
		return "compensated, but the booking is confirmed"
	case w.instance.Phase == Compensated && (w.catalog == "held" || w.catalog == "sold"):
		return "compensated, but seats are " + w.catalog
	case w.instance.Phase == Compensated && w.payment == "completed" && !w.underWay(contracts.TypePaymentCompleted):
		return "compensated, but the money is kept"
	}
	return ""
}

func (w *world) underWay(typ string) bool {
	return slices.ContainsFunc(w.network, func(a Answer) bool { return a.Type == typ })
}

// result is what an exploration found.
type result struct {
	states, ends int
	fault        string // the first one, with the way that leads to it
}

// explore visits every world that can be reached. Its fault is a wrong world, one from which nothing leads to an end
// unless something happens that need not, a world where all is quiet before the end, or a way that never ends.
func explore(n next, d Definition, copies int) result {
	start := world{copies: copies, instance: Instance{Booking: contracts.BookingCreated{BookingID: "b", ExpiresAt: past}}}
	if err := start.tell(n, d, Event{Answer: Answer{Type: Begin}}); err != nil {
		return result{fault: err.Error()}
	}
	type node struct {
		from  int
		by    string
		needs []int32 // by moves that are not extra
		end   bool
	}
	nodes, known := []node{{from: -1}}, map[string]int32{start.key(): 0}
	way := func(at int, last string) string {
		steps := []string{last}
		for ; at > 0; at = nodes[at].from {
			steps = append(steps, nodes[at].by)
		}
		slices.Reverse(steps)
		return strings.Join(steps, "\n  ")
	}
	var r result
	worlds := []world{start}
	for at := 0; at < len(worlds); at++ {
		w := worlds[at]
		worlds[at] = world{}
		nodes[at].end = w.instance.Phase.Ended()
		if nodes[at].end {
			r.ends++
		}
		if wrong := w.wrong(); wrong != "" {
			return result{states: at, fault: way(at, wrong)}
		}
		for _, m := range w.moves(n, d) {
			if m.err != nil {
				return result{states: at, fault: way(at, m.name+": "+m.err.Error())}
			}
			key := m.to.key()
			to, seen := known[key]
			if !seen {
				to = int32(len(nodes))
				known[key] = to
				nodes = append(nodes, node{from: at, by: m.name})
				worlds = append(worlds, m.to)
			}
			if !m.extra && int(to) != at {
				nodes[at].needs = append(nodes[at].needs, to)
			}
		}
		if len(nodes[at].needs) == 0 && !nodes[at].end {
			return result{states: at, fault: way(at, fmt.Sprintf("all is quiet in phase %s, stuck %q", w.instance.Phase, w.instance.Stuck()))}
		}
	}
	r.states = len(nodes)
	// Without cycles, and with no quiet world but ends, every way that goes on comes to an end.
	left := make([]int32, len(nodes))
	for _, v := range nodes {
		for _, to := range v.needs {
			left[to]++
		}
	}
	var free []int32
	for at, n := range left {
		if n == 0 {
			free = append(free, int32(at))
		}
	}
	sorted := 0
	for ; len(free) > 0; sorted++ {
		v := free[len(free)-1]
		free = free[:len(free)-1]
		for _, to := range nodes[v].needs {
			if left[to]--; left[to] == 0 {
				free = append(free, to)
			}
		}
	}
	if sorted < len(nodes) {
		r.fault = fmt.Sprintf("%d of %d worlds are in cycles, or behind them", len(nodes)-sorted, len(nodes))
	}
	return r
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

func TestModel(t *testing.T) {
	t.Parallel()
	for _, d := range Definitions() {
		for _, c := range []struct{ retries, copies int }{{0, 0}, {0, 1}, {1, 0}} {
			begin := time.Now()
			r := explore(Next, patient(d, c.retries), c.copies)
			t.Logf("version %d, %d retries, %d copies: %d states, %d ends, %s", d.Version, c.retries, c.copies, r.states, r.ends, time.Since(begin))
			if r.fault != "" {
				t.Errorf("version %d, %d retries, %d copies:\n  %s", d.Version, c.retries, c.copies, r.fault)
			}
		}
	}
}
