package relay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/relay"
)

// typed is a note of any type.
type typed struct {
	note
	typ string
}

func (e typed) EventType() string { return e.typ }

func subscriberConfig(db *outboxtest.Database) relay.Config {
	cfg := config(db, nil)
	cfg.RoutingKey = nil
	cfg.LeaseTimeout = 10 * time.Second // no lease is lost because the machine is busy
	return cfg
}

func newSubscriber(t *testing.T, cfg relay.Config) *relay.Subscriber {
	t.Helper()
	s, err := relay.NewSubscriber(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func subscribe(ctx context.Context, t *testing.T, s *relay.Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	msgs, err := s.Subscribe(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

// receive takes one message without an answer.
func receive(t *testing.T, from <-chan *message.Message) (*message.Message, note) {
	t.Helper()
	select {
	case msg, ok := <-from:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return msg, noteOf(t, msg)
	case <-time.After(30 * time.Second):
		t.Fatal("no message arrives")
	}
	return nil, note{}
}

func noteOf(t *testing.T, msg *message.Message) (n note) {
	t.Helper()
	if err := json.Unmarshal(msg.Payload, &n); err != nil {
		t.Error(err)
	}
	return n
}

// expect acknowledges the given notes, which must arrive in this order.
func expect(t *testing.T, from <-chan *message.Message, want ...note) {
	t.Helper()
	for _, w := range want {
		msg, got := receive(t, from)
		if got != w {
			t.Fatalf("%v arrives, want %v", got, w)
		}
		msg.Ack()
	}
}

// expectEnd waits for a channel to be closed, and lets nothing else arrive.
func expectEnd(t *testing.T, from <-chan *message.Message) {
	t.Helper()
	select {
	case msg, ok := <-from:
		if ok {
			t.Errorf("%v arrives, want the end", noteOf(t, msg))
		}
	case <-time.After(30 * time.Second):
		t.Error("the channel is not closed")
	}
}

func ended(ctx context.Context) func() bool { return func() bool { return ctx.Err() != nil } }

// progress is how far each key is acknowledged.
type progress struct {
	mu   sync.Mutex
	next map[string]int // the number that comes next
	out  map[string]int // messages that are out
	sum  int
}

func newProgress() *progress { return &progress{next: map[string]int{}, out: map[string]int{}} }

// given notes a message that is given out. It may be one that was acknowledged before, if repeats are allowed; it may
// not be one that is behind another.
func (p *progress) given(t *testing.T, n note, repeats bool) (known bool) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out[n.Key]++; p.out[n.Key] > 1 {
		t.Errorf("%d messages of key %s are out", p.out[n.Key], n.Key)
	}
	if n.N > p.next[n.Key] || n.N < p.next[n.Key] && !repeats {
		t.Errorf("message %d of key %s is given out, want %d", n.N, n.Key, p.next[n.Key])
	}
	return n.N < p.next[n.Key]
}

// answered notes the answer, and then gives it.
func (p *progress) answered(n note, msg *message.Message, ack bool) {
	p.mu.Lock()
	if p.out[n.Key]--; ack && n.N == p.next[n.Key] {
		p.next[n.Key]++
		p.sum++
	}
	p.mu.Unlock()
	if ack {
		msg.Ack()
		return
	}
	msg.Nack()
}

func (p *progress) total() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum
}

func TestNewSubscriberRefusesWhatItDoesNotUse(t *testing.T) {
	t.Parallel()
	one := []relay.Database{{Name: "a", URL: "postgres://localhost/a"}}
	for name, cfg := range map[string]relay.Config{
		"no database":   {},
		"two databases": {Databases: append(one, one...)},
		"bad URL":       {Databases: []relay.Database{{URL: "postgres://localhost:port"}}},
		"publisher":     {Databases: one, Publisher: newRecorder()},
		"routing key":   {Databases: one, RoutingKey: func(string, int) string { return "" }},
		"classify":      {Databases: one, Classify: func(error) relay.Class { return "" }},
		"middlewares":   {Databases: one, Middlewares: []message.HandlerMiddleware{nil}},
	} {
		if _, err := relay.NewSubscriber(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Of each key one message is out at a time, and it comes again until it is acknowledged, however often it is nacked; in
// place and in outbox.stuck.
func TestSubscriberKeepsOrderAcrossNacks(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const keys, each = 20, 25
	s := newSubscriber(t, subscriberConfig(db))
	p := newProgress()
	var handlers sync.WaitGroup
	for range 2 { // subscriptions share the messages
		msgs := subscribe(t.Context(), t, s, "test.notes.noted.v1")
		handlers.Go(func() {
			for msg := range msgs {
				handlers.Go(func() {
					n := noteOf(t, msg)
					p.given(t, n, false)
					runtime.Gosched()
					p.answered(n, msg, rand.IntN(2) == 0)
				})
			}
		})
	}
	for from := 0; from < each; from += 5 {
		for k := range keys {
			appendNotes(t, db, several(fmt.Sprint("k", k), from, from+5)...)
		}
	}
	outboxtest.Eventually(t, time.Minute, func() bool { return p.total() == keys*each }, "all are acknowledged")
	outboxtest.Eventually(t, time.Minute, func() bool { return stuckCount(t, db, `true`) == 0 }, "nothing is left")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	handlers.Wait()
}

// A message that is nacked without end stops its key alone.
func TestAMessageNackedForeverStopsItsKeyAlone(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	s := newSubscriber(t, subscriberConfig(db))
	msgs := subscribe(t.Context(), t, s, "")
	good := 0
	handle := func() {
		msg, n := receive(t, msgs)
		if n.Key == "bad" {
			if n.N != 0 {
				t.Errorf("message %d of the key is given out", n.N)
			}
			msg.Nack()
			return
		}
		good++
		msg.Ack()
	}
	for round := range 5 { // each in a window of its own
		appendNotes(t, db, several("bad", 2*round, 2*round+2)...)
		for k := range 8 { // on every partition
			appendNotes(t, db, note{fmt.Sprint("good", k), round})
		}
		for good < 8*(round+1) {
			handle()
		}
	}
	for limit := time.Now().Add(30 * time.Second); stuckCount(t, db, `class = 'failed' AND attempts >= 5 AND NOT parked AND error LIKE '%nacked%'`) == 0; {
		if time.Now().After(limit) {
			t.Fatal("the message does not wait in outbox.stuck")
		}
		handle()
	}
	for { // at last it is acknowledged
		if msg, _ := receive(t, msgs); msg.Ack() {
			break
		}
	}
	for n := 1; n < 10; n++ {
		expect(t, msgs, note{"bad", n})
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == 0 }, "nothing is left")
}

// Subscribers are closed again and again while messages are out, acknowledged and not: nothing is lost, and no message
// is given out before those in front of it are acknowledged.
func TestClosingASubscriberInTheMiddleLosesNothing(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const keys, each, total = 30, 40, 30 * 40
	for from := 0; from < each; from += 10 {
		for k := range keys {
			appendNotes(t, db, several(fmt.Sprint("k", k), from, from+10)...)
		}
	}
	cfg := subscriberConfig(db)
	cfg.InFlight = 20
	p := newProgress()
	for p.total() < total {
		cfg.Grace = 50 * time.Millisecond
		if p.total()+240 >= total { // in the last round all is acknowledged
			cfg.Grace = 0
		}
		s := newSubscriber(t, cfg)
		msgs := subscribe(t.Context(), t, s, "")
		p.out = map[string]int{}
		for enough := min(p.total()+240, total); p.total() < enough; {
			msg, n := receive(t, msgs)
			known := p.given(t, n, true)
			p.answered(n, msg, known || rand.IntN(10) > 0)
		}
		var rest sync.WaitGroup
		if p.total() < total {
			for range 5 { // out when the subscriber is closed
				_, n := receive(t, msgs)
				p.given(t, n, true)
			}
		} else { // some of an earlier round come again still
			rest.Go(func() {
				for msg := range msgs {
					n := noteOf(t, msg)
					p.given(t, n, true)
					p.answered(n, msg, true)
				}
			})
			outboxtest.Eventually(t, 30*time.Second, func() bool { return allPassed(t, db) }, "the cursors pass all there is")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		rest.Wait()
		expectEnd(t, msgs)
	}
	expectOnlyNew(t, db, cfg)
}

// allPassed reports that every partition's stored cursor has passed all there is.
func allPassed(t *testing.T, db *outboxtest.Database) (all bool) {
	t.Helper()
	err := db.QueryRow(t.Context(), `
		SELECT NOT EXISTS (
			SELECT FROM outbox.messages
			WHERE NOT coalesce(pg_visible_in_snapshot(transaction_id, (outbox.relayed())[partition + 1]), false))`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// expectOnlyNew shows that the cursor of every partition has passed all there is.
func expectOnlyNew(t *testing.T, db *outboxtest.Database, cfg relay.Config) {
	t.Helper()
	want := map[string]bool{}
	for n := 0; len(want) < outbox.Partitions; n++ {
		key := fmt.Sprint("new", n)
		if p := outbox.PartitionOf(key); p == len(want) {
			want[key] = true
			appendNotes(t, db, note{key, 0})
		}
	}
	msgs := subscribe(t.Context(), t, newSubscriber(t, cfg), "")
	for range outbox.Partitions {
		msg, n := receive(t, msgs)
		if !want[n.Key] {
			t.Errorf("%v comes again", n)
		}
		msg.Ack()
	}
}

// A handler that runs when the subscriber is closed has the grace period, and its acknowledgement counts.
func TestCloseWaitsForHandlers(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	appendNotes(t, db, note{"k", 0}, note{"k", 1}, note{"other", 0})
	s := newSubscriber(t, subscriberConfig(db))
	msgs := subscribe(t.Context(), t, s, "")
	inHand := map[string]*message.Message{}
	for range 2 {
		msg, n := receive(t, msgs)
		inHand[n.Key] = msg
	}
	done := make(chan error, 1)
	go func() { done <- s.Close() }()
	expectEnd(t, msgs)
	for _, msg := range inHand {
		if msg.Context().Err() != nil {
			t.Error("a handler's context ends while it has time to finish")
		}
		msg.Ack()
		outboxtest.Eventually(t, 20*time.Second, ended(msg.Context()), "the context ends with the acknowledgement")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	cfg := subscriberConfig(db)
	expect(t, subscribe(t.Context(), t, newSubscriber(t, cfg), ""), note{"k", 1})
}

// A handler that does not answer in time loses its context, and the message is another's.
func TestCloseGivesUpOnAHandler(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	appendNotes(t, db, note{"k", 0})
	cfg := subscriberConfig(db)
	cfg.Grace = time.Millisecond
	s := newSubscriber(t, cfg)
	msg, _ := receive(t, subscribe(t.Context(), t, s, ""))
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if msg.Context().Err() == nil {
		t.Error("the context goes on after Close")
	}
	msg.Ack() // too late
	expect(t, subscribe(t.Context(), t, newSubscriber(t, cfg), ""), note{"k", 0})
}

func TestAClosedSubscriberRefuses(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	s := newSubscriber(t, subscriberConfig(db))
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if _, err := s.Subscribe(t.Context(), ""); err == nil {
		t.Error("a closed subscriber takes a subscription")
	}
}

// The empty topic is every topic, in the key's order.
func TestTheEmptyTopicIsAll(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	appendNotes(t, db, typed{note{"k", 0}, "a"}, typed{note{"k", 1}, "b"}, typed{note{"k", 2}, "a"}, typed{note{"k", 3}, "c"})
	msgs := subscribe(t.Context(), t, newSubscriber(t, subscriberConfig(db)), "")
	for n, typ := range []string{"a", "b", "a", "c"} {
		msg, got := receive(t, msgs)
		d, ok := relay.DeliveryFrom(msg.Context())
		if got != (note{"k", n}) || !ok || d.Type != typ || d.Key != "k" || d.Attempt != 1 || msg.Metadata.Get(outbox.HeaderType) != typ {
			t.Errorf("%v of %+v arrives, want number %d of type %s", got, d, n, typ)
		}
		msg.Ack()
	}
}

// A message whose topic nobody subscribes to waits, and its key with it, and goes on when somebody does.
func TestATopicNobodySubscribesToWaits(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	s := newSubscriber(t, subscriberConfig(db))
	a := subscribe(t.Context(), t, s, "a")
	appendNotes(t, db, typed{note{"k", 0}, "a"}, typed{note{"k", 1}, "b"}, typed{note{"k", 2}, "a"})
	appendNotes(t, db, typed{note{"b's", 0}, "b"})
	expect(t, a, note{"k", 0})
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		return stuckCount(t, db, `class = 'unroutable' AND topic = 'b'`) == 2 && stuckCount(t, db, `true`) == 3
	}, "the messages wait")
	appendNotes(t, db, typed{note{"a's", 0}, "a"}, typed{note{"k", 3}, "a"})
	expect(t, a, note{"a's", 0})
	ctx, cancel := context.WithCancel(t.Context())
	b := subscribe(ctx, t, s, "b")
	for range 2 {
		msg, n := receive(t, b)
		if n != (note{"k", 1}) && n != (note{"b's", 0}) {
			t.Errorf("%v arrives, want those of the topic", n)
		}
		msg.Ack()
	}
	expect(t, a, note{"k", 2}, note{"k", 3})
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `true`) == 0 }, "nothing is left")
	cancel()
	expectEnd(t, b)
	appendNotes(t, db, typed{note{"k", 4}, "b"})
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `topic = 'b'`) == 1 }, "the message waits again")
}

