package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/relay"
)

// watcher prints what happens to events as it happens: committed by a service, relayed, handled by another.
type watcher struct {
	out io.Writer
	// unheard is a consumer whose work is not shown, or empty.
	unheard string

	mu       sync.Mutex
	start    time.Time
	last     time.Duration // when a message was last handled, since start
	changes  int
	messages map[string]*sent // by id
	trouble  error            // the first message that will not be handled by itself
}

// sent is a message that was committed, or handled already.
type sent struct {
	typ, key  string
	committed bool
	handledBy map[string]bool
}

// heardBy is how many consumers a type has.
var heardBy = func() map[string]int {
	n := map[string]int{}
	for _, q := range contracts.Topology().Queues {
		for _, typ := range q.Types {
			n[typ]++
		}
	}
	return n
}()

func newWatcher(out io.Writer) *watcher {
	return &watcher{out: out, start: time.Now(), messages: map[string]*sent{}}
}

// restart makes now the moment that times are counted from.
func (w *watcher) restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start, w.last = time.Now(), 0
}

// took is the time from restart until a message was handled last.
func (w *watcher) took() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// count is how many messages of a key were committed, and under way are those that not every consumer has handled.
func (w *watcher) count(key string) (committed int, underWay []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.messages {
		if m.key != key {
			continue
		}
		if m.committed {
			committed++
		}
		if !m.committed || len(m.handledBy) < heardBy[m.typ] {
			underWay = append(underWay, eventName(m.typ))
		}
	}
	slices.Sort(underWay)
	return committed, underWay
}

// state counts what has changed, and is the error of what went wrong.
func (w *watcher) state() (changes int, trouble error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes, w.trouble
}

// message is that of an id. The caller holds mu.
func (w *watcher) message(id, typ, key string) *sent {
	w.changes++
	m := w.messages[id]
	if m == nil {
		m = &sent{typ: typ, key: key, handledBy: map[string]bool{}}
		w.messages[id] = m
	}
	return m
}

// say prints what is no step of a message.
func (w *watcher) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.out, format+"\n", args...)
}

// note prints one step.
func (w *watcher) note(who, step, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.print(who, step, what)
}

func (w *watcher) print(who, step, what string) {
	fmt.Fprintf(w.out, "  %8.1f ms  %-12s  %-9s  %s\n", float64(time.Since(w.start).Microseconds())/1000, who, step, eventName(what))
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
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.Consumer != w.unheard || o.Result != inbox.Handled {
		w.print(o.Consumer, string(o.Result), o.Meta.Type)
	}
	switch o.Result {
	case inbox.Handled, inbox.Duplicate:
		w.message(o.Meta.ID.String(), o.Meta.Type, o.Meta.Key).handledBy[o.Consumer] = true
		w.last = time.Since(w.start)
	case inbox.Retried, inbox.Held, inbox.Stuck, inbox.Diverted: // it will be tried again
	default:
		if w.trouble == nil {
			w.trouble = fmt.Errorf("%s is %s at %s: %w", eventName(o.Meta.Type), o.Result, o.Consumer, o.Err)
		}
	}
}

// tracer watches a service's transactions: what they write to the outbox, and when they commit.
func (w *watcher) tracer(service string) pgx.QueryTracer {
	return &commits{watcher: w, service: service, open: map[*pgx.Conn][]appended{}}
}

// commits remembers, for each connection, what its transaction has appended.
type commits struct {
	*watcher
	service string
	mu      sync.Mutex
	open    map[*pgx.Conn][]appended
}

type sqlKey struct{}

var _ pgx.BatchTracer = (*commits)(nil)

// appended is a message that an INSERT into the outbox has among its parameters.
type appended struct{ id, typ, key string }

// rowsOf are those messages: arrays of their columns, or five parameters for each.
func rowsOf(sql string, args []any) (rows []appended) {
	if !strings.Contains(sql, "INSERT INTO outbox.messages") || len(args) < 5 {
		return nil
	}
	if ids, ok := args[0].([]uuid.UUID); ok {
		types, _ := args[1].([]string)
		keys, _ := args[2].([]string)
		for i := range min(len(ids), len(types), len(keys)) {
			rows = append(rows, appended{ids[i].String(), types[i], keys[i]})
		}
		return rows
	}
	for ; len(args) >= 5; args = args[5:] {
		id, _ := args[0].(pgtype.UUID)
		typ, _ := args[1].(string)
		key, _ := args[2].(string)
		rows = append(rows, appended{uuid.UUID(id.Bytes).String(), typ, key})
	}
	return rows
}

func (c *commits) wrote(conn *pgx.Conn, rows []appended) {
	if len(rows) > 0 {
		c.mu.Lock()
		c.open[conn] = append(c.open[conn], rows...)
		c.mu.Unlock()
	}
}

// TraceBatchStart does nothing: each of a batch's statements is seen when it has ended.
func (c *commits) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

// TraceBatchQuery sees what InTx writes together with its COMMIT.
func (c *commits) TraceBatchQuery(_ context.Context, conn *pgx.Conn, data pgx.TraceBatchQueryData) {
	c.wrote(conn, rowsOf(data.SQL, data.Args))
	c.ended(conn, data.SQL, data.CommandTag.String(), data.Err)
}

// TraceBatchEnd does nothing.
func (c *commits) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// TraceQueryStart sees the outbox's INSERT and its parameters.
func (c *commits) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	c.wrote(conn, rowsOf(data.SQL, data.Args))
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
	rows := c.open[conn]
	delete(c.open, conn)
	c.mu.Unlock()
	if sql == "commit" && err == nil && tag == "COMMIT" {
		c.committed(c.service, rows)
	}
}

// committed tells of messages that will be relayed.
func (w *watcher) committed(service string, rows []appended) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range rows {
		w.message(r.id, r.typ, r.key).committed = true
		w.print(service, "committed", r.typ)
	}
}
