package operate_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// begin starts a transaction of somebody else, to be rolled back.
func (b *bench) begin() pgx.Tx {
	b.t.Helper()
	tx, err := b.Begin(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = tx.Rollback(b.t.Context()) })
	return tx
}

// claimed puts the lease of the message's partition into the hand of a relay, and the message too.
func (b *bench) claimed(id uuid.UUID, token int) {
	b.t.Helper()
	b.exec(`
		INSERT INTO outbox.leases (pool, partition, owner, token) SELECT 'relay', partition, gen_random_uuid(), 7 FROM outbox.stuck WHERE uuid = $1
		ON CONFLICT DO NOTHING`, id)
	b.exec(`UPDATE outbox.stuck SET claim = $2 WHERE uuid = $1`, id, token)
}

// beating moves the relay's beat until the test ends.
func (b *bench) beating() {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				if _, err := b.Exec(b.t.Context(), `UPDATE outbox.leases SET beat = beat + 1`); err != nil {
					return
				}
			}
		}
	}()
	b.t.Cleanup(func() { close(stop); <-ended })
}

func TestWhatARelayHasInHandIsBusy(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id, other := b.stuckOutbox(parked.of("a")), b.stuckOutbox(parked.of("b"))
	b.claimed(id, 7)
	b.beating()
	for _, verb := range []operate.Verb{operate.VerbReplay, operate.VerbSkip, operate.VerbEdit} {
		c := operate.Command{Verb: verb, Filter: just(operate.Outbox, id)}
		if verb == operate.VerbEdit {
			c.Payload = json.RawMessage(`{}`)
		}
		began := time.Now()
		got := b.refused(operate.ErrBusy, c)
		if took := time.Since(began); took < 2*time.Second || took > 20*time.Second {
			t.Errorf("%s was patient for %s", verb, took)
		}
		if len(got.Left) != 1 || got.Left[0].Code != operate.LeftBusy || got.Left[0].MessageID != id || got.Matched != 1 {
			t.Errorf("%s: %+v", verb, got)
		}
	}
	got := b.do(operate.Command{Verb: operate.VerbReplay})
	if got.Matched != 2 || got.Changed != 1 || len(got.Left) != 1 || b.show(operate.Outbox, other).State != operate.Retrying {
		t.Errorf("of two: %+v", got)
	}
	dry := operate.Command{Verb: operate.VerbReplay, Filter: just(operate.Outbox, id), DryRun: true}
	if got := b.refused(operate.ErrBusy, dry); len(got.Left) != 1 || got.Left[0].Code != operate.LeftBusy {
		t.Errorf("a dry run: %+v", got)
	}
}

// A dry run is as patient as what it foretells.
func TestAClaimEndsWhileAVerbIsPatient(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.beating()
	for _, dry := range []bool{true, false} {
		id := b.stuckOutbox(parked.of(fmt.Sprint("dry run: ", dry)))
		b.claimed(id, 7)
		go func() {
			<-time.After(300 * time.Millisecond)
			_, _ = b.Exec(t.Context(), `UPDATE outbox.stuck SET claim = NULL, attempts = attempts + 1 WHERE uuid = $1`, id)
		}()
		got := b.do(operate.Command{Verb: operate.VerbReplay, Filter: just(operate.Outbox, id), DryRun: dry})
		if got.Changed != 1 || got.Matched != 1 {
			t.Errorf("dry run %t: %+v", dry, got)
		}
	}
}

func TestADeadRelayHoldsNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, prepare := range map[string]func(id uuid.UUID){
		"taken over": func(id uuid.UUID) { b.claimed(id, 6) },
		"given back": func(id uuid.UUID) {
			b.claimed(id, 7)
			b.exec(`UPDATE outbox.leases SET owner = NULL, token = 8`)
		},
		"killed, and nobody took over": func(id uuid.UUID) {
			b.exec(`UPDATE outbox.leases SET owner = gen_random_uuid(), token = 7`)
			b.claimed(id, 7)
		},
	} {
		id := b.stuckOutbox(parked.of("a"))
		prepare(id)
		edit := operate.Command{Verb: operate.VerbEdit, Filter: just(operate.Outbox, id), Payload: json.RawMessage(`{}`)}
		if got := b.refused(operate.ErrRefused, edit); len(got.Left) != 1 || got.Left[0].Code != operate.LeftExposed {
			t.Errorf("%s: edit: %+v", name, got)
		}
		b.do(operate.Command{Verb: operate.VerbReplay, Filter: just(operate.Outbox, id)})
		if !one[bool](b, `SELECT exposed AND claim IS NULL AND NOT parked FROM outbox.stuck WHERE uuid = $1`, id) {
			t.Errorf("%s: after a replay it is not exposed, or still claimed", name)
		}
		b.do(operate.Command{Verb: operate.VerbSkip, Filter: just(operate.Outbox, id)})
	}
}