// A subscription that ends leaves what it has not given out to the others of its topic; the last one leaves it where it
// was, for the next.
func TestASubscriptionEndsAlone(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const keys = 50
	for k := range keys {
		appendNotes(t, db, note{fmt.Sprint("k", k), 0})
	}
	s := newSubscriber(t, subscriberConfig(db))
	ctx, cancel := context.WithCancel(t.Context())
	first := subscribe(ctx, t, s, "test.notes.noted.v1")
	inHand, n := receive(t, first) // all others wait for this subscription
	cancel()
	expectEnd(t, first)

	ctx, cancel = context.WithCancel(t.Context())
	second, third := subscribe(ctx, t, s, ""), subscribe(t.Context(), t, s, "test.notes.noted.v1")
	if !inHand.Ack() {
		t.Error("the message cannot be acknowledged")
	}
	seen := map[string]bool{n.Key: true}
	take := func(from <-chan *message.Message) {
		msg, n := receive(t, from)
		seen[n.Key] = true
		msg.Ack()
	}
	take(second)
	cancel()
	expectEnd(t, second)
	for len(seen) < keys {
		take(third)
	}
	if n := stuckCount(t, db, `true`); n != 0 {
		t.Errorf("%d messages are stuck", n)
	}
}

// InFlight bounds what is out of a partition.
func TestInFlightBoundsWhatIsOut(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const keys, bound = 40, 5
	appendNotes(t, db, inOnePartition(keys)...)
	cfg := subscriberConfig(db)
	cfg.InFlight = bound
	msgs := subscribe(t.Context(), t, newSubscriber(t, cfg), "")
	var out []*message.Message
	for taken := 0; taken < keys || len(out) > 0; {
		quiet := time.Minute
		if len(out) >= bound {
			quiet = 10 * time.Millisecond
		}
		select {
		case msg := <-msgs:
			if out = append(out, msg); len(out) > bound {
				t.Fatalf("%d messages are out", len(out))
			}
			taken++
		case <-time.After(quiet):
			if len(out) < bound {
				t.Fatalf("%d messages are out, no other comes", len(out))
			}
			for _, msg := range out {
				msg.Ack()
			}
			out = nil
		}
	}
}

