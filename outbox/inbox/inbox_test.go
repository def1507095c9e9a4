package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const typ = "shop.orders.placed.v1"

var topology = rabbitmq.Topology{
	Exchange: "shop.events", TypePrefix: "shop.", Partitions: 2,
	Queues: []rabbitmq.Queue{{Name: "billing", Types: []string{typ, "shop.orders.unheard-of.v1"}}},
}

type placed struct {
	N int `json:"n"`
}

// bench is one consumer's surroundings: a database with a table for effects, a vhost, publishers.
type bench struct {
	*outboxtest.Database
	t    *testing.T
	amqp string
	pub  *rabbitmq.Publisher
	dead *rabbitmq.Publisher
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{Database: outboxtest.NewDatabase(t, "billing"), t: t, amqp: outboxtest.NewVHost(t)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := topology.Apply(ctx, b.amqp); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Exec(ctx, `CREATE TABLE public.effects (n int, key text, seq serial); GRANT ALL ON public.effects, public.effects_seq_seq TO PUBLIC`); err != nil {
		t.Fatal(err)
	}
	b.pub, b.dead = b.publisher(topology.Exchange, time.Minute), b.publisher(topology.DeadExchange(), 2*time.Second)
	return b
}

func (b *bench) publisher(exchange string, timeout time.Duration) *rabbitmq.Publisher {
	p, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: b.amqp, Exchange: exchange, MaxBody: 16 << 20, Timeout: timeout}, quiet)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = p.Close() })
	return p
}

// channel is a channel of the test's own, with confirms.
func (b *bench) channel() *amqp.Channel {
	b.t.Helper()
	conn, err := amqp.Dial(b.amqp)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return ch
}

// testBatch is how many messages one transaction may handle in tests.
const testBatch = 8

var quiet = slog.New(slog.DiscardHandler)

// config is a consumer's, quick enough for tests.
func (b *bench) config() inbox.Config {
	sub, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: b.amqp, Outstanding: testBatch}, quiet)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = sub.Close() })
	return inbox.Config{
		Name: "billing", Batch: testBatch, Pool: outboxtest.NewPool(b.t, b.ServiceURL), Subscriber: sub, Dead: b.dead, Topology: topology, Logger: quiet,
		Look: 20 * time.Millisecond, RetryMin: 20 * time.Millisecond, RetryMax: 100 * time.Millisecond, Build: "test",
		LeaseInterval: 50 * time.Millisecond,
	}
}

// start runs a consumer until the test ends or stop is called.
func (b *bench) start(cfg inbox.Config, handle func(ctx context.Context, tx pgx.Tx, e placed) error) (stop func()) {
	c, err := inbox.New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	inbox.Handle(c, typ, handle)
	return b.run(c)
}

