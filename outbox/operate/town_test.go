package operate_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/outbox/relay"
	"github.com/jcp/ticketwave/outbox/relayd"
)

// order is the event of these tests. Of kind lost nobody hears.
type order struct {
	Kind string `json:"-"`
	Key  string `json:"key"`
	N    int    `json:"n"`
}

const (
	placedType = "shop.orders.placed.v1" // for billing and mail
	paidType   = "shop.orders.paid.v1"   // for mail
	lostType   = "shop.orders.lost.v1"   // for nobody
)

func (o order) EventType() string {
	if o.Kind == "" {
		return placedType
	}
	return o.Kind
}
func (o order) EventKey() string { return o.Key }

var townTopology = rabbitmq.Topology{
	Exchange: "shop.events", TypePrefix: "shop.", Partitions: outbox.Partitions,
	Queues: []rabbitmq.Queue{{Name: "billing", Types: []string{placedType}}, {Name: "mail", Types: []string{placedType, paidType}}},
}

var silent = slog.New(slog.DiscardHandler)

// town is a shop that writes, two consumers with databases of their own, and a broker.
type town struct {
	t                   *testing.T
	shop, billing, mail *outboxtest.Database
	amqp                string
	topology            rabbitmq.Topology
	failing             sync.Map // "consumer key" to the error of its handler
	hold                atomic.Pointer[chan struct{}]
}

func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{
		t: t, amqp: outboxtest.NewVHost(t), topology: townTopology,
		shop: outboxtest.NewDatabase(t, "shop"), billing: outboxtest.NewDatabase(t, "billing"), mail: outboxtest.NewDatabase(t, "mail"),
	}
	w.declare()
	w.store()
	return w
}

// store writes the topology where the relay's daemon finds it.
func (w *town) store() {
	w.t.Helper()
	if err := relayd.StoreTopology(w.context(), w.shop.AdminURL, w.topology); err != nil {
		w.t.Fatal(err)
	}
}

func (w *town) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *town) declare() {
	w.t.Helper()
	if err := w.topology.Apply(w.context(), w.amqp); err != nil {
		w.t.Fatal(err)
	}
}

// operator sees the town with an operator's rights.
func (w *town) operator(change ...func(*operate.Config)) *operate.Operator {
	w.t.Helper()
	cfg := operate.Config{
		Databases: []operate.Database{
			{Name: "shop", URL: w.shop.OperatorURL}, {Name: "billing", URL: w.billing.OperatorURL}, {Name: "mail", URL: w.mail.OperatorURL},
		},
		AMQPURL: w.amqp,
	}
	for _, c := range change {
		c(&cfg)
	}
	o, err := operate.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(o.Close)
	return o
}

// relay runs a relay of the shop until stop; the consumers write nothing.
func (w *town) relay() (stop func()) {
	return w.relayOf(relay.Database{Name: "shop", URL: w.shop.RelayURL})
}

// relayAll runs a relay of every database until stop.
func (w *town) relayAll() (stop func()) {
	return w.relayOf(
		relay.Database{Name: "shop", URL: w.shop.RelayURL}, relay.Database{Name: "billing", URL: w.billing.RelayURL}, relay.Database{Name: "mail", URL: w.mail.RelayURL})
}

func (w *town) relayOf(databases ...relay.Database) (stop func()) {
	w.t.Helper()
	pub, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: w.amqp, Exchange: w.topology.Exchange, ReconnectMax: 200 * time.Millisecond}, silent)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := relay.New(relay.Config{
		Databases: databases, Publisher: pub, RoutingKey: w.topology.RoutingKey, Label: "the relay",
		Classify: func(err error) relay.Class {
			if errors.Is(err, rabbitmq.ErrUnroutable) {
				return relay.Unroutable
			}
			return ""
		},
		Logger: silent, Build: "test", PollMax: 50 * time.Millisecond, LeaseInterval: 50 * time.Millisecond, LeaseTimeout: 500 * time.Millisecond,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.run(r.Run, func() { _ = pub.Close() })
}

// run runs a loop until the returned function is called, at the end of the test at the latest.
func (w *town) run(loop func(context.Context) error, after func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- loop(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("Run = %v", err)
		}
		after()
	})
	w.t.Cleanup(stop)
	return stop
}

