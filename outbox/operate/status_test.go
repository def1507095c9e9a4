package operate_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/operate"
)

// partition finds one line of a status.
func partition(s operate.Status, side operate.Side, consumer, key string) operate.PartitionStatus {
	for _, p := range s.Partitions {
		if p.Side == side && (side == operate.Inbox || p.Database == "shop") && p.Consumer == consumer && p.Partition == outbox.PartitionOf(key) {
			return p
		}
	}
	return operate.PartitionStatus{Partition: -1}
}

func TestStatusOfAQuietTown(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relayAll()
	w.consumeAll()
	w.write(order{Key: "a", N: 1}, order{Key: "b", N: 2})
	w.quiet(o)
	s := w.until(o, "the town is healthy", func(s operate.Status) bool { return s.Healthy })
	if len(s.Partitions) != 20 {
		t.Fatalf("%d partitions, want 4 of each outbox and 4 of each consumer: %s", len(s.Partitions), dump(s))
	}
	for _, p := range s.Partitions {
		if p.Lag != 0 || !p.LagExact || p.LagSeconds != 0 || p.Owner == "" || p.Side == operate.Inbox && p.Dead != 0 {
			t.Errorf("%s", dump(p))
		}
	}
	if owner := partition(s, operate.Outbox, "", "a").Owner; owner != "the relay" {
		t.Errorf("owner is %q", owner)
	}
}

func TestStatusCountsWhatWaits(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	for i := range 7 {
		w.write(order{Key: "a", N: i})
	}
	w.exec(w.shop, `UPDATE outbox.messages SET created_at = created_at - interval '3 minutes' WHERE id = 1`)
	s := w.counted(o)
	p := partition(s, operate.Outbox, "", "a")
	if p.Lag != 7 || !p.LagExact || p.LagSeconds < 180 || p.LagSeconds > 240 || p.Owner != "" {
		t.Errorf("%s", dump(p))
	}
	if s.Healthy || !strings.Contains(strings.Join(s.Problems, "\n"), "no relay works on it") || !strings.Contains(strings.Join(s.Problems, "\n"), " is 3m") {
		t.Errorf("problems are %q", s.Problems)
	}
}

// What is relayed of an open window, and transactions that were open when the cursor was stored, count for what they are.
func TestStatusCountsByTheCursor(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	late, err := w.shop.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback(w.context()) }()
	if err := outbox.Append(t.Context(), late, order{Key: "late"}); err != nil {
		t.Fatal(err)
	}
	stop := w.relayAll()
	w.write(order{Key: "early"})
	w.quiet2(o)
	stop()
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := w.counted(o)
	if p := partition(s, operate.Outbox, "", "late"); p.Lag != 1 {
		t.Errorf("the late one: %s", dump(p))
	}
	if p := partition(s, operate.Outbox, "", "early"); p.Lag != 0 && outbox.PartitionOf("early") != outbox.PartitionOf("late") {
		t.Errorf("the early one: %s", dump(p))
	}
	// A window of which the first two of three messages are done.
	ids := w.write(order{Key: "late", N: 1}, order{Key: "late", N: 2}, order{Key: "late", N: 3})
	w.exec(w.shop, `
		INSERT INTO outbox.cursor (partition, relayed, target, last_id, token)
		SELECT c.partition, c.relayed, pg_current_snapshot(), (SELECT id FROM outbox.messages WHERE uuid = $2), 0
		FROM outbox.cursor AS c WHERE c.partition = $1 ORDER BY seq DESC LIMIT 1`, outbox.PartitionOf("late"), ids[1])
	if p := partition(w.counted(o), operate.Outbox, "", "late"); p.Lag != 1 {
		t.Errorf("after a part of the window: %s", dump(p))
	}
}

// counted is a status in which everything could be counted: a busy machine may not do it in time.
func (w *town) counted(o *operate.Operator) operate.Status {
	w.t.Helper()
	return w.until(o, "everything is counted", func(s operate.Status) bool {
		return !slices.ContainsFunc(s.Partitions, func(p operate.PartitionStatus) bool { return p.Side == operate.Outbox && p.Lag < 0 })
	})
}

