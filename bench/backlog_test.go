package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// backlog drains from a table with much waiting and with little, and looks at one in which all is relayed.
func backlog(b *testing.B, r *Row) {
	large, small := pick(2_000_000, 200_000), 20_000
	part := pick(200_000, 40_000)
	br := newBroker(b)
	var many, few []float64
	r.say("writing %d messages", large)
	db := newOutbox(b)
	fill(b, db, large, evenly)
	for range 3 {
		few = append(few, ours(b, br, small, 1, evenly))
		many = append(many, drainedPart(b, br, db, part))
	}
	db.Close()
	r.add(fmt.Sprintf("%d waiting", large), median(many), "messages/s")
	r.add(fmt.Sprintf("%d waiting", small), median(few), "messages/s")
	ratio := median(many) / median(few)
	r.add("much / little", ratio, "ratio")
	polls := idlePolls(b, r, pick(2_000_000, 200_000))
	p99 := percentile(polls, 0.99)
	r.add("idle poll, p50", percentile(polls, 0.5), "ms")
	r.add("idle poll, p99", p99, "ms")
	r.note("drain rates count from the start of the relay: with much waiting, of the first %d messages, its one pass over all ids included", part)
	r.judge(ratio >= 0.9 && p99 <= 2)
}

// drainedPart relays at least n messages of a larger backlog, and stops the relay.
func drainedPart(b *testing.B, br *broker, db *outboxtest.Database, n int) float64 {
	b.Helper()
	br.purge(b)
	start := time.Now()
	p := startRelay(b, br, db)
	reached := br.atLeast(b, n, 10*time.Minute)
	took := time.Since(start)
	p.stop(b)
	return float64(reached) / took.Seconds()
}

// idlePolls times the relay's idle poll, and a query for the snapshot before it, over a table of relayed messages in ten daily partitions,
// each time with one new transaction that has written nothing.
func idlePolls(b *testing.B, r *Row, n int) (ms []float64) {
	b.Helper()
	r.say("writing %d relayed messages over ten days", n)
	db := newOutbox(b)
	for day := range 10 {
		_, err := db.Exec(b.Context(), `
			INSERT INTO outbox.messages (id, uuid, topic, key, payload, created_at)
			SELECT nextval('outbox.message_id'), gen_random_uuid(), $1, 'key-' || n % 1000, $2, date_trunc('day', now(), 'UTC') + make_interval(days => $3, hours => 1)
			FROM generate_series(1, $4::int) AS n`, made, payload, day, n/10)
		must(b, err)
	}
	_, err := db.Exec(b.Context(), `VACUUM ANALYZE outbox.messages`)
	must(b, err)
	config, err := pgx.ParseConfig(db.RelayURL)
	must(b, err)
	for name, value := range map[string]string{"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off"} {
		config.RuntimeParams[name] = value // as the relay's sessions have it
	}
	conn, err := pgx.ConnectConfig(b.Context(), config)
	must(b, err)
	defer func() { _ = conn.Close(b.Context()) }()
	for i := range 1000 {
		_, err := db.Exec(b.Context(), `SELECT pg_current_xact_id()`)
		must(b, err)
		start := time.Now()
		must(b, poll(b, conn, i%4))
		if i >= 20 {
			ms = append(ms, float64(time.Since(start).Nanoseconds())/1e6)
		}
	}
	return ms
}

// poll is the statement with which the relay looks for what is newer than a snapshot: session.next in outbox/relay.
func poll(b *testing.B, conn *pgx.Conn, partition int) error {
	var xmax string
	if err := conn.QueryRow(b.Context(), `SELECT pg_snapshot_xmax(pg_current_snapshot())::text`).Scan(&xmax); err != nil {
		return err
	}
	rows, err := conn.Query(b.Context(), `
		WITH now AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot, pg_postmaster_start_time() AS started)
		SELECT now.snapshot, now.started, m.* FROM now LEFT JOIN (
			SELECT id, uuid, topic, key, payload, metadata, created_at FROM outbox.messages
			WHERE partition = $1 AND transaction_id >= $2::text::xid8
			LIMIT 1001) AS m ON true`, partition, xmax)
	if err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}

// size looks at the relay's memory under a large backlog, and at its queries when there is nothing to do.
func size(b *testing.B, r *Row) {
	n := pick(2_000_000, 200_000)
	br := newBroker(b)
	db := newOutbox(b)
	r.say("writing %d messages", n)
	fill(b, db, n, evenly)
	p := startRelay(b, br, db)
	br.atLeast(b, pick(200_000, 60_000), 10*time.Minute)
	peak := p.statusKB("VmHWM") / 1024
	p.stop(b)
	r.add(fmt.Sprintf("resident memory, peak with %d waiting", n), peak, "MiB")
	db.Close()

	empty := newOutbox(b)
	startRelay(b, br, empty)
	seconds := pick(20, 6)
	time.Sleep(4 * time.Second) // until it polls at its slowest
	before := statements(b, empty)
	time.Sleep(time.Duration(seconds) * time.Second)
	rate := float64(statements(b, empty)-before) / float64(seconds)
	r.add("queries when idle", rate, "per second")
	r.note("queries: transactions of the database in %d s by pg_stat_database, every query of the idle relay being one", seconds)
	r.judge(peak <= 96 && rate <= 20)
}

// statements counts the transactions that a database has seen.
func statements(b *testing.B, db *outboxtest.Database) (n int64) {
	b.Helper()
	must(b, db.QueryRow(b.Context(), `SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()`).Scan(&n))
	return n
}
