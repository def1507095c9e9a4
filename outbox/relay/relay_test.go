package relay_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/relay"
)

// note is the event of these tests.
type note struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (note) EventType() string  { return "test.notes.noted.v1" }
func (n note) EventKey() string { return n.Key }

// recorder is a publisher that remembers, and fails when told to.
type recorder struct {
	mu     sync.Mutex
	byKey  map[string][]string // message ids in order of arrival
	count  map[string]int      // by message id
	topics map[string]int
	fail   func(msg *message.Message) error
}

func newRecorder() *recorder {
	return &recorder{byKey: map[string][]string{}, count: map[string]int{}, topics: map[string]int{}}
}

func (r *recorder) Publish(topic string, msgs ...*message.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, msg := range msgs {
		if r.fail != nil {
			if err := r.fail(msg); err != nil {
				return err
			}
		}
		key := msg.Metadata.Get(outbox.HeaderSubject)
		r.topics[topic]++
		if r.count[msg.UUID]++; r.count[msg.UUID] == 1 {
			r.byKey[key] = append(r.byKey[key], msg.UUID)
		}
	}
	return nil
}

func (r *recorder) Close() error { return nil }

// distinct is how many different messages arrived, extra how many arrived again.
func (r *recorder) distinct() (distinct, extra int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.count {
		extra += n - 1
	}
	return len(r.count), extra
}

func config(db *outboxtest.Database, pub message.Publisher) relay.Config {
	return relay.Config{
		Databases:     []relay.Database{{Name: "test", URL: db.RelayURL}},
		Publisher:     pub,
		RoutingKey:    func(typ string, partition int) string { return fmt.Sprintf("%s.%d", typ, partition) },
		Logger:        slog.New(slog.DiscardHandler),
		Build:         "test",
		PollMax:       50 * time.Millisecond,
		RetryMax:      20 * time.Millisecond,
		RetryMin:      time.Millisecond,
		LeaseInterval: 50 * time.Millisecond,
		LeaseTimeout:  5 * time.Second, // none is lost because the machine is busy
	}
}

// start runs a relay; stop ends it and waits.
func start(t *testing.T, cfg relay.Config) (stop func()) {
	t.Helper()
	r, err := relay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run = %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("the relay does not stop")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func appendNotes(t *testing.T, db *outboxtest.Database, notes ...outbox.Event) {
	t.Helper()
	err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, notes...) })
	if err != nil {
		t.Fatal(err)
	}
}

func TestRelayDeliversWithHeaders(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	got := make(chan *message.Message, 1)
	rec.fail = func(msg *message.Message) error { got <- msg; return nil }
	start(t, config(db, rec))
	ctx := outbox.WithCausality(t.Context(), outbox.Causality{CorrelationID: "flow-1"})
	if err := outbox.InTx(ctx, db, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, note{"k", 7}) }); err != nil {
		t.Fatal(err)
	}
	msg := <-got
	for name, want := range map[string]string{
		outbox.HeaderID: msg.UUID, outbox.HeaderType: "test.notes.noted.v1", outbox.HeaderSource: "notes",
		outbox.HeaderSubject: "k", outbox.HeaderSpecVersion: "1.0", outbox.HeaderCorrelationID: "flow-1",
	} {
		if msg.Metadata.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, msg.Metadata.Get(name), want)
		}
	}
	if string(msg.Payload) != `{"key":"k","n":7}` {
		t.Errorf("payload is %s", msg.Payload)
	}
	if _, err := time.Parse(time.RFC3339Nano, msg.Metadata.Get(outbox.HeaderTime)); err != nil {
		t.Error(err)
	}
}

func TestRelayTriesAgainInOrder(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	rec.fail = func(*message.Message) error {
		if rand.IntN(3) == 0 {
			return errors.New("not now")
		}
		return nil
	}
	start(t, config(db, rec))
	var want []outbox.Event
	for n := range 50 {
		want = append(want, note{"a", n}, note{"b", n})
	}
	appendNotes(t, db, want...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 100 }, "all are relayed")
	assertCommitOrder(t, db, rec)
}