func TestWhatAHandlerHasInHandIsBusy(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id, other := b.stuckInbox(parked.of("a")), b.stuckInbox(parked.of("b"))
	replay := operate.Command{Verb: operate.VerbReplay, Filter: just(operate.Inbox, id)}
	key := b.begin()
	// As the consumer locks a key.
	if _, err := key.Exec(t.Context(), `SELECT pg_advisory_xact_lock(hashtextextended($1, $2))`, consumer+"\x1fa", int64(0x696e626f78)); err != nil {
		t.Fatal(err)
	}
	b.refused(operate.ErrBusy, replay)
	b.do(operate.Command{Verb: operate.VerbReplay, Filter: just(operate.Inbox, other)})
	if err := key.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	row := b.begin()
	if _, err := row.Exec(t.Context(), `SELECT FROM inbox.stuck WHERE message_id = $1 FOR UPDATE`, id); err != nil {
		t.Fatal(err)
	}
	b.refused(operate.ErrBusy, replay)
	if err := row.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.do(replay)
}

func TestEditRefusesWhatAConsumerMayHave(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	exposed, refusedClass := parked, parked
	exposed.exposed = true
	refusedClass.class, refusedClass.parked, refusedClass.attempts = "refused", false, 0
	for key, c := range map[string]struct {
		row  row
		code operate.LeftCode // none if it may be edited
	}{
		"a": {failing, operate.LeftRetrying},
		"b": {exposed, operate.LeftExposed},
		"c": {refusedClass, operate.LeftExposed},
		"d": {parked, ""},
		"e": {row{}, ""}, // never tried
	} {
		id := b.stuckOutbox(c.row.of(key))
		edit := operate.Command{Verb: operate.VerbEdit, Filter: just(operate.Outbox, id), Payload: json.RawMessage(`{}`)}
		if c.code == "" {
			b.do(edit)
			continue
		}
		if got := b.refused(operate.ErrRefused, edit); len(got.Left) != 1 || got.Left[0].Code != c.code || got.Changed != 0 {
			t.Errorf("%s: %+v", key, got)
		}
	}
	consumed := b.stuckOutbox(parked.of("f"))
	edit := operate.Command{Verb: operate.VerbEdit, Filter: just(operate.Outbox, consumed), Payload: json.RawMessage(`{}`)}
	other := outboxtest.NewDatabase(t, "billing")
	if _, err := other.Exec(t.Context(), `INSERT INTO inbox.messages (message_id, consumer) VALUES ($1, 'billing')`, consumed); err != nil {
		t.Fatal(err)
	}
	both := operator(t, operate.Database{Name: "shop", URL: b.OperatorURL}, operate.Database{Name: "billing", URL: other.OperatorURL})
	if _, err := both.Do(t.Context(), b.by(edit)); !errors.Is(err, operate.ErrRefused) || !strings.Contains(err.Error(), "billing") {
		t.Errorf("edit of what a consumer has: %v", err)
	}
	unknown := operator(t, operate.Database{Name: "shop", URL: b.OperatorURL}, operate.Database{Name: "away", URL: "postgres://x@127.0.0.1:1/away"})
	edit.Filter.Database = "shop"
	if _, err := unknown.Do(t.Context(), b.by(edit)); !errors.Is(err, operate.ErrRefused) {
		t.Errorf("edit while a database is away: %v", err)
	}
	b.do(edit)
}

func TestAConsumersRetryingMessageIsNotEdited(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	head, follower := b.stuckInbox(failing.of("a")), b.stuckInbox(row{key: "a"})
	edit := operate.Command{Verb: operate.VerbEdit, Filter: just(operate.Inbox, head), Payload: json.RawMessage(`{}`)}
	if got := b.refused(operate.ErrRefused, edit); len(got.Left) != 1 || got.Left[0].Code != operate.LeftRetrying {
		t.Errorf("%+v", got)
	}
	edit.Filter.MessageID = follower
	b.do(edit)
}

