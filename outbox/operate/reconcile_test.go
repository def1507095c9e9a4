package operate_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

func (w *town) reconcile(o *operate.Operator) operate.Reconciliation {
	w.t.Helper()
	r, err := o.Reconcile(w.context(), time.Now().Add(-30*time.Minute), time.Now().Add(time.Minute), 500*time.Millisecond)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func TestReconcileClean(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relay()
	w.consumeAll()
	var placed, all []uuid.UUID
	for i := range 20 {
		ids := w.write(order{Key: "a", N: i}, order{Kind: paidType, Key: "b", N: i})
		placed, all = append(placed, ids[0]), append(all, ids...)
	}
	outboxtest.Eventually(t, time.Minute, func() bool { return w.handled(w.mail, all...) == 40 && w.handled(w.billing, placed...) == 20 }, "all are handled")
	w.quiet(o)
	r := w.reconcile(o)
	if !r.Clean || r.Messages != 40 || r.Pending != 0 || r.Stuck != 0 {
		t.Errorf("%s", dump(r))
	}
}

func TestReconcileTellsWaitingFromMissing(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.consume("mail", w.mail)
	stop := w.relay()
	w.fail("mail", "bad", inbox.Permanent(errors.New("no")))
	ids := w.write(order{Key: "a", N: 1}, order{Key: "a", N: 2}, order{Kind: lostType, Key: "nowhere"}, order{Kind: paidType, Key: "bad"})
	w.quiet2(o)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return w.why(o, ids[2].String()).Stuck != nil }, "what nobody hears is stuck")
	w.untilWhy(o, ids[3], "stuck")
	stop()
	w.write(order{Key: "a", N: 3})
	// Of billing's queue, which nobody consumes yet, the first message is lost.
	r := w.reconcile(o)
	if r.Messages != 5 || r.GapsTotal != 0 || r.Pending != 3 || r.Stuck != 2 || !r.Clean {
		t.Errorf("two in a queue, one not relayed, one stuck at either side: %s", dump(r))
	}
	lost := uuid.Nil
	w.take(w.topology.QueueName("billing", outbox.PartitionOf("a")), 1, func(d amqp.Delivery) error {
		lost = uuid.MustParse(d.MessageId)
		return d.Ack(false)
	})
	w.consume("billing", w.billing)
	w.untilWhy(o, ids[1], "consumed")
	r = w.reconcile(o)
	if r.Clean || r.GapsTotal != 1 || len(r.Gaps) != 1 || r.Gaps[0].MessageID != lost || r.Gaps[0].Consumer != "billing" || r.Gaps[0].Database != "shop" || r.Gaps[0].Key != "a" {
		t.Errorf("the first is lost: %s", dump(r))
	}
}

func TestReconcileFindsWhatNobodyWrote(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relay()
	w.consumeAll()
	ids := w.write(order{Key: "a"})
	w.untilWhy(o, ids[0], "consumed")
	w.exec(w.billing, `INSERT INTO inbox.messages (message_id, consumer) VALUES ($1, 'billing')`, uuid.Must(uuid.NewV7()))
	// A second effect in another database, and a replay, which is no duplicate.
	w.exec(w.mail, `INSERT INTO inbox.messages (message_id, consumer) VALUES ($1, 'billing')`, ids[0])
	w.exec(w.mail, `INSERT INTO inbox.messages (message_id, consumer, replay) VALUES ($1, 'mail', $2)`, ids[0], uuid.New())
	r := w.reconcile(o)
	if r.Clean || r.Unknown != 1 || r.Duplicates != 1 || r.GapsTotal != 0 {
		t.Errorf("%s", dump(r))
	}
}

func TestReconcileLeavesOutWhatWasSkippedOrForgotten(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	stop := w.relay()
	w.consumeAll()
	skipped := w.write(order{Key: "k"})[0]
	w.untilWhy(o, skipped, "consumed")
	stop()
	w.exec(w.billing, `DELETE FROM inbox.messages`)
	if r := w.reconcile(o); r.GapsTotal != 1 {
		t.Fatalf("%s", dump(r))
	}
	w.exec(w.billing, `UPDATE inbox.remembered SET since = $1`, uuid.Must(uuid.NewV7()))
	if r := w.reconcile(o); r.GapsTotal != 0 {
		t.Errorf("what the inbox has forgotten is no gap: %s", dump(r))
	}
	w.exec(w.billing, `UPDATE inbox.remembered SET since = '00000000-0000-0000-0000-000000000000'`)
	w.exec(w.shop, `SELECT ops.append('ann', 'why', 'outbox.skip', jsonb_build_object('messages', jsonb_build_array($1::text)))`, skipped.String())
	if r := w.reconcile(o); r.GapsTotal != 0 {
		t.Errorf("what was skipped is no gap: %s", dump(r))
	}
}

// Ids that tell no time, and rows beyond the range, are found too; a long range takes bounded memory.
func TestReconcileManyMessages(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relay()
	w.consumeAll()
	const n = 1500
	w.exec(w.shop, `INSERT INTO outbox.messages (uuid, topic, key, payload) SELECT gen_random_uuid(), $1, 'k' || n % 1000, '{}' FROM generate_series(1, 100) AS n`, paidType)
	w.mailed(100)
	if r := w.reconcile(o); !r.Clean || r.Messages != 100 {
		t.Errorf("ids without a time: %s", dump(r))
	}
	// As if all were relayed and handled, but for one in a thousand.
	w.exec(w.shop, `
		INSERT INTO outbox.messages (uuid, topic, key, payload)
		SELECT (substr(first, 1, 8) || substr(first, 9, 5) || substr(gen_random_uuid()::text, 14))::uuid, $1, 'k' || n % 1000, '{}'
		FROM generate_series(1, $3) AS n, (SELECT inbox.first_id($2)::text AS first) AS f`, paidType, time.Now().Add(-time.Minute), n)
	w.mailed(n + 100)
	w.exec(w.mail, `DELETE FROM inbox.messages WHERE message_id IN (SELECT message_id FROM inbox.messages ORDER BY message_id LIMIT 20)`)
	start := time.Now()
	r := w.reconcile(o)
	t.Logf("%d messages in %s", r.Messages, time.Since(start))
	if r.Messages != n+100 || r.GapsTotal != 20 || r.Unknown != 0 || r.Duplicates != 0 {
		r.Gaps = nil
		t.Errorf("%s", dump(r))
	}
}

// mailed waits until mail has handled n messages.
func (w *town) mailed(n int) {
	w.t.Helper()
	outboxtest.Eventually(w.t, 2*time.Minute, func() bool { return get[int](w, w.mail, `SELECT count(*) FROM inbox.messages`) == n }, "mail handles %d messages", n)
}

func TestReconcileRefuses(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	now := time.Now()
	if _, err := o.Reconcile(t.Context(), now, now.Add(-time.Hour), 0); !errors.Is(err, operate.ErrInvalid) {
		t.Errorf("err = %v", err)
	}
	w.exec(w.shop, `UPDATE outbox.config SET topology = NULL`)
	if _, err := o.Reconcile(t.Context(), now.Add(-time.Hour), now, 0); !errors.Is(err, operate.ErrRefused) {
		t.Errorf("err = %v", err)
	}
	away := w.operator(func(c *operate.Config) { c.Databases[1].URL = "postgres://nobody@127.0.0.1:1/nothing" })
	w.store()
	r, err := away.Reconcile(t.Context(), now.Add(-time.Hour), now, 0)
	if err != nil || r.Clean || len(r.NotChecked) == 0 {
		t.Errorf("%s, %v", dump(r), err)
	}
}
