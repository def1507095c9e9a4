package operate_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

func (w *town) why(o *operate.Operator, id string) operate.Where {
	w.t.Helper()
	var answers []operate.Where
	outboxtest.Eventually(w.t, 10*time.Second, func() (ok bool) {
		var err error
		if answers, err = o.Why(w.context(), id); err != nil {
			w.t.Log(err) // a busy machine does not answer in time
		}
		return err == nil
	}, "Why answers")
	if len(answers) != 1 {
		w.t.Fatalf("Why = %s; want one answer", dump(answers))
	}
	return answers[0]
}

// untilWhy asks until the message is in the state.
func (w *town) untilWhy(o *operate.Operator, id uuid.UUID, state string) (answer operate.Where) {
	w.t.Helper()
	defer func() {
		if w.t.Failed() {
			w.t.Log(dump(answer))
		}
	}()
	outboxtest.Eventually(w.t, 30*time.Second, func() bool {
		answers, err := o.Why(w.context(), id.String())
		if err != nil || len(answers) != 1 { // a busy machine
			return false
		}
		answer = answers[0]
		return answer.State == state
	}, "message is %s", state)
	return answer
}

func says(t *testing.T, where operate.Where, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(where.Verdict, part) {
			t.Errorf("the verdict does not say %q: %s", part, dump(where))
		}
	}
}

func TestWhyFollowsAMessage(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	id := w.write(order{Key: "a"})[0]
	answer := w.why(o, id.String())
	says(t, answer, "committed in shop and not relayed", "no relay works on partition")
	if answer.State != "waiting" || answer.Database != "shop" || answer.Key != "a" || answer.Type != placedType || answer.Partition != outbox.PartitionOf("a") {
		t.Errorf("%s", dump(answer))
	}
	w.relay()
	answer = w.untilWhy(o, id, "relayed")
	says(t, answer, "not yet consumed by billing: queue billing.", " has 1 message and 0 consumers", "not yet consumed by mail")
	outboxtest.Eventually(t, 10*time.Second, func() bool {
		answer = w.why(o, id.String())
		return answer.RelayedAt != nil && answer.Relay == "the relay"
	}, "the cursor has passed it: %s", dump(answer))
	says(t, answer, "relayed be")
	if d := time.Since(*answer.RelayedAt); d < -time.Minute || d > time.Minute {
		t.Errorf("relayed at %s", answer.RelayedAt)
	}
	w.consume("billing", w.billing)
	outboxtest.Eventually(t, 20*time.Second, func() bool { return w.handled(w.billing, id) == 1 }, "billing handles it")
	answer = w.why(o, id.String())
	says(t, answer, "consumed by billing; not yet consumed by mail")
	if answer.State != "relayed" || len(answer.Consumers) != 2 || answer.Consumers[0].State != "handled" || answer.Consumers[0].At == nil || answer.Consumers[1].State != "queued" {
		t.Errorf("%s", dump(answer))
	}
	w.consume("mail", w.mail)
	says(t, w.untilWhy(o, id, "consumed"), "consumed by billing and mail")
}

func TestWhyNotCommitted(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	tx, err := w.shop.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(w.context()) }()
	if err := outbox.Append(t.Context(), tx, order{Key: "held"}); err != nil {
		t.Fatal(err)
	}
	answer := w.why(o, "held")
	says(t, answer, "no outbox holds a message with this id or key (held)", "in shop pid ", "idle in transaction for")
	if answer.State != "not_committed" {
		t.Errorf("%s", dump(answer))
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	says(t, w.why(o, uuid.NewString()), "no transaction that could still commit it is open")
}

func TestWhyStuckAtAConsumer(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relay()
	w.consumeAll()
	booking := uuid.NewString()
	w.fail("billing", booking, inbox.Permanent(errors.New("no such customer")))
	w.fail("mail", booking, errors.New("not now"))
	ids := w.write(order{Key: booking, N: 1}, order{Key: booking, N: 2})
	w.untilWhy(o, ids[0], "stuck")
	says(t, w.untilWhy(o, ids[1], "stuck"), "waits behind "+ids[0].String())
	var head operate.Where
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		head = w.why(o, ids[0].String())
		return head.Consumers[0].State == "parked" && head.Consumers[1].State == "stuck"
	}, "both consumers have failed")
	says(t, head, "stuck at billing: parked after 1 attempt because of permanent (no such customer)", "outboxctl stuck replay", "stuck at mail: failing because of handler (not now), tried again at 20")
	if head.Stuck == nil || head.Stuck.Consumer != "billing" || head.Consumers[0].State != "parked" || head.Consumers[1].State != "stuck" {
		t.Errorf("%s", dump(head))
	}
	// By its key: both, in order, the second behind the first.
	answers, err := o.Why(t.Context(), booking)
	if err != nil || len(answers) != 2 || answers[0].MessageID != ids[0] || answers[1].MessageID != ids[1] {
		t.Fatalf("Why = %s, %v", dump(answers), err)
	}
	if f := answers[1]; f.Head == nil || f.Head.MessageID != ids[0] || f.Consumers[0].State != "behind" {
		t.Errorf("%s", dump(f))
	}
	if _, err := o.Do(t.Context(), operate.Command{Verb: operate.VerbSkip, Filter: operate.Filter{Database: "billing", MessageID: ids[0]}, Actor: ann}); err != nil {
		t.Fatal(err)
	}
	if answer := w.why(o, ids[0].String()); answer.Consumers[0].State != "skipped" {
		t.Errorf("%s", dump(answer))
	}
}

