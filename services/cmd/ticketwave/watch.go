package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/relay"
)

// watcher prints what happens to events as it happens: committed by a service, relayed, handled by another.
type watcher struct {
	out io.Writer

	mu      sync.Mutex
	start   time.Time
	handled map[string]bool   // event type + " " + key
	ids     map[string]string // event type + " " + key -> message id
}

func newWatcher(out io.Writer) *watcher {
	return &watcher{out: out, start: time.Now(), handled: map[string]bool{}, ids: map[string]string{}}
}

// restart makes now the moment that times are counted from.
func (w *watcher) restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start = time.Now()
}

// elapsed is the time since restart.
func (w *watcher) elapsed() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.start)
}

// seen returns the ids of the messages of a type and key, if it has been handled.
func (w *watcher) seen(typ, key string) (id string, handled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ids[typ+" "+key], w.handled[typ+" "+key]
}

// note prints one step.
func (w *watcher) note(who, step, typ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.out, "  %8.1f ms  %-12s  %-9s  %s\n", float64(time.Since(w.start).Microseconds())/1000, who, step, eventName(typ))
}

// eventName is "InventoryUpdated" for "ticketwave.catalog.inventory-updated.v1".
func eventName(typ string) string {
	words := strings.Split(strings.TrimPrefix(typ, contracts.TypePrefix), ".")
	if len(words) < 2 {
		return typ
	}
	name := ""
	for _, word := range strings.Split(words[1], "-") {
		name += strings.ToUpper(word[:1]) + word[1:]
	}
	return name
}

// relayed is a middleware of the relay.
func (w *watcher) relayed(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		produced, err := next(msg)
		if d, ok := relay.DeliveryFrom(msg.Context()); ok && err == nil {
			w.note("relay", "relayed", d.Type)
		}
		return produced, err
	}
}

// outcome watches the consumers.
func (w *watcher) outcome(o inbox.Outcome) {
	if o.Result != inbox.Handled {
		w.note(o.Consumer, string(o.Result), o.Meta.Type)
		return
	}
	w.note(o.Consumer, "handled", o.Meta.Type)
	if o.Consumer == "saga" {
		return // it hears every answer; what matters is when booking has
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handled[o.Meta.Type+" "+o.Meta.Key] = true
	w.ids[o.Meta.Type+" "+o.Meta.Key] = o.Meta.ID.String()
}

// tracer watches a service's transactions: what they write to the outbox, and when they commit.
func (w *watcher) tracer(service string) pgx.QueryTracer {
	return &commits{watcher: w, service: service, open: map[*pgx.Conn][]string{}}
}

// commits remembers, for each connection, the types that its transaction has appended.
type commits struct {
	*watcher
	service string
	mu      sync.Mutex
	open    map[*pgx.Conn][]string
}

type sqlKey struct{}

var _ pgx.BatchTracer = (*commits)(nil)

// appended are the types that an INSERT into the outbox has among its parameters: an array, or every fifth.
func appended(sql string, args []any) (topics []string) {
	if !strings.Contains(sql, "INSERT INTO outbox.messages") || len(args) < 2 {
		return nil
	}
	if list, ok := args[1].([]string); ok {
		return list
	}
	for i := 1; i < len(args); i += 5 {
		if topic, ok := args[i].(string); ok {
			topics = append(topics, topic)
		}
	}
	return topics
}

func (c *commits) wrote(conn *pgx.Conn, topics []string) {
	if len(topics) > 0 {
		c.mu.Lock()
		c.open[conn] = append(c.open[conn], topics...)
		c.mu.Unlock()
	}
}

// TraceBatchStart does nothing: each of a batch's statements is seen when it has ended.
func (c *commits) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

// TraceBatchQuery sees what InTx writes together with its COMMIT.
func (c *commits) TraceBatchQuery(_ context.Context, conn *pgx.Conn, data pgx.TraceBatchQueryData) {
	c.wrote(conn, appended(data.SQL, data.Args))
	c.ended(conn, data.SQL, data.CommandTag.String(), data.Err)
}

// TraceBatchEnd does nothing.
func (c *commits) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// TraceQueryStart sees the outbox's INSERT and its parameters.
func (c *commits) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	c.wrote(conn, appended(data.SQL, data.Args))
	return context.WithValue(ctx, sqlKey{}, strings.ToLower(data.SQL))
}

// TraceQueryEnd sees the transaction's end.
func (c *commits) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	sql, _ := ctx.Value(sqlKey{}).(string)
	c.ended(conn, sql, data.CommandTag.String(), data.Err)
}

// ended tells of what was appended when the statement has committed it.
func (c *commits) ended(conn *pgx.Conn, sql, tag string, err error) {
	if sql != "commit" && sql != "rollback" {
		return
	}
	c.mu.Lock()
	topics := c.open[conn]
	delete(c.open, conn)
	c.mu.Unlock()
	if sql == "commit" && err == nil && tag == "COMMIT" {
		for _, topic := range topics {
			c.note(c.service, "committed", topic)
		}
	}
}
