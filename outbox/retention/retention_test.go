package retention_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/retention"
)

// town is a database whose retention runs by a clock that the test moves.
type town struct {
	*outboxtest.Database
	t *testing.T
}

func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{Database: outboxtest.NewDatabase(t, "shop"), t: t}
	w.do(`
		CREATE TABLE public.test_clock (ahead interval NOT NULL);
		INSERT INTO public.test_clock VALUES ('0');
		CREATE OR REPLACE FUNCTION outbox.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp() + ahead FROM public.test_clock';
		CREATE OR REPLACE FUNCTION inbox.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp() + ahead FROM public.test_clock'`)
	return w
}

func (w *town) do(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func (w *town) read(into any, sql string, args ...any) {
	w.t.Helper()
	if err := w.QueryRow(w.t.Context(), sql, args...).Scan(into); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func (w *town) count(sql string, args ...any) (n int) {
	w.t.Helper()
	w.read(&n, `SELECT count(*) FROM `+sql, args...)
	return n
}

// jump moves the clock at one stroke.
func (w *town) jump(days int) {
	w.t.Helper()
	w.do(`UPDATE public.test_clock SET ahead = ahead + make_interval(days => $1)`, days)
}

// pass lets days go by as they do, with a watermark every two hours.
func (w *town) pass(days int) {
	w.t.Helper()
	w.do(fmt.Sprintf(`DO $$ BEGIN
		PERFORM outbox.mark('7 days'), inbox.mark('14 days');
		FOR i IN 1..%d LOOP
			UPDATE public.test_clock SET ahead = ahead + interval '2 hours';
			PERFORM outbox.mark('7 days'), inbox.mark('14 days');
		END LOOP;
	END $$`, 12*days))
}

// day is noon, so many days from the clock's today, in both forms.
func (w *town) day(offset int) (noon time.Time, name string) {
	w.t.Helper()
	w.read(&noon, `SELECT date_trunc('day', outbox.clock(), 'UTC') + make_interval(days => $1, hours => 12)`, offset)
	noon = noon.UTC()
	return noon, noon.Format(time.DateOnly)
}

// partition makes the outbox and inbox partitions of a day, which may be past.
func (w *town) partition(name string) {
	w.t.Helper()
	w.do(`SELECT outbox.add_partition($1::text::date), inbox.add_partition($1::text::date)`, name)
}

// write puts a message into the outbox as if it had been written then.
func (w *town) write(key string, at time.Time) {
	w.t.Helper()
	w.do(`INSERT INTO outbox.messages (uuid, topic, key, payload, created_at) VALUES (gen_random_uuid(), 't', $1, '{}', $2)`, key, at)
}

// relayAll stores cursors that say that all there is has been relayed.
func (w *town) relayAll() {
	w.t.Helper()
	w.do(`INSERT INTO outbox.cursor (partition, relayed, token) SELECT p, pg_current_snapshot(), 1 FROM generate_series(0, 3) AS p`)
	w.do(`INSERT INTO outbox.identity (system_identifier, database_oid, timeline)
		SELECT system_identifier, database_oid, timeline FROM outbox.current_identity() ON CONFLICT DO NOTHING`)
}

// keep does one round as the role whose work it is, when the server has ended the connection of the one before.
func (w *town) keep(schema string) (r retention.Report) {
	w.t.Helper()
	outboxtest.Eventually(w.t, 10*time.Second, func() bool { r = w.once(schema); return !r.Busy }, "another round is under way")
	return r
}

func (w *town) once(schema string) retention.Report {
	w.t.Helper()
	r, err := retention.Once(w.t.Context(), w.config(schema))
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *town) config(schema string) retention.Config {
	w.t.Helper()
	url := w.RelayURL
	if schema == "inbox" {
		url = w.ServiceURL
	}
	conn, err := pgx.ParseConfig(url)
	if err != nil {
		w.t.Fatal(err)
	}
	return retention.Config{Connect: conn, Schema: schema, Logger: slog.New(slog.DiscardHandler)}
}

func (w *town) has(schema, day string) bool {
	w.t.Helper()
	return w.count(`pg_inherits WHERE inhrelid = to_regclass($1)`, schema+".messages_"+day[:4]+day[5:7]+day[8:]) == 1
}

func TestPartitionsAreKeptAhead(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.jump(3)
	for _, schema := range []string{"outbox", "inbox"} {
		if r := w.keep(schema); len(r.Made) < 3 || r.Ahead != 7 || len(r.Postponed) > 0 {
			t.Errorf("%s, three days later: %+v", schema, r)
		}
		if r := w.keep(schema); len(r.Made) > 0 || r.Ahead != 7 {
			t.Errorf("%s, again: %+v", schema, r)
		}
	}
	at, name := w.day(7)
	w.write("k", at)
	var table string
	w.read(&table, `SELECT tableoid::regclass::text FROM outbox.messages`)
	if want := "outbox.messages_" + at.Format("20060102"); table != want {
		t.Errorf("a message of %s lies in %s, want %s", name, table, want)
	}
}

func TestOutboxDropsWhatWasRelayedLongAgoAlone(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	oldAt, old := w.day(-3)
	lateAt, late := w.day(-2)
	w.partition(old)
	w.partition(late)
	outside, _ := w.day(-300)
	w.write("relayed", oldAt)
	w.write("relayed outside", outside)
	w.relayAll()
	w.write("not relayed", lateAt)
	w.write("not relayed outside", outside)
	if r := w.keep("outbox"); len(r.Dropped) > 0 || r.Swept > 0 {
		t.Fatalf("at once: %+v", r)
	}
	w.pass(8)
	r := w.keep("outbox")
	if !slices.Contains(r.Dropped, old) || slices.Contains(r.Dropped, late) || r.Postponed[late] != "it has messages that are not relayed" || r.Swept != 1 {
		t.Fatalf("8 days later: %+v", r)
	}
	if w.has("outbox", old) || !w.has("outbox", late) || w.count(`outbox.messages WHERE key LIKE 'not relayed%'`) != 2 || w.count(`outbox.messages`) != 2 {
		t.Error("another thing was done than reported")
	}
	w.relayAll()
	if r := w.keep("outbox"); r.Postponed[late] != "it has messages that were relayed too recently" {
		t.Errorf("just relayed: %+v", r)
	}
	w.pass(8)
	if r := w.keep("outbox"); !slices.Contains(r.Dropped, late) || r.Swept != 1 || w.count(`outbox.messages`) != 0 {
		t.Errorf("relayed 8 days ago: %+v", r)
	}
}

func TestNoClockMakesAnythingOld(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	yesterday, name := w.day(-1)
	w.partition(name)
	w.write("a", yesterday)
	w.do(`INSERT INTO inbox.messages (message_id, consumer) VALUES (inbox.first_id($1), 'c')`, yesterday)
	w.relayAll()
	today, _ := w.day(0)
	w.write("not relayed", today)
	w.pass(1)
	for _, days := range []int{40, -40, -400, 400, 1000, -1000} {
		w.jump(days)
		out, in := w.keep("outbox"), w.keep("inbox")
		if len(out.Dropped)+len(in.Dropped)+int(out.Swept+in.Swept) > 0 || out.Ahead < 7 || in.Ahead < 7 {
			t.Errorf("after a jump of %d days: %+v, %+v", days, out, in)
		}
		now, _ := w.day(0)
		w.write("while the clock is wrong", now)
		w.relayAll()
	}
	if n := w.count(`outbox.messages`); n != 8 {
		t.Errorf("%d messages, want all 8", n)
	}
	var known bool
	w.read(&known, `SELECT EXISTS (SELECT FROM inbox.messages) AND since = '00000000-0000-0000-0000-000000000000' FROM inbox.remembered`)
	if !known {
		t.Error("the inbox has forgotten")
	}
}

func TestStrayRowsOfAFutureDayAreTakenAlongOnceRelayed(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	future, day := w.day(12)
	w.write("k", future)
	w.do(`INSERT INTO inbox.messages (message_id, consumer) VALUES (inbox.first_id($1), 'c')`, future)
	w.jump(10)
	if r := w.keep("outbox"); r.Postponed[day] == "" || w.has("outbox", day) || w.count(`outbox.messages`) != 1 || len(r.Made) < 7 {
		t.Errorf("not relayed: %+v", r)
	}
	w.relayAll()
	for _, schema := range []string{"outbox", "inbox"} {
		r := w.keep(schema)
		if len(r.Postponed) > 0 || !w.has(schema, day) || w.count(schema+`.messages_default`) != 0 || w.count(schema+`.messages`) != 1 {
			t.Errorf("%s, relayed: %+v", schema, r)
		}
	}
}

func TestACursorOfAnotherClusterDropsNothing(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	at, day := w.day(-3)
	w.partition(day)
	w.write("k", at)
	w.relayAll()
	w.pass(8)
	for name, c := range map[string]struct{ spoil, heal string }{
		"timeline": {`UPDATE outbox.identity SET timeline = '000000FF'`, `UPDATE outbox.identity SET timeline = (SELECT timeline FROM outbox.current_identity())`},
		"system":   {`UPDATE outbox.identity SET system_identifier = '1' || system_identifier`, `UPDATE outbox.identity SET system_identifier = substr(system_identifier, 2)`},
		"none":     {`CREATE TABLE public.saved AS TABLE outbox.identity; DELETE FROM outbox.identity`, `INSERT INTO outbox.identity TABLE public.saved`},
		"ahead": {
			`INSERT INTO outbox.cursor (partition, relayed, token) VALUES (2, '900000000:900000000:', 1)`,
			`DELETE FROM outbox.cursor WHERE relayed::text = '900000000:900000000:'`,
		},
	} {
		w.do(c.spoil)
		if r := w.keep("outbox"); r.Refusal == "" || len(r.Dropped)+len(r.Emptied) > 0 || r.Postponed[day] != r.Refusal {
			t.Errorf("%s: %+v", name, r)
		}
		w.do(c.heal)
	}
	if r := w.keep("outbox"); !slices.Contains(r.Dropped, day) || r.Refusal != "" {
		t.Errorf("with the right identity: %+v", r)
	}
}

// TestOldSnapshotsDecideNothing: a transaction that began before a message was committed would not see it.
func TestOldSnapshotsDecideNothing(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	_, day := w.day(-3)
	w.partition(day)
	w.relayAll()
	w.pass(8)
	conn, err := pgx.Connect(t.Context(), w.RelayURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for _, call := range []string{`empty_partition($1::text::date, '7 days')`, `drop_partition($1::text::date, '7 days')`} {
		tx, err := conn.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `SELECT outbox.`+call, day); err == nil {
			t.Errorf("%s works in a REPEATABLE READ transaction", call)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneAtATime(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	first := make(chan retention.Report, 1)
	held := w.config("outbox")
	lock, err := w.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A reader of the default partition keeps the first one busy.
	tx, err := lock.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE outbox.messages_default IN ACCESS SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	w.jump(30)
	go func() {
		r, _ := retention.Once(context.WithoutCancel(t.Context()), held)
		first <- r
	}()
	outboxtest.Eventually(t, 10*time.Second, func() bool {
		return w.count(`pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) > 0
	}, "the first one is at it")
	if r := w.once("outbox"); !r.Busy || len(r.Made) > 0 {
		t.Errorf("the second one: %+v", r)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	lock.Release()
	if r := <-first; r.Busy || len(r.Made) == 0 {
		t.Errorf("the first one: %+v", r)
	}
}

func TestInboxForgetsOnRecord(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	at, day := w.day(-3)
	w.partition(day)
	w.do(`INSERT INTO inbox.messages (message_id, consumer, state) VALUES
		(overlay(inbox.first_id($1)::text PLACING '7' FROM 15)::uuid, 'done', 'done'),
		(overlay(inbox.first_id($1)::text PLACING '7' FROM 15)::uuid, 'stuck', 'stuck'),
		(overlay(inbox.first_id($1)::text PLACING '4' FROM 15)::uuid, 'random', 'done')`, at)
	if n := w.count(`inbox.messages_` + at.Format("20060102")); n != 3 {
		t.Fatalf("%d rows in the partition, want 3", n)
	}
	w.pass(10)
	if r := w.keep("inbox"); len(r.Dropped) > 0 {
		t.Errorf("10 days later: %+v", r)
	}
	w.pass(5)
	w.do(`UPDATE inbox.messages SET at = inbox.clock()`)
	if r := w.keep("inbox"); !slices.Contains(r.Dropped, day) || len(r.Postponed) > 0 || r.Swept != 0 {
		t.Fatalf("15 days later: %+v", r)
	}
	if w.has("inbox", day) || w.count(`inbox.messages WHERE consumer IN ('stuck', 'random')`) != 2 || w.count(`inbox.messages`) != 2 {
		t.Error("what is stuck, and ids without a time, must stay")
	}
	var forgotten bool
	w.read(&forgotten, `SELECT since > inbox.first_id($1) AND since < inbox.first_id(inbox.clock() - interval '13 days') FROM inbox.remembered`, at)
	if !forgotten {
		t.Error("remembered.since does not say what was forgotten")
	}
	w.pass(15)
	if r := w.keep("inbox"); r.Swept != 1 || w.count(`inbox.messages WHERE consumer = 'stuck'`) != 1 {
		t.Errorf("15 days more: %+v", r)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	conn, err := pgx.ParseConfig("postgres://nobody@127.0.0.1:1/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]retention.Config{
		"no connection":  {Schema: "outbox"},
		"schema":         {Connect: conn, Schema: "public"},
		"too short":      {Connect: conn, Schema: "outbox", Keep: time.Minute},
		"too seldom":     {Connect: conn, Schema: "outbox", Interval: 2 * time.Hour},
		"too many ahead": {Connect: conn, Schema: "outbox", Ahead: 1000},
	} {
		if err := retention.Run(t.Context(), cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
