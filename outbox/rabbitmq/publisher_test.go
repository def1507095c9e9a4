package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

var quiet = slog.New(slog.DiscardHandler)

const typ = "shop.orders.placed.v1"

var topology = rabbitmq.Topology{
	Exchange: "shop.events", TypePrefix: "shop.", Partitions: 2,
	Queues: []rabbitmq.Queue{{Name: "billing", Types: []string{typ}}},
}

// newBroker is a vhost with the topology.
func newBroker(t *testing.T) string {
	t.Helper()
	url := outboxtest.NewVHost(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := topology.Apply(ctx, url); err != nil {
		t.Fatal(err)
	}
	return url
}

func newPublisher(t *testing.T, cfg rabbitmq.PublisherConfig) *rabbitmq.Publisher {
	t.Helper()
	if cfg.Exchange == "" {
		cfg.Exchange = topology.Exchange
	}
	p, err := rabbitmq.NewPublisher(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func newMessage(n int) *message.Message {
	id := uuid.Must(uuid.NewV7()).String()
	msg := message.NewMessage(id, fmt.Appendf(nil, `{"n":%d}`, n))
	msg.Metadata = message.Metadata{outbox.HeaderID: id, outbox.HeaderType: typ, outbox.HeaderSubject: "k"}
	return msg
}

// raw is a plain channel to the broker.
func raw(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// ids takes what is in a queue now and counts its ids.
func ids(t *testing.T, ch *amqp.Channel, queue string) map[string]int {
	t.Helper()
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	in, err := ch.Consume(queue, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	limit := time.After(30 * time.Second)
	for range q.Messages {
		select {
		case d := <-in:
			found[d.MessageId]++
		case <-limit:
			t.Fatalf("queue %s said it had %d messages and gave %d", queue, q.Messages, len(found))
		}
	}
	return found
}

func TestEveryOutcomeIsItsOwnMessages(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url, InFlight: 300, Timeout: time.Minute})
	const messages = 4000
	var misjudged atomic.Int32
	var wg sync.WaitGroup
	for n := range messages {
		wg.Go(func() {
			key := topology.RoutingKey(typ, 0)
			if n%2 == 1 {
				key = "nobody.listens.v1.0"
			}
			err := p.Publish(key, newMessage(n))
			if n%2 == 0 && err != nil || n%2 == 1 && !errors.Is(err, rabbitmq.ErrUnroutable) {
				misjudged.Add(1)
			}
		})
	}
	wg.Wait()
	if misjudged.Load() > 0 {
		t.Errorf("%d of %d messages misjudged", misjudged.Load(), messages)
	}
	if got := len(ids(t, raw(t, url), "billing.0")); got != messages/2 {
		t.Errorf("%d messages in the queue, want %d", got, messages/2)
	}
}

func TestAFullQueueRefuses(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	ch := raw(t, url)
	_, err := ch.QueueDeclare("tiny", true, false, false, false, amqp.Table{"x-max-length": int64(1), "x-overflow": "reject-publish"})
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind("tiny", "tiny", topology.Exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url})
	refused := false
	for n := 0; n < 100 && !refused; n++ {
		refused = errors.Is(p.Publish("tiny", newMessage(n)), rabbitmq.ErrRefused)
	}
	if !refused {
		t.Error("a full queue has refused nothing")
	}
	if err := p.Publish(topology.RoutingKey(typ, 0), newMessage(0)); err != nil {
		t.Errorf("another queue: %v", err)
	}
}

// TestARefusalStaysOne sends to a full queue and to an open one through one channel. What is full says so at once, what is
// open confirms later, and several at a time: such a confirm reaches over refusals that have been told already.
func TestARefusalStaysOne(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	ch := raw(t, url)
	_, err := ch.QueueDeclare("tiny", true, false, false, false, amqp.Table{"x-queue-type": "quorum", "x-max-length": int64(1), "x-overflow": "reject-publish"})
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind("tiny", "tiny", topology.Exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url, Channels: 1, InFlight: 1000, Timeout: time.Minute})
	var mu sync.Mutex
	confirmed := map[string]bool{}
	send := func(key string, n int) error {
		msg := newMessage(n)
		err := p.Publish(key, msg)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			confirmed[msg.UUID] = true
		}
		return err
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool { return errors.Is(send("tiny", 0), rabbitmq.ErrRefused) }, "the queue does not get full")
	var wg sync.WaitGroup
	for n := range 2000 {
		wg.Go(func() {
			key := topology.RoutingKey(typ, 0)
			if n%4 == 0 {
				key = "tiny"
			}
			if err := send(key, n); n%4 == 0 && !errors.Is(err, rabbitmq.ErrRefused) || n%4 != 0 && err != nil {
				t.Errorf("message %d under key %s: %v", n, key, err)
			}
		})
	}
	wg.Wait()
	found := ids(t, ch, "tiny")
	for id := range ids(t, ch, "billing.0") {
		found[id]++
	}
	for id := range confirmed {
		if found[id] == 0 {
			t.Errorf("message %s was confirmed and is in no queue", id)
		}
	}
}

