package operate_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const typ = "shop.orders.placed.v1"

var (
	quiet    = slog.New(slog.DiscardHandler)
	topology = rabbitmq.Topology{
		Exchange: "shop.events", TypePrefix: "shop.", Partitions: 2, Queues: []rabbitmq.Queue{{Name: consumer, Types: []string{typ}}},
	}
)

// placed is an event; edited tells one form of it from another.
type placed struct {
	N      int    `json:"n"`
	Edited string `json:"edited"`
}

// consumed is a consumer's surroundings.
type consumed struct {
	*bench
	amqp string
	pub  *rabbitmq.Publisher
	dead *rabbitmq.Publisher
}

func newConsumed(t *testing.T) *consumed {
	t.Helper()
	b := &consumed{bench: newBench(t), amqp: outboxtest.NewVHost(t)}
	if err := topology.Apply(t.Context(), b.amqp); err != nil {
		t.Fatal(err)
	}
	b.exec(`CREATE TABLE public.effects (id uuid, key text, edited text, seq serial); GRANT ALL ON public.effects, public.effects_seq_seq TO PUBLIC`)
	b.pub, b.dead = b.publisher(topology.Exchange), b.publisher(topology.DeadExchange())
	return b
}

func (b *consumed) publisher(exchange string) *rabbitmq.Publisher {
	b.t.Helper()
	p, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: b.amqp, Exchange: exchange}, quiet)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = p.Close() })
	return p
}

