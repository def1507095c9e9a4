package main_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// answer waits until why says all of the texts, and returns what it said, as a person and as a program reads it.
func (w *town) answer(id, state string, texts ...string) (string, api.Where) {
	w.t.Helper()
	var r result
	var found api.WhereList
	outboxtest.Eventually(w.t, 40*time.Second, func() bool {
		r = w.run("why", id)
		if r.code != 0 {
			return false
		}
		for _, text := range texts {
			if !strings.Contains(r.out, text) {
				return false
			}
		}
		found = asJSON[api.WhereList](w.console, 0, "why "+id)
		return len(found.Items) > 0 && string(found.Items[0].State) == state
	}, "why %s says %q in state %s; last %s", id, texts, state, late(func() string { return r.out + r.err }))
	return r.out, found.Items[0]
}

// late is a text that is made when it is printed.
type late func() string

func (l late) String() string { return l() }

func TestWhyNotCommitted(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	tx, err := w.shop.Begin(w.context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(w.context()) }()
	if err := outbox.Append(w.context(), tx, order{Key: "held"}); err != nil {
		t.Fatal(err)
	}
	w.answer("held", "not_committed", "no outbox holds a message with this id or key (held)", "belongs to a transaction that is still open: in shop pid ", "idle in transaction for")
	if err := tx.Rollback(w.context()); err != nil {
		t.Fatal(err)
	}
	w.answer(someID, "not_committed", "no transaction that could still commit it is open")
}

func TestWhyWaitsBehindAnotherAndForARoute(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	ids := w.write("m", order{Kind: lost, Key: "k", N: 1}, order{Key: "k", N: 2})
	out, where := w.answer(ids[0], "no_binding", "stuck in the outbox of shop: failing because of unroutable", "no queue is bound to the routing key", "tried again at 20",
		"the topology has no queue for "+lost, "-> outboxctl stuck show "+ids[0])
	if where.Stuck.NextAttempt.IsZero() || where.Stuck.State != api.StateRetrying || where.Relay == "" {
		t.Errorf("%s\n%+v", out, where)
	}
	_, where = w.answer(ids[1], "stuck", "stuck in the outbox of shop: waits behind "+ids[0]+" of its key")
	if where.Head.MessageID.String() != ids[0] {
		t.Errorf("%+v", where)
	}
	w.want(0, yes("stuck park "+ids[0]))
	w.answer(ids[0], "no_binding", "parked after", "until an operator replays, edits or skips it (outboxctl stuck replay "+ids[0]+")")
	// By their key: both, in order.
	both := asJSON[api.WhereList](w.console, 0, "why k").Items
	if len(both) != 2 || both[0].MessageID.String() != ids[0] || both[1].MessageID.String() != ids[1] {
		t.Errorf("%+v", both)
	}
	w.want(0, yes("stuck skip "+ids[0]))
	w.answer(ids[0], "skipped", "taken out of the outbox of shop by olaf at 20", "(the test wants it); no consumer has it")
}

func TestWhyNamesTheRelay(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.relay.stop()
	looker := w.start("TW_RELAY_DATABASES=billing=" + w.inboxes["billing"].RelayURL)
	w.console = w.at(looker, w.console)
	id := w.write("m", order{Key: "a"})[0]
	w.answer(id, "waiting", "committed in shop and not relayed: no relay works on partition", "not relayed of partition", ": 1 message, the oldest is")
	relay := w.start()
	w.answer(id, "relayed", "not yet consumed by billing: queue billing.", "has 1 message and 0 consumers")
	owner := ""
	for _, p := range asJSON[api.Status](w.console, 3, "status").Partitions {
		if p.Database == "shop" && p.Side == api.Outbox && p.Partition == outbox.PartitionOf("a") {
			owner = p.Owner
		}
	}
	_, where := w.answer(id, "relayed", "relayed b")
	if owner == "" || where.Relay != owner {
		t.Errorf("the relay is %q, the owner %q", where.Relay, owner)
	}
	// It is its relay's, which does nothing, and nobody else takes over.
	if err := relay.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.exec(w.shop, `UPDATE outbox.members SET beat_at = clock_timestamp() + interval '1 minute'`) // however long the questions take
	second := w.write("m", order{Key: "a", N: 2})[0]
	w.answer(second, "waiting", "committed in shop and not relayed: relay "+owner+" has not come to it")
	if err := relay.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.answer(second, "relayed", "relayed b")
	w.exec(w.shop, `UPDATE outbox.identity SET timeline = '00000099'`)
	relay.stop()
	w.answer(id, "unknown", "whether it was relayed cannot be told: the relay refuses to run", "outboxctl cursor rebase")
}