func TestWhatCannotBeSentStopsNobodyElse(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url, MaxBody: 1 << 20})
	key := topology.RoutingKey(typ, 0)
	for name, c := range map[string]struct {
		spoil func(m *message.Message)
		want  error
	}{
		"header name": {func(m *message.Message) { m.Metadata[strings.Repeat("n", 300)] = "v" }, rabbitmq.ErrUnencodable},
		"headers":     {func(m *message.Message) { m.Metadata["h"] = strings.Repeat("v", 200_000) }, rabbitmq.ErrTooLarge},
		"body":        {func(m *message.Message) { m.Payload = make([]byte, 1<<20+1) }, rabbitmq.ErrTooLarge},
	} {
		bad := newMessage(0)
		c.spoil(bad)
		if err := p.Publish(key, newMessage(1), bad, newMessage(2)); !errors.Is(err, c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error is %v, want %v alone", name, err, c.want)
		}
	}
	large := newMessage(3)
	large.Payload = make([]byte, 1<<20)
	large.Metadata["h"] = strings.Repeat("v", 100_000)
	if err := p.Publish(key, large); err != nil {
		t.Errorf("the largest message: %v", err)
	}
	// What is too long for a property is a header only.
	long := newMessage(4)
	for _, name := range []string{outbox.HeaderType, outbox.HeaderCorrelationID, outbox.HeaderSource} {
		long.Metadata[name] = strings.Repeat("t", 300)
	}
	if err := p.Publish(key, long); err != nil {
		t.Errorf("a message with long headers: %v", err)
	}
	if got := len(ids(t, raw(t, url), "billing.0")); got != 8 {
		t.Errorf("%d messages arrived, want 8", got)
	}
}

// expiring sets a property that the broker closes the channel for when it is no number.
type expiring struct{ rabbitmq.Marshaler }

func (m expiring) Marshal(msg *message.Message) (amqp.Publishing, error) {
	p, err := m.Marshaler.Marshal(msg)
	p.Expiration = msg.Metadata["expiration"]
	return p, err
}

func TestTheMessageThatBreaksItsChannelIsFound(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url, Marshaler: expiring{}})
	key := topology.RoutingKey(typ, 0)
	bad := newMessage(0)
	bad.Metadata["expiration"] = "soon"
	var wg sync.WaitGroup
	for n := range 50 {
		wg.Go(func() {
			msg := newMessage(n)
			for err := rabbitmq.ErrUnavailable; err != nil; err = p.Publish(key, msg) {
				if !errors.Is(err, rabbitmq.ErrUnavailable) {
					t.Errorf("message %d: %v", n, err)
					return
				}
			}
		})
	}
	var err error
	for range 10 {
		if err = p.Publish(key, bad); !errors.Is(err, rabbitmq.ErrUnavailable) {
			break
		}
	}
	wg.Wait()
	if !errors.Is(err, rabbitmq.ErrUnencodable) {
		t.Errorf("the culprit's error is %v, want ErrUnencodable", err)
	}
}

func TestCutConnectionsLoseNoConfirmedMessage(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	between := outboxtest.NewProxy(t, url)
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: between.URL, Timeout: 20 * time.Second})
	const writers, each = 50, 20
	var confirmed sync.Map
	var done atomic.Int32
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for n := range each {
				msg := newMessage(n)
				for p.Publish(topology.RoutingKey(typ, 0), msg) != nil {
				}
				confirmed.Store(msg.UUID, true)
				done.Add(1)
			}
		})
	}
	for cut := range int32(8) {
		outboxtest.Eventually(t, time.Minute, func() bool { return done.Load() > cut*writers*each/10 }, "no progress after %d cuts", cut)
		between.Cut()
	}
	wg.Wait()
	found := ids(t, raw(t, url), "billing.0")
	confirmed.Range(func(id, _ any) bool {
		if found[id.(string)] == 0 {
			t.Errorf("message %s was confirmed and is not there", id)
		}
		return true
	})
}