// consume runs a consumer. Its handler fails for keys that w.fail named.
func (w *town) consume(name string, db *outboxtest.Database) (stop func()) {
	w.t.Helper()
	sub, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: w.amqp, ReconnectMax: 200 * time.Millisecond}, silent)
	if err != nil {
		w.t.Fatal(err)
	}
	dead, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: w.amqp, Exchange: w.topology.DeadExchange()}, silent)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := inbox.New(inbox.Config{
		Name: name, Pool: outboxtest.NewPool(w.t, db.ServiceURL), Subscriber: sub, Dead: dead, Topology: w.topology, Logger: silent, Tries: 1, Build: "test",
		Look: 20 * time.Millisecond, RetryMin: time.Hour, RetryMax: time.Hour, LeaseInterval: 50 * time.Millisecond, LeaseTimeout: 500 * time.Millisecond,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, typ := range []string{placedType, paidType} {
		inbox.Handle(c, typ, func(_ context.Context, _ pgx.Tx, e order) error {
			if hold := w.hold.Load(); hold != nil {
				<-*hold
			}
			if err, ok := w.failing.Load(name + " " + e.Key); ok {
				return err.(error)
			}
			return nil
		})
	}
	return w.run(c.Run, func() { _, _ = sub.Close(), dead.Close() })
}

func (w *town) consumeAll() (stop func()) {
	billing, mail := w.consume("billing", w.billing), w.consume("mail", w.mail)
	return func() { billing(); mail() }
}

func (w *town) fail(consumer, key string, err error) { w.failing.Store(consumer+" "+key, err) }

// write commits the events in one transaction and returns their ids.
func (w *town) write(events ...outbox.Event) []uuid.UUID {
	w.t.Helper()
	err := outbox.InTx(w.context(), w.shop, func(tx pgx.Tx) error { return outbox.Append(w.context(), tx, events...) })
	if err != nil {
		w.t.Fatal(err)
	}
	rows, err := w.shop.Query(w.context(), `
		SELECT uuid FROM (SELECT uuid FROM outbox.messages ORDER BY id DESC LIMIT $1) AS newest ORDER BY uuid`, len(events))
	if err != nil {
		w.t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		w.t.Fatal(err)
	}
	return ids
}

// handled counts the inbox rows of a consumer.
func (w *town) handled(db *outboxtest.Database, ids ...uuid.UUID) int {
	return get[int](w, db, `SELECT count(DISTINCT message_id) FROM inbox.messages WHERE state = 'done' AND message_id = ANY ($1)`, ids)
}

func get[T any](w *town, db *outboxtest.Database, text string, args ...any) (value T) {
	w.t.Helper()
	if err := db.QueryRow(w.context(), text, args...).Scan(&value); err != nil {
		w.t.Fatalf("%s: %v", text, err)
	}
	return value
}

func (w *town) exec(db *outboxtest.Database, text string, args ...any) {
	w.t.Helper()
	if _, err := db.Exec(w.context(), text, args...); err != nil {
		w.t.Fatalf("%s: %v", text, err)
	}
}

// quiet waits until everything is relayed and handled.
func (w *town) quiet(o *operate.Operator) {
	w.t.Helper()
	w.until(o, "everything is relayed and handled", func(s operate.Status) bool {
		for _, p := range s.Partitions {
			if p.Lag != 0 {
				return false
			}
		}
		return true
	})
}

func (w *town) until(o *operate.Operator, what string, is func(operate.Status) bool) (s operate.Status) {
	w.t.Helper()
	var err error
	outboxtest.Eventually(w.t, 30*time.Second, func() bool {
		s, err = o.Status(w.context())
		return err == nil && is(s)
	}, "%s", what)
	return s
}

func (w *town) channel() *amqp.Channel {
	w.t.Helper()
	conn, err := amqp.Dial(w.amqp)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		w.t.Fatal(err)
	}
	return ch
}

// take consumes n messages of a queue.
func (w *town) take(queue string, n int, each func(amqp.Delivery) error) {
	w.t.Helper()
	ch := w.channel()
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for range n {
		select {
		case d := <-deliveries:
			if err := each(d); err != nil {
				w.t.Fatal(err)
			}
		case <-time.After(20 * time.Second):
			w.t.Fatalf("no message comes from %s", queue)
		}
	}
	if err := ch.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func dump(v any) string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}
