package lease_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/lease"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// floor counts who works on which partition, and complains when two do.
type floor struct {
	mu   sync.Mutex
	on   map[int]string
	errs []string
}

func newFloor() *floor { return &floor{on: map[int]string{}} }

func (f *floor) work(name string) lease.Work {
	return func(ctx context.Context, held lease.Held) error {
		f.mu.Lock()
		if other, busy := f.on[held.Partition]; busy {
			f.errs = append(f.errs, name+" and "+other+" work on one partition")
		}
		f.on[held.Partition] = name
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		delete(f.on, held.Partition)
		f.mu.Unlock()
		return nil
	}
}

func (f *floor) has(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, who := range f.on {
		if who == name {
			n++
		}
	}
	return n
}

func config(pool *pgxpool.Pool) lease.Config {
	return lease.Config{
		Pool: pool, Schema: "inbox", Name: "catalog", Partitions: 4, Interval: 20 * time.Millisecond,
		Timeout: 300 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	}
}

// calm is for tests in which nobody dies: a machine that is busy kills nobody.
func calm(pool *pgxpool.Pool) lease.Config {
	cfg := config(pool)
	cfg.Timeout = 10 * time.Second
	return cfg
}

// join runs a member; leave ends it and waits.
func join(t *testing.T, cfg lease.Config, work lease.Work) (leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- lease.Run(ctx, cfg, work) }()
	var once sync.Once
	leave = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run = %v", err)
			}
		})
	}
	t.Cleanup(leave)
	return leave
}

func TestMembersShareEvenlyAndHandOver(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	f := newFloor()
	leaveA := join(t, calm(db.Pool), f.work("a"))
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("a") == 4 }, "one member has all")
	join(t, calm(db.Pool), f.work("b"))
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("a") == 2 && f.has("b") == 2 }, "two members have half each")
	join(t, calm(db.Pool), f.work("c"))
	outboxtest.Eventually(t, 10*time.Second, func() bool {
		return f.has("a")+f.has("b")+f.has("c") == 4 && f.has("c") >= 1 && f.has("a") >= 1 && f.has("b") >= 1
	},
		"each of three members has one or two")
	leaveA()
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("b") == 2 && f.has("c") == 2 }, "the others take over")
	if len(f.errs) > 0 {
		t.Error(f.errs)
	}
}

// Who leaves hands over each partition as its work ends, and does not keep the others waiting for the last one.
func TestALeavingMemberHandsOverOneByOne(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	f := newFloor()
	release := make(chan struct{})
	leaveA := join(t, calm(db.Pool), func(ctx context.Context, held lease.Held) error {
		err := f.work("a")(ctx, held)
		if held.Partition == 0 {
			<-release
		}
		return err
	})
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("a") == 4 }, "one member has all")
	join(t, calm(db.Pool), f.work("b"))
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("a") == 2 && f.has("b") == 2 }, "two members have half each")
	left := make(chan struct{})
	go func() { defer close(left); leaveA() }()
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("b") == 3 }, "the other has all but one")
	close(release)
	<-left
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("b") == 4 }, "the other has all")
}

func TestDeadMemberIsReplaced(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	dead := uuid.New()
	if _, err := db.Exec(t.Context(), `INSERT INTO inbox.members (pool, member) VALUES ('catalog', $1)`, dead); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `
		INSERT INTO inbox.leases (pool, partition, owner, token) SELECT 'catalog', n, $1, 7 FROM generate_series(0, 3) AS n`, dead); err != nil {
		t.Fatal(err)
	}
	f := newFloor()
	tokens := make(chan int64, 4)
	join(t, config(db.Pool), func(ctx context.Context, held lease.Held) error {
		tokens <- held.Token
		return f.work("b")(ctx, held)
	})
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("b") == 4 }, "the living member has all")
	for range 4 {
		if token := <-tokens; token <= 7 {
			t.Errorf("token is %d, want one above the dead member's 7", token)
		}
	}
}

func TestLostLeaseEndsTheWork(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	f := newFloor()
	join(t, config(db.Pool), f.work("a"))
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("a") == 4 }, "one member has all")
	if _, err := db.Exec(t.Context(), `UPDATE inbox.leases SET owner = gen_random_uuid(), token = token + 1 WHERE partition = 2`); err != nil {
		t.Fatal(err)
	}
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("a") == 3 }, "the work on the lost partition ends")
	outboxtest.Eventually(t, 10*time.Second, func() bool { return f.has("a") == 4 }, "the thief never beats, so it is taken back")
}

func TestWorkThatFailsIsStartedAgain(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	calls := make(chan struct{}, 100)
	cfg := config(db.Pool)
	cfg.Partitions = 1
	join(t, cfg, func(context.Context, lease.Held) error {
		calls <- struct{}{}
		return errors.New("no luck")
	})
	for range 3 {
		select {
		case <-calls:
		case <-time.After(20 * time.Second):
			t.Fatal("work is not started again")
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]lease.Config{
		"no pool":       {Schema: "inbox", Name: "x", Partitions: 1},
		"bad schema":    {Pool: new(pgxpool.Pool), Schema: "public", Name: "x", Partitions: 1},
		"no name":       {Pool: new(pgxpool.Pool), Schema: "inbox", Partitions: 1},
		"no partitions": {Pool: new(pgxpool.Pool), Schema: "inbox", Name: "x"},
	} {
		if err := lease.Run(t.Context(), cfg, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
