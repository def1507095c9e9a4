package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox"
)

// stamped is an event of 400 bytes that says which one it is.
type stamped struct {
	N    int    `json:"n"`
	Key  string `json:"key"`
	Type string `json:"type"`
	Text string `json:"text"`
}

func newStamped(n int, key, typ string) stamped {
	return stamped{N: n, Key: key, Type: typ, Text: strings.Repeat("x", 330)}
}

func (s stamped) EventType() string { return s.Type }
func (s stamped) EventKey() string  { return s.Key }

// clock notes when each event was committed and when it was delivered.
type clock struct {
	committed, delivered []atomic.Int64 // nanoseconds since the epoch
	arrived              atomic.Int64
}

func newClock(n int) *clock {
	return &clock{committed: make([]atomic.Int64, n), delivered: make([]atomic.Int64, n)}
}

// listen consumes the sink queues until the benchmark ends.
func (c *clock) listen(b *testing.B, br *broker) (stop func()) {
	b.Helper()
	ch := br.channel(b)
	must(b, ch.Qos(100, 0, false))
	var wg sync.WaitGroup
	for p := range outbox.Partitions {
		deliveries, err := ch.Consume(topology.QueueName("sink", p), "", false, false, false, false, nil)
		must(b, err)
		wg.Go(func() {
			for d := range deliveries {
				now := time.Now().UnixNano()
				var s stamped
				if json.Unmarshal(d.Body, &s) == nil && s.N < len(c.delivered) && c.delivered[s.N].CompareAndSwap(0, now) {
					c.arrived.Add(1)
				}
				_ = d.Ack(false)
			}
		})
	}
	return func() { _ = ch.Close(); wg.Wait() }
}

// await waits until want events have been delivered.
func (c *clock) await(b *testing.B, want int) {
	b.Helper()
	for end := time.Now().Add(time.Minute); c.arrived.Load() < int64(want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("%d events of %d were delivered", c.arrived.Load(), want)
		}
	}
}

// ms returns the latencies in ms of the events that were delivered.
func (c *clock) ms() (latencies []float64) {
	for i := range c.delivered {
		if at := c.delivered[i].Load(); at != 0 {
			latencies = append(latencies, max(0, float64(at-c.committed[i].Load())/1e6))
		}
	}
	return latencies
}

// send writes or publishes event n, and returns when it counts as sent.
type send func(ctx context.Context, n int) (time.Time, error)

// openLoop sends n events at a rate, whether or not earlier ones have gone.
func openLoop(b *testing.B, c *clock, n, perSecond int, send send) {
	b.Helper()
	failed := newFailure()
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(b.Context(), 20*time.Second)
			defer cancel()
			at, err := send(ctx, i)
			if err != nil {
				failed.set(err.Error())
				return
			}
			c.committed[i].Store(at.UnixNano())
		})
	}
	wg.Wait()
	failed.check(b)
}

// appending writes an event through the outbox; typeOf and keyOf choose.
func appending(pool *pgxpool.Pool, typeOf func(n int) string, keyOf func(n int) string) send {
	return func(ctx context.Context, n int) (time.Time, error) {
		err := outbox.InTx(ctx, pool, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, newStamped(n, keyOf(n), typeOf(n))) })
		return time.Now(), err
	}
}

func always(typ string) func(int) string { return func(int) string { return typ } }

func manyKeys(n int) string { return keyName(n % keyed) }

// service is a pool as a service has it.
func service(b *testing.B, url string) *pgxpool.Pool {
	b.Helper()
	config, err := pgxpool.ParseConfig(url)
	must(b, err)
	config.MaxConns, config.MinConns = 16, 16
	pool, err := pgxpool.NewWithConfig(b.Context(), config)
	must(b, err)
	b.Cleanup(pool.Close)
	return pool
}

// measure runs a load of n events and returns their latencies.
func measure(b *testing.B, br *broker, n, perSecond int, send send) []float64 {
	b.Helper()
	c := newClock(n)
	stop := c.listen(b, br)
	defer stop()
	openLoop(b, c, n, perSecond, send)
	c.await(b, n)
	return c.ms()
}

// straight publishes with a confirm, and waits for it.
func straight(b *testing.B, br *broker) send {
	b.Helper()
	ch := br.channel(b)
	must(b, ch.Confirm(false))
	return func(ctx context.Context, n int) (time.Time, error) {
		msg := relayed(manyKeys(n))
		msg.Payload, _ = json.Marshal(newStamped(n, manyKeys(n), made)) // strings and a number
		start := time.Now()
		confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, topology.Exchange, topology.RoutingKey(made, n%outbox.Partitions), true, false, marshal(b, msg))
		if err != nil {
			return start, err
		}
		if ok, err := confirm.WaitContext(ctx); err != nil || !ok {
			return start, fmt.Errorf("not confirmed: %w", err)
		}
		return start, nil
	}
}

func throughStock(s *stock) send {
	return func(_ context.Context, n int) (time.Time, error) {
		msg := relayed(manyKeys(n))
		msg.Payload, _ = json.Marshal(newStamped(n, manyKeys(n), made)) // strings and a number
		err := s.outbox.Publish(topology.RoutingKey(made, n%outbox.Partitions), msg)
		return time.Now(), err
	}
}

// percentiles are those of the plot.
var percentiles = []float64{0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1}

