package operate_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/relay"
)

var (
	errBlocked    = errors.New("nobody is bound")
	errBad        = errors.New("not this one")
	errBig        = errors.New("too large")
	errBrokerAway = errors.New("the broker is away")
)

// city is one outbox with a relay and a broker that fails as it is told to.
type city struct {
	*bench
	rt   tester
	stop func()
	told int      // by tell
	draw *rapid.T // of a property

	mu      sync.Mutex
	blocked map[string]bool   // types
	bad     map[string]error  // message ids, until mended
	away    bool              // takes nothing, or ...
	lossy   bool              // ... takes it and does not say so
	arrived []string          // message ids, in order of their first arrival
	bodies  map[string]string // of the first arrival
	again   []string          // that had arrived
	blurred map[string]bool   // taken without a word

	written map[string][]string // message ids of each key, in order
	key     map[string]string   // of a message
	edited  map[string]string   // bodies
	skipped map[string]bool
}

// tester is a test or one check of a property.
type tester interface {
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func newCity(b *bench, t tester) *city {
	return &city{
		bench: b, rt: t, blocked: map[string]bool{}, bad: map[string]error{}, bodies: map[string]string{}, blurred: map[string]bool{},
		written: map[string][]string{}, key: map[string]string{}, edited: map[string]string{}, skipped: map[string]bool{},
	}
}

func (c *city) Close() error { return nil }

func (c *city) Publish(_ string, msgs ...*message.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	msg := msgs[0]
	switch {
	case c.blocked[msg.Metadata.Get(outbox.HeaderType)]:
		return errBlocked
	case c.bad[msg.UUID] != nil:
		return c.bad[msg.UUID]
	case c.away:
		return errBrokerAway
	}
	if _, again := c.bodies[msg.UUID]; !again {
		c.arrived = append(c.arrived, msg.UUID)
		c.bodies[msg.UUID] = string(msg.Payload)
	} else {
		c.again = append(c.again, msg.UUID)
	}
	if c.lossy {
		c.blurred[msg.UUID] = true
		return errBrokerAway
	}
	return nil
}

func (c *city) start() {
	r, err := relay.New(relay.Config{
		Databases: []relay.Database{{Name: "shop", URL: c.RelayURL}}, Publisher: c, Logger: slog.New(slog.DiscardHandler),
		RoutingKey: func(typ string, _ int) string { return typ },
		Classify: func(err error) relay.Class {
			switch {
			case errors.Is(err, errBlocked):
				return relay.Unroutable
			case errors.Is(err, errBad):
				return relay.Failed
			case errors.Is(err, errBig):
				return relay.TooLarge
			}
			return ""
		},
		PollMax: 20 * time.Millisecond, RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond,
		LeaseInterval: 50 * time.Millisecond, LeaseTimeout: 500 * time.Millisecond, Grace: 5 * time.Second,
	})
	if err != nil {
		c.rt.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			c.rt.Errorf("Run = %v", err)
		}
	})
}

type told struct {
	typ, key string
	N        int `json:"n"`
}

func (e told) EventType() string { return e.typ }
func (e told) EventKey() string  { return e.key }

// write appends messages of one key, some of which the broker will refuse.
func (c *city) write() {
	key := rapid.SampledFrom([]string{"k0", "k1", "k2", "k3", "k4"}).Draw(c.draw, "key")
	var events []outbox.Event
	for range rapid.IntRange(1, 4).Draw(c.draw, "messages") {
		events = append(events, told{rapid.SampledFrom([]string{"a", "b"}).Draw(c.draw, "type"), key, len(c.written[key]) + len(events)})
	}
	fault := rapid.SampledFrom([]error{nil, nil, nil, errBad, errBig}).Draw(c.draw, "fault")
	// What is bad is known before the relay can see it.
	var ids []string
	c.mu.Lock()
	defer c.mu.Unlock()
	err := outbox.InTx(context.Background(), c, func(tx pgx.Tx) error { return outbox.Append(context.Background(), tx, events...) })
	if err != nil {
		c.rt.Fatal(err)
	}
	rows, err := c.Query(context.Background(), `SELECT uuid::text FROM outbox.messages WHERE key = $1 ORDER BY id`, key)
	if err == nil {
		ids, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		c.rt.Fatal(err)
	}
	for _, id := range ids[len(c.written[key]):] {
		c.key[id] = key
	}
	if fault != nil {
		c.bad[ids[len(c.written[key])]] = fault
	}
	c.written[key] = ids
}

func (c *city) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// some is one of the stuck messages in a state, or false.
func (c *city) some(state operate.State) (operate.Stuck, bool) {
	list, _, err := c.List(context.Background(), operate.Filter{Side: operate.Outbox, State: state}, operate.Page{})
	if err != nil {
		c.rt.Fatal(err)
	}
	if len(list) == 0 {
		return operate.Stuck{}, false
	}
	return list[rapid.IntRange(0, len(list)-1).Draw(c.draw, "which")], true
}

// act does a verb with one message, and reports whether it was done.
func (c *city) act(verb operate.Verb, id uuid.UUID, body string) bool {
	command := operate.Command{Verb: verb, Filter: operate.Filter{Side: operate.Outbox, MessageID: id}, Actor: ann}
	if body != "" {
		command.Payload = []byte(body)
	}
	result, err := c.Do(context.Background(), command)
	if err != nil && !errors.Is(err, operate.ErrBusy) && !errors.Is(err, operate.ErrRefused) && !errors.Is(err, operate.ErrNotFound) && !errors.Is(err, operate.ErrChanged) {
		c.rt.Fatalf("%s: %v", verb, err)
	}
	return err == nil && result.Changed == 1
}

