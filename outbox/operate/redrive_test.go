package operate_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// bodies are those of a listing's messages, asked for one by one.
func bodies(t *testing.T, w *town, o *operate.Operator, list []operate.DeadMessage) (all []string) {
	t.Helper()
	for _, m := range list {
		shown, err := o.DeadShow(w.context(), m.Queue, m.Fingerprint)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(shown.Payload))
	}
	return all
}

func TestDeadLettersAreSentBackOrDiscarded(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	ch := w.channel()
	const queue, dead = "billing.0", "billing.0.dead"
	for n := range 6 {
		err := ch.PublishWithContext(w.context(), w.topology.DeadExchange(), queue, true, false, amqp.Publishing{
			Headers: amqp.Table{rabbitmq.HeaderMalformed: fmt.Sprint("reason ", n), "own": int32(n)}, MessageId: fmt.Sprint("m", n), Body: fmt.Append(nil, n),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	listed := func() []operate.DeadMessage {
		list, err := o.Dead(w.context(), queue, 0)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return len(listed()) == 6 }, "the messages are dead")
	list := listed()
	if list[3].Reason != "reason 3" || list[3].Size != 1 || list[3].Payload != nil || list[3].Queue != dead {
		t.Errorf("listed as %+v", list[3])
	}
	ann := operate.Actor{Name: "ann", Reason: "mended"}
	prints := []string{list[1].Fingerprint, list[4].Fingerprint}

	done, err := o.DeadRedrive(w.context(), operate.DeadCommand{Queue: dead, Fingerprints: prints, DryRun: true})
	if err != nil || !same(done, operate.DeadResult{DryRun: true, Matched: 2, Changed: 2}) {
		t.Errorf("dry run: %+v, %v", done, err)
	}
	if _, err := o.DeadRedrive(w.context(), operate.DeadCommand{Queue: dead, Fingerprints: prints}); !errors.Is(err, operate.ErrInvalid) {
		t.Errorf("nobody redrives: %v", err)
	}
	if _, err := o.DeadDiscard(w.context(), operate.DeadCommand{Queue: "nowhere.0", Actor: ann}); !errors.Is(err, operate.ErrNotFound) {
		t.Errorf("a queue that is not there: %v", err)
	}
	if _, err := o.DeadDiscard(w.context(), operate.DeadCommand{Queue: queue, Fingerprints: []string{"0123"}, Actor: ann}); !errors.Is(err, operate.ErrNotFound) {
		t.Errorf("a message that is not there: %v", err)
	}
	done, err = o.DeadRedrive(w.context(), operate.DeadCommand{Queue: dead, Fingerprints: prints, Actor: ann})
	if err != nil || !same(done, operate.DeadResult{Matched: 2, Changed: 2}) {
		t.Errorf("redrive: %+v, %v", done, err)
	}
	want := []int{1, 4}
	w.take(queue, 2, func(d amqp.Delivery) error {
		if string(d.Body) != fmt.Sprint(want[0]) || d.MessageId != fmt.Sprint("m", want[0]) || d.Headers["own"] != int32(want[0]) || d.Headers[rabbitmq.HeaderMalformed] != nil {
			t.Errorf("%q came back with %v, want %d as it was", d.Body, d.Headers, want[0])
		}
		want = want[1:]
		return d.Ack(false)
	})
	outboxtest.Eventually(t, 30*time.Second, func() bool { return len(listed()) == 4 }, "the others stay")
	if got := bodies(t, w, o, listed()); !slices.Equal(got, []string{"0", "2", "3", "5"}) {
		t.Errorf("left are %v, want the others in order", got)
	}

	done, err = o.DeadDiscard(w.context(), operate.DeadCommand{Queue: queue, Limit: 3, Actor: ann})
	if err != nil || !same(done, operate.DeadResult{Matched: 3, Changed: 3}) {
		t.Errorf("discard: %+v, %v", done, err)
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return len(listed()) == 1 }, "the rest is gone")
	if got := bodies(t, w, o, listed()); !slices.Equal(got, []string{"5"}) {
		t.Errorf("left are %v", got)
	}
	entries, _, err := o.Audit(w.context(), operate.AuditFilter{Action: "dead.redrive"}, operate.Page{})
	if err != nil || len(entries) != 2 || entries[0].Actor != ann {
		t.Errorf("the audit log has %+v, %v", entries, err)
	}
}

// same compares what was done; unless it was a dry run two entries of the audit log tell of it.
func same(got, want operate.DeadResult) bool {
	entries := 2
	if want.DryRun {
		entries = 0
	}
	return got.DryRun == want.DryRun && got.Matched == want.Matched && got.Changed == want.Changed && len(got.Audit) == entries
}

// Looking at many dead letters leaves them in their order.
func TestManyDeadLettersKeepTheirOrder(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	ch := w.channel()
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	const total = 600
	var last *amqp.DeferredConfirmation
	for n := range total {
		var err error
		last, err = ch.PublishWithDeferredConfirmWithContext(w.context(), w.topology.DeadExchange(), "billing.0", true, false, amqp.Publishing{
			Headers: amqp.Table{rabbitmq.HeaderMalformed: fmt.Sprint("reason ", n)}, Body: []byte("x"),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := last.WaitContext(w.context()); err != nil {
		t.Fatal(err)
	}
	for _, most := range []int{400, 500, 500} { // what is looked at twice has been given back
		var list []operate.DeadMessage
		outboxtest.Eventually(t, 30*time.Second, func() bool {
			var err error
			list, err = o.Dead(w.context(), "billing.0", most)
			return err == nil && len(list) == most
		}, "%d dead letters", most)
		for n, m := range list {
			if m.Position != n || m.Reason != fmt.Sprint("reason ", n) {
				t.Fatalf("at position %d stands %q, want that of %d", m.Position, m.Reason, n)
			}
		}
	}
}

func TestADeadLetterBehindManyIsShown(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	ch := w.channel()
	const most, listed = 120, 100
	put := func(queue, body string) {
		t.Helper()
		err := ch.PublishWithContext(w.context(), w.topology.DeadExchange(), queue, true, false, amqp.Publishing{
			Headers: amqp.Table{rabbitmq.HeaderMalformed: "no id"}, Body: []byte(body),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range most {
		put("billing.0", "ordinary")
	}
	put("billing.0", "odd")
	put("billing.1", "odd") // the same, where it is the first
	outboxtest.Eventually(t, 20*time.Second, func() bool {
		found, err := o.Dead(w.context(), "billing.0", listed)
		return err == nil && len(found) == listed
	}, "the dead letters do not arrive")
	var odd []operate.DeadMessage
	outboxtest.Eventually(t, 20*time.Second, func() (there bool) {
		var err error
		odd, err = o.Dead(w.context(), "billing.1", 1)
		return err == nil && len(odd) == 1
	}, "the odd one does not arrive")
	if odd[0].Payload != nil {
		t.Error("a list has payloads")
	}
	shown, err := o.DeadShow(w.context(), "billing.0", odd[0].Fingerprint)
	if err != nil || string(shown.Payload) != "odd" {
		t.Errorf("%q at %d, %v", shown.Payload, shown.Position, err)
	}
	done, err := o.DeadDiscard(w.context(), operate.DeadCommand{Queue: "billing.0", Fingerprints: []string{odd[0].Fingerprint}, Actor: ann})
	if err != nil || done.Changed != 1 {
		t.Errorf("%+v, %v; want one gone", done, err)
	}
	if _, err := o.DeadShow(w.context(), "billing.0", odd[0].Fingerprint); !errors.Is(err, operate.ErrNotFound) {
		t.Errorf("%v; want it gone", err)
	}
}
