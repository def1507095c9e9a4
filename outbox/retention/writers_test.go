package retention_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

type noted struct {
	Key string `json:"key"`
}

func (noted) EventType() string  { return "test.notes.noted.v1" }
func (n noted) EventKey() string { return n.Key }

// writers append in sessions of their own, one message per transaction, until they are told to stop.
type writers struct {
	mu      sync.Mutex
	written int
	slowest time.Duration
	errs    []error
	stop    context.CancelFunc
	group   sync.WaitGroup
}

func startWriters(t *testing.T, pool *pgxpool.Pool, n int) *writers {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &writers{stop: cancel}
	for i := range n {
		w.group.Go(func() {
			for ctx.Err() == nil {
				w.append(pool, fmt.Sprint("writer ", i))
			}
		})
	}
	t.Cleanup(w.end)
	return w
}

func (w *writers) append(pool *pgxpool.Pool, key string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	start := time.Now()
	err := outbox.InTx(ctx, pool, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, noted{key}) })
	took := time.Since(start)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slowest = max(w.slowest, took)
	if err != nil {
		w.errs = append(w.errs, err)
		return
	}
	w.written++
}

func (w *writers) end() {
	w.stop()
	w.group.Wait()
}

func (w *writers) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written
}

// TestNobodyWaitsForARound holds two transactions open during a round, one of them prepared, and measures how long
// others' appends take meanwhile.
func TestNobodyWaitsForARound(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	var prepared int
	w.read(&prepared, `SELECT current_setting('max_prepared_transactions')::int`)
	if prepared == 0 {
		t.Skip("max_prepared_transactions is 0 on this server")
	}
	relayedAt, relayed := w.day(-3)
	openAt, open := w.day(-4)
	w.partition(relayed)
	w.partition(open)
	w.write("relayed", relayedAt)
	w.relayAll()
	w.prepare(openAt)
	w.pass(8)
	pool := outboxtest.NewPool(t, w.ServiceURL)
	business, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Append(t.Context(), business, noted{"business"}); err != nil {
		t.Fatal(err)
	}
	others := startWriters(t, pool, 3)
	outboxtest.Eventually(t, 10*time.Second, func() bool { return others.count() >= 3 }, "the writers write")
	before := others.count()

	r := w.keep("outbox")
	if len(r.Made) < 8 || !slices.Equal(r.Emptied, []string{relayed}) || len(r.Dropped) > 0 {
		t.Errorf("beside open transactions: %+v", r)
	}
	if r.Postponed[open] != "its lock is taken" || r.Postponed[relayed] != "its lock is taken" {
		t.Errorf("postponed is %v, want both old days", r.Postponed)
	}
	after := others.count()
	others.end()
	// 50 ms for a lock; the rest is for a busy machine. Behind one of the open transactions it would be the time-out.
	if others.slowest > 10*time.Second || len(others.errs) > 0 || after-before < 10 {
		t.Errorf("%d appends during the round, the slowest took %s, errors %v", after-before, others.slowest, others.errs)
	}
	t.Logf("%d appends during the round, the slowest took %s", after-before, others.slowest)

	if err := business.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.do(`COMMIT PREPARED '` + w.Name + `'`)
	if r := w.keep("outbox"); !slices.Equal(r.Dropped, []string{relayed}) || r.Postponed[open] != "it has messages that are not relayed" {
		t.Errorf("after the commits: %+v", r)
	}
	if n := w.count(`outbox.messages WHERE key IN ('prepared', 'business')`); n != 2 {
		t.Errorf("%d of 2 messages that were not relayed are there", n)
	}
	if n := w.count(`outbox.messages WHERE key LIKE 'writer%'`); n != others.count() {
		t.Errorf("%d messages of %d that were written meanwhile", n, others.count())
	}
	w.relayAll()
	w.pass(8)
	if r := w.keep("outbox"); !slices.Contains(r.Dropped, open) {
		t.Errorf("all relayed, 8 days later: %+v", r)
	}
}

// prepare leaves a prepared transaction that has written a message.
func (w *town) prepare(at time.Time) {
	w.t.Helper()
	err := w.AcquireFunc(w.t.Context(), func(conn *pgxpool.Conn) error {
		for _, statement := range []string{
			`BEGIN`,
			`INSERT INTO outbox.messages (uuid, topic, key, payload, created_at) VALUES (gen_random_uuid(), 't', 'prepared', '{}', '` + at.Format(time.RFC3339) + `')`,
			`PREPARE TRANSACTION '` + w.Name + `'`,
		} {
			if _, err := conn.Exec(w.t.Context(), statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_, _ = w.Exec(context.Background(), `ROLLBACK PREPARED '`+w.Name+`'`) // gone, unless the test has failed
	})
}

// TestLooksAgainUnderTheLock commits a message while the one that wants to drop its partition waits for the lock.
func TestLooksAgainUnderTheLock(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	for i, call := range []string{"empty_partition", "drop_partition"} {
		at, day := w.day(-3 - i)
		w.partition(day)
		w.relayAll()
		w.pass(8)
		tx, err := w.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(t.Context(), `INSERT INTO outbox.messages (uuid, topic, key, payload, created_at) VALUES (gen_random_uuid(), 't', $1, '{}', $2)`, call, at)
		if err != nil {
			t.Fatal(err)
		}
		reason := w.commitMeanwhile(tx, `SELECT coalesce(outbox.`+call+`($1::text::date, '7 days'), '')`, day)
		if reason != "it has messages that are not relayed" || w.count(`outbox.messages WHERE key = $1`, call) != 1 {
			t.Errorf("%s: %q, and %d of 1 message is left", call, reason, w.count(`outbox.messages WHERE key = $1`, call))
		}
	}
}

// commitMeanwhile calls a function again and again until tx is committed in the middle of a call that waits for a lock.
func (w *town) commitMeanwhile(tx pgx.Tx, call, day string) (reason string) {
	w.t.Helper()
	for {
		answered := make(chan error, 1)
		go func() { answered <- w.QueryRow(context.Background(), call, day).Scan(&reason) }()
		waiting := false
		for done := false; !done && !waiting; {
			select {
			case err := <-answered:
				if err == nil {
					w.t.Fatalf("answered %q beside an open transaction", reason)
				}
				done = true
			default:
				waiting = w.count(`pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) > 0
			}
		}
		if !waiting {
			continue
		}
		if err := tx.Commit(context.Background()); err != nil {
			w.t.Fatal(err)
		}
		if <-answered != nil { // the commit came too late: nothing was done, and a further call sees the message
			w.read(&reason, call, day)
		}
		return reason
	}
}