// An exchange that is declared anew gets its bindings one by one. Nothing is published on it before it has all of them, or a
// message would be confirmed that some of its queues never saw.
func TestAnExchangeThatComesBackIsUsedWhenItIsComplete(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	key, ch := topology.RoutingKey(typ, 0), raw(t, url)
	if _, err := ch.QueueDeclare("audit", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind("audit", key, topology.Exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	var prepared atomic.Int32
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url, Channels: 4, Timeout: 20 * time.Second, Prepare: func(context.Context) error {
		if prepared.Add(1) == 1 {
			return errors.New("not at the first time")
		}
		conn, err := amqp.Dial(url)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }() // nothing hangs on it
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		bind := func(queue string) error { return ch.QueueBind(queue, key, topology.Exchange, false, nil) }
		err = errors.Join(ch.ExchangeDeclare(topology.Exchange, amqp.ExchangeDirect, true, false, false, false, nil), bind("billing.0"))
		for range 100 { // as if many others were bound before the next
			err = errors.Join(err, bind("billing.0"))
		}
		return errors.Join(err, bind("audit"))
	}})
	var confirmed sync.Map
	var done atomic.Int32
	var stop atomic.Bool
	defer stop.Store(true)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				msg := newMessage(n)
				if p.Publish(key, msg) != nil {
					continue
				}
				confirmed.Store(msg.UUID, true)
				done.Add(1)
			}
		})
	}
	for n := range int32(3) {
		before := done.Load()
		outboxtest.Eventually(t, time.Minute, func() bool { return done.Load() > before+100 }, "nothing is published")
		if err := raw(t, url).ExchangeDelete(topology.Exchange, false, false); err != nil {
			t.Fatal(err)
		}
		outboxtest.Eventually(t, time.Minute, func() bool { return prepared.Load() > n }, "the exchange is not prepared")
	}
	before := done.Load()
	outboxtest.Eventually(t, time.Minute, func() bool { return done.Load() > before+100 }, "nothing is published any more")
	stop.Store(true)
	wg.Wait()
	billing, audit := ids(t, raw(t, url), "billing.0"), ids(t, raw(t, url), "audit")
	missing := 0
	confirmed.Range(func(id, _ any) bool {
		if billing[id.(string)] == 0 || audit[id.(string)] == 0 {
			missing++
		}
		return true
	})
	if missing > 0 {
		t.Errorf("%d of %d messages did not come to both queues", missing, done.Load())
	}
}

func closesWithin(t *testing.T, p *rabbitmq.Publisher, limit time.Duration) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		_ = p.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(limit):
		t.Fatal("Close does not end")
	}
}

func TestASilentBrokerHangsNobody(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	between := outboxtest.NewProxy(t, url)
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: between.URL, Timeout: time.Second})
	outboxtest.Eventually(t, 20*time.Second, func() bool { return p.Publish(topology.RoutingKey(typ, 0), newMessage(0)) == nil }, "the publisher works")
	between.Stall()
	if err := p.Publish(topology.RoutingKey(typ, 0), newMessage(1)); !errors.Is(err, rabbitmq.ErrUnavailable) {
		t.Errorf("error is %v, want ErrUnavailable", err)
	}
	closesWithin(t, p, 30*time.Second)
	if err := p.Publish(topology.RoutingKey(typ, 0), newMessage(2)); !errors.Is(err, rabbitmq.ErrClosed) {
		t.Errorf("error is %v, want ErrClosed", err)
	}
}

// A broker that is short of memory reads nothing from a connection that published, and goes on sending heartbeats.
func TestABlockedBrokerDoesNotDelayAStop(t *testing.T) {
	t.Parallel()
	between := outboxtest.NewProxy(t, newBroker(t))
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: between.URL, Timeout: time.Second})
	outboxtest.Eventually(t, 20*time.Second, func() bool { return p.Publish(topology.RoutingKey(typ, 0), newMessage(0)) == nil }, "the publisher works")
	between.Block()
	if err := p.Publish(topology.RoutingKey(typ, 0), newMessage(1)); !errors.Is(err, rabbitmq.ErrUnavailable) {
		t.Errorf("error is %v, want ErrUnavailable", err)
	}
	closesWithin(t, p, 10*time.Second)
}

// A confirm that comes late costs its channel. The connection, and the other channels on it, live on.
func TestALateConfirmLeavesTheConnectionAlone(t *testing.T) {
	t.Parallel()
	broker := outboxtest.NewProxy(t, newBroker(t))
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: broker.URL, Timeout: 500 * time.Millisecond})
	publish := func() error { return p.Publish(topology.RoutingKey(typ, 0), newMessage(1)) }
	outboxtest.Eventually(t, 20*time.Second, func() bool { return publish() == nil }, "the publisher works")
	since := p.State().Since
	broker.Mute()
	var late sync.WaitGroup
	for range 50 { // some of them after the first channel is given up
		late.Go(func() {
			for range 3 {
				if err := publish(); !errors.Is(err, rabbitmq.ErrUnavailable) {
					t.Errorf("error is %v, want ErrUnavailable", err)
				}
			}
		})
	}
	late.Wait()
	broker.Flow()
	outboxtest.Eventually(t, 20*time.Second, func() bool { return publish() == nil }, "the publisher works again")
	if now := p.State(); !now.Connected || !now.Since.Equal(since) {
		t.Errorf("the connection was lost: %+v, before it was up since %v", now, since)
	}
}

func TestNoBrokerAtAll(t *testing.T) {
	t.Parallel()
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: "amqp://u:secret@127.0.0.1:1/", Exchange: "e", Timeout: 300 * time.Millisecond})
	err := p.Publish("k", newMessage(0))
	if !errors.Is(err, rabbitmq.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("error is %v, want ErrUnavailable without a password", err)
	}
	if s := p.State(); s.Connected || s.Reason == "" {
		t.Errorf("state is %+v", s)
	}
}
