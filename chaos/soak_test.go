package chaos_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

// event is a fault of the soak: injected and healed while others may follow at once.
type event struct {
	name string
	do   func(r *run)
}

// events are what the soak draws from; frequent ones stand first and more than once.
func (r *run) events() []event {
	kill := func(name string) event {
		return event{"kill " + name, func(r *run) { r.w.killed(name); r.again(name) }}
	}
	cut := func(p *proxy) event {
		return event{"partition " + p.Name, func(r *run) { p.cut(); r.pause(500*time.Millisecond, 3*time.Second); p.mend(r.T) }}
	}
	spoil := func(kind string, attributes map[string]any, p *proxy) event {
		return event{kind + " " + p.Name, func(r *run) {
			p.spoil(r.T, kind, "downstream", attributes)
			r.pause(500*time.Millisecond, 2*time.Second)
			p.mend(r.T)
		}}
	}
	list := []event{
		kill("relay"), kill("relay"), kill("booking"), kill("catalog"), kill("payment"), kill("notification"), kill("saga"),
		{"stop relay", func(r *run) { r.w.stop(r.T, "relay"); r.again("relay") }},
		{"stop catalog", func(r *run) { r.w.stop(r.T, "catalog"); r.again("catalog") }},
		{"pause relay", func(r *run) {
			p := r.w.procs["relay"]
			p.signal(syscall.SIGSTOP)
			r.pause(time.Second, 4*time.Second)
			p.signal(syscall.SIGCONT)
		}},
		{"pause payment", func(r *run) {
			p := r.w.procs["payment"]
			p.signal(syscall.SIGSTOP)
			r.pause(time.Second, 4*time.Second)
			p.signal(syscall.SIGCONT)
		}},
		{"second relay for a while", func(r *run) {
			r.again("relay2")
			r.pause(time.Second, 3*time.Second)
			r.w.killed("relay2")
			delete(r.w.procs, "relay2")
		}},
		{"close all connections", (*run).closeConnections},
		{"kill all backends", func(r *run) {
			var n int
			r.w.admin(r.T, "booking", `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename LIKE $1`, []any{r.w.prefix + "%"}, &n)
		}},
		{"crash PostgreSQL", func(r *run) { r.w.pg.crash(); r.pause(0, time.Second); r.restartPostgres() }},
		{"restart PostgreSQL", (*run).restartPostgres},
		{"crash broker", func(r *run) {
			if err := r.w.mq.crash(); err != nil {
				r.Fatal(err)
			}
			ctx, cancel := r.context(2 * time.Minute)
			defer cancel()
			if err := r.w.mq.start(ctx); err != nil {
				r.Fatal(err)
			}
		}},
		{"memory alarm", func(r *run) {
			r.ctl("set_vm_memory_high_watermark", "0.00001")
			r.pause(time.Second, 3*time.Second)
			r.ctl("set_vm_memory_high_watermark", "0.4")
		}},
	}
	for _, p := range r.w.proxies.all() {
		list = append(list, cut(p), spoil("latency", map[string]any{"latency": 100, "jitter": 100}, p),
			spoil("limit_data", map[string]any{"bytes": 1 + r.rng.IntN(5000)}, p), spoil("reset_peer", map[string]any{"timeout": 0}, p))
	}
	return list
}

// TestSoak combines random faults under load for a time, and ends with the invariants.
func TestSoak(t *testing.T) {
	if *soak <= 0 {
		t.Skip("the soak was not asked for")
	}
	s := raise(t)
	fmt.Printf("soak for %s, seed %d\n", *soak, *seed)
	w := newWorld(t, s, 1)
	defer w.leave(t)
	w.mode(t, true)
	w.rest(t)
	began := time.Now()
	res := &result{}
	r := &run{
		T: t, w: w, seed: *seed, rng: rand.New(rand.NewPCG(*seed, 2)), result: res, began: began,
		tolerated: map[uuid.UUID]string{}, dead: map[string]int{}, untapped: map[string]bool{},
	}
	r.begin()
	events, count := r.events(), map[string]int{}
	for n := 1; time.Since(began) < *soak && !t.Failed(); n++ {
		r.pause(200*time.Millisecond, 4*time.Second)
		e := events[r.rng.IntN(len(events))]
		e.do(r)
		count[e.name]++
		fmt.Printf("%8s  %4d  %-34s %6d bookings\n", time.Since(began).Round(100*time.Millisecond), n, e.name, r.load.answered.Load())
		if n%25 == 0 {
			r.healed("everything") // and no fault hides behind the next
		}
	}
	r.healed("everything")
	r.finish()
	o := r.operator()
	defer o.Close()
	r.whole(o, began)
	r.report(count, time.Since(began))
}

// report prints what the soak has come to.
func (r *run) report(count map[string]int, took time.Duration) {
	p, err := r.w.look(r.T)
	if err != nil {
		r.Fatal(err)
	}
	lost, inverted := 0, 0
	p.everythingArrives(func(string, ...any) { lost++ })
	p.nothingConfirmedIsGone(func(string, ...any) { lost++ })
	for _, check := range []func(func(string, ...any)){p.publishedInOrder, p.handledInOrder, p.versionsInOrder} {
		check(func(string, ...any) { inverted++ })
	}
	total, kills := 0, 0
	for name, n := range count {
		total += n
		if name[:4] == "kill" || name[:5] == "crash" {
			kills += n
		}
	}
	verdict := "every invariant holds"
	if r.Failed() {
		verdict = "FAILED"
	}
	fmt.Printf("\nseed %d, %s: %d events, %d of them kills; %d bookings, %d messages\n", r.seed, took.Round(time.Second), total, kills, len(p.bookings), len(p.messages))
	fmt.Printf("%d lost, %d published again, %d deliveries absorbed, %d inversions, %d requests refused for a while: %s\n",
		lost, p.repeated(), int(r.result.absorbed), inverted, r.w.clients.refused.Load(), verdict)
}
