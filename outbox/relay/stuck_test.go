package relay_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/relay"
)

var (
	errRoute = errors.New("nobody is bound")
	errOwn   = errors.New("not this one: " + strings.Repeat("ä", 1500) + "\x00\xff")
	errSize  = errors.New("too large")
	errAway  = errors.New("the broker is away")
)

func classified(cfg relay.Config) relay.Config {
	cfg.Classify = func(err error) relay.Class {
		switch {
		case errors.Is(err, errRoute):
			return relay.Unroutable
		case errors.Is(err, errOwn):
			return relay.Failed
		case errors.Is(err, errSize):
			return relay.TooLarge
		}
		return ""
	}
	return cfg
}

func stuckCount(t *testing.T, db *outboxtest.Database, where string) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM outbox.stuck WHERE `+where).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func several(key string, from, to int) (notes []outbox.Event) {
	for n := from; n < to; n++ {
		notes = append(notes, note{key, n})
	}
	return notes
}

// A key whose messages fail waits alone: in outbox.stuck, over a restart, and goes on in order when its fault has gone.
func TestAFailingKeyWaitsAlone(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	var broken atomic.Bool
	broken.Store(true)
	rec.fail = func(msg *message.Message) error {
		if broken.Load() && msg.Metadata.Get(outbox.HeaderSubject) == "bad" {
			return errOwn
		}
		return nil
	}
	stop := start(t, classified(config(db, rec)))
	for round := range 20 {
		appendNotes(t, db, several("bad", 2*round, 2*round+2)...)
		for k := range 20 {
			appendNotes(t, db, note{fmt.Sprint("good", k), round})
		}
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 400 }, "all others are relayed")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `key = 'bad'`) == 40 }, "the key waits")
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		return stuckCount(t, db, `class = 'failed' AND build = 'test' AND attempts > 2 AND error <> '' AND next_attempt IS NOT NULL AND NOT parked`) == 1
	}, "its oldest message alone is tried again")
	stop()
	appendNotes(t, db, several("bad", 40, 45)...)
	start(t, classified(config(db, rec)))
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == 45 }, "later messages wait too, after a restart")
	broken.Store(false)
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 445 }, "the key goes on")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == 0 }, "nothing is left")
	appendNotes(t, db, several("bad", 45, 50)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 450 }, "the key goes its ordinary way")
	assertCommitOrder(t, db, rec)
}

// More keys are stuck than a pump may know: the later messages of each wait all the same, over a restart, what waits is found
// in rounds, and when few are left they are known again.
func TestMoreStuckKeysThanMayBeKnown(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	var broken atomic.Bool
	broken.Store(true)
	rec.fail = func(msg *message.Message) error {
		if broken.Load() && strings.HasPrefix(msg.Metadata.Get(outbox.HeaderSubject), "bad") {
			return errOwn
		}
		return nil
	}
	logs := &lines{}
	cfg := classified(config(db, rec))
	cfg.Logger = slog.New(slog.NewTextHandler(logs, nil))
	relay.LimitStuckKeys(&cfg, 2)
	const keys = 10 * outbox.Partitions
	all := func(n int) (events []outbox.Event) {
		for k := range keys {
			events = append(events, note{fmt.Sprint("bad", k), n}, note{fmt.Sprint("good", k), n})
		}
		return events
	}
	stop := start(t, cfg)
	appendNotes(t, db, all(0)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == keys }, "the first messages are stuck")
	appendNotes(t, db, all(1)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `attempts = 0`) == keys }, "later ones wait behind them")
	if n := logs.count("too many keys are stuck"); n != outbox.Partitions {
		t.Errorf("%d partitions say that too many keys are stuck", n)
	}
	stop()
	appendNotes(t, db, all(2)...)
	stop = start(t, cfg)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `attempts = 0`) == 2*keys }, "and after a restart")
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 3*keys }, "all others are relayed")
	// What nobody says is due is found in a round. The relay locks rows in another order than the update.
	stop()
	broken.Store(false)
	if _, err := db.Exec(t.Context(), `UPDATE outbox.stuck SET next_attempt = NULL`); err != nil {
		t.Fatal(err)
	}
	stop = start(t, cfg)
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 6*keys && stuckCount(t, db, `true`) == 0 }, "all go on")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return logs.count("all stuck keys are known again") == outbox.Partitions }, "few are stuck")
	appendNotes(t, db, all(3)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 8*keys }, "keys go their ordinary way")
	stop()
	assertCommitOrder(t, db, rec)
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// A route that takes nothing stops what comes to it, with one attempt for all, over a restart, and heals in order.
func TestABlockedRouteHasABreaker(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	var (
		blocked atomic.Bool
		tries   atomic.Int32
	)
	blocked.Store(true)
	rec.fail = func(msg *message.Message) error {
		if blocked.Load() && msg.Metadata.Get(outbox.HeaderType) == "test.blocked" {
			tries.Add(1)
			return errRoute
		}
		return nil
	}
	cfg := classified(config(db, rec))
	stop := start(t, cfg)
	const keys = 300
	perKey := func(n int) (events []outbox.Event) { // one blocked, one that would go
		for k := range keys {
			key := fmt.Sprint("k", k)
			events = append(events, typed{note{key, n}, "test.blocked"}, note{key, n + 1})
		}
		return events
	}
	for k := range outbox.Partitions * 10 { // opens the breaker of every partition
		appendNotes(t, db, typed{note{fmt.Sprint("first", k), 0}, "test.blocked"})
	}
	const first = outbox.Partitions * 10
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `class = 'unroutable' AND attempts > 1`) == outbox.Partitions }, "each partition has its probe")
	before := tries.Load()
	appendNotes(t, db, perKey(0)...)
	appendNotes(t, db, several("free", 0, 10)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 10 }, "other routes go on")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == first+2*keys }, "the keys wait")
	if n := stuckCount(t, db, `class = 'unroutable' AND attempts = 0 AND error = 'nobody is bound' AND NOT parked AND key LIKE 'k%'`); n != keys {
		t.Errorf("%d keys say what they wait for, want %d", n, keys)
	}
	if n := stuckCount(t, db, `attempts > 0 AND key LIKE 'k%'`); n != 0 {
		t.Errorf("%d messages were tried although the breaker was open", n)
	}
	stop()
	start(t, cfg)
	appendNotes(t, db, perKey(2)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == first+4*keys }, "the keys wait after a restart")
	if n := stuckCount(t, db, `attempts > 0 AND key LIKE 'k%'`); n != 0 {
		t.Errorf("%d messages were tried although the breaker was open, after a restart", n)
	}
	if tries.Load() == before {
		t.Error("nothing probes the route")
	}
	blocked.Store(false)
	outboxtest.Eventually(t, time.Minute, func() bool { n, _ := rec.distinct(); return n == 10+first+4*keys }, "the route heals")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == 0 }, "nothing is left")
	appendNotes(t, db, perKey(4)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 10+first+6*keys }, "keys go their ordinary way")
	assertCommitOrder(t, db, rec)
}

// A window of many pages that all wait for a blocked route is stored bit by bit, and what else it holds goes out.
func TestALargeWindowToABlockedRoute(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	rec.fail = func(msg *message.Message) error {
		if msg.Metadata.Get(outbox.HeaderType) == "test.blocked" {
			return errRoute
		}
		return nil
	}
	for k := range outbox.Partitions * 10 {
		appendNotes(t, db, typed{note{fmt.Sprint("first", k), 0}, "test.blocked"})
	}
	stop := start(t, classified(config(db, rec)))
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == outbox.Partitions*10 }, "the breakers are open")
	stop()
	const blocked, free = 8_000, 40
	if _, err := db.Exec(t.Context(), `
		INSERT INTO outbox.messages (uuid, topic, key, payload)
		SELECT gen_random_uuid(), CASE WHEN n % $2 = 0 THEN 'test.free' ELSE 'test.blocked' END, 'k' || n, '{}' FROM generate_series(1, $1::int) AS n`,
		blocked+free, (blocked+free)/free); err != nil {
		t.Fatal(err)
	}
	start(t, classified(config(db, rec)))
	outboxtest.Eventually(t, time.Minute, func() bool { n, _ := rec.distinct(); return n == free }, "what is not blocked goes out")
	outboxtest.Eventually(t, time.Minute, func() bool { return stuckCount(t, db, `true`) == blocked+outbox.Partitions*10 }, "the rest waits")
}

// A probe that its own handler or a middleware refuses shows that the route takes messages: the others go.
func TestAProbeThatFailsByItselfOpensTheRoute(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	var bound atomic.Bool
	rec.fail = func(msg *message.Message) error {
		switch {
		case !bound.Load():
			return errRoute
		case msg.Metadata.Get(outbox.HeaderSubject) == "bad":
			return errOwn
		}
		return nil
	}
	start(t, classified(config(db, rec)))
	appendNotes(t, db, note{"bad", 0})
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `key = 'bad'`) == 1 }, "the oldest waits")
	for k := range 20 {
		appendNotes(t, db, note{fmt.Sprint("good", k), 0})
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == 21 }, "all wait")
	bound.Store(true)
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 20 && stuckCount(t, db, `true`) == 1 }, "all others go")
}

// What an operator skips lets its key go on; a route whose messages are all skipped is forgotten.
func TestSkippedMessagesHoldNobody(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	rec.fail = func(msg *message.Message) error {
		switch {
		case msg.Metadata.Get(outbox.HeaderType) == "test.blocked":
			return errRoute
		case string(msg.Payload) == `{"key":"bad","n":0}`:
			return errSize
		}
		return nil
	}
	start(t, classified(config(db, rec)))
	appendNotes(t, db, several("bad", 0, 30)...)
	appendNotes(t, db, typed{note{"lost", 0}, "test.blocked"}, note{"lost", 1})
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		return stuckCount(t, db, `parked`) == 1 && stuckCount(t, db, `key = 'bad'`) == 30 && stuckCount(t, db, `key = 'lost'`) == 2
	}, "both keys wait")
	_, err := db.Exec(t.Context(), `DELETE FROM outbox.stuck WHERE claim IS NULL AND parked`)
	if err != nil {
		t.Fatal(err)
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 29 }, "what waited behind it goes")
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		tag, err := db.Exec(t.Context(), `DELETE FROM outbox.stuck WHERE topic = 'test.blocked' AND claim IS NULL`)
		return err == nil && tag.RowsAffected() == 1
	}, "the blocked message is skipped while nobody has it in hand")
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 30 && stuckCount(t, db, `true`) == 0 }, "nothing is left")
	appendNotes(t, db, note{"bad", 30}, note{"lost", 2})
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 32 }, "keys go their ordinary way")
}

// What is the message's own fault is parked at once, and tried no more until an operator says so.
func TestAMessageThatCannotGoIsParked(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	var tries atomic.Int32
	var mended atomic.Bool
	rec.fail = func(msg *message.Message) error {
		if string(msg.Payload) == `{"key":"bad","n":1}` && !mended.Load() {
			tries.Add(1)
			return errSize
		}
		return nil
	}
	start(t, classified(config(db, rec)))
	appendNotes(t, db, several("bad", 0, 5)...)
	appendNotes(t, db, several("good", 0, 5)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		return stuckCount(t, db, `parked AND class = 'too_large'`) == 1 && stuckCount(t, db, `true`) == 4
	}, "the message is parked, and those behind it wait")
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 6 }, "all others are relayed")
	if n := tries.Load(); n != 1 {
		t.Errorf("it was tried %d times", n)
	}
	mended.Store(true)
	if _, err := db.Exec(t.Context(), `UPDATE outbox.stuck SET parked = false, next_attempt = now() WHERE parked`); err != nil {
		t.Fatal(err)
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 10 && stuckCount(t, db, `true`) == 0 }, "the key goes on")
	assertCommitOrder(t, db, rec)
}

// An operator takes a message from a relay that seems dead and parks it. The failure of an attempt that was under way does
// not touch it any more.
func TestAnAttemptOvertakenByAnOperatorWritesNothing(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	var tries atomic.Int32
	var overtaken atomic.Bool
	rec.fail = func(msg *message.Message) error {
		if msg.Metadata.Get(outbox.HeaderSubject) != "bad" {
			return nil
		}
		if tries.Add(1) > 3 && !overtaken.Swap(true) {
			outboxtest.Eventually(t, 30*time.Second, func() bool { return parkAsDead(t, db, msg.UUID) }, "the message is parked")
		}
		return errOwn
	}
	start(t, classified(config(db, rec)))
	appendNotes(t, db, several("bad", 0, 2)...)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return overtaken.Load() && stuckCount(t, db, `claim IS NOT NULL`) == 0 }, "an overtaken attempt ends")
	if n := stuckCount(t, db, `parked AND error = 'parked by an operator' AND next_attempt IS NULL AND exposed`); n != 1 {
		t.Error("the relay changed what an operator parked")
	}
	if n := stuckCount(t, db, `true`); n != 2 {
		t.Errorf("%d messages are stuck, want the parked one and the one behind it", n)
	}
}

// parkAsDead parks a message as from the hand of a relay whose beat stands still.
func parkAsDead(t *testing.T, db *outboxtest.Database, id string) bool {
	t.Helper()
	var verdict string
	err := db.QueryRow(t.Context(), `
		SELECT o.verdict FROM outbox.stuck AS s, outbox.operate('park', ARRAY[s.seq], ARRAY[s.attempts], ARRAY[s.parked],
			ARRAY(SELECT beat FROM outbox.leases WHERE pool = 'relay' ORDER BY partition), NULL, NULL, false, 'ann', 'test', '{}') AS o
		WHERE s.uuid = $1`, id).Scan(&verdict)
	if err != nil {
		t.Error(err)
		return true
	}
	if verdict != "ok" {
		return false // the beat moved, or the cursor has not passed it yet
	}
	if _, err := db.Exec(t.Context(), `UPDATE outbox.stuck SET error = 'parked by an operator' WHERE uuid = $1`, id); err != nil {
		t.Error(err)
	}
	return true
}

// Faults of every kind at random, and connections that break meanwhile: nothing is lost, no key is out of order.
func TestFaultsOfEveryKindLoseNothing(t *testing.T) {
	t.Parallel()
	for name, stuckKeys := range map[string]int{"all stuck keys are known": 0, "most stuck keys are not known": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faultsOfEveryKind(t, stuckKeys)
		})
	}
}

func faultsOfEveryKind(t *testing.T, stuckKeys int) {
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	var calm atomic.Bool
	rec.fail = func(*message.Message) error {
		switch n := rand.IntN(100); {
		case calm.Load():
		case n < 10:
			return errOwn
		case n < 12:
			return errRoute
		case n < 14:
			return errAway
		case n == 14:
			panic("a middleware panics")
		}
		return nil
	}
	cfg := classified(config(db, rec))
	cfg.InFlight = 20 // rows beyond it are read again
	relay.LimitStuckKeys(&cfg, stuckKeys)
	start(t, cfg)
	var writers sync.WaitGroup
	const keys, each = 40, 50
	for k := range keys {
		writers.Go(func() {
			for n := 0; n < each; n += 5 {
				appendNotes(t, db, several(fmt.Sprint("k", k), n, n+4)...)
				appendNotes(t, db, typed{note{fmt.Sprint("k", k), n + 4}, "test.notes.other.v1"})
			}
		})
	}
	for range 5 {
		before, _ := rec.distinct()
		outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n > before+50 || n == keys*each }, "relaying goes on")
		if _, err := db.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'`); err != nil {
			t.Fatal(err)
		}
	}
	writers.Wait()
	calm.Store(true)
	outboxtest.Eventually(t, time.Minute, func() bool { n, _ := rec.distinct(); return n == keys*each }, "all are relayed")
	outboxtest.Eventually(t, time.Minute, func() bool { return stuckCount(t, db, `true`) == 0 }, "nothing is left")
	assertCommitOrder(t, db, rec)
}