// assertCommitOrder compares first arrivals with the ids, which within a key are in commit order.
func assertCommitOrder(t *testing.T, db *outboxtest.Database, rec *recorder) {
	t.Helper()
	rows, err := db.Query(t.Context(), `SELECT key, array_agg(uuid::text ORDER BY id) FROM outbox.messages GROUP BY key`)
	if err != nil {
		t.Fatal(err)
	}
	var key string
	var want []string
	_, err = pgx.ForEachRow(rows, []any{&key, &want}, func() error {
		compare(t, key, rec.byKey[key], want)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func compare(t *testing.T, key string, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("key %s: %d messages arrived of %d", key, len(got), len(want))
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("key %s: message %d arrived out of order", key, i)
			return
		}
	}
}

func TestRelayPagesThroughALargeBacklogAndRestartsInside(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const total = 20000
	_, err := db.Exec(t.Context(), `
		INSERT INTO outbox.messages (uuid, topic, key, payload)
		SELECT gen_random_uuid(), 'test.notes.noted.v1', 'k' || n % 200, '{}' FROM generate_series(1, $1::int) AS n`, total)
	if err != nil {
		t.Fatal(err)
	}
	rec := newRecorder()
	for restarted := 0; ; restarted++ {
		stop := start(t, config(db, rec))
		before, _ := rec.distinct()
		outboxtest.Eventually(t, time.Minute, func() bool { n, _ := rec.distinct(); return n == total || n > before+3000 }, "relaying goes on")
		stop()
		if n, extra := rec.distinct(); n == total {
			if restarted < 1 || extra != 0 {
				t.Errorf("%d restarts, %d repeats: want several and none, each stop was clean", restarted, extra)
			}
			break
		}
	}
	assertCommitOrder(t, db, rec)
}

// TestCursorUnderContention is the cursor's promise: nothing lost, repeated or inverted, and no stall.
func TestCursorUnderContention(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	if _, err := db.Exec(t.Context(), `
		CREATE TABLE counters (key text PRIMARY KEY, n int NOT NULL DEFAULT 0);
		INSERT INTO counters (key) SELECT 'k' || n FROM generate_series(0, 49) AS n;
		CREATE TABLE truth (key text, n int, uuid uuid)`); err != nil {
		t.Fatal(err)
	}
	rec := newRecorder()
	start(t, config(db, rec))
	idle, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := idle.Exec(t.Context(), `CREATE TABLE unrelated (n int)`); err != nil {
		t.Fatal(err)
	}

	var writers sync.WaitGroup
	for w := range 16 {
		writers.Go(func() {
			for n := range 60 {
				if err := writeSome(t.Context(), db, w, n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()

	var committed int
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM truth`).Scan(&committed); err != nil {
		t.Fatal(err)
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool { n, _ := rec.distinct(); return n >= committed },
		"all is delivered while an unrelated transaction stays open")
	if n, extra := rec.distinct(); n != committed || extra != 0 {
		t.Errorf("%d messages arrived and %d repeats, %d were committed", n, extra, committed)
	}
	rows, err := db.Query(t.Context(), `SELECT key, array_agg(uuid::text ORDER BY n) FROM truth GROUP BY key`)
	if err != nil {
		t.Fatal(err)
	}
	var key string
	var want []string
	if _, err := pgx.ForEachRow(rows, []any{&key, &want}, func() error { compare(t, key, rec.byKey[key], want); return nil }); err != nil {
		t.Fatal(err)
	}
}

// writeSome is one transaction: one to three keys, perhaps savepoints, a pause, a rollback.
func writeSome(ctx context.Context, db *outboxtest.Database, w, n int) error {
	rollback := errors.New("rolled back on purpose")
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { // not InTx: the row is there before the pauses
		for range 1 + rand.IntN(3) {
			key := fmt.Sprintf("k%d", rand.IntN(50))
			if rand.IntN(4) == 0 {
				if err := inSavepoint(ctx, tx, key, rand.IntN(2) == 0); err != nil {
					return err
				}
				continue
			}
			if err := record(ctx, tx, key); err != nil {
				return err
			}
		}
		if (w+n)%20 == 0 {
			if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.3)`); err != nil {
				return err
			}
		}
		if rand.IntN(5) == 0 {
			return rollback
		}
		return nil
	})
	var pg *pgconn.PgError
	if errors.Is(err, rollback) || errors.As(err, &pg) && pg.Code == "40P01" { // a deadlock of two keys
		return nil
	}
	return err
}

func inSavepoint(ctx context.Context, tx pgx.Tx, key string, keep bool) error {
	inner, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if err := record(ctx, inner, key); err != nil {
		return err
	}
	if keep {
		return inner.Commit(ctx)
	}
	return inner.Rollback(ctx)
}

// record appends one message and then notes its place in the key's order of commits: the counter's row lock
// comes after the append, so it shows the order and does not make it.
func record(ctx context.Context, tx pgx.Tx, key string) error {
	msgs, err := outbox.Encode(ctx, note{Key: key})
	if err != nil {
		return err
	}
	if err := outbox.Write(ctx, tx, msgs...); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		WITH c AS (UPDATE counters SET n = n + 1 WHERE key = $1 RETURNING key, n)
		INSERT INTO truth SELECT key, n, $2 FROM c`, key, msgs[0].ID)
	return err
}

// TestRelaySurvivesLosingItsConnections kills the relay's backends again and again.
func TestRelaySurvivesLosingItsConnections(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	start(t, config(db, rec))
	const total = 600
	for n := range total {
		appendNotes(t, db, note{fmt.Sprintf("k%d", n%7), n})
		if n%60 == 30 {
			if _, err := db.Exec(t.Context(), `
				SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name = 'outbox relay'`); err != nil {
				t.Fatal(err)
			}
		}
	}
	outboxtest.Eventually(t, time.Minute, func() bool { n, _ := rec.distinct(); return n == total }, "all are relayed")
	assertCommitOrder(t, db, rec)
}

// TestTwoRelaysShareAndHandOver runs two relays on one database and stops one.
func TestTwoRelaysShareAndHandOver(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	stopFirst := start(t, config(db, rec))
	start(t, config(db, rec))
	owners := func() int {
		var n int
		if err := db.QueryRow(t.Context(), `
			SELECT count(*) FROM (SELECT owner FROM outbox.leases WHERE owner IS NOT NULL GROUP BY owner HAVING count(*) = 2) AS o`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool { return owners() == 2 }, "each relay has two partitions")
	for n := range 200 {
		appendNotes(t, db, note{uuid.NewString()[:1], n})
		if n == 100 {
			go stopFirst()
		}
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool { n, _ := rec.distinct(); return n == 200 }, "all are relayed")
	assertCommitOrder(t, db, rec)
	if _, extra := rec.distinct(); extra != 0 {
		t.Errorf("%d repeats, a clean stop makes none", extra)
	}
}

// TestRelayRefusesAnotherCluster changes what the cursor remembers of where it belongs.
func TestRelayRefusesAnotherCluster(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	stop := start(t, config(db, rec))
	appendNotes(t, db, note{"k", 1})
	outboxtest.Eventually(t, 20*time.Second, func() bool { n, _ := rec.distinct(); return n == 1 }, "the relay works")
	stop()
	if _, err := db.Exec(t.Context(), `UPDATE outbox.identity SET timeline = '0000FFFF'`); err != nil {
		t.Fatal(err)
	}
	appendNotes(t, db, note{"k", 2})
	said := make(chan error, 100)
	cfg := config(db, rec)
	cfg.Logger = slog.New(errorsTo{said})
	start(t, cfg)
	select {
	case err := <-said:
		if !errors.Is(err, relay.ErrIdentity) {
			t.Errorf("the relay says %v, want ErrIdentity", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the relay does not say that it refuses")
	}
	if n, _ := rec.distinct(); n != 1 {
		t.Errorf("%d messages arrived, the second must wait", n)
	}
}

// errorsTo hands the error attribute of every record at error level to a channel.
type errorsTo struct{ to chan<- error }

func (errorsTo) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }
func (h errorsTo) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok && a.Key == "error" {
			select {
			case h.to <- err:
			default:
			}
		}
		return true
	})
	return nil
}
func (h errorsTo) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h errorsTo) WithGroup(string) slog.Handler      { return h }

// slow is a publisher that takes some messages at once, and no other before it is opened.
type slow struct {
	mu        sync.Mutex
	atOnce    int
	out, most int
	opened    chan struct{}
}

func (s *slow) Publish(_ string, msgs ...*message.Message) error {
	s.mu.Lock()
	if s.atOnce > 0 {
		s.atOnce -= len(msgs)
		s.mu.Unlock()
		return nil
	}
	s.out += len(msgs)
	s.most = max(s.most, s.out)
	s.mu.Unlock()
	<-s.opened
	return nil
}

func (s *slow) Close() error { return nil }

func (s *slow) mostOut() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

// inOnePartition returns a message for each of some keys.
func inOnePartition(keys int) (notes []outbox.Event) {
	for n := 0; len(notes) < keys; n++ {
		if key := fmt.Sprint("k", n); outbox.PartitionOf(key) == 1 {
			notes = append(notes, note{key, 0})
		}
	}
	return notes
}

// InFlight bounds what is out at the end of a lease too, when messages that were held back by their keys go out.
func TestInFlightBoundsTheEndOfALease(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	var notes []outbox.Event
	for _, first := range inOnePartition(50) {
		notes = append(notes, first, first) // the second ones go out after all first ones
	}
	appendNotes(t, db, notes...)
	pub := &slow{atOnce: 50, opened: make(chan struct{})}
	cfg := config(db, pub)
	cfg.InFlight, cfg.Grace = 5, 200*time.Millisecond
	stop := start(t, cfg)
	open := sync.OnceFunc(func() { close(pub.opened) })
	t.Cleanup(open) // before the relay is stopped
	outboxtest.Eventually(t, 30*time.Second, func() bool { return pub.mostOut() == 5 }, "the bound is reached")
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		var held int
		err := db.QueryRow(t.Context(), `SELECT count(*) FROM outbox.leases WHERE owner IS NOT NULL`).Scan(&held)
		return err == nil && held == 0
	}, "the leases end")
	if n := pub.mostOut(); n > 5 {
		t.Errorf("%d messages are out", n)
	}
	open()
	<-stopped
}

// A hint ends the pause between two looks, however long.
func TestAHintEndsThePause(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	cfg := config(db, rec)
	cfg.PollMin, cfg.PollMax = time.Hour, time.Hour
	start(t, cfg)
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		var listening, looked int
		err := db.QueryRow(t.Context(), `
			SELECT count(*) FILTER (WHERE query LIKE 'LISTEN%'), count(*) FILTER (WHERE query LIKE '%pg_current_snapshot()::text%')
			FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay' AND state = 'idle'`).Scan(&listening, &looked)
		return err == nil && listening == 1 && looked == outbox.Partitions
	}, "the relay has looked everywhere, and listens")
	for n := range 3 { // also after a window
		appendNotes(t, db, note{"k", n})
		outboxtest.Eventually(t, 30*time.Second, func() bool { got, _ := rec.distinct(); return got == n+1 }, "message %d arrives", n)
	}
}

// What was written without a hint is found by looking.
func TestWhatNobodyHintsAtIsFound(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	start(t, config(db, rec))
	for n := range 5 {
		if _, err := db.Exec(t.Context(), `INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), 't', 'k', '{}')`); err != nil {
			t.Fatal(err)
		}
		outboxtest.Eventually(t, 30*time.Second, func() bool { got, _ := rec.distinct(); return got == n+1 }, "message %d arrives", n)
	}
}
