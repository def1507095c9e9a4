package operate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

var ann = operate.Actor{Name: "ann", Reason: "the test wants it"}

// bench is one database with an operator.
type bench struct {
	*outboxtest.Database
	*operate.Operator
	t *testing.T
}

func newBench(t *testing.T) *bench {
	t.Helper()
	db := outboxtest.NewDatabase(t, "shop")
	return &bench{Database: db, Operator: operator(t, operate.Database{Name: "shop", URL: db.OperatorURL}), t: t}
}

func operator(t *testing.T, databases ...operate.Database) *operate.Operator {
	t.Helper()
	o, err := operate.New(operate.Config{Databases: databases})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

func (b *bench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.Exec(context.Background(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

// one reads one value.
func one[T any](b *bench, sql string, args ...any) (value T) {
	b.t.Helper()
	if err := b.QueryRow(context.Background(), sql, args...).Scan(&value); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// row is a stuck message as a test wants it; the zero row is a follower.
type row struct {
	key, typ, class, text, build string
	attempts                     int
	parked, exposed              bool
	payload                      string
	headers                      map[string]string
	age                          time.Duration
}

func (r row) defaults() row {
	if r.typ == "" {
		r.typ = "shop.orders.placed.v1"
	}
	if r.payload == "" {
		r.payload = `{"n":1}`
	}
	if r.headers == nil {
		r.headers = map[string]string{}
	}
	return r
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// stuckOutbox puts a message into the outbox and beside it into outbox.stuck.
func (b *bench) stuckOutbox(r row) uuid.UUID {
	b.t.Helper()
	r = r.defaults()
	id := uuid.Must(uuid.NewV7())
	b.exec(`
		WITH m AS (INSERT INTO outbox.messages (uuid, topic, key, payload, metadata) VALUES ($1, $2, $3, $4, $5) RETURNING *)
		INSERT INTO outbox.stuck (message_id, partition, uuid, topic, key, payload, metadata, created_at, attempts, class, error, fingerprint, build, parked, exposed, next_attempt, stuck_at)
		SELECT id, partition, uuid, topic, key, payload, metadata, created_at, $6, $7, $8, $7 || ' ' || topic, $9, $10, $11,
		       CASE WHEN $6::int > 0 THEN now() + interval '1 hour' END, now() - make_interval(secs => $12) FROM m`,
		id, r.typ, r.key, []byte(r.payload), r.headers, r.attempts, orNull(r.class), orNull(r.text), orNull(r.build), r.parked, r.exposed, r.age.Seconds())
	return id
}

const consumer = "billing"

// stuckInbox puts a message into the inbox as stuck.
func (b *bench) stuckInbox(r row) uuid.UUID {
	b.t.Helper()
	r = r.defaults()
	id := uuid.Must(uuid.NewV7())
	r.headers["cloudEvents_id"], r.headers["cloudEvents_type"], r.headers["cloudEvents_subject"] = id.String(), r.typ, r.key
	b.exec(`
		WITH m AS (INSERT INTO inbox.messages (message_id, consumer, state) VALUES ($1, $13, 'stuck'))
		INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, attempts, class, error, fingerprint, build, parked, next_attempt, stuck_at)
		VALUES ($13, $1, $14, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, CASE WHEN $6::int > 0 THEN now() + interval '1 hour' END, now() - make_interval(secs => $12))`,
		id, r.typ, r.key, []byte(r.payload), r.headers, r.attempts, orNull(r.class), orNull(r.text), orNull(r.class), orNull(r.build), r.parked, r.age.Seconds(),
		consumer, int(r.key[len(r.key)-1])%4)
	return id
}

// stuck puts a message onto a side.
func (b *bench) stuck(side operate.Side, r row) uuid.UUID {
	b.t.Helper()
	if side == operate.Outbox {
		return b.stuckOutbox(r)
	}
	return b.stuckInbox(r)
}

var (
	failing = row{class: "failed", text: "it did not work", build: "A", attempts: 3}
	parked  = row{class: "too_large", text: "it is too large", build: "A", attempts: 1, parked: true}
)

func (r row) of(key string) row {
	r.key = key
	return r
}

func (b *bench) do(c operate.Command) operate.Result {
	b.t.Helper()
	result, err := b.Do(b.t.Context(), b.by(c))
	if err != nil {
		b.t.Fatalf("%s: %v", c.Verb, err)
	}
	return result
}

func (b *bench) refused(want error, c operate.Command) operate.Result {
	b.t.Helper()
	result, err := b.Do(b.t.Context(), b.by(c))
	if !errors.Is(err, want) {
		b.t.Errorf("%s: error is %v, want %v", c.Verb, err, want)
	}
	return result
}

func (b *bench) by(c operate.Command) operate.Command {
	if c.Actor == (operate.Actor{}) {
		c.Actor = ann
	}
	return c
}

func (b *bench) show(side operate.Side, id uuid.UUID) operate.Detail {
	b.t.Helper()
	d, err := b.Show(b.t.Context(), operate.Filter{Side: side, MessageID: id})
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

func (b *bench) audited() int {
	b.t.Helper()
	return one[int](b, `SELECT count(*) FROM ops.audit`)
}

// eachSide runs a test on both sides.
func eachSide(t *testing.T, test func(t *testing.T, b *bench, side operate.Side)) {
	for _, side := range []operate.Side{operate.Outbox, operate.Inbox} {
		t.Run(string(side), func(t *testing.T) {
			t.Parallel()
			test(t, newBench(t), side)
		})
	}
}

func just(side operate.Side, id uuid.UUID) operate.Filter {
	return operate.Filter{Side: side, MessageID: id}
}

func TestReplayLetsHeadsGoAtOnce(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		a, follower, c := b.stuck(side, parked.of("a")), b.stuck(side, row{key: "a"}), b.stuck(side, failing.of("c"))
		dry := b.do(operate.Command{Verb: operate.VerbReplay, DryRun: true})
		if !dry.DryRun || dry.Matched != 2 || dry.Changed != 2 || len(dry.AuditIDs) != 0 || b.audited() != 0 || b.show(side, a).State != operate.Parked {
			t.Errorf("dry run: %+v", dry)
		}
		if got := b.do(operate.Command{Verb: operate.VerbReplay}); got.Matched != 2 || got.Changed != 2 || len(got.Left) != 0 || got.More || len(got.AuditIDs) != 1 {
			t.Errorf("replay: %+v", got)
		}
		for _, id := range []uuid.UUID{a, c} {
			if d := b.show(side, id); d.State != operate.Retrying || d.NextAttempt == nil || time.Until(*d.NextAttempt) > time.Second {
				t.Errorf("after replay: %+v", d.Stuck)
			}
		}
		if d := b.show(side, a); d.Attempts != 0 {
			t.Errorf("attempts of the parked one: %d", d.Attempts)
		}
		if d := b.show(side, follower); d.State != operate.Behind || d.Head == nil || d.Head.MessageID != a || d.NextAttempt != nil {
			t.Errorf("the follower: %+v", d)
		}
		result := b.refused(operate.ErrRefused, operate.Command{Verb: operate.VerbReplay, Filter: just(side, follower)})
		if len(result.Left) != 1 || result.Left[0].Code != operate.LeftBehind || result.Left[0].Reason != fmt.Sprintf("it waits behind %s: replay that one, and this goes after it", a) {
			t.Errorf("replay of a follower: %+v", result)
		}
		b.refused(operate.ErrNotFound, operate.Command{Verb: operate.VerbReplay, Filter: just(side, uuid.New())})
		if n := b.audited(); n != 1 {
			t.Errorf("%d audit entries, want that of the one replay", n)
		}
	})
}

func TestSkipTakesAMessageOutOfTheLine(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		head, second, third := b.stuck(side, parked.of("a")), b.stuck(side, row{key: "a"}), b.stuck(side, row{key: "a"})
		if got := b.do(operate.Command{Verb: operate.VerbSkip, Filter: just(side, second), DryRun: true}); got.Changed != 1 || b.show(side, head).BehindTotal != 2 {
			t.Errorf("dry run: %+v", got)
		}
		b.do(operate.Command{Verb: operate.VerbSkip, Filter: just(side, second)})
		if d := b.show(side, head); d.BehindTotal != 1 || len(d.Behind) != 1 || d.Behind[0].MessageID != third {
			t.Errorf("behind the head: %+v", d)
		}
		b.do(operate.Command{Verb: operate.VerbSkip, Filter: just(side, head)})
		if d := b.show(side, third); d.State != operate.Retrying || d.Head != nil {
			t.Errorf("the last one: %+v", d)
		}
		if _, err := b.Show(t.Context(), just(side, head)); !errors.Is(err, operate.ErrNotFound) {
			t.Errorf("show of a skipped message: %v", err)
		}
		b.refused(operate.ErrNotFound, operate.Command{Verb: operate.VerbSkip, Filter: just(side, head)})
		entries, _, err := b.Audit(t.Context(), operate.AuditFilter{MessageID: head}, operate.Page{})
		if err != nil || len(entries) != 1 || entries[0].Action != string(side)+".skip" || entries[0].Actor != ann {
			t.Errorf("audit of the skipped message: %+v, %v", entries, err)
		}
		if side == operate.Outbox {
			if n := one[int](b, `SELECT count(*) FROM outbox.messages WHERE uuid = $1`, head); n != 1 {
				t.Error("the message is gone from the outbox")
			}
			return
		}
		if state := one[string](b, `SELECT state FROM inbox.messages WHERE message_id = $1`, head); state != "skipped" {
			t.Errorf("the inbox says %q", state)
		}
	})
}

func TestEditKeepsTheIdAndTheOriginal(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		id := b.stuck(side, row{key: "a", class: "too_large", attempts: 1, parked: true, headers: map[string]string{"x": "1"}})
		before := b.show(side, id)
		edit := operate.Command{Verb: operate.VerbEdit, Filter: just(side, id), Payload: json.RawMessage(`{"n": 2}`)}
		edit.DryRun = true
		if got := b.do(edit); got.Changed != 1 || b.show(side, id).Edited {
			t.Errorf("dry run: %+v", got)
		}
		edit.DryRun = false
		b.do(edit)
		b.do(operate.Command{Verb: operate.VerbEdit, Filter: just(side, id), Headers: map[string]string{"x": "2", "y": "3"}})
		d := b.show(side, id)
		if !d.Edited || d.PayloadText == nil || *d.PayloadText != `{"n": 2}` || d.Headers["x"] != "2" || d.Headers["y"] != "3" || d.MessageID != id || d.State != operate.Parked {
			t.Errorf("after edits: %+v", d)
		}
		if d.Original == nil || string(d.Original.Payload) != string(before.Payload) || d.Original.Headers["x"] != "1" {
			t.Errorf("the original: %+v", d.Original)
		}
		if d.Headers["cloudEvents_subject"] != before.Headers["cloudEvents_subject"] {
			t.Errorf("the key's header became %q", d.Headers["cloudEvents_subject"])
		}
		if len(d.Audit) != 2 || d.Audit[0].Action != string(side)+".edit" {
			t.Fatalf("audit: %+v", d.Audit)
		}
		var detail struct {
			Payload struct{ BeforeSha256, AfterSha256 string }
			Headers []string
		}
		if err := json.Unmarshal(d.Audit[0].Detail, &detail); err != nil || len(detail.Headers) != 2 {
			t.Errorf("detail of the second edit: %s, %v", d.Audit[0].Detail, err)
		}
		if err := json.Unmarshal(d.Audit[1].Detail, &detail); err != nil || len(detail.Payload.BeforeSha256) != 64 || detail.Payload.AfterSha256 == detail.Payload.BeforeSha256 {
			t.Errorf("detail of the first edit: %s, %v", d.Audit[1].Detail, err)
		}
	})
}
