package operate_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/relay"
)

var (
	errDown = errors.New("the broker is away")
	errSize = errors.New("the message is too large")
	errOwn  = errors.New("the message fails for now")
)

// broker takes messages, and refuses some.
type broker struct {
	mu    sync.Mutex
	forms map[string][]string // payloads by message id
	keys  map[string][]string // message ids by key, in order of first arrival
	calm  atomic.Bool
}

func (b *broker) Publish(_ string, msgs ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, msg := range msgs {
		if !b.calm.Load() {
			form := crc32.ChecksumIEEE(append([]byte(msg.UUID), msg.Payload...)) % 100
			switch n := rand.IntN(100); {
			case form < 8: // until it is edited
				return errSize
			case n < 10:
				return errOwn
			case n < 12:
				return errDown
			}
		}
		if len(b.forms[msg.UUID]) == 0 {
			key := msg.Metadata.Get(outbox.HeaderSubject)
			b.keys[key] = append(b.keys[key], msg.UUID)
		}
		b.forms[msg.UUID] = append(b.forms[msg.UUID], string(msg.Payload))
	}
	return nil
}

func (b *broker) Close() error { return nil }

func (b *broker) has(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.forms[id]) > 0
}

type note struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (note) EventType() string  { return "shop.orders.placed.v1" }
func (n note) EventKey() string { return n.Key }

