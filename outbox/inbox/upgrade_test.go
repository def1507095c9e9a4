package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// typNew is a type that only the newer build has a handler for.
const typNew = "shop.orders.unheard-of.v1"

// placedNew is a body that only the newer build can read.
type placedNew struct {
	N any `json:"n"`
}

func (e placedNew) number() int {
	n, ok := e.N.(float64)
	if !ok {
		_, _ = fmt.Sscan(fmt.Sprint(e.N), &n)
	}
	return int(n)
}

// startNew runs the newer build.
func (b *bench) startNew(cfg inbox.Config) (stop func()) {
	cfg.Build = "new"
	c, err := inbox.New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, typ := range []string{typ, typNew} {
		inbox.Handle(c, typ, func(ctx context.Context, tx pgx.Tx, e placedNew) error { return record(ctx, tx, e.number()) })
	}
	return b.run(c)
}

// Two builds run at once. What the old one cannot read waits, or is parked, with its followers, and the new one handles
// them in order as soon as the partition is its own.
func TestARollingUpgradeKeepsOrder(t *testing.T) {
	t.Parallel()
	for name, attempts := range map[string]int{"waiting": 1000, "parked": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			cfg := b.config()
			cfg.MaxAttempts, cfg.Build = attempts, "old"
			stopOld := b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
				if m, _ := inbox.MetaFrom(ctx); m.Key[0] == 'm' && e.N%2 == 1 {
					return inbox.Unreadable(errors.New("only the newer build can handle it"))
				}
				return record(ctx, tx, e.N)
			})
			keys := []string{"k0", "k1", "l0", "l1", "m0", "m1"}
			send := func(n int) {
				for _, key := range keys {
					b.publish(key, newMessage(key, typ, fmt.Sprintf(`{"n":%d}`, n)))
					switch key[0] {
					case 'k':
						b.publish(key, newMessage(key, typNew, fmt.Sprintf(`{"n":%d}`, n+1)))
					case 'l':
						b.publish(key, newMessage(key, typ, fmt.Sprintf(`{"n":"%d"}`, n+1)))
					case 'm':
						b.publish(key, newMessage(key, typ, fmt.Sprintf(`{"n":%d}`, n+1)))
					}
				}
			}
			send(0)
			send(2)
			outboxtest.Eventually(t, 20*time.Second, func() bool {
				return b.count(`SELECT count(*) FROM inbox.stuck WHERE attempts >= 2 AND build = 'old' AND (parked OR attempts > 2)
					AND class = CASE WHEN key LIKE 'k%' THEN 'unknown_type' ELSE 'undecodable' END`) == len(keys) &&
					b.count(`SELECT count(*) FROM inbox.stuck`) == 3*len(keys)
			}, "the old build does not put the messages aside")
			for _, key := range keys {
				b.settled(key, []int{0})
			}
			newer := b.config()
			newer.MaxAttempts = attempts
			b.startNew(newer)
			outboxtest.Eventually(t, 20*time.Second, func() bool { return b.count(`SELECT count(*) FROM inbox.stuck`) == 3*len(keys)/2 }, "the new build does not handle its partition's")
			send(4)
			stopOld()
			for _, key := range keys {
				b.settled(key, upTo(6))
			}
			if n := b.count(`SELECT count(*) FROM inbox.stuck`) + b.count(`SELECT count(*) FROM inbox.messages WHERE state <> 'done'`); n != 0 {
				t.Errorf("%d messages are left", n)
			}
		})
	}
}

// Each failure keeps the build of the program that failed last.
func TestAFailureKeepsItsBuild(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	build := func() (build string) {
		_ = b.QueryRow(t.Context(), `SELECT coalesce(max(build), '') FROM inbox.stuck`).Scan(&build)
		return build
	}
	for _, name := range []string{"A", "B"} {
		cfg := b.config()
		cfg.Build, cfg.MaxAttempts = name, 1_000_000
		stop := b.start(cfg, func(context.Context, pgx.Tx, placed) error { return errors.New("no") })
		if name == "A" {
			b.send("k0", 1)
		}
		outboxtest.Eventually(t, 20*time.Second, func() bool { return build() == name }, "the failure is not of build %s", name)
		stop()
	}
}

// What an operator has parked or edited waits for the operator, whichever build could read it now.
func TestAnotherBuildLeavesWhatAnOperatorHasParked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for key, change := range map[string]string{"a0": `next_attempt = NULL`, "b0": `edited_at = clock_timestamp()`, "c0": `next_attempt = clock_timestamp()`} {
		id := b.waiting(key, 3, `{"n":0}`)
		if _, err := b.Exec(t.Context(), `UPDATE inbox.stuck SET parked = true, class = 'undecodable', build = 'old', `+change+` WHERE message_id = $1`, id); err != nil {
			t.Fatal(err)
		}
	}
	cfg := b.config()
	cfg.Build = "new"
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error { return record(ctx, tx, e.N) })
	b.settled("c0", []int{0})
	if n := b.count(`SELECT count(*) FROM inbox.stuck WHERE parked AND key IN ('a0', 'b0') AND attempts = 3`); n != 2 {
		t.Errorf("%d of 2 messages wait for the operator", n)
	}
}
