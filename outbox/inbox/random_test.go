package inbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// Any interleaving of deliveries, alone and in batches, with duplicates; of failures that pass, that do not, and panics;
// of retries that are due; of lost connections and deaths of the process before, during and after any statement; of two
// owners of a partition at once; and of what operators do, keeps the order of each key, loses nothing, and has one effect
// for each message.
func TestStuckSequencesAtRandom(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "billing")
	if _, err := db.Exec(t.Context(), `CREATE TABLE public.effects (n int, key text, seq serial); GRANT ALL ON public.effects, public.effects_seq_seq TO PUBLIC`); err != nil {
		t.Fatal(err)
	}
	net := &network{}
	pool := net.pool(t, db.ServiceURL)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, db.Pool, pool, net)
		t.Repeat(map[string]func(*rapid.T){
			"":        w.check,
			"send":    w.send,
			"repeat":  w.repeat,
			"deliver": w.deliver,
			"batch":   w.deliverBatch,
			"retry":   w.retry,
			"time":    w.timePasses,
			"unpark":  w.unpark,
			"skip":    w.skip,
			"owners":  w.twoOwners,
		})
		w.heal(t)
	})
}

// world is one consumer, its queue, and what must become of the messages.
type world struct {
	db      *pgxpool.Pool // without faults
	net     *network
	name    string
	keys    []string
	current *worker
	queue   []*sent            // not acknowledged, in order
	all     map[string][]*sent // of a key, in order of commit
	ids     map[uuid.UUID]*sent

	mu      sync.Mutex
	calm    bool
	skipped map[*sent]bool
}

// sent is one message and what its handler will do.
type sent struct {
	id   uuid.UUID
	key  string
	n    int
	plan []string
}

