package rabbitmq_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillamqp "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

func newSubscriber(t *testing.T, url string) *rabbitmq.Subscriber {
	t.Helper()
	s, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: url, RedeliverMin: time.Millisecond}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// fill publishes n messages to one queue, in order.
func fill(t *testing.T, url string, n int) {
	t.Helper()
	p := newPublisher(t, rabbitmq.PublisherConfig{URL: url})
	for i := range n {
		if err := p.Publish(topology.RoutingKey(typ, 0), newMessage(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func number(t *testing.T, msg *message.Message) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(string(msg.Payload), `{"n":%d}`, &n); err != nil {
		t.Fatalf("payload %q: %v", msg.Payload, err)
	}
	return n
}

func TestStopsInTheMiddleOfAHandlerKeepOrder(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	const messages = 298 // a hundred stops, the last at the last one
	fill(t, url, messages)
	s := newSubscriber(t, url)
	var got []int
	for len(got) < messages {
		ctx, cancel := context.WithCancel(t.Context())
		in, err := s.Subscribe(ctx, "billing.0")
		if err != nil {
			t.Fatal(err)
		}
		for msg := range in {
			if n := number(t, msg); n%3 == 0 {
				cancel() // the handler is still at work
				if msg.Context().Err() != nil {
					t.Error("the handler's context ended with the subscription")
				}
			}
			got = append(got, number(t, msg))
			msg.Ack()
		}
		cancel()
	}
	if !slices.IsSorted(got) || len(got) != messages {
		t.Errorf("messages came as %v", got)
	}
}

// With several messages out, a stop or a nack gives back all that are not acknowledged, in order.
func TestStopsAndNacksWithSeveralOutKeepOrder(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	const messages = 600
	fill(t, url, messages)
	s, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: url, Outstanding: 8, ReconnectMax: 10 * time.Millisecond}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var got []int
	for stop := 0; len(got) < messages; stop++ {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		in, err := s.Subscribe(ctx, "billing.0")
		if err != nil {
			t.Fatal(err)
		}
		var held []*message.Message
		for len(held) < min(5, messages-len(got)) {
			held = append(held, <-in)
		}
		if stop%2 == 0 {
			cancel() // the handlers are still at work
		}
		for i, msg := range held {
			if i >= stop%6 {
				msg.Nack() // it and those behind it come again
				continue
			}
			got = append(got, number(t, msg))
			msg.Ack()
		}
		cancel()
		for msg := range in { // what was on its way
			msg.Nack()
		}
	}
	if !slices.IsSorted(got) || len(got) != messages {
		t.Errorf("messages came as %v", got)
	}
}

func TestANackGivesTheSameMessageAgain(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	fill(t, url, 5)
	in, err := newSubscriber(t, url).Subscribe(t.Context(), "billing.0")
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for len(got) < 15 {
		msg := <-in
		got = append(got, number(t, msg))
		if len(got)%3 == 0 {
			msg.Ack()
		} else {
			msg.Nack()
		}
	}
	if want := []int{0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4}; !slices.Equal(got, want) {
		t.Errorf("messages came as %v", got)
	}
}

func TestCutConnectionsRepeatInOrder(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	between := outboxtest.NewProxy(t, url)
	const messages = 200
	fill(t, url, messages)
	in, err := newSubscriber(t, between.URL).Subscribe(t.Context(), "billing.0")
	if err != nil {
		t.Fatal(err)
	}
	var first []int // first occurrences
	limit := time.After(time.Minute)
	for len(first) < messages {
		select {
		case msg := <-in:
			n := number(t, msg)
			if !slices.Contains(first, n) {
				first = append(first, n)
				if n%40 == 20 {
					between.Cut()
				}
			}
			msg.Ack()
		case <-limit:
			t.Fatalf("only %d of %d messages came", len(first), messages)
		}
	}
	if !slices.IsSorted(first) {
		t.Errorf("first occurrences came as %v", first)
	}
}

func TestAQueueDeletedUnderItsConsumerGivesNoPhantom(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	var log bytes.Buffer
	lines := &locked{Writer: &log}
	s, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: url}, slog.New(slog.NewTextHandler(lines, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in, err := s.Subscribe(t.Context(), "billing.0")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, url, 1)
	(<-in).Ack()
	ch := raw(t, url)
	outboxtest.Eventually(t, 10*time.Second, func() bool {
		q, err := ch.QueueDeclarePassive("billing.0", true, false, false, false, nil)
		return err == nil && q.Consumers == 1 && q.Messages == 0
	}, "the consumer is not there")
	if _, err := ch.QueueDelete("billing.0", false, false, false); err != nil {
		t.Fatal(err)
	}
	// RabbitMQ 3.10 loses the consumer, and tells nobody, when the queue is declared again in the same moment.
	outboxtest.Eventually(t, 10*time.Second, func() bool { return lines.contains(&log, "consuming interrupted") }, "the end was not noticed")
	if err := topology.Apply(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	fill(t, url, 1)
	select {
	case msg := <-in:
		if msg == nil || number(t, msg) != 0 {
			t.Errorf("message is %v", msg)
		}
		msg.Ack()
	case <-time.After(30 * time.Second):
		t.Fatal("the subscription has not come back")
	}
}

// locked makes a buffer fit for several goroutines.
type locked struct {
	mu sync.Mutex
	io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Writer.Write(b)
}

func (l *locked) contains(b *bytes.Buffer, text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(b.String(), text)
}

func TestAnyHeaderIsReadableAndTheMalformedIsMarked(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	ch := raw(t, url)
	good := newMessage(0)
	publish := func(headers amqp.Table, id string) {
		p := amqp.Publishing{Headers: headers, MessageId: id, Body: []byte(`{"n":0}`)}
		if err := ch.PublishWithContext(t.Context(), topology.Exchange, topology.RoutingKey(typ, 0), true, false, p); err != nil {
			t.Fatal(err)
		}
	}
	publish(amqp.Table{
		outbox.HeaderSubject: "k", "int": int32(7), "long": int64(1) << 40, "bool": true, "float": 1.5, "bytes": []byte{1, 2},
		"time": time.Unix(1, 0), "nil": nil, "table": amqp.Table{"a": "b"}, "list": []any{"a", int32(1)}, outbox.HeaderType: int32(3),
	}, good.UUID)
	publish(amqp.Table{outbox.HeaderSubject: "k"}, "seventeen")
	publish(nil, good.UUID)
	in, err := newSubscriber(t, url).Subscribe(t.Context(), "billing.0")
	if err != nil {
		t.Fatal(err)
	}
	first := <-in
	if first.UUID != good.UUID || first.Metadata["int"] != "7" || first.Metadata["time"] != "1970-01-01T00:00:01Z" || first.Metadata[rabbitmq.HeaderMalformed] != "" {
		t.Errorf("message %s has metadata %v", first.UUID, first.Metadata)
	}
	first.Ack()
	for _, want := range []string{"no UUID", "no key"} {
		msg := <-in
		if !strings.Contains(msg.Metadata[rabbitmq.HeaderMalformed], want) {
			t.Errorf("metadata is %v, want the reason %q", msg.Metadata, want)
		}
		msg.Ack()
	}
}

func TestApplyIsRepeatableAndNamesWhatDiffers(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	if err := topology.Apply(t.Context(), url); err != nil {
		t.Errorf("a second time: %v", err)
	}
	ch := raw(t, url)
	if _, err := ch.QueueDelete("billing.1", false, false, false); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare("billing.1", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	err := topology.Apply(t.Context(), url)
	if err == nil || !strings.Contains(err.Error(), "queue billing.1 exists with other arguments") {
		t.Errorf("error is %v", err)
	}
}

// stock is watermill-amqp's own configuration for a queue that exists.
func stock(url string) watermillamqp.Config {
	cfg := watermillamqp.NewDurableQueueConfig(url)
	cfg.Marshaler = watermillamqp.DefaultMarshaler{MessageUUIDHeaderKey: outbox.HeaderID}
	cfg.TopologyBuilder = existing{}
	return cfg
}

// existing declares nothing.
type existing struct {
	watermillamqp.DefaultTopologyBuilder
}

func (existing) BuildTopology(*amqp.Channel, string, string, watermillamqp.Config, watermill.LoggerAdapter) error {
	return nil
}

func TestStockWatermillReadsOurMessages(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	fill(t, url, 3)
	s, err := watermillamqp.NewSubscriber(stock(url), watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in, err := s.Subscribe(t.Context(), "billing.0")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		msg := <-in
		if number(t, msg) != n || msg.Metadata[outbox.HeaderType] != typ || msg.Metadata[outbox.HeaderSubject] != "k" || len(msg.UUID) != 36 {
			t.Errorf("message %d is %s %v", n, msg.UUID, msg.Metadata)
		}
		msg.Ack()
	}
}

func TestOurSubscriberReadsStockWatermill(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	cfg := stock(url)
	cfg.Marshaler = watermillamqp.DefaultMarshaler{}
	p, err := watermillamqp.NewPublisher(cfg, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	sent := newMessage(7)
	delete(sent.Metadata, outbox.HeaderID)
	if err := p.Publish("billing.0", sent); err != nil {
		t.Fatal(err)
	}
	in, err := newSubscriber(t, url).Subscribe(t.Context(), "billing.0")
	if err != nil {
		t.Fatal(err)
	}
	msg := <-in
	if msg.UUID != sent.UUID || number(t, msg) != 7 || msg.Metadata[rabbitmq.HeaderMalformed] != "" {
		t.Errorf("message is %s %v", msg.UUID, msg.Metadata)
	}
	msg.Ack()
}

func TestOneMessageAtATime(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	fill(t, url, 30)
	in, err := newSubscriber(t, url).Subscribe(t.Context(), "billing.0")
	if err != nil {
		t.Fatal(err)
	}
	var handling atomic.Int32
	done := make(chan struct{}, 30)
	for range 4 {
		go func() {
			for msg := range in {
				if handling.Add(1) > 1 {
					t.Error("two messages of a queue at once")
				}
				handling.Add(-1)
				msg.Ack()
				done <- struct{}{}
			}
		}()
	}
	for range 30 {
		<-done
	}
}