// consuming runs a consumer until the test ends or stop is called; its handler writes the effect, then asks verdict.
func (b *consumed) consuming(verdict func() error) (stop func()) {
	b.t.Helper()
	sub, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: b.amqp, Outstanding: 8}, quiet)
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := inbox.New(inbox.Config{
		Name: consumer, Batch: 8, Pool: outboxtest.NewPool(b.t, b.ServiceURL), Subscriber: sub, Dead: b.dead, Topology: topology, Logger: quiet, Build: "test",
		Tries: 1, Look: 20 * time.Millisecond, RetryMin: 10 * time.Millisecond, RetryMax: 50 * time.Millisecond, LeaseInterval: 50 * time.Millisecond,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	inbox.Handle(c, typ, func(ctx context.Context, tx pgx.Tx, e placed) error {
		meta, _ := inbox.MetaFrom(ctx)
		if _, err := tx.Exec(ctx, `INSERT INTO public.effects (id, key, edited) VALUES ($1, $2, $3)`, meta.ID, meta.Key, e.Edited); err != nil {
			return err
		}
		return verdict()
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, sub.Close()); err != nil {
			b.t.Errorf("Run = %v", err)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

func event(key string, n int) *message.Message {
	id := uuid.Must(uuid.NewV7()).String()
	msg := message.NewMessage(id, fmt.Appendf(nil, `{"n":%d}`, n))
	msg.Metadata = message.Metadata{outbox.HeaderID: id, outbox.HeaderType: typ, outbox.HeaderSubject: key, outbox.HeaderSource: "orders"}
	return msg
}

func (b *consumed) publish(msg *message.Message) {
	b.t.Helper()
	key := msg.Metadata.Get(outbox.HeaderSubject)
	if err := b.pub.Publish(topology.RoutingKey(typ, int(key[len(key)-1])%topology.Partitions), msg); err != nil {
		b.t.Error(err)
	}
}

func (b *consumed) settled() bool {
	return one[int](b.bench, `SELECT count(*) FROM inbox.stuck`) == 0
}

// Operators who do verbs at random while consumers work, fail, lose their connections and take over from each other: what
// nobody skipped has its effect once, in the order of its key, and what was edited in its newest form.
func TestOperatorsWorkBesideConsumers(t *testing.T) {
	t.Parallel()
	b := newConsumed(t)
	var calm atomic.Bool
	verdict := func() error {
		switch n := rand.IntN(100); {
		case calm.Load():
		case n < 15:
			return inbox.Permanent(errors.New("it cannot be"))
		case n < 30:
			return errors.New("it does not work now")
		}
		return nil
	}
	b.consuming(verdict)
	stop := b.consuming(verdict)
	d := newDeeds()
	ctx, cancel := context.WithCancel(t.Context())
	var operators, writers sync.WaitGroup
	for range 3 {
		operators.Go(func() { b.hammer(ctx, operate.Inbox, d) })
	}
	const keys, most = 20, 300
	sent, done := make([][]*message.Message, keys), make(chan struct{})
	for k := range keys {
		writers.Go(func() {
			for n := range most {
				select {
				case <-done:
					return
				default:
				}
				msg := event(fmt.Sprint("k", k), n)
				b.publish(msg)
				sent[k] = append(sent[k], msg)
			}
		})
	}
	for round := range 3 {
		outboxtest.Eventually(t, time.Minute, func() bool { return d.did("edit") >= 20*(round+1) && d.did("skip") > 2*round }, "operators do their work")
		if round == 1 {
			stop()
			b.consuming(verdict)
			continue
		}
		b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'tw_test_shop'`)
	}
	close(done)
	writers.Wait()
	cancel()
	operators.Wait()
	calm.Store(true)
	total := 0
	for _, list := range sent {
		total += len(list)
	}
	outboxtest.Eventually(t, 2*time.Minute, func() bool {
		b.do2(operate.Command{Verb: operate.VerbReplay})
		return b.settled() && one[int](b.bench, `SELECT count(*) FROM inbox.messages`) == total
	}, "all have come, and nothing is left")
	for _, list := range sent { // again: nothing may happen
		b.publish(list[0].Copy())
		b.publish(list[len(list)-1].Copy())
	}
	b.publish(event("last0", 0))
	b.publish(event("last1", 0))
	outboxtest.Eventually(t, time.Minute, func() bool {
		return one[int](b.bench, `SELECT count(*) FROM public.effects WHERE key LIKE 'last%'`) == 2
	}, "the duplicates have come")
	for k, list := range sent {
		var want []string
		for _, msg := range list {
			if !d.skipped[uuid.MustParse(msg.UUID)] {
				want = append(want, msg.UUID)
			}
		}
		got := one[[]string](b.bench, `SELECT coalesce(array_agg(id::text ORDER BY seq), '{}') FROM public.effects WHERE key = $1`, fmt.Sprint("k", k))
		if !slices.Equal(got, want) {
			t.Errorf("key k%d: %d effects in another order or number than its %d messages", k, len(got), len(want))
		}
	}
	for id, form := range d.edited {
		if d.skipped[id] {
			continue
		}
		if got := one[string](b.bench, `SELECT '{"n":0,"edited":"' || edited || '"}' FROM public.effects WHERE id = $1`, id); got != form {
			t.Errorf("message %s took effect as %s, want %s", id, got, form)
		}
	}
	if n := one[int](b.bench, `SELECT count(*) FROM inbox.messages WHERE state = 'skipped'`); n != len(d.skipped) {
		t.Errorf("%d are remembered as skipped, want %d", n, len(d.skipped))
	}
	t.Logf("%d messages, operators: %v", total, d.counts)
	if report := b.verify(""); !report.OK {
		t.Errorf("audit: %+v", report)
	}
}

// While a handler works on a key's message, verbs leave the whole key alone; other keys are moved.
func TestAHandlerAtWorkIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newConsumed(t)
	working, proceed := make(chan struct{}), make(chan struct{})
	var tries atomic.Int32
	b.consuming(func() error {
		switch tries.Add(1) {
		case 1:
			return errors.New("it does not work now") // on to inbox.stuck
		case 2:
			close(working)
			<-proceed
		}
		return nil
	})
	msg := event("a0", 1)
	b.publish(msg)
	<-working
	id := uuid.MustParse(msg.UUID)
	got := b.refused(operate.ErrBusy, operate.Command{Verb: operate.VerbSkip, Filter: just(operate.Inbox, id)})
	if len(got.Left) != 1 || got.Left[0].Code != operate.LeftBusy {
		t.Errorf("%+v", got)
	}
	other := b.stuckInbox(parked.of("b3")) // a partition that no consumer has
	b.do(operate.Command{Verb: operate.VerbSkip, Filter: just(operate.Inbox, other)})
	close(proceed)
	outboxtest.Eventually(t, 20*time.Second, b.settled, "it is handled")
	if n := one[int](b.bench, `SELECT count(*) FROM public.effects`); n != 1 {
		t.Errorf("%d effects", n)
	}
}