func newWorld(t *rapid.T, db, pool *pgxpool.Pool, net *network) *world {
	w := &world{db: db, net: net, name: uuid.NewString()[:13], all: map[string][]*sent{}, ids: map[uuid.UUID]*sent{}, skipped: map[*sent]bool{}}
	for k := range rapid.IntRange(1, 3).Draw(t, "keys") {
		w.keys = append(w.keys, fmt.Sprintf("%s %d", w.name, k))
	}
	c, err := New(Config{
		Name: w.name, Pool: pool, Subscriber: noBroker{}, Dead: noBroker{}, Topology: rabbitmq.Topology{Partitions: 1},
		Logger: slog.New(slog.DiscardHandler), Build: "test", Batch: 4, Tries: rapid.SampledFrom([]int{1, 1, 1, 2}).Draw(t, "tries"),
		MaxAttempts: 3, RetryMin: time.Hour, RetryMax: time.Hour, Timeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	Handle(c, "n", w.handle)
	w.current = c.worker(context.Background(), 0)
	return w
}

// noBroker is never used: the test delivers, and all messages are readable.
type noBroker struct{}

func (noBroker) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return nil, errors.ErrUnsupported
}
func (noBroker) Publish(string, ...*message.Message) error { return errors.ErrUnsupported }
func (noBroker) Close() error                              { return nil }

// number is the body.
type number struct{ N int }

func (w *world) handle(ctx context.Context, tx pgx.Tx, e number) error {
	m, _ := MetaFrom(ctx)
	if _, err := tx.Exec(ctx, `INSERT INTO public.effects (n, key) VALUES ($1, $2)`, e.N, m.Key); err != nil {
		return err
	}
	switch w.next(w.ids[m.ID]) {
	case "fail":
		return errors.New("fails")
	case "permanent":
		return Permanent(errors.New("fails for good"))
	case "panic":
		panic("fails")
	}
	return nil
}

// next is what the handler does this time.
func (w *world) next(s *sent) (outcome string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(s.plan) == 0 || w.calm {
		return "ok"
	}
	outcome, s.plan = s.plan[0], s.plan[1:]
	return outcome
}

func (w *world) send(t *rapid.T) {
	key := rapid.SampledFrom(w.keys).Draw(t, "key")
	plan := rapid.SliceOfN(rapid.SampledFrom([]string{"ok", "fail", "fail", "permanent", "panic"}), 0, 4).Draw(t, "plan")
	s := &sent{id: uuid.Must(uuid.NewV7()), key: key, n: len(w.all[key]), plan: plan}
	w.all[key] = append(w.all[key], s)
	w.ids[s.id] = s
	w.queue = append(w.queue, s)
}

// repeat is what a relay does that has crashed: it publishes again, behind what was published before.
func (w *world) repeat(t *rapid.T) {
	key := rapid.SampledFrom(w.keys).Draw(t, "key")
	if len(w.all[key]) == 0 {
		t.Skip("nothing sent")
	}
	w.queue = append(w.queue, rapid.SampledFrom(w.all[key]).Draw(t, "message"))
}

func (s *sent) message() *message.Message {
	msg := message.NewMessage(s.id.String(), fmt.Appendf(nil, `{"N":%d}`, s.n))
	msg.Metadata = message.Metadata{outbox.HeaderID: s.id.String(), outbox.HeaderType: "n", outbox.HeaderSubject: s.key}
	return msg
}

// deliver hands out the oldest message; unless it is acknowledged, and the broker hears of it, it stays.
func (w *world) deliver(t *rapid.T) {
	if len(w.queue) == 0 {
		t.Skip("nothing there")
	}
	died := w.net.arm(t)
	err := w.current.settle(w.queue[0].message())
	w.net.disarm()
	if err == nil && !died.Load() && rapid.IntRange(0, 4).Draw(t, "acknowledged") > 0 {
		w.queue = w.queue[1:]
	}
}

func (w *world) deliverBatch(t *rapid.T) {
	batch := []*message.Message{}
	for _, s := range w.queue[:min(len(w.queue), 4)] {
		batch = append(batch, s.message())
	}
	if len(batch) == 0 {
		t.Skip("nothing there")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.net.arm(t)
	w.net.onDeath(cancel)
	w.current.receiveAll(ctx, batch)
	w.net.disarm()
	acked := 0
	for acked < len(batch) && isClosed(batch[acked].Acked()) {
		acked++
	}
	if i := slices.IndexFunc(batch[acked:], func(msg *message.Message) bool { return isClosed(msg.Acked()) }); i >= 0 {
		t.Fatalf("message %d of a batch is acknowledged, the one before is not", acked+i)
	}
	w.queue = w.queue[acked-rapid.IntRange(0, acked).Draw(t, "lost"):]
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func (w *world) retry(t *rapid.T) {
	w.net.arm(t)
	w.current.retryDue(t.Context())
	w.net.disarm()
}

func (w *world) timePasses(t *rapid.T) {
	w.exec(t, `UPDATE inbox.stuck SET next_attempt = clock_timestamp() WHERE consumer = $1 AND next_attempt IS NOT NULL`, w.name)
}

func (w *world) unpark(t *rapid.T) {
	w.exec(t, `UPDATE inbox.stuck SET parked = false, next_attempt = clock_timestamp() WHERE consumer = $1 AND key = $2 AND parked`,
		w.name, rapid.SampledFrom(w.keys).Draw(t, "key"))
}

func (w *world) exec(t *rapid.T, sql string, args ...any) {
	if _, err := w.db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func (w *world) skip(t *rapid.T) {
	if err := w.skipHead(t.Context(), rapid.SampledFrom(w.keys).Draw(t, "key")); err != nil {
		t.Fatal(err)
	}
}

// skipHead removes the oldest stuck message of a key, as an operator does.
func (w *world) skipHead(ctx context.Context, key string) error {
	return outbox.InTx(ctx, w.db, func(tx pgx.Tx) error {
		if err := lockKey(ctx, tx, w.name, key); err != nil {
			return err
		}
		var id uuid.UUID
		err := tx.QueryRow(ctx, `
			WITH gone AS (
				DELETE FROM inbox.stuck WHERE seq = (SELECT min(seq) FROM inbox.stuck WHERE consumer = $1 AND key = $2) RETURNING message_id
			)
			UPDATE inbox.messages AS m SET state = 'done' FROM gone WHERE m.consumer = $1 AND m.message_id = gone.message_id
			RETURNING m.message_id`, w.name, key).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.skipped[w.ids[id]] = err == nil
		return err
	})
}

// twoOwners is a partition whose old owner does not know yet that it is not: both do everything at once, and an
// operator too.
func (w *world) twoOwners(t *rapid.T) {
	key := rapid.SampledFrom(w.keys).Draw(t, "key")
	operator := rapid.Bool().Draw(t, "operator")
	if rapid.Bool().Draw(t, "due") {
		w.unpark(t)
		w.timePasses(t)
	}
	var all sync.WaitGroup
	for range 2 {
		owner := w.current.worker(context.Background(), 0)
		all.Go(func() { owner.retryDue(context.Background()) })
		if len(w.queue) > 0 {
			msg := w.queue[0].message()
			all.Go(func() { _ = owner.settle(msg) })
		}
	}
	if operator {
		all.Go(func() { _ = w.skipHead(context.Background(), key) })
	}
	all.Wait()
}

// check looks at every message: its effects are those of a prefix, in order, and what has none is somewhere.
func (w *world) check(t *rapid.T) {
	effects, stuck := w.effects(t), w.stuck(t)
	for _, key := range w.keys {
		want := w.wanted(key)
		got := effects[key]
		if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("key %s has the effects %v, want the first of %v", key, got, want)
		}
		for _, s := range w.all[key] {
			if !slices.Contains(got, s.n) && !w.skipped[s] && !stuck[s.id] && !slices.Contains(w.queue, s) {
				t.Fatalf("message %d of key %s is lost", s.n, key)
			}
			if stuck[s.id] && slices.Contains(got, s.n) {
				t.Fatalf("message %d of key %s is stuck and has its effect", s.n, key)
			}
		}
	}
}

// wanted are the numbers of a key that must have their effect in the end.
func (w *world) wanted(key string) (want []int) {
	for _, s := range w.all[key] {
		if !w.skipped[s] {
			want = append(want, s.n)
		}
	}
	return want
}

func (w *world) effects(t *rapid.T) map[string][]int {
	rows, err := w.db.Query(t.Context(), `SELECT n, key FROM public.effects WHERE key = ANY ($1) ORDER BY seq`, w.keys)
	if err != nil {
		t.Fatal(err)
	}
	effects := map[string][]int{}
	var n int
	var key string
	if _, err := pgx.ForEachRow(rows, []any{&n, &key}, func() error { effects[key] = append(effects[key], n); return nil }); err != nil {
		t.Fatal(err)
	}
	return effects
}

func (w *world) stuck(t *rapid.T) map[uuid.UUID]bool {
	rows, err := w.db.Query(t.Context(), `
		SELECT coalesce(s.message_id, m.message_id), s.message_id IS NOT NULL AND m.state = 'stuck'
		FROM (SELECT * FROM inbox.messages WHERE consumer = $1 AND state = 'stuck') AS m
		FULL JOIN (SELECT * FROM inbox.stuck WHERE consumer = $1) AS s USING (consumer, message_id)`, w.name)
	if err != nil {
		t.Fatal(err)
	}
	stuck := map[uuid.UUID]bool{}
	var id uuid.UUID
	var agree bool
	if _, err := pgx.ForEachRow(rows, []any{&id, &agree}, func() error { stuck[id] = agree; return nil }); err != nil {
		t.Fatal(err)
	}
	for id, agree := range stuck {
		if !agree {
			t.Fatalf("inbox.messages and inbox.stuck do not agree about message %s", id)
		}
	}
	return stuck
}

// heal ends all faults: everything that is left has its effect.
func (w *world) heal(t *rapid.T) {
	w.calm = true
	for _, s := range w.queue {
		err := w.current.settle(s.message())
		for range 10 { // the pool may still hold connections that were lost
			if err != nil {
				err = w.current.settle(s.message())
			}
		}
		if err != nil {
			t.Fatalf("message %d of key %s: %v", s.n, s.key, err)
		}
	}
	w.queue = nil
	w.exec(t, `UPDATE inbox.stuck SET parked = false, next_attempt = clock_timestamp() WHERE consumer = $1`, w.name)
	for w.current.retryDue(t.Context()) {
		w.check(t)
	}
	w.check(t)
	for key, got := range w.effects(t) {
		if want := w.wanted(key); !slices.Equal(got, want) {
			t.Fatalf("key %s has the effects %v in the end, want %v", key, got, want)
		}
	}
	if left := w.stuck(t); len(left) > 0 {
		t.Fatalf("%d messages are stuck in the end", len(left))
	}
}

// network stands between the pool and the server, and fails once when it is armed.
type network struct {
	mu    sync.Mutex
	left  int    // statements until the fault; 0 for none
	fault string // "before": the statement is not sent; "answer": it is, and its answer is lost; "after": the connection breaks later
	death bool   // the process dies with it: no statement succeeds after the fault
	died  *atomic.Bool
	hook  func()
}

func (n *network) pool(t *testing.T, url string) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.TLSConfig, config.ConnConfig.Fallbacks = nil, nil
	config.ConnConfig.Tracer = n
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		n.mu.Lock()
		dead := n.died != nil && n.died.Load()
		n.mu.Unlock()
		if dead {
			return nil, errors.New("the process is dead")
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &lossy{Conn: conn}, nil
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// arm draws the fault of the next operation.
func (n *network) arm(t *rapid.T) *atomic.Bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.died, n.hook = &atomic.Bool{}, nil
	if n.fault = rapid.SampledFrom([]string{"", "", "before", "answer", "after"}).Draw(t, "fault"); n.fault == "" {
		return n.died
	}
	n.left = rapid.IntRange(1, 12).Draw(t, "statement")
	n.death = rapid.Bool().Draw(t, "death")
	return n.died
}

// onDeath calls cancel when the process dies.
func (n *network) onDeath(cancel func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hook = cancel
}

func (n *network) disarm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left, n.fault, n.death, n.died = 0, "", false, nil
}

// strikes reports that the fault comes now, or has come and was death.
func (n *network) strikes(at string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.died != nil && n.died.Load() {
		return true
	}
	if n.left == 0 || n.fault != at {
		return false
	}
	if n.left--; n.left > 0 {
		return false
	}
	if n.death {
		n.died.Store(true)
		if n.hook != nil {
			n.hook()
		}
	}
	return true
}

func (n *network) start(conn *pgx.Conn) {
	link, ok := conn.PgConn().Conn().(*lossy)
	if !ok {
		return
	}
	if n.strikes("before") {
		_ = link.Close()
	} else if n.strikes("answer") {
		link.deaf.Store(true)
	}
}

func (n *network) end(conn *pgx.Conn) {
	if n.strikes("after") {
		_ = conn.PgConn().Conn().Close()
	}
}

func (n *network) TraceQueryStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	n.start(conn)
	return ctx
}

func (n *network) TraceQueryEnd(_ context.Context, conn *pgx.Conn, _ pgx.TraceQueryEndData) {
	n.end(conn)
}

func (n *network) TraceBatchStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	n.start(conn)
	return ctx
}

func (n *network) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (n *network) TraceBatchEnd(_ context.Context, conn *pgx.Conn, _ pgx.TraceBatchEndData) {
	n.end(conn)
}

// lossy is a connection that can lose the next answer: the server has done what it says.
type lossy struct {
	net.Conn

	deaf atomic.Bool
}

func (l *lossy) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if l.deaf.Load() && n > 0 {
		_ = l.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}