// A key that a window holds more of than memory may is read again, in order, while the others go on.
func TestAHotKeyIsReadAgain(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const total = 20_000
	if _, err := db.Exec(t.Context(), `
		INSERT INTO outbox.messages (uuid, topic, key, payload)
		SELECT gen_random_uuid(), 'test.notes.noted.v1', CASE WHEN n % 2 = 0 THEN 'hot' ELSE 'k' || n END, '{}' FROM generate_series(1, $1::int) AS n`, total); err != nil {
		t.Fatal(err)
	}
	rec := newRecorder()
	cfg := classified(config(db, rec))
	cfg.InFlight = 10
	start(t, cfg)
	outboxtest.Eventually(t, time.Minute, func() bool { n, _ := rec.distinct(); return n == total }, "all are relayed")
	assertCommitOrder(t, db, rec)
}

// Large messages are bounded by their bytes: of 300 MiB that could all go, and of a hot key's, little is in memory.
func TestLargeMessagesAreBoundedByTheirBytes(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const total = 300
	if _, err := db.Exec(t.Context(), `
		INSERT INTO outbox.messages (uuid, topic, key, payload)
		SELECT gen_random_uuid(), 'test.notes.noted.v1', CASE WHEN n % 3 = 0 THEN 'hot' ELSE 'k' || n END, convert_to(repeat('x', 1 << 20), 'UTF8')
		FROM generate_series(1, $1::int) AS n`, total); err != nil {
		t.Fatal(err)
	}
	rec := newRecorder()
	var out, most atomic.Int32
	enough := make(chan struct{})
	cfg := classified(config(db, rec))
	cfg.Middlewares = []message.HandlerMiddleware{func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			n := out.Add(1)
			defer out.Add(-1)
			for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
			}
			select {
			case <-enough:
			case <-t.Context().Done():
			}
			return next(msg)
		}
	}}
	start(t, cfg)
	outboxtest.Eventually(t, time.Minute, func() bool { return out.Load() >= 10*outbox.Partitions }, "messages go out")
	close(enough)
	outboxtest.Eventually(t, time.Minute, func() bool { n, _ := rec.distinct(); return n == total }, "all are relayed")
	if bound := int32(21 * outbox.Partitions); most.Load() > bound { // 16 MiB, and a page of 4
		t.Errorf("%d messages of 1 MiB were in memory at once, want at most %d", most.Load(), bound)
	}
	assertCommitOrder(t, db, rec)
}