// Connections that break give messages again: no message is lost, or given out before those in front of it are
// acknowledged.
func TestSubscriberSurvivesLosingItsConnections(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const keys, each = 25, 20
	for from := 0; from < each; from += 5 {
		for k := range keys {
			appendNotes(t, db, several(fmt.Sprint("k", k), from, from+5)...)
		}
	}
	cfg := subscriberConfig(db)
	cfg.InFlight = 10
	msgs := subscribe(t.Context(), t, newSubscriber(t, cfg), "")
	p := newProgress()
	for kills := 1; p.total() < keys*each; {
		msg, n := receive(t, msgs)
		p.given(t, n, true)
		if p.total() > kills*100 {
			kills++
			if _, err := db.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'`); err != nil {
				t.Fatal(err)
			}
		}
		p.answered(n, msg, true)
	}
}

// When another has taken the leases, what is out loses its context and what waits is given out no more. It all comes
// again from whoever has the leases.
func TestSubscriberLosesMessagesWithTheLease(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const keys = 20
	appendNotes(t, db, inOnePartition(keys)...)
	cfg := subscriberConfig(db)
	cfg.Grace = time.Minute // is for a clean stop
	s := newSubscriber(t, cfg)
	msgs := subscribe(t.Context(), t, s, "")
	inHand, _ := receive(t, msgs)
	own := func(owner string) {
		if _, err := db.Exec(t.Context(), `UPDATE outbox.leases SET token = token + 1, owner = `+owner); err != nil {
			t.Fatal(err)
		}
	}
	own(`gen_random_uuid()`)
	outboxtest.Eventually(t, 30*time.Second, ended(inHand.Context()), "the context of what is out ends")
	own(`NULL`)
	inHand.Ack() // too late
	seen := map[string]int{}
	for len(seen) < keys {
		msg, n := receive(t, msgs)
		seen[n.Key]++
		msg.Ack()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	expectEnd(t, msgs)
	for key, n := range seen {
		if n != 1 {
			t.Errorf("the message of key %s comes %d times", key, n)
		}
	}
}

// Two subscribers share the partitions; when one is closed the other has all.
func TestTwoSubscribersShareAndHandOver(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	p := newProgress()
	var handlers sync.WaitGroup
	var subs []*relay.Subscriber
	for range 2 {
		s := newSubscriber(t, subscriberConfig(db))
		msgs := subscribe(t.Context(), t, s, "")
		subs = append(subs, s)
		handlers.Go(func() {
			for msg := range msgs {
				n := noteOf(t, msg)
				p.given(t, n, true)
				p.answered(n, msg, true)
			}
		})
	}
	const keys, each = 20, 20
	for n := range each {
		for k := range keys {
			appendNotes(t, db, note{fmt.Sprint("k", k), n})
		}
		if n == each/2 {
			if err := subs[0].Close(); err != nil {
				t.Error(err)
			}
		}
	}
	outboxtest.Eventually(t, time.Minute, func() bool { return p.total() == keys*each }, "all are acknowledged")
	if err := subs[1].Close(); err != nil {
		t.Error(err)
	}
	handlers.Wait()
}

// Not parallel: it counts goroutines.
func TestASubscriberLeavesNothingBehind(t *testing.T) {
	db := outboxtest.NewDatabase(t, "notes")
	for k := range 100 {
		appendNotes(t, db, several(fmt.Sprint("k", k), 0, 2)...)
	}
	appendNotes(t, db, typed{note{"k", 0}, "nobody's"})
	cfg := subscriberConfig(db)
	cfg.Grace = 20 * time.Millisecond
	before := runtime.NumGoroutine()
	for range 3 {
		s := newSubscriber(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		one, two := subscribe(ctx, t, s, "test.notes.noted.v1"), subscribe(t.Context(), t, s, "test.notes.noted.v1")
		acked, _ := receive(t, one)
		nacked, _ := receive(t, two)
		_, _ = receive(t, two) // without an answer
		acked.Ack()
		nacked.Nack()
		cancel()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	stacks := func() string {
		buf := make([]byte, 1<<20)
		return string(buf[:runtime.Stack(buf, true)])
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool { return runtime.NumGoroutine() <= before && !strings.Contains(stacks(), "relay.(*") },
		"the goroutines end, before there were %d", before)
	outboxtest.Eventually(t, 20*time.Second, func() bool {
		var n int
		err := db.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'`).Scan(&n)
		return err == nil && n == 0
	}, "the connections end")
}