// run runs a consumer until the test ends or stop is called.
func (b *bench) run(c *inbox.Consumer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Errorf("Run = %v", err)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

// send publishes one message to the key's partition.
func (b *bench) send(key string, n int) *message.Message {
	b.t.Helper()
	msg := newMessage(key, typ, fmt.Sprintf(`{"n":%d}`, n))
	b.publish(key, msg)
	return msg
}

func newMessage(key, typ, payload string) *message.Message {
	id := uuid.Must(uuid.NewV7()).String()
	msg := message.NewMessage(id, []byte(payload))
	msg.Metadata = message.Metadata{outbox.HeaderID: id, outbox.HeaderType: typ, outbox.HeaderSubject: key, outbox.HeaderSource: "orders"}
	return msg
}

func (b *bench) publish(key string, msg *message.Message) {
	b.t.Helper()
	partition := int(key[len(key)-1]) % topology.Partitions
	if err := b.pub.Publish(topology.RoutingKey(msg.Metadata[outbox.HeaderType], partition), msg); err != nil {
		b.t.Fatal(err)
	}
}

// record is a handler's effect.
func record(ctx context.Context, tx pgx.Tx, n int) error {
	meta, _ := inbox.MetaFrom(ctx)
	_, err := tx.Exec(ctx, `INSERT INTO public.effects (n, key) VALUES ($1, $2)`, n, meta.Key)
	return err
}

// effects are the numbers that took effect for a key, in order.
func (b *bench) effects(key string) []int {
	b.t.Helper()
	rows, err := b.Query(context.Background(), `SELECT n FROM public.effects WHERE key = $1 ORDER BY seq`, key)
	if err != nil {
		b.t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

func (b *bench) count(query string) (n int) {
	b.t.Helper()
	if err := b.QueryRow(context.Background(), query).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (b *bench) settled(key string, want []int) {
	b.t.Helper()
	outboxtest.Eventually(b.t, 30*time.Second, func() bool { return slices.Equal(b.effects(key), want) }, "effects of key %s are not %v", key, want)
}

func TestAMessageDeliveredTwiceHasOneEffect(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var results sync.Map
	cfg := b.config()
	cfg.Observe = func(o inbox.Outcome) { results.Store(o.Result, o) }
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
		if c := outbox.CausalityFrom(ctx); c.CausationID == "" || c.CorrelationID == "" {
			t.Errorf("causality is %+v", c)
		}
		return record(ctx, tx, e.N)
	})
	msg := b.send("k0", 1)
	b.publish("k0", msg)
	b.send("k0", 2)
	b.settled("k0", []int{1, 2})
	outboxtest.Eventually(t, 10*time.Second, func() bool { _, ok := results.Load(inbox.Duplicate); return ok }, "no duplicate is observed") // after its commit
	if n := b.count(`SELECT count(*) FROM inbox.messages WHERE state = 'done'`); n != 2 {
		t.Errorf("%d inbox rows, want 2", n)
	}
}

func TestAFailingKeyWaitsInOrderAndAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var mu sync.Mutex
	broken := true
	cfg := b.config()
	cfg.MaxAttempts = 1000
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
		mu.Lock()
		defer mu.Unlock()
		if err := record(ctx, tx, e.N); err != nil {
			return err
		}
		if meta, _ := inbox.MetaFrom(ctx); meta.Key == "bad0" && broken && e.N == 2 {
			return errors.New("no such account 4711")
		}
		return nil
	})
	for n := 1; n <= 5; n++ {
		b.send("bad0", n)
		b.send("good0", n)
	}
	b.settled("good0", []int{1, 2, 3, 4, 5})
	outboxtest.Eventually(t, 10*time.Second, func() bool { return b.count(`SELECT count(*) FROM inbox.stuck`) == 4 }, "head and followers are not stuck")
	b.settled("bad0", []int{1})
	if n := b.count(`SELECT count(*) FROM inbox.stuck WHERE attempts > 0`); n != 1 {
		t.Errorf("%d messages were tried, want the head alone", n)
	}
	var text, print, class, build string
	err := b.QueryRow(t.Context(), `SELECT error, fingerprint, class, build FROM inbox.stuck WHERE attempts > 0`).Scan(&text, &print, &class, &build)
	if err != nil || text != "no such account 4711" || print != "errors.errorString: no such account <n>" || class != "handler" || build != "test" {
		t.Errorf("failure is %q %q %q %q, %v", text, print, class, build, err)
	}
	mu.Lock()
	broken = false
	mu.Unlock()
	b.settled("bad0", []int{1, 2, 3, 4, 5})
	b.send("bad0", 6)
	b.settled("bad0", []int{1, 2, 3, 4, 5, 6})
	if n := b.count(`SELECT count(*) FROM inbox.messages WHERE state <> 'done'`); n != 0 {
		t.Errorf("%d messages are not done", n)
	}
}

