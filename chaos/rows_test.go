package chaos_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
)

// row is one line of the fault matrix.
type row struct {
	number        int
	fault, inject string
	quick         bool // runs in every "make test"
	proxied       bool // the programs reach the servers through proxies
	alone         bool // has a world of its own, which is not sound afterwards
	asks          bool // wants requests in booking's own outbox, which there are where nobody leads it
	// stage, if set, gives other servers than the shared ones.
	stage    func(t *testing.T, s *stage) *stage
	migrants int // processes that migrate at once; the row is alone
	// run injects the fault and heals it. The runner checks the invariants afterwards.
	run func(r *run)
}

// run is one row at work.
type run struct {
	*testing.T
	w         *world
	seed      uint64
	rng       *rand.Rand
	load      *load
	tolerated map[uuid.UUID]string // stuck on purpose, by class
	dead      map[string]int       // dead letters on purpose, by queue
	untapped  map[string]bool
	refilled  map[string]map[uuid.UUID]bool // by service: what it had lost, and a replay brought
	result    *result
	began     time.Time
}

// result is a line of the summary.
type result struct {
	row
	state             string
	took              time.Duration
	repeated          int
	absorbed          float64
	recoveries        []recovery
	notes             []string
	published, booked int
}

type recovery struct {
	of   string
	took time.Duration
}

const (
	passed = "passed"
	failed = "FAILED"
	notRun = "not run"
)

var results []*result

// note says something in the summary.
func (r *run) note(format string, args ...any) {
	r.result.notes = append(r.result.notes, fmt.Sprintf(format, args...))
}

// step says in the log of the row where it is.
func (r *run) step(text string) {
	r.Helper()
	r.Logf("%6.1f s %s", time.Since(r.began).Seconds(), text)
}

// begin starts the load and lets it get going.
func (r *run) begin() {
	r.Helper()
	r.load = r.w.startLoad(r.T, r.seed)
	r.load.await(r.T, 15)
	r.step("the load runs")
}

// pause lets a random time pass between two faults, under load.
func (r *run) pause(from, to time.Duration) {
	select {
	case <-r.Context().Done():
	case <-time.After(from + time.Duration(r.rng.Int64N(int64(to-from)))):
	}
}

// recoverWithin is how long after a fault's end a booking may take, everything on two cores.
const recoverWithin = 45 * time.Second

// healed measures from now, when the fault is over, until a booking that begins now has its first answers.
func (r *run) healed(of string) {
	r.Helper()
	began := time.Now()
	eventually(r.T, 2*time.Minute, func() bool {
		fresh := r.w.clients.accepted(began)
		return len(fresh) > 0 && r.w.answered(fresh[0].booked.ID)
	}, "no new booking is answered after %s has come back", of)
	took := time.Since(began)
	if took > recoverWithin {
		r.Errorf("a booking took %s to be answered after %s had come back", took, of)
	}
	r.result.recoveries = append(r.result.recoveries, recovery{of, took})
	r.step("recovered: " + of)
}

// baseline is what a house at rest uses.
type baseline struct {
	goroutines                         map[string]float64
	connections, channels, relayToData int
	whose                              []string // the connections to the broker, and how many channels each has
}

