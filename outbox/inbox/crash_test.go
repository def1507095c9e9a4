package inbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// TestMain runs the tests, or the consumer of a crash test, which kills itself.
func TestMain(m *testing.M) {
	if text := os.Getenv("TW_INBOX_CHILD"); text != "" {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		return
	}
	_ = flag.Set("rapid.checks", "30") // some seconds; -rapid.checks chooses
	os.Exit(m.Run())
}

// step is a moment between two statements of the consumer.
type step struct {
	SQL   string // what the statement contains; empty for any of a handler or the inbox
	In    string // what an earlier statement of the same transaction contains
	After bool   // when the server has answered, not before the statement is sent
	Nth   int    // which of such moments, from 1
}

// child is what a consumer of a crash test is told.
type child struct {
	Database, Broker string
	Batch            int
	Die              step
}

func runChild(text string) error {
	var c child
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(c.Database)
	if err != nil {
		return err
	}
	config.ConnConfig.Tracer = &killer{step: c.Die, seen: map[*pgx.Conn]string{}}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return err
	}
	sub, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: c.Broker, Outstanding: testBatch}, quiet)
	if err != nil {
		return err
	}
	dead, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: c.Broker, Exchange: topology.DeadExchange()}, quiet)
	if err != nil {
		return err
	}
	cfg := crashConfig(inbox.Config{Pool: pool, Subscriber: sub, Dead: dead})
	cfg.Batch = c.Batch
	consumer, err := inbox.New(cfg)
	if err != nil {
		return err
	}
	inbox.Handle(consumer, typ, gated)
	return consumer.Run(context.Background())
}

// crashConfig is quick to retry and to take over.
func crashConfig(cfg inbox.Config) inbox.Config {
	cfg.Name, cfg.Topology, cfg.Logger, cfg.Build = "billing", topology, quiet, "test"
	cfg.Tries, cfg.MaxAttempts = 2, 1_000_000
	cfg.Look, cfg.RetryMin, cfg.RetryMax = 10*time.Millisecond, 10*time.Millisecond, 20*time.Millisecond
	cfg.LeaseInterval, cfg.LeaseTimeout = 50*time.Millisecond, 500*time.Millisecond
	return cfg
}

// gated has an effect, and then fails for the first message until the gate is open.
func gated(ctx context.Context, tx pgx.Tx, e placed) error {
	if err := record(ctx, tx, e.N); err != nil {
		return err
	}
	var open bool
	if err := tx.QueryRow(ctx, `SELECT open FROM public.gate`).Scan(&open); err != nil {
		return err
	}
	if e.N == 0 && !open {
		return errors.New("the gate is shut")
	}
	return nil
}

// killer sends this process SIGKILL at its step.
type killer struct {
	step

	mu    sync.Mutex
	count int
	seen  map[*pgx.Conn]string // the statements of its transaction
}

type sqlKey struct{}