func TestBadCommandsAreRefused(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		id := b.stuck(side, parked.of("a"))
		big := json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`)
		for name, c := range map[string]operate.Command{
			"no verb":           {},
			"another verb":      {Verb: "drop"},
			"nobody":            {Verb: operate.VerbSkip, Actor: operate.Actor{Reason: "why"}},
			"no reason":         {Verb: operate.VerbSkip, Actor: operate.Actor{Name: "ann", Reason: " "}},
			"a long reason":     {Verb: operate.VerbSkip, Actor: operate.Actor{Name: "ann", Reason: strings.Repeat("x", 2001)}},
			"below zero":        {Verb: operate.VerbSkip, Limit: -1},
			"too many":          {Verb: operate.VerbSkip, Limit: 10001},
			"no such side":      {Verb: operate.VerbSkip, Filter: operate.Filter{Side: "upside"}},
			"no such state":     {Verb: operate.VerbSkip, Filter: operate.Filter{State: "bored"}},
			"outbox's consumer": {Verb: operate.VerbSkip, Filter: operate.Filter{Side: operate.Outbox, Consumer: "x"}},
			"a key with NUL":    {Verb: operate.VerbSkip, Filter: operate.Filter{Key: "a\x00"}},
			"skip a payload":    {Verb: operate.VerbSkip, Payload: json.RawMessage(`{}`)},
			"edit all":          {Verb: operate.VerbEdit, Payload: json.RawMessage(`{}`)},
			"edit nothing":      {Verb: operate.VerbEdit, Filter: just(side, id)},
			"no JSON":           {Verb: operate.VerbEdit, Filter: just(side, id), Payload: json.RawMessage(`{`)},
			"too large":         {Verb: operate.VerbEdit, Filter: just(side, id), Payload: big},
			"nameless header":   {Verb: operate.VerbEdit, Filter: just(side, id), Headers: map[string]string{"": "x"}},
			"long name":         {Verb: operate.VerbEdit, Filter: just(side, id), Headers: map[string]string{strings.Repeat("x", 256): "x"}},
			"large headers":     {Verb: operate.VerbEdit, Filter: just(side, id), Headers: map[string]string{"x": strings.Repeat("x", 33<<10)}},
			"another id":        {Verb: operate.VerbEdit, Filter: just(side, id), Headers: map[string]string{"cloudEvents_id": uuid.NewString()}},
			"another key":       {Verb: operate.VerbEdit, Filter: just(side, id), Headers: map[string]string{"cloudEvents_subject": "b"}},
		} {
			if got := b.refused(operate.ErrInvalid, c); got.Changed != 0 {
				t.Errorf("%s: %+v", name, got)
			}
		}
		b.refused(operate.ErrNotFound, operate.Command{Verb: operate.VerbSkip, Filter: operate.Filter{Database: "bakery"}})
		if d := b.show(side, id); d.Edited || d.State != operate.Parked || b.audited() != 0 {
			t.Errorf("something happened: %+v", d)
		}
	})
}

// The database's functions check for themselves, whoever calls them.
func TestTheFunctionsCheckTheirArguments(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	pool := outboxtest.NewPool(t, b.OperatorURL)
	out, in := b.stuckOutbox(parked.of("a")), b.stuckInbox(parked.of("a"))
	outSeq, inSeq := one[int64](b, `SELECT seq FROM outbox.stuck`), one[int64](b, `SELECT seq FROM inbox.stuck`)
	for name, c := range map[string]struct {
		verb, actor, reason string
		tries               []int
		payload             []byte
		headers             any
	}{
		"verb":          {"drop", "ann", "why", []int{1}, nil, nil},
		"nobody":        {"skip", "", "why", []int{1}, nil, nil},
		"no reason":     {"skip", "ann", "  ", []int{1}, nil, nil},
		"lengths":       {"skip", "ann", "why", []int{}, nil, nil},
		"skip payload":  {"skip", "ann", "why", []int{1}, []byte(`{}`), nil},
		"edit nothing":  {"edit", "ann", "why", []int{1}, nil, nil},
		"large payload": {"edit", "ann", "why", []int{1}, bytes.Repeat([]byte("x"), 1<<20+1), nil},
		"no object":     {"edit", "ann", "why", []int{1}, nil, []string{"x"}},
		"no strings":    {"edit", "ann", "why", []int{1}, nil, map[string]int{"x": 1}},
		"no name":       {"edit", "ann", "why", []int{1}, nil, map[string]string{"": "x"}},
		"long name":     {"edit", "ann", "why", []int{1}, nil, map[string]string{strings.Repeat("x", 256): "x"}},
		"large headers": {"edit", "ann", "why", []int{1}, nil, map[string]string{"x": strings.Repeat("x", 33<<10)}},
	} {
		_, err := pool.Exec(t.Context(), `SELECT outbox.operate($1, $2, $3, '{t}', '{}', $4, $5, false, $6, $7, '{}')`,
			c.verb, []int64{outSeq}, c.tries, c.payload, c.headers, c.actor, c.reason)
		if code(err) != "22023" {
			t.Errorf("outbox, %s: %v", name, err)
		}
		_, err = pool.Exec(t.Context(), `SELECT inbox.operate($1, $2, $3, '{t}', $4, $5, false, $6, $7, '{}')`,
			c.verb, []int64{inSeq}, c.tries, c.payload, c.headers, c.actor, c.reason)
		if code(err) != "22023" {
			t.Errorf("inbox, %s: %v", name, err)
		}
	}
	_, err := pool.Exec(t.Context(), `SELECT inbox.operate('edit', $1, '{1}', '{t}', NULL, '{"cloudEvents_id": "x"}', false, 'ann', 'why', '{}')`, []int64{inSeq})
	if code(err) != "22023" {
		t.Errorf("inbox, another id: %v", err)
	}
	if b.audited() != 0 || b.show(operate.Outbox, out).Edited || b.show(operate.Inbox, in).Edited {
		t.Error("something happened")
	}
}

// A verb whose entry cannot be written does nothing.
func TestNoEntryNoDeed(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		id := b.stuck(side, parked.of("a"))
		b.exec(`ALTER TABLE ops.audit ADD CONSTRAINT broken CHECK (false)`)
		for _, c := range []operate.Command{
			{Verb: operate.VerbReplay}, {Verb: operate.VerbSkip}, {Verb: operate.VerbEdit, Filter: just(side, id), Payload: json.RawMessage(`{}`)},
		} {
			got, err := b.Do(t.Context(), b.by(c))
			if code(err) != "23514" || got.Changed != 0 || len(got.AuditIDs) != 0 {
				t.Errorf("%s: %+v, %v", c.Verb, got, err)
			}
		}
		if d := b.show(side, id); d.State != operate.Parked || d.Edited || d.Attempts != 1 {
			t.Errorf("it is changed: %+v", d)
		}
		if side == operate.Inbox && one[string](b, `SELECT state FROM inbox.messages`) != "stuck" {
			t.Error("the inbox's state is changed")
		}
	})
}

func TestManyMessagesGoInParts(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		b.many(side, 600)
		got := b.do(operate.Command{Verb: operate.VerbReplay, Limit: 300})
		if got.Matched != 300 || got.Changed != 300 || !got.More || len(got.AuditIDs) != 2 {
			t.Errorf("limited: %+v", got)
		}
		if n := one[int](b, `SELECT count(*) FROM `+string(side)+`.stuck WHERE NOT parked`); n != 300 {
			t.Errorf("%d are replayed", n)
		}
		got = b.do(operate.Command{Verb: operate.VerbSkip})
		if got.Matched != 600 || got.Changed != 600 || got.More || len(got.AuditIDs) != 3 {
			t.Errorf("all: %+v", got)
		}
		report, err := b.VerifyAudit(t.Context(), "shop", "")
		if err != nil || !report.OK || report.Entries != 5 {
			t.Errorf("the audit log: %+v, %v", report, err)
		}
	})
}

// What waited behind a skipped message may go at once: it need not wait until somebody looks at its key.
func TestSkipFreesTheNextOfItsKey(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		b.stuck(side, parked.of("a"))
		b.stuck(side, parked.of("a"))
		next := b.stuck(side, row{}.of("a"))
		last := b.stuck(side, row{}.of("a"))
		b.stuck(side, parked.of("b"))
		second := b.stuck(side, parked.of("b"))
		b.stuck(side, parked.of("c"))
		again := b.stuck(side, failing.of("c"))
		other := b.stuck(side, row{}.of("d"))
		id := map[operate.Side]string{operate.Outbox: "uuid", operate.Inbox: "message_id"}[side]
		table := string(side) + ".stuck"
		if got := b.do(operate.Command{Verb: operate.VerbSkip, Filter: operate.Filter{Side: side, Key: "a", State: operate.Parked}}); got.Changed != 1 {
			t.Fatalf("skip: %+v", got)
		}
		if n := one[int](b, `SELECT count(*) FROM `+table+` WHERE key = 'a' AND next_attempt <= clock_timestamp()`); n != 0 {
			t.Errorf("%d messages are due behind a parked one", n)
		}
		for _, key := range []string{"a", "b", "c"} {
			b.do(operate.Command{Verb: operate.VerbSkip, Filter: operate.Filter{Side: side, Key: key, State: operate.Parked}, Limit: 1})
		}
		// A consumer looks for heads that were never tried, a relay for those whose time has come.
		at := one[*time.Time](b, `SELECT next_attempt FROM `+table+` WHERE NOT parked AND `+id+` = $1`, next)
		if due := at != nil && time.Since(*at) > 0; due != (side == operate.Outbox) {
			t.Errorf("the new head's next attempt is at %v", at)
		}
		for _, left := range []uuid.UUID{last, other} {
			if !one[bool](b, `SELECT next_attempt IS NULL FROM `+table+` WHERE `+id+` = $1`, left) {
				t.Errorf("%s was not freed, and is due", left)
			}
		}
		if d := b.show(side, second); d.State != operate.Parked {
			t.Errorf("a parked one behind it is %s", d.State)
		}
		if !one[bool](b, `SELECT next_attempt > clock_timestamp() FROM `+table+` WHERE `+id+` = $1`, again) {
			t.Error("one that was tried already does not wait for its time")
		}
	})
}

// many parks a message for each of n keys, with one error.
func (b *bench) many(side operate.Side, n int) {
	b.t.Helper()
	if side == operate.Outbox {
		b.exec(`
			WITH m AS (
				INSERT INTO outbox.messages (uuid, topic, key, payload) SELECT gen_random_uuid(), 'shop.orders.placed.v1', 'k' || n, '{}'
				FROM generate_series(1, $1::int) AS n ORDER BY n RETURNING *)
			INSERT INTO outbox.stuck (message_id, partition, uuid, topic, key, payload, metadata, created_at, attempts, class, error, fingerprint, build, parked)
			SELECT id, partition, uuid, topic, key, payload, metadata, created_at, 1, 'too_large', 'key ' || key || ' is too large', 'too large', 'A', true FROM m ORDER BY id`, n)
		return
	}
	b.exec(`
		WITH m AS (INSERT INTO inbox.messages (message_id, consumer, state) SELECT gen_random_uuid(), $2, 'stuck' FROM generate_series(1, $1::int) RETURNING message_id)
		INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, attempts, class, error, fingerprint, build, parked)
		SELECT $2, message_id, 0, 'shop.orders.placed.v1', message_id::text, '{}', '{}', 1, 'permanent', 'key ' || message_id, 'key <id>', 'A', true FROM m`, n, consumer)
}

// What the cursor has not passed would come again after a crash, as it was written.
func TestWhatTheCursorHasNotPassedWaits(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := b.stuckOutbox(parked.of("a"))
	b.exec(`INSERT INTO outbox.cursor (partition, relayed, token) SELECT partition, '3:3:', 1 FROM outbox.stuck`)
	edit := operate.Command{Verb: operate.VerbEdit, Filter: just(operate.Outbox, id), Payload: json.RawMessage(`{}`)}
	skip := operate.Command{Verb: operate.VerbSkip, Filter: just(operate.Outbox, id)}
	b.refused(operate.ErrBusy, edit)
	b.refused(operate.ErrBusy, skip)
	b.exec(`INSERT INTO outbox.cursor (partition, relayed, token) SELECT partition, pg_current_snapshot(), 1 FROM outbox.stuck`)
	b.do(edit)
	b.do(skip)
}
