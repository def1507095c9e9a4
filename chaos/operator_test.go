package chaos_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/operate"
	schema "github.com/jcp/ticketwave/sql"
)

var engineer = operate.Actor{Name: "chaos", Reason: "a fault was injected"}

// operator does what operators do, on the servers that the world is on. Its owner closes it.
func (r *run) operator() *operate.Operator {
	r.Helper()
	cfg := operate.Config{AMQPURL: r.w.mq.url(r.w.vhost)}
	for _, service := range schema.Services {
		cfg.Databases = append(cfg.Databases, operate.Database{Name: service, URL: r.w.databaseURL(r.T, local(r.w.pg.port), service, "operator")})
	}
	o, err := operate.New(cfg)
	if err != nil {
		r.Fatal(err)
	}
	return o
}

// named waits until the doctor names what the harness did.
func (r *run) named(check, subject string) {
	r.Helper()
	o := r.operator()
	defer o.Close()
	ctx, cancel := r.context(3 * time.Minute)
	defer cancel()
	eventually(r.T, 2*time.Minute, func() bool {
		findings, err := o.Doctor(ctx)
		if err != nil {
			return false
		}
		for _, f := range findings {
			if f.Check == check && strings.Contains(f.Subject+" "+f.Message, subject) && f.Remedy != "" {
				return true
			}
		}
		return false
	}, "the doctor does not name %s as %s", subject, check)
}

// reconciled is what reconcile finds from a time until now.
func (r *run) reconciled(o *operate.Operator, since time.Time) operate.Reconciliation {
	r.Helper()
	ctx, cancel := r.context(3 * time.Minute)
	defer cancel()
	report, err := o.Reconcile(ctx, since, time.Now(), 0)
	if err != nil {
		r.Fatalf("reconcile: %v", err)
	}
	return report
}

// whole wants reconcile to find everything where it belongs.
func (r *run) whole(o *operate.Operator, since time.Time) {
	r.Helper()
	report := r.reconciled(o, since)
	if !report.Clean || report.Pending != 0 || report.Stuck != 0 {
		r.Errorf("reconcile: %d gaps, %d duplicates, %d unknown, %d pending, %d stuck of %d messages, not checked: %v; the first gaps: %+v",
			report.GapsTotal, report.Duplicates, report.Unknown, report.Pending, report.Stuck, report.Messages, report.NotChecked,
			report.Gaps[:min(3, len(report.Gaps))])
	}
}

// mended replays what a consumer lacks, after reconcile has found it.
func (r *run) mended(o *operate.Operator, since time.Time, from, consumer string) {
	r.Helper()
	report := r.reconciled(o, since)
	lacking := 0
	for _, gap := range report.Gaps {
		if gap.Consumer == consumer {
			lacking++
		}
	}
	if lacking == 0 {
		r.Fatalf("reconcile finds nothing that %s lacks: %+v", consumer, report)
	}
	if r.refilled[consumer] == nil {
		r.refilled[consumer] = map[uuid.UUID]bool{}
	}
	maps.Copy(r.refilled[consumer], r.lacks(from, consumer))
	ctx, cancel := r.context(3 * time.Minute)
	defer cancel()
	plan, err := o.PlanReplay(ctx, operate.PlanRequest{Database: from, From: since, To: time.Now(), ToQueue: consumer})
	if err != nil {
		r.Fatalf("plan a replay: %v", err)
	}
	done, err := o.ApplyReplay(ctx, operate.ApplyRequest{Hash: plan.Hash, Canary: true, Actor: engineer})
	if err != nil || len(done.Failed) > 0 {
		r.Fatalf("replay: %v, %+v", err, done)
	}
	r.note("%d gaps of %s mended by replaying %d", lacking, consumer, done.Published)
}

// mendedRest replays what any consumer lacks still, until reconcile finds nothing.
func (r *run) mendedRest(o *operate.Operator, since time.Time) {
	r.Helper()
	for range len(schema.Services) * len(schema.Services) {
		gaps := r.reconciled(o, since).Gaps
		if len(gaps) == 0 {
			return
		}
		r.mended(o, since, gaps[0].Database, gaps[0].Consumer)
	}
	r.Fatal("replays do not fill the gaps that reconcile finds")
}

// lacks are the messages of a database that a consumer is bound to and does not have.
func (r *run) lacks(from, consumer string) map[uuid.UUID]bool {
	r.Helper()
	ctx, cancel := r.context(time.Minute)
	defer cancel()
	have, err := collect[struct{ MessageID uuid.UUID }](ctx, r.w, consumer, `SELECT message_id FROM inbox.messages`)
	if err != nil {
		r.Fatal(err)
	}
	sent, err := collect[struct {
		UUID  uuid.UUID
		Topic string
	}](ctx, r.w, from, `SELECT uuid, topic FROM outbox.messages`)
	if err != nil {
		r.Fatal(err)
	}
	lost, of := map[uuid.UUID]bool{}, picture{topology: r.w.topology(r.T)}
	for _, m := range sent {
		if slices.Contains(of.consumers(m.Topic), consumer) {
			lost[m.UUID] = true
		}
	}
	for _, m := range have {
		delete(lost, m.MessageID)
	}
	return lost
}

// rebased makes every cursor fit the server that the world is on.
func (r *run) rebased() {
	r.Helper()
	o := r.operator()
	defer o.Close()
	ctx, cancel := r.context(3 * time.Minute)
	defer cancel()
	for _, service := range schema.Services {
		done, err := o.Rebase(ctx, operate.RebaseCommand{Database: service, Actor: engineer})
		if err != nil {
			r.Fatalf("rebase %s: %v", service, err)
		}
		if service == "booking" {
			r.note("rebase of booking: %d relayed, %d to relay", done.Relayed, done.Pending)
		}
	}
}

// moveTo makes another server the world's. No program runs.
func (r *run) moveTo(pg *postgres) {
	r.Helper()
	old := r.w.stage
	r.Cleanup(func() { // the world drops its databases where it is
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := schema.Drop(ctx, old.pg.url(""), schema.TicketWave(r.w.prefix, servicePassword)); err != nil {
			r.Logf("drop the databases: %v", err)
		}
	})
	r.w.stage = old.on(pg)
	for service, pool := range r.w.pools {
		pool.Close()
		url, err := schema.URL(pg.url(""), r.w.prefix+service, "", "")
		if err != nil {
			r.Fatal(err)
		}
		if r.w.pools[service], err = pgxpool.New(context.WithoutCancel(r.Context()), url); err != nil {
			r.Fatal(err)
		}
	}
}
