package inbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/internal/build"
	"github.com/jcp/ticketwave/outbox/lease"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// Result is what became of a delivery.
type Result string

// The results of a delivery. After every one of them but Retried and Held the broker's message is acknowledged.
const (
	// Handled: the handler's transaction is committed.
	Handled Result = "handled"
	// Duplicate: the message was handled, or is stuck, already.
	Duplicate Result = "duplicate"
	// Retried: the handler failed and is tried again at once.
	Retried Result = "retried"
	// Stuck: the handler failed; the message waits in inbox.stuck for its next attempt.
	Stuck Result = "stuck"
	// Parked: the handler failed for good; the message waits in inbox.stuck for an operator.
	Parked Result = "parked"
	// Diverted: the message waits in inbox.stuck behind an earlier one of its key.
	Diverted Result = "diverted"
	// Dead: the message has no readable id or key and went to the dead-letter queue.
	Dead Result = "dead"
	// Held: nothing could be decided, because the database or the dead-letter queue cannot be written. The message, and
	// its queue with it, waits; this is told once for a message in hand.
	Held Result = "held"
)

// Outcome is told to Config.Observe.
type Outcome struct {
	Consumer  string
	Partition int
	// Meta is zero for a message that is dead or held.
	Meta   Meta
	Result Result
	// Attempts counts the handler's failures so far.
	Attempts int
	// Took is the time of this attempt.
	Took time.Duration
	// Err is the handler's error, or why the message is dead or held.
	Err error
}

// Config describes a consumer. Zero values take the defaults.
type Config struct {
	// Name is the consumer's, in the inbox, in its leases, and of its queue.
	Name string
	// Pool connects as a role that is a member of inbox_consumer, and of outbox_writer if handlers append.
	Pool *pgxpool.Pool
	// Subscriber gives the messages of a queue in order, Batch of them before the first is acknowledged, and leaves
	// the rest with the broker when a subscription ends. A message that is nacked, and those after it, are given again.
	Subscriber message.Subscriber
	// Dead publishes to the dead-letter exchange; the topic is the queue's name. While it cannot, the message is held and
	// its queue waits, so it must take bodies as large as the broker does.
	Dead message.Publisher
	// Topology names the queues.
	Topology rabbitmq.Topology
	// Logger takes what people need to know. Default slog.Default.
	Logger *slog.Logger
	// Observe, if set, is told of every attempt. It must not block.
	Observe func(Outcome)
	// Build is stored with failures. Default the revision this program was built from.
	Build string
	// Batch is how many messages, of those that are there, are handled in one transaction. When one of them fails, they
	// are handled one by one; what their handlers did outside the transaction then happens again. Default 1.
	Batch int
	// Linger is the least time between the beginnings of two such transactions of a partition, while messages come one
	// by one: they then form batches. A message that comes later than that is handled at once. Default 20 ms,
	// negative for none.
	Linger time.Duration
	// Tries is how often a handler is called before its message is stuck. Default 3.
	Tries int
	// MaxAttempts is after how many failures in all a message is parked. Default 12.
	MaxAttempts int
	// RetryMin and RetryMax bound the pause between attempts of a stuck message. Default 1 s and 1 min.
	RetryMin, RetryMax time.Duration
	// Look is the time between two looks at inbox.stuck. Default 1 s.
	Look time.Duration
	// Timeout bounds one attempt, its transaction included. Default 30 s.
	Timeout time.Duration
	// LeaseInterval and LeaseTimeout are those of package lease; the timeout's default is 2 s, for the beats wait with
	// the handlers for a connection of Pool.
	LeaseInterval, LeaseTimeout time.Duration
}

