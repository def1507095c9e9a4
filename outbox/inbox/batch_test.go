package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

func upTo(n int) (want []int) {
	for i := range n {
		want = append(want, i)
	}
	return want
}

// Several messages share a transaction.
func TestMessagesAreHandledTogether(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for n := range 200 {
		b.send("k", n)
	}
	var mu sync.Mutex
	transactions := map[string]bool{}
	b.start(b.config(), func(ctx context.Context, tx pgx.Tx, e placed) error {
		var id string
		if err := tx.QueryRow(ctx, `SELECT pg_current_xact_id()::text`).Scan(&id); err != nil {
			return err
		}
		mu.Lock()
		transactions[id] = true
		mu.Unlock()
		return record(ctx, tx, e.N)
	})
	outboxtest.Eventually(t, 30*time.Second, func() bool { return b.count(`SELECT count(*) FROM public.effects`) == 200 }, "all are handled")
	if got := b.effects("k"); !slices.Equal(got, upTo(200)) {
		t.Errorf("handled in the order %v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(transactions) > 150 {
		t.Errorf("200 messages took %d transactions", len(transactions))
	}
}

// A message that comes alone is handled at once; those that come one by one soon after share a transaction.
func TestMessagesThatComeOneByOneShareATransaction(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.config()
	cfg.Linger = time.Hour
	var mu sync.Mutex
	transactions := map[string]int{}
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
		var id string
		if err := tx.QueryRow(ctx, `SELECT pg_current_xact_id()::text`).Scan(&id); err != nil {
			return err
		}
		mu.Lock()
		transactions[id]++
		mu.Unlock()
		return record(ctx, tx, e.N)
	})
	handled := func(n int) func() bool {
		return func() bool { return b.count(`SELECT count(*) FROM public.effects`) == n }
	}
	b.send("k", 0)
	outboxtest.Eventually(t, 30*time.Second, handled(1), "the first is handled at once")
	for n := range testBatch {
		b.send("k", 1+n)
	}
	outboxtest.Eventually(t, 30*time.Second, handled(1+testBatch), "a full batch is handled")
	mu.Lock()
	defer mu.Unlock()
	if len(transactions) != 2 {
		t.Errorf("transactions of %v messages, want two", transactions)
	}
}

// The failure of one message in a batch is its own: the others have their effect once, those behind it wait in order.
func TestAPoisonMessageOfABatchIsAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for n := range 10 {
		for k := range 6 {
			b.send(fmt.Sprint("k", k), n)
		}
	}
	var mended atomic.Bool
	b.start(b.config(), func(ctx context.Context, tx pgx.Tx, e placed) error {
		m, _ := inbox.MetaFrom(ctx)
		if err := record(ctx, tx, e.N); err != nil {
			return err
		}
		if m.Key == "k2" && e.N == 3 && !mended.Load() {
			_, err := tx.Exec(ctx, `SELECT 1 / 0`)
			return err
		}
		return nil
	})
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		return b.count(`SELECT count(*) FROM public.effects`) == 53 && b.count(`SELECT count(*) FROM inbox.stuck`) == 7
	}, "all others are handled, the rest of the key waits")
	for k := range 6 {
		want := upTo(10)
		if k == 2 {
			want = upTo(3)
		}
		if got := b.effects(fmt.Sprint("k", k)); !slices.Equal(got, want) {
			t.Errorf("key %d: %v", k, got)
		}
	}
	mended.Store(true)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return slices.Equal(b.effects("k2"), upTo(10)) }, "the key goes on in order")
}

// Failures, panics, duplicates, and connections that break, at random: each message has its effect once, in order.
func TestBatchesUnderFaultsOfEveryKind(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.config()
	cfg.MaxAttempts = 1_000_000
	const keys, each = 12, 60
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for n := range each {
		for k := range keys {
			key := fmt.Sprint("k", k)
			msg := b.send(key, n)
			if rnd.IntN(5) == 0 {
				b.publish(key, msg)
			}
		}
	}
	var calm atomic.Bool
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
		if err := record(ctx, tx, e.N); err != nil {
			return err
		}
		m, _ := inbox.MetaFrom(ctx)
		if err := outbox.Append(ctx, tx, answered{Key: m.Key, N: e.N}); err != nil {
			return err
		}
		switch n := rand.IntN(200); {
		case calm.Load():
		case n < 4:
			return errors.New("fails at random")
		case n == 4:
			panic("at random")
		}
		return nil
	})
	for i := range 4 {
		at := (i + 1) * keys * each / 8
		outboxtest.Eventually(t, 30*time.Second, func() bool { return b.count(`SELECT count(*) FROM public.effects`) >= at }, "handling goes on")
		b.count(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename <> current_user`)
	}
	calm.Store(true)
	outboxtest.Eventually(t, time.Minute, func() bool {
		return b.count(`SELECT count(*) FROM public.effects`) >= keys*each && b.count(`SELECT count(*) FROM inbox.stuck`) == 0
	}, "all are handled")
	for k := range keys {
		if got := b.effects(fmt.Sprint("k", k)); !slices.Equal(got, upTo(each)) {
			t.Errorf("seed %d, key %d: effects %v", seed, k, got)
		}
	}
	if n := b.count(`SELECT count(*) FROM outbox.messages`); n != keys*each {
		t.Errorf("seed %d: %d answers, want %d", seed, n, keys*each)
	}
}

// answered is what a handler appends.
type answered struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (answered) EventType() string  { return "shop.billing.answered.v1" }
func (a answered) EventKey() string { return a.Key }

// Batches of several partitions change the same few rows, each named by its handler: nobody waits crosswise.
func TestBatchesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if _, err := b.Exec(t.Context(), `CREATE TABLE public.hot (id int PRIMARY KEY, n int NOT NULL DEFAULT 0); INSERT INTO public.hot (id) SELECT generate_series(0, 4); GRANT ALL ON public.hot TO PUBLIC`); err != nil {
		t.Fatal(err)
	}
	const total = 600
	for n := range total {
		b.send(fmt.Sprint("k", n), n)
	}
	c, err := inbox.New(b.config())
	if err != nil {
		t.Fatal(err)
	}
	inbox.Handle(c, typ, func(ctx context.Context, tx pgx.Tx, e placed) error {
		if _, err := tx.Exec(ctx, `UPDATE public.hot SET n = n + 1 WHERE id = $1`, e.N*7%5); err != nil {
			return err
		}
		return record(ctx, tx, e.N)
	}, inbox.Locks(func(e placed) string { return fmt.Sprint(e.N * 7 % 5) }))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	outboxtest.Eventually(t, time.Minute, func() bool { return b.count(`SELECT sum(n) FROM public.hot`) == total }, "all are handled")
	if n := b.count(`SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); n != 0 {
		t.Errorf("%d deadlocks", n)
	}
}