func latency(b *testing.B, r *Row) {
	const perSecond = 300
	rounds, n := pick(3, 2), pick(10, 4)*perSecond
	br := newBroker(b)
	db := newOutbox(b)
	pool := service(b, db.ServiceURL)
	startRelay(b, br, db)
	own := appending(pool, always(made), manyKeys)
	direct := straight(b, br)
	measure(b, br, 100, 100, own) // connections are opened, statements are planned
	measure(b, br, 100, 100, direct)
	all := map[string][]float64{}
	for range rounds {
		r.say("relay")
		all["relay"] = append(all["relay"], measure(b, br, n, perSecond, own)...)
		r.say("straight to the queue")
		all["straight"] = append(all["straight"], measure(b, br, n, perSecond, direct)...)
	}
	r.say("single events")
	var alone []float64
	for range pick(10, 3) {
		time.Sleep(5 * time.Second) // idleness is what is measured
		alone = append(alone, measure(b, br, 1, 1, own)...)
	}
	r.say("stock forwarder")
	s := newStock(b, br, false)
	stop := s.run(b)
	measure(b, br, 10, 10, throughStock(s))
	few := pick(1000, 300)
	all["stock forwarder"] = measure(b, br, few, 100, throughStock(s))
	stop()
	p := func(name string, q float64) float64 { return percentile(all[name], q) }
	r.Series = map[string][]float64{}
	for _, name := range []string{"relay", "straight", "stock forwarder"} {
		r.add(name+", p50", p(name, 0.5), "ms")
		r.add(name+", p99", p(name, 0.99), "ms")
		for _, q := range percentiles {
			r.Series[name] = append(r.Series[name], round3(p(name, q)))
		}
	}
	r.add("single event after 5 s, p50", percentile(alone, 0.5), "ms")
	r.add("single event after 5 s, worst", percentile(alone, 1), "ms")
	r.note("relay and straight at %d events/s, %d rounds of %d s in turn; from COMMIT's return, or the call that publishes, to the consumer; stock at its defaults, 100 events/s", perSecond, rounds, n/perSecond)
	r.judge(p("relay", 0.5) <= 5 && p("relay", 0.99) <= 1.5*p("straight", 0.99)+10 && percentile(alone, 0.5) <= 15)
}

// fairness lets every tenth event be one that no queue is bound to, all under one key.
func fairness(b *testing.B, r *Row) {
	const perSecond = 300
	rounds, n := pick(8, 2), pick(8, 4)*perSecond
	br := newBroker(b)
	db := newOutbox(b)
	pool := service(b, db.ServiceURL)
	startRelay(b, br, db)
	poison := func(n int) bool { return n%10 == 9 }
	typeOf := func(n int) string {
		if poison(n) {
			return nowhere
		}
		return made
	}
	keyOf := func(n int) string {
		if poison(n) {
			return "poison"
		}
		return manyKeys(n)
	}
	soundly := appending(pool, always(made), manyKeys)
	measure(b, br, 100, 100, soundly)
	var without, with, ratios, noise []float64 // the last two of each round
	for i := range rounds {
		r.say("round %d", i+1)
		sound := measureSome(b, br, n, n-n/10, perSecond, skipping(poison, soundly))
		beside := measureSome(b, br, n, n-n/10, perSecond, appending(pool, typeOf, keyOf))
		again := measureSome(b, br, n, n-n/10, perSecond, skipping(poison, soundly))
		ratios = append(ratios, percentile(beside, 0.99)/percentile(sound, 0.99))
		noise = append(noise, percentile(again, 0.99)/percentile(sound, 0.99))
		without, with = slices.Concat(without, sound, again), append(with, beside...)
	}
	var stuck int
	must(b, db.QueryRow(b.Context(), `SELECT count(*) FROM outbox.stuck WHERE key = 'poison'`).Scan(&stuck))
	if stuck != rounds*n/10 {
		r.note("%d of %d failing messages wait in outbox.stuck, the rest were on their way", stuck, rounds*n/10)
	}
	r.add("without failures, p50", percentile(without, 0.5), "ms")
	r.add("without failures, p99", percentile(without, 0.99), "ms")
	r.add("others beside a failing key, p50", percentile(with, 0.5), "ms")
	r.add("others beside a failing key, p99", percentile(with, 0.99), "ms")
	ratio := percentile(with, 0.99) / percentile(without, 0.99)
	r.add("p99, with / without", ratio, "ratio")
	r.add("the same, median of the rounds", percentile(ratios, 0.5), "ratio")
	r.add("the same, lowest round", slices.Min(ratios), "ratio")
	r.add("the same, highest round", slices.Max(ratios), "ratio")
	r.add("p99, without / without, median of the rounds", percentile(noise, 0.5), "ratio")
	r.add("p99, without / without, lowest round", slices.Min(noise), "ratio")
	r.add("p99, without / without, highest round", slices.Max(noise), "ratio")
	r.note("%d events/s, of which a tenth, all of one key, cannot be routed; %d rounds in turn", perSecond, rounds)
	r.judge(ratio <= 1.1)
}

// skipping leaves events out.
func skipping(skip func(n int) bool, send send) send {
	return func(ctx context.Context, n int) (time.Time, error) {
		if skip(n) {
			return time.Now(), nil
		}
		return send(ctx, n)
	}
}

// measureSome is measure where only want of n events arrive.
func measureSome(b *testing.B, br *broker, n, want, perSecond int, send send) []float64 {
	b.Helper()
	c := newClock(n)
	stop := c.listen(b, br)
	defer stop()
	openLoop(b, c, n, perSecond, send)
	c.await(b, want)
	return c.ms()
}