// relaying runs a relay until the test ends or stop is called.
func (b *bench) relaying(to message.Publisher) (stop func()) {
	b.t.Helper()
	r, err := relay.New(relay.Config{
		Databases: []relay.Database{{Name: "shop", URL: b.RelayURL}}, Publisher: to, Build: "test", Logger: slog.New(slog.DiscardHandler),
		RoutingKey: func(typ string, partition int) string { return fmt.Sprintf("%s.%d", typ, partition) },
		Classify: func(err error) relay.Class {
			switch {
			case errors.Is(err, errSize):
				return relay.TooLarge
			case errors.Is(err, errOwn):
				return relay.Failed
			}
			return ""
		},
		PollMax: 50 * time.Millisecond, RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond,
		LeaseInterval: 50 * time.Millisecond, LeaseTimeout: 500 * time.Millisecond,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Errorf("Run = %v", err)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

// deeds are what operators did.
type deeds struct {
	mu      sync.Mutex
	edited  map[uuid.UUID]string // the newest form
	skipped map[uuid.UUID]bool
	counts  map[string]int
}

func newDeeds() *deeds {
	return &deeds{edited: map[uuid.UUID]string{}, skipped: map[uuid.UUID]bool{}, counts: map[string]int{}}
}

func (d *deeds) did(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[what]
}

// hammer does verbs at random with what is stuck, until ctx ends.
func (b *bench) hammer(ctx context.Context, side operate.Side, d *deeds) {
	for ctx.Err() == nil {
		state := []operate.State{operate.Parked, operate.Parked, operate.Behind, operate.Retrying}[rand.IntN(4)]
		list, _, err := b.List(ctx, operate.Filter{Side: side, State: state}, operate.Page{Limit: 20})
		if err != nil {
			if ctx.Err() == nil {
				b.t.Error(err)
			}
			return
		}
		for _, s := range list {
			if err := b.strike(ctx, side, s, d); err != nil {
				if ctx.Err() == nil {
					b.t.Error(err)
				}
				return
			}
		}
	}
}

// strike does one verb with one message.
func (b *bench) strike(ctx context.Context, side operate.Side, s operate.Stuck, d *deeds) error {
	c := operate.Command{Verb: operate.VerbReplay, Filter: just(side, s.MessageID), Actor: ann}
	switch n := rand.IntN(10); {
	case n == 0:
		c.Verb = operate.VerbSkip
	case n < 3:
		c.Verb = operate.VerbPark
	case n < 6:
		c.Verb, c.Payload = operate.VerbEdit, fmt.Appendf(nil, `{"n":%d,"edited":%q}`, 0, uuid.NewString())
	}
	d.mu.Lock() // one operator at a time knows which form is the newest
	defer d.mu.Unlock()
	result, err := b.Do(ctx, c)
	if result.Changed == 1 {
		d.counts[string(c.Verb)]++
		switch c.Verb {
		case operate.VerbSkip:
			d.skipped[s.MessageID] = true
		case operate.VerbEdit:
			d.edited[s.MessageID] = string(c.Payload)
		case operate.VerbReplay, operate.VerbPark:
		}
	}
	if errors.Is(err, operate.ErrBusy) || errors.Is(err, operate.ErrNotFound) || errors.Is(err, operate.ErrRefused) {
		d.counts["left"]++
		return nil
	}
	return err
}

// Operators who do verbs at random while relays work, fail, lose their connections and take over from each other: what
// nobody skipped is published, in the order of its key, and what was edited in its newest form alone.
func TestOperatorsWorkBesideRelays(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	quick, err := operate.New(operate.Config{Databases: []operate.Database{{Name: "shop", URL: b.OperatorURL}}, Patience: 700 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(quick.Close)
	b.Operator = quick
	to := &broker{forms: map[string][]string{}, keys: map[string][]string{}}
	b.relaying(to)
	stop := b.relaying(to)
	d := newDeeds()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() { b.hammer(ctx, operate.Outbox, d) })
	}
	const keys, most = 30, 400
	var writers sync.WaitGroup
	written, done := 0, make(chan struct{})
	var mu sync.Mutex
	for k := range keys {
		writers.Go(func() {
			for n := range most {
				select {
				case <-done:
					return
				default:
				}
				err := outbox.InTx(t.Context(), b, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, note{fmt.Sprint("k", k), n}) })
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				written++
				mu.Unlock()
			}
		})
	}
	for round := range 4 {
		outboxtest.Eventually(t, time.Minute, func() bool { return d.did("edit") >= 20*(round+1) && d.did("skip") > 2*round }, "operators do their work")
		if round == 2 {
			stop()
			b.relaying(to)
			continue
		}
		b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'`)
	}
	close(done)
	writers.Wait()
	cancel()
	group.Wait()
	to.calm.Store(true)
	outboxtest.Eventually(t, time.Minute, func() bool {
		b.do2(operate.Command{Verb: operate.VerbReplay})
		return one[int](b, `SELECT count(*) FROM outbox.stuck`) == 0
	}, "nothing is left")
	rows, err := b.Query(t.Context(), `SELECT uuid, key FROM outbox.messages ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	order := map[string][]string{}
	var id uuid.UUID
	var key string
	total := 0
	if _, err := pgx.ForEachRow(rows, []any{&id, &key}, func() error {
		order[key] = append(order[key], id.String())
		total++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if total != written {
		t.Fatalf("%d messages in the outbox, %d were written", total, written)
	}
	outboxtest.Eventually(t, time.Minute, func() bool {
		for _, ids := range order {
			for _, id := range ids {
				if !to.has(id) && !d.skipped[uuid.MustParse(id)] {
					return false
				}
			}
		}
		return true
	}, "all that nobody skipped is published")
	for key, ids := range order {
		got := to.keys[key]
		if want := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !slices.Contains(got, id) }); !slices.Equal(got, want) {
			t.Errorf("key %s is out of order", key)
		}
	}
	for id, form := range d.edited {
		for _, got := range to.forms[id.String()] {
			if got != form {
				t.Errorf("message %s was published as %s, want %s", id, got, form)
			}
		}
	}
	t.Logf("%d messages, operators: %v", total, d.counts)
	entries := d.counts["replay"] + d.counts["skip"] + d.counts["edit"]
	if report := b.verify(""); !report.OK || report.Entries < int64(entries) {
		t.Errorf("audit: %+v, want at least %d entries", report, entries)
	}
}