func (k *killer) at(conn *pgx.Conn, sql string, after bool) {
	if strings.Contains(sql, "leases") || strings.Contains(sql, "members") {
		return // the beats of the lease go on beside the steps
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.Nth > 0 && after == k.After && strings.Contains(sql, k.SQL) && strings.Contains(k.seen[conn], k.In) {
		if k.count++; k.count == k.Nth {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if after {
		if sql == "begin" {
			k.seen[conn] = ""
		}
		k.seen[conn] += sql + "\n"
	}
}

func (k *killer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	k.at(conn, data.SQL, false)
	return context.WithValue(ctx, sqlKey{}, data.SQL)
}

func (k *killer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryEndData) {
	sql, _ := ctx.Value(sqlKey{}).(string)
	k.at(conn, sql, true)
}

func (k *killer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	var all strings.Builder
	for _, q := range data.Batch.QueuedQueries {
		all.WriteString(q.SQL)
	}
	k.at(conn, all.String(), false)
	return context.WithValue(ctx, sqlKey{}, all.String())
}

func (k *killer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (k *killer) TraceBatchEnd(ctx context.Context, conn *pgx.Conn, _ pgx.TraceBatchEndData) {
	sql, _ := ctx.Value(sqlKey{}).(string)
	k.at(conn, sql, true)
}

const (
	anEffect   = "INSERT INTO public.effects"
	aDiversion = "INSERT INTO inbox.stuck"
	aFailure   = "SET attempts = $3"
	aClaim     = "FOR UPDATE"
	aRelease   = "DELETE FROM inbox.stuck"
)

// The process dies between any two steps: the message that fails is neither lost nor handled twice nor overtaken by
// those behind it.
func TestKilledAtAnyStepOfAFailure(t *testing.T) {
	t.Parallel()
	const groups = 3 // each with servers' rooms of its own
	for group := range groups {
		t.Run(fmt.Sprint(group), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			for i := group; i < len(steps); i += groups {
				if !b.dies(steps[i].at) {
					t.Errorf("%s: the step was never reached", steps[i].name)
				}
				if t.Failed() {
					t.Fatal(steps[i].name)
				}
			}
		})
	}
}

var steps = []struct {
	name string
	at   step
}{
	{"in the handler that fails", step{SQL: anEffect, After: true, Nth: 1}},
	{"before the handler's rollback", step{SQL: "rollback", In: anEffect, Nth: 1}},
	{"after the handler's rollback", step{SQL: "rollback", In: anEffect, After: true, Nth: 2}},
	{"before the message is put aside", step{SQL: aDiversion, Nth: 1}},
	{"after it is put aside, before its failure", step{SQL: aFailure, In: aDiversion, Nth: 1}},
	{"before the commit of what is put aside", step{SQL: "commit", In: aDiversion, Nth: 1}},
	{"between the commit and the acknowledgement", step{SQL: "commit", In: aDiversion, After: true, Nth: 1}},
	{"before the commit of a follower", step{SQL: "commit", In: aDiversion, Nth: 2}},
	{"between a follower's commit and its ack", step{SQL: "commit", In: aDiversion, After: true, Nth: 2}},
	{"in the middle of a retry", step{SQL: aClaim, After: true, Nth: 1}},
	{"in the handler of a retry", step{SQL: anEffect, In: aClaim, After: true, Nth: 1}},
	{"after the rollback of a retry", step{SQL: "rollback", In: aClaim, After: true, Nth: 1}},
	{"after another failure is recorded", step{SQL: "commit", In: aFailure, After: true, Nth: 2}},
	{"before the release", step{SQL: aRelease, Nth: 1}},
	{"before the commit of the release", step{SQL: "commit", In: aRelease, Nth: 1}},
	{"after the commit of the release", step{SQL: "commit", In: aRelease, After: true, Nth: 1}},
	{"after the release of a follower", step{SQL: "commit", In: aRelease, After: true, Nth: 2}},
}

// dies runs a consumer that dies at the step and then another one, and checks what became of the messages. It returns
// false when the step was never reached.
func (b *bench) dies(at step) (died bool) {
	b.t.Helper()
	if _, err := b.Exec(b.t.Context(), `
		CREATE TABLE IF NOT EXISTS public.gate (open boolean); GRANT SELECT ON public.gate TO PUBLIC;
		TRUNCATE public.gate, public.effects; INSERT INTO public.gate VALUES (false)`); err != nil {
		b.t.Fatal(err)
	}
	const messages = 4
	for n := range messages {
		b.send("k0", n)
	}
	ended := b.spawn(child{Database: b.ServiceURL, Broker: b.amqp, Batch: 1, Die: at})
	open := sync.OnceFunc(func() {
		b.count(`WITH opened AS (UPDATE public.gate SET open = true RETURNING 1) SELECT count(*) FROM opened`)
	})
	outboxtest.Eventually(b.t, 30*time.Second, func() bool {
		if b.count(`SELECT count(*) FROM inbox.stuck`) == messages && b.count(`SELECT max(attempts) FROM inbox.stuck`) > 3 {
			open()
		}
		select {
		case died = <-ended:
			return true
		default:
			return b.count(`SELECT count(*) FROM public.effects`) == messages && b.count(`SELECT count(*) FROM inbox.stuck`) == 0 && at.SQL == ""
		}
	}, "the consumer does not die")
	c, err := inbox.New(crashConfig(b.config()))
	if err != nil {
		b.t.Fatal(err)
	}
	inbox.Handle(c, typ, gated)
	stop := b.run(c)
	defer stop()
	if b.count(`SELECT count(*) FROM public.effects`) < messages {
		outboxtest.Eventually(b.t, 30*time.Second, func() bool {
			return b.count(`SELECT count(*) FROM inbox.stuck`) > 0 || b.count(`SELECT count(*) FROM public.effects`) > 0
		}, "the next consumer does nothing")
	}
	open()
	b.send("k0", messages)
	b.settled("k0", upTo(messages+1))
	if n := b.count(`SELECT count(*) FROM inbox.messages WHERE state <> 'done'`); n != 0 {
		b.t.Errorf("%d messages are not done", n)
	}
	if n := b.count(`SELECT count(*) FROM inbox.stuck`); n != 0 {
		b.t.Errorf("%d messages are stuck", n)
	}
	return died
}

// spawn starts a consumer as a process of its own. The channel tells that it has ended, and whether by its own hand.
func (b *bench) spawn(c child) <-chan bool {
	b.t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TW_INBOX_CHILD="+string(text))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan bool, 1)
	var stopped sync.WaitGroup
	stopped.Go(func() {
		var exit *exec.ExitError
		ended <- errors.As(cmd.Wait(), &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	})
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		stopped.Wait()
	})
	return ended
}