func TestWhyTheBrokerIsBlockedOrAway(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.relay.stop()
	keeper := newGatekeeper(t, w.amqp)
	proxy := outboxtest.NewProxy(t, keeper.url)
	w.amqp = proxy.URL
	w.console = w.at(w.start(), w.console)
	first := w.write("m", order{Key: "a"})[0]
	w.answer(first, "relayed", "relayed b")
	keeper.block(true)
	second := w.write("m", order{Key: "a", N: 2})[0]
	out, where := w.answer(second, "broker_blocked", "committed in shop and not relayed: the broker takes nothing: ", "blocked: low memory")
	if where.Relay == "" || !strings.Contains(out, "relay") {
		t.Errorf("%s", out)
	}
	w.want(3, words("status"), "broker: ", "blocked: low memory")
	w.want(3, words("doctor"), "low memory")
	keeper.block(false)
	w.answer(second, "relayed", "relayed b")
	proxy.Down()
	third := w.write("m", order{Key: "a", N: 3})[0]
	w.answer(third, "broker_blocked", "the broker takes nothing: connect to the broker")
	proxy.Up()
	w.answer(third, "relayed", "relayed b")
}

func TestWhyConsumedBySomeAndNotByOthers(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	three := w.topology
	three.Queues = append(append([]rabbitmq.Queue{}, three.Queues...), rabbitmq.Queue{Name: "stats", Types: []string{placed}})
	w.apply(three)
	w.topology = three
	w.inboxes["stats"] = w.inboxes["mail"] // it has its inbox there
	w.fail("mail", "later", errors.New("the mail server is away"))
	w.consume("billing")
	w.consume("mail")
	stats := w.consume("stats")
	w.until(w.inboxes["mail"], `SELECT count(*) = 4 FROM inbox.leases WHERE pool = 'stats' AND owner IS NOT NULL`)
	stats()
	id := w.write("m", order{Key: "a"})[0]
	out, _ := w.answer(id, "relayed", "relayed b", "consumed by billing and mail; not yet consumed by stats: queue stats.", "has 1 message and 0 consumers")
	golden(t, "why-some", strings.TrimRight(normal(untimed(out), w.names), "\n")+"\n")
	later := w.write("later", order{Key: "later"})[0]
	_, where := w.answer(later, "stuck", "relayed b", "consumed by billing; stuck at mail: failing because of handler (the mail server is away), tried again at 20", "not yet consumed by stats")
	if where.RelayedAt.IsZero() {
		t.Errorf("not relayed at any time: %+v", where)
	}
	w.consume("stats")
	w.answer(id, "consumed", "consumed by billing and mail and stats")
	out, where = w.answer(id, "consumed", "relayed b", " 20")
	if where.RelayedAt.IsZero() || where.RelayedAt.Before(where.CreatedAt) {
		t.Errorf("%s", out)
	}
}

// untimed takes out when the message was relayed, of which more or less is known.
func untimed(text string) string {
	var lines []string
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "  relayed ") {
			continue
		}
		if i := strings.Index(line, "relayed b"); i >= 0 {
			if j := strings.Index(line[i:], ";"); j >= 0 {
				line = line[:i] + "relayed ..." + line[i+j:]
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestWhyDeadOrMissing(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.consume("mail")
	stop := w.consume("billing")
	w.until(w.inboxes["billing"], `SELECT count(*) = 4 FROM inbox.leases WHERE owner IS NOT NULL`)
	stop()
	ids := w.write("m", order{Key: "a", N: 1}, order{Key: "a", N: 2})
	w.handled("mail", ids[1])
	w.answer(ids[1], "relayed", "not yet consumed by billing")
	w.take("billing", outbox.PartitionOf("a"), ids[0])
	w.answer(ids[0], "relayed", "missing at billing: neither in its inbox nor waiting in queue billing.", "outboxctl replay plan --database shop --from 20")
	w.answer(ids[1], "dead", "dead at billing (billing.", ".dead): dead-lettered by the broker: rejected")
}

func TestWhyParkedAtAConsumer(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.consume("billing")
	w.consume("mail")
	w.fail("billing", "a", inbox.Permanent(errors.New("no such customer")))
	id := w.write("m", order{Key: "a"})[0]
	w.answer(id, "stuck", "consumed by mail; stuck at billing: parked after 1 attempt because of permanent (no such customer), until an operator")
	w.want(0, yes("stuck skip "+id))
	w.answer(id, "consumed", "consumed by mail; skipped at billing")
}