func (c *Config) setDefaults() error {
	switch {
	case c.Name == "":
		return errors.New("inbox: config has no Name")
	case c.Pool == nil:
		return errors.New("inbox: config has no Pool")
	case c.Subscriber == nil:
		return errors.New("inbox: config has no Subscriber")
	case c.Dead == nil:
		return errors.New("inbox: config has no Dead publisher")
	case c.Topology.Partitions < 1:
		return errors.New("inbox: the Topology has no partitions")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Observe == nil {
		c.Observe = func(Outcome) {}
	}
	if c.Build == "" {
		c.Build = build.Revision()
	}
	c.Batch = orDefault(c.Batch, 1)
	if c.Linger == 0 {
		c.Linger = 20 * time.Millisecond
	}
	c.Tries = orDefault(c.Tries, 3)
	c.MaxAttempts = orDefault(c.MaxAttempts, 12)
	c.RetryMin = orDefault(c.RetryMin, time.Second)
	c.RetryMax = orDefault(c.RetryMax, time.Minute)
	c.Look = orDefault(c.Look, time.Second)
	c.Timeout = orDefault(c.Timeout, 30*time.Second)
	c.LeaseTimeout = orDefault(c.LeaseTimeout, 2*time.Second)
	return nil
}

func orDefault[T int | time.Duration](value, fallback T) T {
	if value <= 0 {
		return fallback
	}
	return value
}

// Consumer handles the messages of one queue family.
type Consumer struct {
	cfg      Config
	handlers map[string]handler
}

// handler decodes payloads and calls the typed functions.
type handler struct {
	call func(ctx context.Context, tx pgx.Tx, messages []delivery) error
	lock func(payload []byte) string // nil for the message's key
}

// Option of a handler of events E.
type Option[E any] func(h *handler)

// Locks names the row that the handler changes and handlers of other keys change too: a batch of messages is handled
// in the order of these names, so that two batches never wait for each other crosswise. Without it the handler is
// taken to change what belongs to the message's key alone. Messages of one key must lock the same.
func Locks[E any](row func(event E) string) Option[E] {
	return func(h *handler) {
		h.lock = func(payload []byte) string {
			var event E
			if json.Unmarshal(payload, &event) != nil {
				return "" // its handler will say so
			}
			return row(event)
		}
	}
}

// New checks the configuration. The consumer does nothing until Run.
func New(cfg Config) (*Consumer, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	return &Consumer{cfg: cfg, handlers: map[string]handler{}}, nil
}

// Handle says what to do with messages of a type, before Run. The function may be called several times for one
// message, but the effect of one call at most is committed: what it does in tx counts once, what it does outside
// may happen again. An error is tried again with growing pauses; one marked by Permanent parks the message. Its
// ctx carries the message's Meta and causality, so that events appended in tx belong to the same flow.
//
// The body is decoded from JSON, unknown fields ignored; if E has a method Validate() error, it is asked next.
// A body that does not fit waits in inbox.stuck, as does one of a type without a handler or with an error marked by
// Unreadable: a newer build may know it.
// Handling one type twice panics.
func Handle[E any](c *Consumer, typ string, handle func(ctx context.Context, tx pgx.Tx, event E) error, options ...Option[E]) {
	add(c, typ, func(ctx context.Context, tx pgx.Tx, messages []delivery) error {
		for _, d := range messages {
			event, err := decode[E](d)
			if err != nil {
				return err
			}
			if err := handle(withMeta(ctx, d.meta), tx, event); err != nil {
				return err
			}
		}
		return nil
	}, options)
}

// Item is one of several messages that are handled together.
type Item[E any] struct {
	Event E
	ctx   context.Context
}

// Context carries the message's Meta and causality: events appended under it belong to its flow.
func (i Item[E]) Context() context.Context { return i.ctx }

// One is a batch of one message, for calling what HandleAll takes.
func One[E any](ctx context.Context, event E) []Item[E] { return []Item[E]{{Event: event, ctx: ctx}} }

// HandleAll is Handle for a function that takes all messages of the type that are there, up to Config.Batch, at once,
// so that it can send its statements in one round trip. They are of one transaction and in the order of what they
// lock; those of one key come one after the other, in separate calls. When the function fails it is called again for
// each message alone.
func HandleAll[E any](c *Consumer, typ string, handle func(ctx context.Context, tx pgx.Tx, items []Item[E]) error, options ...Option[E]) {
	add(c, typ, func(ctx context.Context, tx pgx.Tx, messages []delivery) error {
		items := make([]Item[E], len(messages))
		for i, d := range messages {
			event, err := decode[E](d)
			if err != nil {
				return err
			}
			items[i] = Item[E]{Event: event, ctx: withMeta(ctx, d.meta)}
		}
		return handle(ctx, tx, items)
	}, options)
}

func add[E any](c *Consumer, typ string, call func(ctx context.Context, tx pgx.Tx, messages []delivery) error, options []Option[E]) {
	if _, taken := c.handlers[typ]; taken {
		panic("inbox: a second handler for " + typ)
	}
	h := handler{call: call}
	for _, option := range options {
		option(&h)
	}
	c.handlers[typ] = h
}

// decode is the message's event, asked whether it is valid.
func decode[E any](d delivery) (event E, err error) {
	if err := json.Unmarshal(d.payload, &event); err != nil {
		return event, Unreadable(fmt.Errorf("the body does not fit its type %s: %w", d.meta.Type, err))
	}
	if v, ok := any(event).(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return event, Unreadable(fmt.Errorf("the body does not fit its type %s: %w", d.meta.Type, err))
		}
	}
	return event, nil
}

// Run handles messages of the partitions that this process holds leases for until ctx ends. Then handlers that
// run are waited for, their messages acknowledged, and everything else stays with the broker. It returns nil
// then, and an error only when work would not end. Database and broker may come and go meanwhile.
func (c *Consumer) Run(ctx context.Context) error {
	host, _ := os.Hostname()
	return lease.Run(ctx, lease.Config{
		Pool: c.cfg.Pool, Schema: "inbox", Name: c.cfg.Name, Partitions: c.cfg.Topology.Partitions,
		Label:    fmt.Sprintf("%s/%d", host, os.Getpid()),
		Build:    c.cfg.Build,
		Interval: c.cfg.LeaseInterval, Timeout: c.cfg.LeaseTimeout, Drain: 2 * c.cfg.Timeout, Logger: c.cfg.Logger,
	}, c.work)
}

func (c *Consumer) logPanic(ctx context.Context, cause any) {
	c.cfg.Logger.ErrorContext(ctx, "handler panicked", "error", fmt.Sprint(cause), "stack", string(debug.Stack()))
}