// quiet2 waits until the outbox alone is empty.
func (w *town) quiet2(o *operate.Operator) {
	w.t.Helper()
	w.until(o, "everything is relayed", func(s operate.Status) bool {
		for _, p := range s.Partitions {
			if p.Side == operate.Outbox && p.Lag != 0 {
				return false
			}
		}
		return true
	})
}

func TestStatusEstimatesALongLag(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.exec(w.shop, `INSERT INTO outbox.messages (uuid, topic, key, payload) SELECT gen_random_uuid(), $1, 'k' || n % 100, '{}' FROM generate_series(1, 60000) AS n`, placedType)
	exact := get[int64](w, w.shop, `SELECT count(*) FROM outbox.messages WHERE partition = 0`)
	s := w.counted(o)
	for _, p := range s.Partitions {
		if p.Database == "shop" && p.Partition == 0 && (p.LagExact || p.Lag < exact*3/4 || p.Lag > exact*5/4) {
			t.Errorf("lag is about %d: %s", exact, dump(p))
		}
	}
}

func TestStatusShowsWhatIsStuck(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relayAll()
	w.consumeAll()
	w.fail("billing", "bad", inbox.Permanent(errors.New("no such customer")))
	w.fail("mail", "bad", errors.New("not now"))
	for i := range 3 {
		w.write(order{Key: "bad", N: i})
	}
	w.write(order{Kind: lostType, Key: "nowhere"}, order{Kind: lostType, Key: "nowhere"})
	s := w.until(o, "all that fails is stuck", func(s operate.Status) bool {
		return partition(s, operate.Inbox, "billing", "bad").Behind == 2 && partition(s, operate.Inbox, "mail", "bad").Behind == 2 &&
			partition(s, operate.Outbox, "", "nowhere").Behind == 1
	})
	if p := partition(s, operate.Inbox, "billing", "bad"); p.Parked != 1 || p.Retrying != 0 || p.Database != "billing" {
		t.Errorf("%s", dump(p))
	}
	if p := partition(s, operate.Inbox, "mail", "bad"); p.Parked != 0 || p.Retrying != 1 {
		t.Errorf("%s", dump(p))
	}
	if p := partition(s, operate.Outbox, "", "nowhere"); p.Retrying != 1 || p.Parked != 0 {
		t.Errorf("%s", dump(p))
	}
	if s.Healthy {
		t.Error("that is no healthy town")
	}
}

func TestStatusAsksTheBroker(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.relayAll()
	w.write(order{Key: "a"}, order{Key: "a"})
	s := w.until(o, "both wait in the queue", func(s operate.Status) bool { return partition(s, operate.Inbox, "billing", "a").Lag == 2 })
	if p := partition(s, operate.Inbox, "billing", "a"); !p.LagExact || p.LagSeconds != -1 || p.Dead != 0 || p.Database != "billing" || p.Owner != "" {
		t.Errorf("%s", dump(p))
	}
	if _, err := w.channel().QueueDelete("mail.1", false, false, false); err != nil {
		t.Fatal(err)
	}
	s = w.until(o, "the queue is missed", func(s operate.Status) bool {
		return strings.Contains(strings.Join(s.Problems, "\n"), "queue mail.1 does not exist")
	})
	for _, p := range s.Partitions {
		if p.Consumer == "mail" && p.Partition == 1 && p.Lag != -1 || p.Consumer == "mail" && p.Partition == 2 && p.Lag < 0 {
			t.Errorf("%s", dump(p))
		}
	}
}

func TestStatusWithThingsAway(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator(func(c *operate.Config) {
		c.AMQPURL = "amqp://guest:guest@127.0.0.1:1/"
		c.Databases[1].URL = "postgres://nobody@127.0.0.1:1/nothing"
	})
	s, err := o.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(s.Problems, "\n")
	if !strings.Contains(all, "broker: connect") || !strings.Contains(all, "database billing") || s.Healthy {
		t.Errorf("problems are %s", all)
	}
	if p := partition(s, operate.Outbox, "", "a"); p.Lag != 0 {
		t.Errorf("what answers is shown: %s", dump(p))
	}
	if strings.Contains(fmt.Sprint(all), "guest") {
		t.Error("a password is shown")
	}
}