// measure looks at what the house uses now.
func (w *world) measure() (b baseline, err error) {
	b.goroutines = map[string]float64{}
	for _, name := range house {
		n, ok := w.procs[name].metric("go_goroutines", "")
		if !ok {
			return b, fmt.Errorf("%s shows no metrics", name)
		}
		b.goroutines[name] = n
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var connections []struct {
		Name     string `json:"user_provided_name"`
		Channels int
	}
	if err := w.mq.manage(ctx, http.MethodGet, "/api/vhosts/"+w.vhost+"/connections", nil, &connections); err != nil {
		return b, err
	}
	b.connections = len(connections)
	for _, c := range connections {
		b.channels += c.Channels // the list of channels itself lags behind
		b.whose = append(b.whose, fmt.Sprintf("%s: %d", c.Name, c.Channels))
	}
	slices.Sort(b.whose)
	err = w.pools["booking"].QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE usename = $1`, w.prefix+"relay").Scan(&b.relayToData)
	return b, err
}

// beyond says what is more in b than it was, or less where it must be the same.
func (b baseline) beyond(before baseline) string {
	const slack = 10 // of connections that come and go, and their goroutines
	var found []string
	for name, n := range b.goroutines {
		if n > before.goroutines[name]+slack {
			found = append(found, fmt.Sprintf("%s has %.0f goroutines, had %.0f", name, n, before.goroutines[name]))
		}
	}
	if b.connections != before.connections || b.channels > before.channels {
		found = append(found, fmt.Sprintf("the broker has %d connections with %d channels, had %d with %d: now %v, before %v",
			b.connections, b.channels, before.connections, before.channels, b.whose, before.whose))
	}
	if b.relayToData > before.relayToData+4 {
		found = append(found, fmt.Sprintf("the relay has %d database connections, had %d", b.relayToData, before.relayToData))
	}
	slices.Sort(found)
	return strings.Join(found, "; ")
}

// rest is the baseline of a house that has worked a little and is quiet.
func (w *world) rest(t *testing.T) {
	t.Helper()
	if w.baseline.goroutines != nil {
		return
	}
	l := w.startLoad(t, 0)
	l.await(t, 20)
	l.stop()
	if !w.quiet(t, 2*time.Minute, nil, nil) {
		t.FailNow()
	}
	last, since := "", time.Now()
	eventually(t, time.Minute, func() bool { // the broker's figures come late, and those of some connections later
		now, err := w.measure()
		if err != nil || now.connections == 0 {
			return false
		}
		if text := fmt.Sprint(now.whose); text != last {
			last, since = text, time.Now()
		}
		w.baseline = now
		return time.Since(since) > 3*time.Second && !slices.ContainsFunc(now.whose, func(c string) bool {
			return strings.HasSuffix(c, ": 0") && !strings.HasPrefix(c, "relay queues")
		})
	}, "the house does not come to rest: %s", last)
}

// finish stops the load, waits for quiet, and checks every invariant.
func (r *run) finish() {
	r.Helper()
	if r.load != nil {
		r.load.stop()
		if slowest := time.Duration(r.load.slowest.Load()) * time.Millisecond; slowest >= tryLimit && !r.w.proxied {
			r.Errorf("a request took %s", slowest)
		}
	}
	r.step("quiet")
	r.w.quiet(r.T, 3*time.Minute, r.dead, r.tolerated)
	r.step("look")
	p, err := r.w.look(r.T)
	if err != nil {
		r.Fatalf("look at the state: %v", err)
	}
	p.tolerated, p.dead, p.untapped, p.refilled = r.tolerated, r.dead, r.untapped, r.refilled
	for _, text := range p.violations() {
		r.Error(text)
	}
	r.step("measure")
	var text string
	if !within(30*time.Second, func() bool {
		now, err := r.w.measure()
		if err != nil {
			text = err.Error()
			return false
		}
		text = now.beyond(r.w.baseline)
		return text == ""
	}) {
		r.Errorf("I7: %s", text)
	}
	r.result.repeated, r.result.published, r.result.booked = p.repeated(), len(p.tapped), len(p.bookings)
	r.result.absorbed = r.w.absorbed()
}

// absorbed is how many deliveries all programs have found to be duplicates so far.
func (w *world) absorbed() float64 {
	sum := w.duplicates
	for _, p := range w.procs {
		if p.alive() && p.kind != "relay" {
			sum += p.absorbed()
		}
	}
	return sum
}

// shared is the world of the rows that leave it sound.
var shared *world

// chosen are the rows that the flags ask for.
func chosen(t *testing.T) (some []row) {
	t.Helper()
	wanted := map[int]bool{}
	for _, word := range strings.FieldsFunc(*only, func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > 37 {
			t.Fatalf("-only %q: want numbers from 1 to 37, separated by commas", *only)
		}
		wanted[n] = true
	}
	for _, each := range matrix {
		if len(wanted) == 0 && (*all || each.quick) || wanted[each.number] {
			some = append(some, each)
		}
	}
	return some
}

func TestFaults(t *testing.T) {
	if *soak > 0 {
		t.Skip("the soak runs")
	}
	s := raise(t)
	t.Logf("seed %d", *seed)
	defer func() {
		if shared != nil {
			shared.leave(t)
			shared = nil
		}
	}()
	for _, each := range chosen(t) {
		res := &result{row: each, state: notRun}
		results = append(results, res)
		t.Run(fmt.Sprintf("%02d %s", each.number, each.fault), func(t *testing.T) {
			began := time.Now()
			defer func() {
				res.took = time.Since(began)
				switch {
				case t.Failed():
					res.state = failed
				case t.Skipped():
					if len(res.notes) == 0 {
						res.notes = append(res.notes, "this machine cannot inject it: see the test's log")
					}
				default:
					res.state = passed
				}
				fmt.Println(res.line()) // while the others still run
			}()
			perform(t, s, each, res)
		})
	}
}

// perform runs one row in a world that fits it.
func perform(t *testing.T, s *stage, each row, res *result) {
	t.Helper()
	if each.asks && *saga != choreography {
		res.notes = append(res.notes, "it needs -saga "+choreography)
		t.SkipNow()
	}
	began := time.Now()
	w := shared
	if w == nil || each.alone {
		if each.stage != nil {
			s = each.stage(t, s)
		}
		w = newWorld(t, s, max(1, each.migrants))
	}
	if !each.alone {
		shared = w
	}
	defer func() {
		if t.Failed() || each.alone {
			w.leave(t)
		}
		if t.Failed() && !each.alone {
			shared = nil
		}
	}()
	t.Logf("%6.1f s the databases are there", time.Since(began).Seconds())
	w.mode(t, each.proxied)
	t.Logf("%6.1f s the programs run", time.Since(began).Seconds())
	w.rest(t)
	t.Logf("%6.1f s the house is ready", time.Since(began).Seconds())
	before := w.absorbed()
	tapped, repeated := len(w.tapped), (&picture{tapped: w.tapped}).repeated()
	seed := *seed ^ uint64(each.number)<<40
	r := &run{
		T: t, w: w, seed: seed, began: began, rng: rand.New(rand.NewPCG(seed, 1)), result: res,
		tolerated: map[uuid.UUID]string{}, dead: map[string]int{}, untapped: map[string]bool{}, refilled: map[string]map[uuid.UUID]bool{},
	}
	each.run(r)
	r.step("the fault is over")
	r.finish()
	r.step("done")
	res.absorbed -= before
	res.published -= tapped
	res.repeated -= repeated
}

func (res *result) line() string {
	recovered, slowest := "", time.Duration(0)
	for _, each := range res.recoveries {
		slowest = max(slowest, each.took)
	}
	if slowest > 0 {
		recovered = slowest.Round(10 * time.Millisecond).String()
	}
	text := fmt.Sprintf("%d\t%s\t%s\t%.1f\t%d\t%.0f\t%s\t", res.number, res.fault, res.state, res.took.Seconds(), res.repeated, res.absorbed, recovered)
	return text + strings.Join(res.notes, "; ")
}

// summary prints the table, and reports whether a row has failed.
func summary(out io.Writer) (bad bool) {
	if len(results) == 0 {
		return false
	}
	fmt.Fprintf(out, "\nseed %d\n\n", *seed)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "row\tfault\tresult\tseconds\trepeated\tabsorbed\trecovery\tremarks")
	count := map[string]int{}
	slowest := map[string]time.Duration{}
	for _, res := range results {
		fmt.Fprintln(table, res.line())
		count[res.state]++
		for _, each := range res.recoveries {
			slowest[each.of] = max(slowest[each.of], each.took)
		}
	}
	_ = table.Flush() // it goes to people
	fmt.Fprintln(out, "\nrepeated: published again by the relay. absorbed: deliveries that an inbox found to be duplicates.")
	fmt.Fprintln(out, "recovery: from the end of the fault until a booking made after it had every answer.")
	for _, of := range []string{"relay", "PostgreSQL", "broker", "consumer", "network"} {
		if took, ok := slowest[of]; ok {
			fmt.Fprintf(out, "slowest recovery of %s: %s\n", of, took.Round(10*time.Millisecond))
		}
	}
	fmt.Fprintf(out, "\n%d rows: %d passed, %d not run", len(results), count[passed], count[notRun])
	if count[failed] > 0 {
		fmt.Fprintf(out, ", %d FAILED", count[failed])
	}
	fmt.Fprintln(out)
	return count[failed] > 0
}