func (c *city) skip() {
	state := rapid.SampledFrom([]operate.State{operate.Parked, operate.Retrying, operate.Behind}).Draw(c.draw, "state")
	m, ok := c.some(state)
	if !ok {
		return
	}
	id := m.MessageID.String()
	exposed := one[bool](c.bench, `SELECT coalesce((SELECT exposed FROM outbox.stuck WHERE uuid = $1), false)`, m.MessageID)
	if c.act(operate.VerbSkip, m.MessageID, "") {
		// What a relay had in hand when it was killed may have arrived before it came to be stuck.
		c.set(func() {
			_, arrived := c.bodies[id]
			c.skipped[id], c.blurred[id] = true, c.blurred[id] || exposed && arrived
		})
	}
}

func (c *city) edit() {
	if m, ok := c.some(operate.Parked); ok {
		body := fmt.Sprintf(`{"edited":%d}`, len(c.edited))
		if c.act(operate.VerbEdit, m.MessageID, body) {
			c.edited[m.MessageID.String()] = body
		}
	}
}

func (c *city) step() {
	switch op := rapid.SampledFrom([]string{"write", "write", "write", "write", "block", "unblock", "away", "lossy", "back", "mend", "kill", "restart", "replay", "skip", "park", "edit", "settle"}).Draw(c.draw, "op"); op {
	case "write":
		c.write()
	case "block":
		typ := rapid.SampledFrom([]string{"a", "b"}).Draw(c.draw, "type")
		c.set(func() { c.blocked[typ] = true })
	case "unblock":
		c.set(func() { clear(c.blocked) })
	case "away":
		c.set(func() { c.away = true })
	case "lossy":
		c.set(func() { c.lossy = true })
	case "back":
		c.set(func() { c.away, c.lossy = false, false })
	case "mend":
		c.set(func() { clear(c.bad) })
	case "kill":
		c.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'`)
	case "restart":
		c.stop()
		c.start()
	case "replay":
		if m, ok := c.some(operate.Parked); ok {
			c.act(operate.VerbReplay, m.MessageID, "")
		}
	case "skip":
		c.skip()
	case "park":
		if m, ok := c.some(operate.Retrying); ok {
			c.act(operate.VerbPark, m.MessageID, "")
		}
	case "edit":
		c.edit()
	case "settle": // something has been decided about all that there is
		c.set(func() { c.away, c.lossy = false, false })
		outboxtest.Eventually(c.t, time.Minute, func() bool {
			stuck := one[int](c.bench, `SELECT count(*) FROM outbox.stuck`)
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.arrived)+stuck+len(c.skipped) >= len(c.key)
		}, "all is relayed or stuck")
	}
}

// finish mends everything and waits until nothing is left.
func (c *city) finish() {
	c.set(func() {
		clear(c.bad)
		clear(c.blocked)
		c.away, c.lossy = false, false
	})
	outboxtest.Eventually(c.t, time.Minute, func() bool {
		if _, err := c.Do(context.Background(), operate.Command{Verb: operate.VerbReplay, Filter: operate.Filter{Side: operate.Outbox, State: operate.Parked}, Actor: ann}); err != nil && !errors.Is(err, operate.ErrNotFound) && !errors.Is(err, operate.ErrBusy) {
			c.rt.Fatal(err)
		}
		return len(c.missing()) == 0 && one[int](c.bench, `SELECT count(*) FROM outbox.stuck`) == 0
	}, "all is relayed")
}

// missing are messages that should have arrived and have not.
func (c *city) missing() (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.key {
		if _, there := c.bodies[id]; !there && !c.skipped[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// judge compares what arrived with what was written.
func (c *city) judge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := map[string][]string{}
	for _, id := range c.arrived {
		got[c.key[id]] = append(got[c.key[id]], id)
		if c.skipped[id] && !c.blurred[id] {
			c.rt.Errorf("message %s was skipped and has arrived", id)
		}
	}
	for key, ids := range c.written {
		want := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { _, there := c.bodies[id]; return c.skipped[id] && !there })
		if !slices.Equal(got[key], want) {
			c.rt.Errorf("key %s arrived as\n%s\nand was written as\n%s", key, strings.Join(got[key], "\n"), strings.Join(want, "\n"))
		}
	}
	for id, body := range c.edited {
		if got, there := c.bodies[id]; there && got != body {
			c.rt.Errorf("message %s arrived as %s, edited to %s", id, got, body)
		}
	}
}

// Any interleaving of failures of every kind, retries, operators' verbs, and crashes loses nothing, keeps the order of each
// key, and publishes what was edited as it was edited.
func TestStuckSequencesOfTheOutbox(t *testing.T) {
	t.Parallel()
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		if err := checks.Value.Set("6"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		c := newCity(newBench(t), rt)
		c.draw = rt
		c.start()
		defer func() { c.stop() }()
		for range rapid.IntRange(10, 60).Draw(rt, "steps") {
			c.step()
		}
		c.finish()
		c.stop()
		c.judge()
	})
}