// A handler that hangs keeps the others of its partition waiting for one attempt at a time.
func TestAHangingHandlerIsNotTriedAgainAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var hung atomic.Int32
	cfg := b.config()
	cfg.Timeout, cfg.RetryMin, cfg.RetryMax = 5*time.Second, time.Hour, time.Hour
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
		if meta, _ := inbox.MetaFrom(ctx); meta.Key == "bad0" {
			hung.Add(1)
			<-ctx.Done()
			return ctx.Err()
		}
		return record(ctx, tx, e.N)
	})
	b.send("bad0", 1)
	outboxtest.Eventually(t, 10*time.Second, func() bool { return hung.Load() > 0 }, "the handler is not called")
	b.send("good0", 1)
	b.settled("good0", []int{1})
	if n := hung.Load(); n != 1 || b.count(`SELECT count(*) FROM inbox.stuck WHERE attempts = 1`) != 1 {
		t.Errorf("the hanging handler was tried %d times", n)
	}
}

func TestWhatNoRetryMendsIsParked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		class string
		max   int
		fail  func() error
	}{
		"permanent": {"permanent", 1000, func() error { return fmt.Errorf("wrapped: %w", inbox.Permanent(errors.New("never"))) }},
		"exhausted": {"handler", 5, func() error { return errors.New("still not") }},
		"panic":     {"panic", 4, func() error { panic("oh") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			cfg := b.config()
			cfg.MaxAttempts = c.max
			b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
				if e.N == 1 {
					return c.fail()
				}
				return record(ctx, tx, e.N)
			})
			b.send("k0", 1)
			b.send("k0", 2)
			b.send("l0", 2)
			b.settled("l0", []int{2})
			outboxtest.Eventually(t, 20*time.Second, func() bool {
				return b.count(`SELECT count(*) FROM inbox.stuck WHERE parked AND class = '`+c.class+`'`) == 1
			}, "the head is not parked")
			b.settled("k0", nil)
		})
	}
}

func TestStopsKeepOrderAndRepeatNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const messages = 200
	go func() {
		for n := range messages {
			msg := newMessage("k0", typ, fmt.Sprintf(`{"n":%d}`, n))
			if err := b.pub.Publish(topology.RoutingKey(typ, n%topology.Partitions), msg); err != nil {
				t.Error(err)
			}
		}
	}()
	var mu sync.Mutex
	calls := 0
	handle := func(ctx context.Context, tx pgx.Tx, e placed) error {
		mu.Lock()
		calls++
		mu.Unlock()
		meta, _ := inbox.MetaFrom(ctx)
		_, err := tx.Exec(ctx, `INSERT INTO public.effects (n, key) VALUES ($1, $2)`, e.N, fmt.Sprint(meta.Key, e.N%topology.Partitions))
		return err
	}
	stop := b.start(b.config(), handle)
	for done := 0; done < messages; {
		target := done + 20
		outboxtest.Eventually(t, 30*time.Second, func() bool {
			done = b.count(`SELECT count(*) FROM public.effects`)
			return done >= min(target, messages)
		}, "no progress")
		next := b.start(b.config(), handle) // two at once for a while
		stop()
		stop = next
	}
	stop()
	for p := range topology.Partitions {
		if got := b.effects(fmt.Sprint("k0", p)); len(got) != messages/topology.Partitions || !slices.IsSorted(got) {
			t.Errorf("partition %d took effect as %v", p, got)
		}
	}
	if calls != messages {
		t.Errorf("%d calls for %d messages: clean stops repeated some", calls, messages)
	}
}

func TestLostConnectionsRepeatNoEffect(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	killed := map[int]bool{}
	b.start(b.config(), func(ctx context.Context, tx pgx.Tx, e placed) error {
		if err := record(ctx, tx, e.N); err != nil {
			return err
		}
		if e.N%5 == 0 && !killed[e.N] {
			killed[e.N] = true
			_, err := b.Exec(ctx, `SELECT pg_terminate_backend($1)`, int64(tx.Conn().PgConn().PID()))
			return err
		}
		return nil
	})
	var want []int
	for n := range 20 {
		b.send("k0", n)
		want = append(want, n)
	}
	b.settled("k0", want)
	if len(killed) != 4 || b.count(`SELECT count(*) FROM inbox.stuck`) != 0 {
		t.Errorf("killed %v", killed)
	}
}