func TestWhyStuckInTheOutbox(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relay()
	ids := w.write(order{Kind: lostType, Key: "k", N: 1}, order{Key: "k", N: 2})
	var first operate.Where
	outboxtest.Eventually(t, 30*time.Second, func() bool { first = w.why(o, ids[0].String()); return first.Stuck != nil }, "the first is stuck")
	if first.State != "no_binding" {
		t.Errorf("%s", dump(first))
	}
	says(t, first, "stuck in the outbox of shop", "because of unroutable", "tried again at", "the topology has no queue for "+lostType)
	second := w.untilWhy(o, ids[1], "stuck")
	says(t, second, "waits behind "+ids[0].String())
	if second.Head == nil || second.Head.MessageID != ids[0] {
		t.Errorf("%s", dump(second))
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		tag, err := w.shop.Exec(w.context(), `UPDATE outbox.stuck SET parked = true, class = 'too_large', error = 'huge' WHERE uuid = $1 AND claim IS NULL`, ids[0])
		return err == nil && tag.RowsAffected() == 1
	}, "the relay has the message in hand")
	says(t, w.untilWhy(o, ids[0], "stuck"), "parked after", "too_large (huge), until an operator")
	if _, err := o.Do(t.Context(), operate.Command{Verb: operate.VerbSkip, Filter: operate.Filter{Database: "shop", MessageID: ids[0]}, Actor: ann}); err != nil {
		t.Fatal(err)
	}
	says(t, w.untilWhy(o, ids[0], "skipped"), "taken out of the outbox of shop by ann", ann.Reason)
	w.consumeAll()
	w.untilWhy(o, ids[1], "consumed")
}

func TestWhyBrokerBlockedOrAway(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.relay()
	away := w.operator(func(c *operate.Config) { c.AMQPURL = "amqp://guest:guest@127.0.0.1:1/" })
	w.until(away, "a relay works", func(s operate.Status) bool { return partition(s, operate.Outbox, "", "a").Owner != "" })
	id := w.write(order{Kind: lostType, Key: "a"})[0]
	w.untilWhy(away, id, "no_binding")
	other := w.write(order{Key: "b"})[0]
	w.untilWhy(away, other, "relayed")
	w.exec(w.shop, `INSERT INTO outbox.cursor (partition, relayed, token) SELECT p, '3:3:', 0 FROM generate_series(0, 3) AS p`)
	says(t, w.untilWhy(away, other, "broker_blocked"), "the broker takes nothing: connect to the broker")
}

func TestWhyMissingAndDead(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	stop := w.relay()
	ids := w.write(order{Key: "a", N: 1}, order{Key: "a", N: 2})
	w.quiet2(o)
	stop()
	w.take(w.topology.QueueName("billing", outbox.PartitionOf("a")), 2, func(d amqp.Delivery) error {
		if d.MessageId == ids[0].String() { // one is lost, the other rejected into the dead-letter queue
			return d.Ack(false)
		}
		return d.Nack(false, false)
	})
	outboxtest.Eventually(t, 10*time.Second, func() bool {
		s, err := o.Status(t.Context())
		return err == nil && partition(s, operate.Inbox, "billing", "a").Dead == 1
	}, "one is dead")
	answer := w.why(o, ids[0].String())
	says(t, answer, "missing at billing", "outboxctl replay plan --database shop --from 20", " --key a --to-queue billing")
	i := slices.IndexFunc(answer.Consumers, func(c operate.Consumed) bool { return c.Consumer == "billing" })
	if answer.Consumers[i].State != "missing" {
		t.Errorf("%s", dump(answer))
	}
	answer = w.why(o, ids[1].String())
	says(t, answer, "dead at billing (billing.", "dead-lettered by the broker: rejected")
	if answer.State != "dead" {
		t.Errorf("%s", dump(answer))
	}
}

func TestWhyAfterARestore(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	stop := w.relay()
	id := w.write(order{Key: "a"})[0]
	w.quiet2(o)
	stop()
	w.exec(w.shop, `UPDATE outbox.identity SET timeline = '00000099'`)
	says(t, w.untilWhy(o, id, "unknown"), "whether it was relayed cannot be told", "outboxctl cursor rebase")
}

func TestWhyRefusesNonsense(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	for _, id := range []string{"", "a\x00b", strings.Repeat("x", 256)} {
		if _, err := o.Why(t.Context(), id); !errors.Is(err, operate.ErrInvalid) {
			t.Errorf("Why(%.10q) = %v", id, err)
		}
	}
}
