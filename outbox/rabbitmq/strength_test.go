package rabbitmq_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// Twenty thousand messages that cannot be routed go out at full speed among as many that can: none is misjudged.
func TestUnroutableMessagesAtFullSpeed(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url, Timeout: time.Minute})
	const each, workers = 20_000, 200
	var next, wrong atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for n := next.Add(1); n <= 2*each; n = next.Add(1) {
				key, want := topology.RoutingKey(typ, int(n/2)%2), error(nil)
				if n%2 == 0 {
					key, want = "nobody.listens.v1.0", rabbitmq.ErrUnroutable
				}
				if err := p.Publish(key, newMessage(int(n))); !errors.Is(err, want) {
					wrong.Add(1)
					t.Logf("message %d: %v, want %v", n, err, want)
				}
			}
		})
	}
	wg.Wait()
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d messages were misjudged", n)
	}
	ch := raw(t, url)
	depth := 0
	for _, queue := range []string{"billing.0", "billing.1"} {
		outboxtest.Eventually(t, 20*time.Second, func() bool {
			q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
			depth = q.Messages
			return err == nil && depth == each/2
		}, "%s holds %d messages, want %d", queue, depth, each/2)
	}
}

// What no broker takes fails by itself: everything else that is published meanwhile arrives, on the same connection.
func TestPoisonStopsNobodyElse(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url, MaxBody: 1 << 20})
	outboxtest.Eventually(t, 20*time.Second, func() bool { return p.Publish(topology.RoutingKey(typ, 0), newMessage(0)) == nil }, "the publisher works")
	since := p.State().Since
	poison := map[string]func() (key string, msg *message.Message){
		"long header name": func() (string, *message.Message) {
			msg := newMessage(0)
			msg.Metadata[strings.Repeat("n", 300)] = "v"
			return topology.RoutingKey(typ, 0), msg
		},
		"huge headers": func() (string, *message.Message) {
			msg := newMessage(0)
			msg.Metadata["h"] = strings.Repeat("v", 1<<20)
			return topology.RoutingKey(typ, 0), msg
		},
		"huge body": func() (string, *message.Message) {
			msg := newMessage(0)
			msg.Payload = make([]byte, 1<<20+1)
			return topology.RoutingKey(typ, 0), msg
		},
		"long routing key": func() (string, *message.Message) { return strings.Repeat("k", 300), newMessage(0) },
	}
	var wg sync.WaitGroup
	for name, made := range poison {
		wg.Go(func() {
			for range 50 {
				key, msg := made()
				if err := p.Publish(key, msg); !errors.Is(err, rabbitmq.ErrTooLarge) && !errors.Is(err, rabbitmq.ErrUnencodable) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	for range 20 {
		wg.Go(func() {
			for n := range 100 {
				if err := p.Publish(topology.RoutingKey(typ, n%2), newMessage(n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if now := p.State(); !now.Since.Equal(since) {
		t.Errorf("the connection was lost: %+v", now)
	}
}

// A thousand connections that break leave nothing behind, neither in the publisher nor in the subscriber.
func TestReconnectsLeakNothing(t *testing.T) {
	url := newBroker(t)
	const soon = 2 * time.Millisecond
	between := outboxtest.NewProxy(t, url)
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: between.URL, Timeout: 30 * time.Second, ReconnectMax: soon})
	s, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: between.URL, ReconnectMax: soon}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	messages, err := s.Subscribe(t.Context(), topology.QueueName("billing", 0))
	if err != nil {
		t.Fatal(err)
	}
	var received atomic.Int64
	go func() {
		for msg := range messages {
			received.Add(1)
			msg.Ack()
		}
	}()
	publish := func() bool { return p.Publish(topology.RoutingKey(typ, 0), newMessage(1)) == nil }
	arrives := func() {
		before := received.Load()
		outboxtest.Eventually(t, 30*time.Second, publish, "the publisher works")
		outboxtest.Eventually(t, 30*time.Second, func() bool { return received.Load() > before }, "the subscriber works")
	}
	arrives()
	settled := func() int { runtime.GC(); return runtime.NumGoroutine() }
	before := settled()
	for n := range 1000 {
		publisher, subscriber := p.State().Since, s.State().Since
		between.Cut()
		outboxtest.Eventually(t, 30*time.Second, func() bool {
			return p.State().Connected && p.State().Since.After(publisher) && s.State().Connected && s.State().Since.After(subscriber)
		}, "both are connected again, for the %dth time", n+1)
		if n%50 == 49 {
			arrives()
		}
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool { return settled() <= before+3 }, "%d goroutines, before there were %d", runtime.NumGoroutine(), before)
}

// queues gives every topic of Watermill's suite a queue of its own.
type queues struct{ conn *amqp.Connection }

// SubscribeInitialize declares a topic's queue.
func (q queues) SubscribeInitialize(topic string) error {
	ch, err := q.conn.Channel()
	if err != nil {
		return err
	}
	defer func() { _ = ch.Close() }()
	if _, err := ch.QueueDeclare(topic, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		return err
	}
	return ch.QueueBind(topic, topic, topology.Exchange, false, nil)
}

type suitePublisher struct {
	*rabbitmq.Publisher
	queues
}

// Publish declares the topic's queue first: a message that no queue takes would be refused.
func (p suitePublisher) Publish(topic string, messages ...*message.Message) error {
	if err := p.SubscribeInitialize(topic); err != nil {
		return err
	}
	return p.Publisher.Publish(topic, messages...)
}

type suiteSubscriber struct {
	*rabbitmq.Subscriber
	queues
}

// Subscribe declares the topic's queue first.
func (s suiteSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if err := s.SubscribeInitialize(topic); err != nil {
		return nil, err
	}
	return s.Subscriber.Subscribe(ctx, topic)
}

// Watermill's own suite for every publisher and subscriber.
func TestWatermillSuite(t *testing.T) {
	url := newBroker(t)
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	open := func(t *testing.T) (message.Publisher, message.Subscriber) {
		t.Helper()
		s, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{
			URL: url, RedeliverMin: time.Millisecond, Grace: 100 * time.Millisecond, // the suite closes with a message in hand
		}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		p := newPublisher(t, rabbitmq.PublisherConfig{URL: url})
		return suitePublisher{p, queues{conn}}, suiteSubscriber{s, queues{conn}}
	}
	tests.TestPubSub(t, tests.Features{
		// A queue is one consumer's; another has a queue of its own.
		ConsumerGroups: false,
		// The broker may give a message again; the inbox absorbs it.
		ExactlyOnceDelivery: false,
		// One subscription at a time gives a queue's messages in order; several share them.
		GuaranteedOrder: false, GuaranteedOrderWithSingleSubscriber: true,
		// Messages outlive publisher and subscriber.
		Persistent: true,
		// A queue forgets what was acknowledged.
		NewSubscriberReceivesOldMessages: false,
		// The rest travels by AMQP; a context does not.
		ContextPreserved: false,
		ForceShort:       true,
	}, open, nil)
}
