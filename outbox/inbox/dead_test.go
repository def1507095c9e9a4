package inbox_test

import (
	"bytes"
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// raw publishes past every check of the product.
func (b *bench) raw(ch *amqp.Channel, p amqp.Publishing) {
	b.t.Helper()
	confirm, err := ch.PublishWithDeferredConfirmWithContext(b.t.Context(), topology.Exchange, topology.RoutingKey(typ, 0), true, false, p)
	if err != nil {
		b.t.Fatal(err)
	}
	if ok, err := confirm.WaitContext(b.t.Context()); !ok || err != nil {
		b.t.Fatalf("not confirmed: %v", err)
	}
}

// deadLetter waits for a message in the dead-letter queue of partition 0 and returns it as the broker has it.
func (b *bench) deadLetter(ch *amqp.Channel) (d amqp.Delivery) {
	b.t.Helper()
	outboxtest.Eventually(b.t, 20*time.Second, func() (ok bool) {
		var err error
		if d, ok, err = ch.Get(rabbitmq.DeadName("billing.0"), true); err != nil {
			b.t.Fatal(err)
		}
		return ok
	}, "the dead-letter queue is empty")
	return d
}

// What has no readable id or key goes to the dead-letter queue, whole and with its reason; what comes behind it goes on.
func TestTheUnreadableGoesToTheDeadLetterQueue(t *testing.T) {
	t.Parallel()
	id := uuid.Must(uuid.NewV7()).String()
	long := strings.Repeat("x", 300)
	messages := []struct {
		name    string
		message amqp.Publishing
		reason  string
		headers string // one that must be kept
	}{
		{"no key", amqp.Publishing{MessageId: id, Headers: amqp.Table{"colour": "red"}}, "no key", "colour"},
		{"no id", amqp.Publishing{Headers: amqp.Table{outbox.HeaderSubject: "k", "colour": "red"}}, "no UUID", "colour"},
		{"nil id", amqp.Publishing{MessageId: uuid.Nil.String(), Headers: amqp.Table{outbox.HeaderSubject: "k"}}, "no UUID", outbox.HeaderSubject},
		{"id is a number", amqp.Publishing{Headers: amqp.Table{outbox.HeaderID: int32(17), outbox.HeaderSubject: "k"}}, `"17" is no UUID`, outbox.HeaderID},
		{"key too long", amqp.Publishing{MessageId: id, Headers: amqp.Table{outbox.HeaderSubject: long}}, "1 to 255 bytes", outbox.HeaderSubject},
		{"key is no text", amqp.Publishing{MessageId: id, Headers: amqp.Table{outbox.HeaderSubject: "\xff\x00"}}, "1 to 255 bytes", outbox.HeaderSubject},
		{"long headers where properties are short", amqp.Publishing{Headers: amqp.Table{
			outbox.HeaderID: long, outbox.HeaderType: long, outbox.HeaderSource: long, outbox.HeaderCorrelationID: long,
		}}, "no UUID", outbox.HeaderCorrelationID},
		{"every type of header", amqp.Publishing{MessageId: id, Headers: amqp.Table{
			"a": true, "b": []byte{0xff}, "c": amqp.Table{"d": []any{nil, int8(1), 2.5}}, "e": time.Unix(1, 0), "f": amqp.Decimal{Scale: 1, Value: 5},
		}}, "no key", "c"},
		// A header that the broker itself reads, and refuses as a text: the message is kept without headers.
		{"a header of the broker's", amqp.Publishing{MessageId: id, Headers: amqp.Table{"CC": []any{"elsewhere"}}}, "headers could not be kept", ""},
		{"headers fill a frame", amqp.Publishing{MessageId: id, Headers: amqp.Table{"h": strings.Repeat("x", 124<<10)}}, "headers could not be kept", ""},
		{"a large body", amqp.Publishing{MessageId: id, Body: bytes.Repeat([]byte("x"), 5<<20)}, "no key", ""},
	}
	b := newBench(t)
	ch := b.channel()
	for i := range messages {
		if messages[i].message.Body == nil {
			messages[i].message.Body = []byte(`{"n":7}`)
		}
		b.raw(ch, messages[i].message)
	}
	b.send("k0", 1)
	b.start(b.config(), func(ctx context.Context, tx pgx.Tx, e placed) error { return record(ctx, tx, e.N) })
	b.settled("k0", []int{1})
	for _, c := range messages {
		d := b.deadLetter(ch)
		reason, _ := d.Headers[rabbitmq.HeaderMalformed].(string)
		if !strings.Contains(reason, c.reason) || !bytes.Equal(d.Body, c.message.Body) || d.DeliveryMode != amqp.Persistent {
			t.Errorf("%s: the reason is %q, want %q; %d bytes, want %d", c.name, reason, c.reason, len(d.Body), len(c.message.Body))
		}
		if _, ok := d.Headers[c.headers]; !ok && c.headers != "" {
			t.Errorf("%s: header %s is gone from %v", c.name, c.headers, d.Headers)
		}
	}
	if n := b.count(`SELECT count(*) FROM inbox.stuck`); n != 0 {
		t.Errorf("%d messages are stuck", n)
	}
}

// A mark that a readable message comes with, as one that was sent back from the dead-letter queue does, means nothing.
func TestAMarkedMessageThatIsReadableIsHandled(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start(b.config(), func(ctx context.Context, tx pgx.Tx, e placed) error { return record(ctx, tx, e.N) })
	msg := newMessage("k0", typ, `{"n":1}`)
	msg.Metadata.Set(rabbitmq.HeaderMalformed, "it had no key")
	b.publish("k0", msg)
	b.settled("k0", []int{1})
}

// While the dead-letter queue cannot take a message, the message is held, through a stop of the consumer too, and nothing
// behind it is lost or handled before it is safe.
func TestADeadLetterQueueThatTakesNothing(t *testing.T) {
	t.Parallel()
	queue := rabbitmq.DeadName("billing.0")
	for name, c := range map[string]struct{ begin, end func(ch *amqp.Channel) error }{
		"unroutable": {
			func(ch *amqp.Channel) error { return ch.QueueUnbind(queue, "billing.0", topology.DeadExchange(), nil) },
			func(ch *amqp.Channel) error {
				return ch.QueueBind(queue, "billing.0", topology.DeadExchange(), false, nil)
			},
		},
		"refused": {
			func(ch *amqp.Channel) error {
				if _, err := ch.QueueDelete(queue, false, false, false); err != nil {
					return err
				}
				full := amqp.Table{"x-max-length": int32(1), "x-overflow": "reject-publish"}
				if _, err := ch.QueueDeclare(queue, true, false, false, false, full); err != nil {
					return err
				}
				if err := ch.QueueBind(queue, "billing.0", topology.DeadExchange(), false, nil); err != nil {
					return err
				}
				return ch.PublishWithContext(context.Background(), "", queue, true, false, amqp.Publishing{Body: []byte("full")})
			},
			func(ch *amqp.Channel) error { _, err := ch.QueuePurge(queue, false); return err },
		},
		"no exchange": {
			func(ch *amqp.Channel) error { return ch.ExchangeDelete(topology.DeadExchange(), false, false) },
			nil, // the topology is applied again
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ch := b.channel()
			if err := c.begin(ch); err != nil {
				t.Fatal(err)
			}
			var held, dead atomic.Int32
			cfg := b.config()
			cfg.Observe = func(o inbox.Outcome) {
				switch o.Result {
				case inbox.Held:
					held.Add(1)
				case inbox.Dead:
					dead.Add(1)
				}
			}
			handle := func(ctx context.Context, tx pgx.Tx, e placed) error {
				if dead.Load() == 0 {
					t.Error("a message is handled before the one that came first is safe")
				}
				return record(ctx, tx, e.N)
			}
			b.raw(ch, amqp.Publishing{Body: []byte("unreadable")})
			for n := range 20 {
				b.send("k0", n)
			}
			stop := b.start(cfg, handle)
			outboxtest.Eventually(t, 20*time.Second, func() bool { return held.Load() >= 1 }, "the message is not held")
			stop()
			before := held.Load()
			b.start(cfg, handle)
			outboxtest.Eventually(t, 20*time.Second, func() bool { return held.Load() > before }, "the message is not held after a stop")
			if c.end == nil {
				c.end = func(*amqp.Channel) error { return topology.Apply(t.Context(), b.amqp) }
			}
			if err := c.end(ch); err != nil {
				t.Fatal(err)
			}
			b.settled("k0", upTo(20))
			if d := b.deadLetter(ch); string(d.Body) != "unreadable" {
				t.Errorf("the dead-letter queue has %q", d.Body)
			}
			if n := dead.Load(); n != 1 {
				t.Errorf("%d dead letters", n)
			}
		})
	}
}