// What is older than the inbox's memory is not handled, because it may have been.
func TestAMessageFromBeforeTheInboxRemembersIsParked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	old := b.send("k", 1)
	if _, err := b.Exec(t.Context(), `UPDATE inbox.remembered SET since = inbox.first_id(now() + interval '1 day')`); err != nil {
		t.Fatal(err)
	}
	b.start(b.config(), func(ctx context.Context, tx pgx.Tx, e placed) error { return record(ctx, tx, e.N) })
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		return b.count(`SELECT count(*) FROM inbox.stuck WHERE parked AND class = 'too_old'`) == 1
	}, "it is parked")
	b.publish("k", old) // known now: a duplicate
	if n := b.count(`SELECT count(*) FROM public.effects`); n != 0 {
		t.Errorf("%d effects", n)
	}
}

// canned is a subscription that has handed out all its messages before it ends.
type canned chan *message.Message

func (c canned) Subscribe(context.Context, string) (<-chan *message.Message, error) { return c, nil }
func (c canned) Close() error                                                       { return nil }

// When work stops in the middle of a batch, nothing that came later is handled before what goes back.
func TestAStopInTheMiddleOfABatchKeepsOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.config()
	cfg.Topology.Partitions, cfg.Batch = 1, 4
	messages := make(canned, 8)
	for n := range cap(messages) {
		messages <- newMessage("k", typ, fmt.Sprintf(`{"n":%d}`, n))
	}
	cfg.Subscriber = messages
	c, err := inbox.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	failed := false
	inbox.Handle(c, typ, func(ctx context.Context, tx pgx.Tx, e placed) error {
		switch {
		case e.N == 2 && !failed:
			failed = true
			return errors.New("once")
		case e.N == 0 && failed:
			stop()
			close(messages)
		}
		return record(ctx, tx, e.N)
	})
	if err := c.Run(ctx); err != nil {
		t.Error(err)
	}
	if got := b.effects("k"); !slices.Equal(got, upTo(len(got))) || len(got) == 0 {
		t.Errorf("effects %v, want the first ones", got)
	}
}

// A function that takes all messages of a type gets those of different keys together, each with its own context, and
// those of one key one after the other, also between types.
func TestMessagesOfATypeComeTogether(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.config()
	cfg.Topology.Partitions, cfg.Batch = 1, 12
	const other = "shop.orders.cancelled.v1"
	messages := make(canned, 12)
	for n := range 4 {
		for k := range 3 {
			of := typ
			if (n+k)%2 == 1 {
				of = other
			}
			messages <- newMessage(fmt.Sprint("k", k), of, fmt.Sprintf(`{"n":%d}`, n))
		}
	}
	cfg.Subscriber = messages
	c, err := inbox.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	handle := func(ctx context.Context, tx pgx.Tx, items []inbox.Item[placed]) error {
		sizes = append(sizes, len(items))
		keys := map[string]bool{}
		for _, i := range items {
			m, _ := inbox.MetaFrom(i.Context())
			if keys[m.Key] {
				t.Errorf("key %s comes twice in one call", m.Key)
			}
			keys[m.Key] = true
			if err := record(i.Context(), tx, i.Event.N); err != nil {
				return err
			}
			if m.Key == "k1" && i.Event.N == 2 {
				return errors.New("not yet")
			}
		}
		return nil
	}
	inbox.HandleAll(c, typ, handle)
	inbox.HandleAll(c, other, handle)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		return b.count(`SELECT count(*) FROM public.effects`) == 10 && b.count(`SELECT count(*) FROM inbox.stuck`) == 2
	}, "the failing key waits alone")
	stop()
	close(messages)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for k, want := range [][]int{upTo(4), upTo(2), upTo(4)} {
		if got := b.effects(fmt.Sprint("k", k)); !slices.Equal(got, want) {
			t.Errorf("key %d: effects %v, want %v", k, got, want)
		}
	}
	if slices.Max(sizes) < 2 || slices.Min(sizes) != 1 {
		t.Errorf("calls of %v items, want several together, and then one by one", sizes)
	}
}
