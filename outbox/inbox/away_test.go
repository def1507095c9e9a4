package inbox_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// The connection to the broker breaks while messages are in hand: what was not acknowledged comes again, in order.
func TestABrokerLostInTheMiddleOfABatchKeepsOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	broker := outboxtest.NewProxy(t, b.amqp)
	cfg := b.config()
	sub, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{
		URL: broker.URL, Outstanding: testBatch, ReconnectMax: 50 * time.Millisecond,
	}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	cfg.Subscriber = sub
	const messages = 60
	for n := range messages {
		b.send("k", n)
	}
	var calls atomic.Int32
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
		if n := calls.Add(1); n%10 == 5 && n < 50 {
			cut := time.Now()
			broker.Cut()
			outboxtest.Eventually(t, 10*time.Second, func() bool {
				state := sub.State()
				return ctx.Err() != nil || state.Connected && state.Since.After(cut)
			}, "the connection is not back")
		}
		return record(ctx, tx, e.N)
	})
	b.settled("k", upTo(messages))
	if n := b.count(`SELECT count(*) FROM inbox.stuck`); n != 0 {
		t.Errorf("%d messages are stuck", n)
	}
}

// counting reads messages as the product does, and counts those that the broker gives again.
type counting struct {
	rabbitmq.Marshaler
	redelivered *atomic.Int32
}

func (c counting) Unmarshal(d amqp.Delivery) (*message.Message, error) {
	if d.Redelivered {
		c.redelivered.Add(1)
	}
	return c.Marshaler.Unmarshal(d)
}

// away runs a consumer over a database that can be taken away.
type away struct {
	*bench
	database    *outboxtest.Proxy
	redelivered atomic.Int32
	parked      atomic.Int32
	held        atomic.Int32
	broker      *amqp.Channel
}

func newAway(t *testing.T) *away {
	a := &away{bench: newBench(t)}
	a.database = outboxtest.NewProxy(t, a.ServiceURL)
	a.broker = a.channel()
	cfg := a.config()
	cfg.Pool = outboxtest.NewPool(t, outboxtest.WithParameter(t, a.database.URL, "connect_timeout", "2"))
	cfg.LeaseInterval, cfg.LeaseTimeout, cfg.Look = 0, 0, 0 // as in production
	sub, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{
		URL: a.amqp, Outstanding: testBatch, Marshaler: counting{redelivered: &a.redelivered},
	}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Close() })
	cfg.Subscriber = sub
	cfg.Observe = func(o inbox.Outcome) {
		switch o.Result {
		case inbox.Parked:
			a.parked.Add(1)
		case inbox.Held:
			a.held.Add(1)
		}
	}
	cfg.MaxAttempts = 3
	a.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error { return record(ctx, tx, e.N) })
	return a
}

// back checks that everything sent so far takes effect in order after the database is back, and returns how long it took.
func (a *away) back(want int) (took time.Duration) {
	a.t.Helper()
	began := time.Now()
	outboxtest.Eventually(a.t, time.Minute, func() bool { return len(a.effects("k")) >= want }, "handling does not go on")
	took = time.Since(began)
	if got := a.effects("k"); !slices.Equal(got, upTo(want)) {
		a.t.Errorf("effects are %v", got)
	}
	if n := a.count(`SELECT count(*) FROM inbox.stuck`); n != 0 || a.parked.Load() != 0 {
		a.t.Errorf("%d messages are stuck, %d were parked: a database that is away is nobody's failure", n, a.parked.Load())
	}
	return took
}

// soon wants something to take no longer than limit, once in three times: the machine may be busy with other tests.
func soon(t *testing.T, limit time.Duration, try func() (took time.Duration)) {
	t.Helper()
	var all []time.Duration
	for range 3 {
		took := try()
		if took <= limit || t.Failed() {
			return
		}
		all = append(all, took)
	}
	t.Errorf("handling goes on %v after the database is back, want %v at most", all, limit)
}

// While the database is away messages are held, or given back once when the lease may have passed on; nothing is
// nacked in a loop, nothing is counted against a message, and all goes on soon after its return.
func TestADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	for name, outage := range map[string]struct {
		begin, end func(p *outboxtest.Proxy)
		until      func(a *away) bool
	}{
		"refuses, for a moment":   {(*outboxtest.Proxy).Down, (*outboxtest.Proxy).Up, func(a *away) bool { return a.held.Load() > 0 }},
		"refuses, for long":       {(*outboxtest.Proxy).Down, (*outboxtest.Proxy).Up, func(a *away) bool { return a.idle() && a.database.Refused() > 60 }},
		"is silent":               {(*outboxtest.Proxy).Stall, (*outboxtest.Proxy).Flow, (*away).idle},
		"forgets its connections": {(*outboxtest.Proxy).Stall, (*outboxtest.Proxy).Lose, (*away).idle},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			soon(t, 15*time.Second, func() time.Duration { // 5 s where nothing else runs
				a := newAway(t)
				for n := range 100 {
					a.send("k", n)
				}
				outboxtest.Eventually(t, 30*time.Second, func() bool { return len(a.effects("k")) > 20 }, "nothing is handled")
				outage.begin(a.database)
				for n := 100; n < 200; n++ {
					a.send("k", n)
				}
				outboxtest.Eventually(t, time.Minute, func() bool { return outage.until(a) }, "the consumer has not noticed")
				outage.end(a.database)
				took := a.back(200)
				// What had been sent ahead comes again, once; or twice where a busy machine loses a lease besides.
				if n := a.redelivered.Load(); n > 2*sentAhead {
					t.Errorf("%d messages were given again", n)
				}
				a.database.Cut() // connections that were forgotten take long to close
				return took
			})
		})
	}
}

// sentAhead is how many messages the broker has sent ahead at most.
const sentAhead = 2 * 2 * testBatch

// idle reports that all queues have been given back.
func (a *away) idle() bool {
	for p := range topology.Partitions {
		q, err := a.broker.QueueDeclarePassive(topology.QueueName("billing", p), true, false, false, false, nil)
		if err != nil || q.Consumers > 0 {
			return false
		}
	}
	return true
}
