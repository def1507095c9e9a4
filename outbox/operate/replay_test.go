package operate_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

func (w *town) lastHour() operate.PlanRequest {
	return operate.PlanRequest{Database: "shop", From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour)}
}

func (w *town) plan(o *operate.Operator, req operate.PlanRequest) operate.Plan {
	w.t.Helper()
	p, err := o.PlanReplay(w.context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// What a consumer has lost is sent to it alone, in order and once; what it has handled is absorbed.
func TestReplayFillsAConsumersGaps(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relay()
	w.consumeAll()
	var ids []uuid.UUID
	for n := range 20 {
		ids = append(ids, w.write(order{Key: fmt.Sprint("k", n%4), N: n}, order{Kind: paidType, Key: fmt.Sprint("k", n%4), N: n})...)
	}
	outboxtest.Eventually(t, time.Minute, func() bool { return w.handled(w.mail, ids...) == 40 && w.handled(w.billing, ids...) == 20 }, "all are handled")
	w.quiet(o)

	p := w.plan(o, w.lastHour())
	if p.Messages != 40 || p.Keys != 4 || p.Types[placedType] != 20 || p.Handled["mail"] != 40 || p.Handled["billing"] != 20 || p.NotRelayed+p.Unroutable+p.Undecodable != 0 {
		t.Errorf("planned %s", dump(p))
	}
	if again := w.plan(o, p.Request); again.Hash != p.Hash {
		t.Error("the same plan has another hash")
	}
	if _, err := o.ApplyReplay(w.context(), operate.ApplyRequest{Hash: p.Hash, Canary: true, Actor: ann}); !errors.Is(err, operate.ErrRefused) {
		t.Errorf("a canary that could show nothing: %v", err)
	}
	done, err := o.ApplyReplay(w.context(), operate.ApplyRequest{Hash: p.Hash, Actor: ann})
	if err != nil || done.Published != 40 || len(done.Failed) != 0 || len(done.Audit) != 2 {
		t.Errorf("applied %+v, %v", done, err)
	}
	w.quiet(o)
	if n := get[int](w, w.mail, `SELECT count(*) FROM inbox.messages`); n != 40 {
		t.Errorf("mail has %d inbox rows, want 40: it absorbs what it has", n)
	}

	lost := ids[:6]
	w.exec(w.mail, `DELETE FROM inbox.messages WHERE message_id = ANY ($1)`, lost)
	w.exec(w.billing, `DELETE FROM inbox.messages WHERE message_id = ANY ($1)`, lost)
	before := get[int](w, w.billing, `SELECT count(*) FROM inbox.messages`)
	if _, err := o.ApplyReplay(w.context(), operate.ApplyRequest{Hash: p.Hash, Actor: ann}); !errors.Is(err, operate.ErrChanged) {
		t.Errorf("a plan whose state has changed: %v", err)
	}
	req := w.lastHour()
	req.ToQueue = "mail"
	p = w.plan(o, req)
	if p.Messages != 40 || p.Handled["mail"] != 34 || p.Handled["billing"] != 0 {
		t.Errorf("planned for mail %s", dump(p))
	}
	var told atomic.Int64
	done, err = o.ApplyReplay(w.context(), operate.ApplyRequest{Hash: p.Hash, Canary: true, Actor: ann, Progress: func(done, total int64) {
		if total == 40 {
			told.Store(done)
		}
	}})
	if err != nil || done.Published != 40 || done.Canaries == 0 || told.Load() != 40 {
		t.Errorf("applied %+v, %v, told of %d", done, err, told.Load())
	}
	outboxtest.Eventually(t, time.Minute, func() bool { return w.handled(w.mail, ids...) == 40 }, "mail has them again")
	if n := get[int](w, w.billing, `SELECT count(*) FROM inbox.messages`); n != before {
		t.Errorf("billing got %d messages of mail's replay", n-before)
	}
	entries, _, err := o.Audit(w.context(), operate.AuditFilter{Action: "replay.apply"}, operate.Page{})
	if err != nil || len(entries) != 4 || entries[0].Actor != ann {
		t.Errorf("the audit log has %d entries, %v", len(entries), err)
	}
}

// A canary that no consumer takes stops the replay.
func TestACanaryStopsAReplay(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	stop := w.relay()
	w.fail("mail", "k", errors.New("not yet"))
	mail := w.consume("mail", w.mail)
	ids := w.write(order{Kind: paidType, Key: "k", N: 0}, order{Kind: paidType, Key: "k", N: 1})
	w.untilWhy(o, ids[0], "stuck")
	w.exec(w.mail, `DELETE FROM inbox.stuck`)
	w.exec(w.mail, `DELETE FROM inbox.messages`)
	w.quiet(o)
	stop()
	p := w.plan(o, w.lastHour())
	done, err := o.ApplyReplay(w.context(), operate.ApplyRequest{Hash: p.Hash, Canary: true, Actor: ann})
	if !errors.Is(err, operate.ErrRefused) || done.Published != 1 || done.Canaries != 1 {
		t.Errorf("%+v, %v; want the canary alone", done, err)
	}
	mail()
}

func TestPlansSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	stop := w.relay()
	ids := w.write(order{Kind: lostType, Key: "nowhere"}, order{Kind: paidType, Key: "k"})
	w.untilWhy(o, ids[0], "no_binding")
	w.untilWhy(o, ids[1], "relayed")
	stop()
	w.write(order{Kind: paidType, Key: "k", N: 1})
	skip := operate.Command{Verb: operate.VerbSkip, Filter: operate.Filter{MessageID: ids[0]}, Actor: ann}
	if _, err := o.Do(w.context(), skip); err != nil {
		t.Fatal(err)
	}
	p := w.plan(o, w.lastHour())
	if p.Messages != 1 || p.NotRelayed != 1 || len(p.Warnings) != 2 {
		t.Errorf("planned %s", dump(p))
	}
	for name, change := range map[string]func(*operate.PlanRequest){
		"database": func(r *operate.PlanRequest) { r.Database = "nowhere" },
		"range":    func(r *operate.PlanRequest) { r.To = r.From },
		"queue":    func(r *operate.PlanRequest) { r.ToQueue = "nowhere" },
	} {
		req := w.lastHour()
		change(&req)
		if _, err := o.PlanReplay(w.context(), req); !errors.Is(err, operate.ErrInvalid) && !errors.Is(err, operate.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := o.ApplyReplay(w.context(), operate.ApplyRequest{Hash: "0123", Actor: ann}); !errors.Is(err, operate.ErrNotFound) {
		t.Errorf("a plan that was never made: %v", err)
	}
	if _, err := o.ApplyReplay(w.context(), operate.ApplyRequest{Hash: p.Hash}); !errors.Is(err, operate.ErrInvalid) {
		t.Errorf("nobody applies: %v", err)
	}
}
