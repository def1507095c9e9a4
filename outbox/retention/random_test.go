package retention_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestRandomTransactionsAndCursors writes in transactions that overlap, stores cursors taken while some of them were
// open, and lets PostgreSQL say what was relayed.
func TestRandomTransactionsAndCursors(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	days := w.pastDays(8)
	var open []pgx.Tx
	for i := range 60 {
		tx, err := w.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.writeIn(tx, fmt.Sprint("key ", i), days[min(len(days)-1, i/7+rnd.IntN(3))])
		open = append(open, tx)
		if len(open) > 2 {
			n := rnd.IntN(len(open))
			if err := open[n].Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			open = append(open[:n], open[n+1:]...)
		}
		if i < 45 && rnd.IntN(3) == 0 {
			w.do(`INSERT INTO outbox.cursor (partition, relayed, token) VALUES ($1, pg_current_snapshot(), 1)`, rnd.IntN(4))
		}
	}
	for _, tx := range open {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.do(`INSERT INTO outbox.identity (system_identifier, database_oid, timeline) SELECT system_identifier, database_oid, timeline FROM outbox.current_identity()`)
	// A leaf goes as a whole; in the default partition each row for itself.
	const keepers = `
		WITH judged AS (
			SELECT m.id, m.tableoid, coalesce(pg_visible_in_snapshot(m.transaction_id, (outbox.relayed())[m.partition + 1]), false) AS relayed
			FROM outbox.messages AS m)
		SELECT count(*) FROM judged AS j
		WHERE NOT relayed OR tableoid <> 'outbox.messages_default'::regclass
			AND EXISTS (SELECT FROM judged AS other WHERE other.tableoid = j.tableoid AND NOT other.relayed)`
	var all, unrelayed, keep int
	w.read(&all, `SELECT count(*) FROM outbox.messages`)
	w.read(&keep, keepers)
	const left = `SELECT count(*) FROM outbox.messages WHERE NOT coalesce(pg_visible_in_snapshot(transaction_id, (outbox.relayed())[partition + 1]), false)`
	w.read(&unrelayed, left)
	w.pass(8)
	r := w.keep("outbox")
	var now int
	w.read(&now, left)
	if now != unrelayed {
		t.Errorf("seed %d: %d of %d messages that were not relayed are left: %+v", seed, now, unrelayed, r)
	}
	if n := w.count(`outbox.messages`); n != keep {
		t.Errorf("seed %d: %d messages are left, want %d of %d: %+v", seed, n, keep, all, r)
	}
	t.Logf("%d messages, %d not relayed, %d kept, %d partitions dropped, %d swept", all, unrelayed, keep, len(r.Dropped), r.Swept)
}

// pastDays makes partitions for all but the first of n past days.
func (w *town) pastDays(n int) (days []time.Time) {
	w.t.Helper()
	for i := range n {
		at, name := w.day(-2 - i)
		if i > 0 {
			w.partition(name)
		}
		days = append(days, at)
	}
	return days
}

func (w *town) writeIn(tx pgx.Tx, key string, at time.Time) {
	w.t.Helper()
	_, err := tx.Exec(w.t.Context(), `INSERT INTO outbox.messages (uuid, topic, key, payload, created_at) VALUES (gen_random_uuid(), 't', $1, '{}', $2)`, key, at)
	if err != nil {
		w.t.Fatal(err)
	}
}
