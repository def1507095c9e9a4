package chaos_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/contracts"
)

// TestTheChecksFindWhatIsBroken breaks a quiet world on purpose, one thing at a time, and wants the checks to say so.
func TestTheChecksFindWhatIsBroken(t *testing.T) {
	if *soak > 0 || *only != "" {
		t.Skip("only rows or the soak were asked for")
	}
	w := newWorld(t, raise(t), 1)
	defer w.leave(t)
	w.mode(t, false)
	w.rest(t)
	event := w.sell(t, 100)
	o := w.bookOne(t, event)
	id := o.booked.ID
	if !w.quiet(t, time.Minute, nil, nil) {
		t.FailNow()
	}
	for _, p := range w.procs {
		p.kill() // nobody mends what is broken next
	}
	sound := w.complaints(t)
	if len(sound) > 0 {
		t.Fatalf("a sound world is complained about: %s", lines(sound))
	}
	request := `(SELECT message_id FROM inbox.messages ORDER BY at DESC LIMIT 1)`
	for _, c := range []struct {
		what, service, breakIt, mend string
		want                         []string
	}{
		{"an inbox row is missing", "catalog", take("inbox.messages", "message_id = "+request),
			giveBack("inbox.messages"), []string{"I1: .* has not reached catalog", "I2: catalog has answered message"}},
		{"tickets are sold twice", "catalog", `UPDATE catalog.events SET available = available + 1, sold = sold - 1 WHERE id = '` + event + `'`,
			`UPDATE catalog.events SET available = available - 1, sold = sold + 1 WHERE id = '` + event + `'`, []string{"I4: event"}},
		{"tickets are held for nobody", "catalog", `UPDATE catalog.events SET available = available - 2, held = held + 2 WHERE id = '` + event + `'`,
			`UPDATE catalog.events SET available = available + 2, held = held - 2 WHERE id = '` + event + `'`, []string{"I4: event .* 2 held"}},
		{"a reservation is missing", "catalog", take("catalog.reservations", "booking_id = '"+id+"'"), giveBack("catalog.reservations"),
			[]string{"I4: booking", "I4: event"}},
		{"the tickets of a confirmed booking were released", "catalog", `UPDATE catalog.reservations SET hold = 'released' WHERE booking_id = '` + id + `'`,
			`UPDATE catalog.reservations SET hold = 'sold' WHERE booking_id = '` + id + `'`, []string{"I4: booking .* confirmed.* released", "I4: event"}},
		{"a booking has expired and keeps tickets and money", "booking", `UPDATE booking.bookings SET status = 'expired' WHERE id = '` + id + `'`,
			`UPDATE booking.bookings SET status = 'confirmed' WHERE id = '` + id + `'`,
			[]string{"I4: booking .* expired.* sold", "I5: booking .* expired", "I6: booking: bookings that have not ended: 1"}},
		{"a booking waits for ever", "booking", `
			UPDATE booking.bookings SET status = 'awaiting_payment', ended_at = NULL, deadline_at = 'infinity' WHERE id = '` + id + `'`,
			`UPDATE booking.bookings SET status = 'confirmed', ended_at = updated_at, deadline_at = NULL WHERE id = '` + id + `'`,
			[]string{"I4: booking .* awaiting_payment", "I5: booking", "I6: booking: bookings that have not ended: 1"}},
		{"a payment of too much", "payment", `UPDATE payment.payments SET amount_minor = amount_minor + 1 WHERE booking_id = '` + id + `'`,
			`UPDATE payment.payments SET amount_minor = amount_minor - 1 WHERE booking_id = '` + id + `'`, []string{"I5: booking", "I5: the books of EUR"}},
		{"a payment is missing", "payment", take("payment.payments", "booking_id = '"+id+"'"), giveBack("payment.payments"),
			[]string{"I5: booking", "I5: the books of EUR"}},
		{"money came and is in no payment", "payment", `
			INSERT INTO payment.ledger (id, payment_id, kind, amount_minor, currency, gateway, reference)
			SELECT gen_random_uuid(), payment_id, kind, amount_minor, currency, gateway, 'chaos' FROM payment.ledger WHERE payment_id = ` + paymentOf(id),
			`DELETE FROM payment.ledger WHERE reference = 'chaos'`, []string{"I5: booking", "I5: the books of EUR"}},
		{"the money of a confirmed booking went back", "payment", `
			INSERT INTO payment.ledger (id, payment_id, kind, amount_minor, currency, gateway, reference, gives_back)
			SELECT gen_random_uuid(), payment_id, 'refunded', amount_minor, currency, gateway, 'chaos', id FROM payment.ledger WHERE payment_id = ` + paymentOf(id),
			`DELETE FROM payment.ledger WHERE reference = 'chaos'`, []string{"I5: booking", "I5: the books of EUR"}},
		{"money that came is not in the books", "payment", take("payment.ledger", "payment_id = "+paymentOf(id)), giveBack("payment.ledger"),
			[]string{"I5: booking", "I5: the books of EUR"}},
		{"a call to the gateway is not made", "payment", `INSERT INTO payment.tasks (id, payment_id, kind, state) VALUES (gen_random_uuid(), ` + paymentOf(id) + `, 'close', 'refused')`,
			`DELETE FROM payment.tasks WHERE state = 'refused'`, []string{"I6: payment: calls to the gateway: 1"}},
		{"a saga is stuck", "saga", `
			INSERT INTO saga.instances (id, version, state, body, correlation_id, trace_parent, caused_by, created_at, updated_at)
			VALUES (gen_random_uuid(), 1, 'stuck', '{}', '', '', gen_random_uuid(), now(), now())`,
			`DELETE FROM saga.instances WHERE state = 'stuck'`, []string{"I6: saga: instances .*: 1"}},
		{"a booking is gone", "booking", take("booking.bookings", "id = '"+id+"'"), giveBack("booking.bookings"),
			[]string{"I1: booking .* is gone", "I2: the order", "I4: tickets", "I5: a payment"}},
		{"an answer has no effect", "booking", `UPDATE booking.bookings SET notified = NULL WHERE id = '` + id + `'`,
			`UPDATE booking.bookings SET notified = true WHERE id = '` + id + `'`, []string{"I2: booking has handled"}},
		{"a message from nowhere", "payment", `INSERT INTO inbox.messages (message_id, consumer) VALUES (gen_random_uuid(), 'payment')`,
			`DELETE FROM inbox.messages WHERE uuid_send(message_id) IS NOT NULL AND substr(message_id::text, 15, 1) = '4'`,
			[]string{"I1: .* in no outbox", "I2: payment has handled message"}},
		{"a message is answered twice", "payment", `
			INSERT INTO outbox.messages (uuid, topic, key, payload, metadata)
			SELECT gen_random_uuid(), topic, key, payload, metadata FROM outbox.messages WHERE key = '` + id + `' AND topic = '` + contracts.TypePaymentDataPrepared + `'`,
			`DELETE FROM outbox.messages WHERE substr(uuid::text, 15, 1) = '4'`,
			[]string{"I1: .* has not reached booking", "I1: .* was never published", "I2: payment has handled message .*:2", "I6: 1 messages of payment are not relayed"}},
		{"a version is taken over too late", "booking", `UPDATE chaos.journal SET version = version + 1 WHERE seq = (SELECT max(seq) FROM chaos.journal WHERE event_id <> '` + event + `')`,
			`UPDATE chaos.journal SET version = version - 1 WHERE seq = (SELECT max(seq) FROM chaos.journal WHERE event_id <> '` + event + `')`, []string{"I3: booking has taken over"}},
		{"a message is stuck", "payment", `INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, class) VALUES ('payment', gen_random_uuid(), 0, 't', 'k', '', '{}', 'handler')`,
			`DELETE FROM inbox.stuck`, []string{"I6: message .* is stuck in the inbox of payment: handler"}},
		{"a transaction is forgotten", "payment", `BEGIN; INSERT INTO inbox.messages (message_id, consumer) VALUES (gen_random_uuid(), 'x'); PREPARE TRANSACTION 'x'`,
			`ROLLBACK PREPARED 'x'`, []string{"I6: 1 prepared transactions"}},
	} {
		w.simple(t, c.service, c.breakIt)
		found := w.complaints(t)
		for _, want := range c.want {
			if !matches(found, want) {
				t.Errorf("%s: nobody says %q: %s", c.what, want, lines(found))
			}
		}
		if len(c.want) > 0 && len(found) > 3*len(c.want)+2 {
			t.Errorf("%s: far more is complained about than is wrong: %s", c.what, lines(found))
		}
		w.simple(t, c.service, c.mend)
		for id, m := range w.known { // what was only made up here
			if m.UUID.Version() == 4 {
				delete(w.known, id)
			}
		}
		if again := w.complaints(t); len(again) > 0 {
			t.Fatalf("%s: mended, and still: %s", c.what, lines(again))
		}
	}
	w.fromNowhere(t)
}

// noKeys lets rows go that others refer to.
const noKeys = `SET session_replication_role = replica; `

// take moves rows out of the way, into a table that giveBack takes them from.
func take(table, where string) string {
	return noKeys + `CREATE TABLE kept AS SELECT * FROM ` + table + ` WHERE ` + where + `; DELETE FROM ` + table + ` WHERE ` + where
}

func giveBack(table string) string {
	return noKeys + `INSERT INTO ` + table + ` SELECT * FROM kept; DROP TABLE kept`
}

// paymentOf is the id of a booking's payment.
func paymentOf(booking string) string {
	return `(SELECT id FROM payment.payments WHERE booking_id = '` + booking + `')`
}

// simple runs statements one by one on one connection, so that a transaction can be prepared among them.
func (w *world) simple(t *testing.T, service, statements string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.pg.url(w.prefix+service))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }() // nothing hangs on it
	for _, statement := range strings.Split(statements, ";") {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// complaints are what the checks say now.
func (w *world) complaints(t *testing.T) []string {
	t.Helper()
	p, err := w.look(t)
	if err != nil {
		t.Fatal(err)
	}
	return p.violations()
}

func matches(list []string, pattern string) bool {
	return slices.ContainsFunc(list, regexp.MustCompile(pattern).MatchString)
}

// fromNowhere lets a message that nobody wrote come to the tap, to a dead-letter queue, and to a queue.
func (w *world) fromNowhere(t *testing.T) {
	t.Helper()
	if err := w.mq.with(w.vhost, func(ch *amqp.Channel) error {
		for _, to := range []string{tapName, "catalog.0.dead", "payment.2"} {
			if err := ch.PublishWithContext(t.Context(), "", to, false, false, amqp.Publishing{MessageId: uuid.NewString(), DeliveryMode: amqp.Persistent}); err != nil {
				return err
			}
		}
		_, err := ch.QueueDeclarePassive(tapName, true, false, false, false, nil) // all has arrived when this is answered
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"I1: .* was published and is in no outbox", `I6: queue catalog\.0\.dead holds 1`, `I6: queue payment\.2 holds 1`} {
		eventually(t, 20*time.Second, func() bool { return matches(w.complaints(t), want) }, "nobody says %q", want)
	}
}

// TestTheChecksFindInversions needs no servers.
func TestTheChecksFindInversions(t *testing.T) {
	t.Parallel()
	first := &stored{ID: 1, UUID: uuid.New(), Topic: contracts.TypeUpdateEventInventory, Key: "k", source: "booking"}
	second := &stored{ID: 2, UUID: uuid.New(), Topic: contracts.TypeUpdateEventInventory, Key: "k", source: "booking"}
	answer := func(id int64, to *stored) *stored {
		return &stored{ID: id, UUID: uuid.New(), Topic: contracts.TypeInventoryUpdated, Key: "k", Cause: to.UUID, source: "catalog"}
	}
	p := &picture{messages: map[uuid.UUID]*stored{first.UUID: first, second.UUID: second}, tapped: []uuid.UUID{first.UUID, first.UUID, second.UUID, first.UUID}}
	for _, c := range []struct {
		tapped  []uuid.UUID
		answers []*stored
		want    int
	}{
		{[]uuid.UUID{first.UUID, first.UUID, second.UUID, first.UUID}, []*stored{answer(1, first), answer(2, second)}, 0},
		{[]uuid.UUID{second.UUID, first.UUID}, []*stored{answer(1, second), answer(2, first)}, 2},
	} {
		p.tapped, p.outboxes = c.tapped, map[string][]*stored{"catalog": c.answers}
		n := 0
		p.publishedInOrder(func(string, ...any) { n++ })
		p.handledInOrder(func(string, ...any) { n++ })
		if n != c.want {
			t.Errorf("%d inversions found, want %d", n, c.want)
		}
	}
	if n := (&picture{tapped: []uuid.UUID{first.UUID, second.UUID, first.UUID}}).repeated(); n != 1 {
		t.Errorf("%d repetitions, want 1", n)
	}
}

// TestMoreThanBeforeIsSeen needs no servers.
func TestMoreThanBeforeIsSeen(t *testing.T) {
	t.Parallel()
	before := baseline{goroutines: map[string]float64{"relay": 50}, connections: 9, channels: 20, relayToData: 20}
	for text, now := range map[string]baseline{
		"":           {goroutines: map[string]float64{"relay": 55}, connections: 9, channels: 20, relayToData: 22},
		"goroutines": {goroutines: map[string]float64{"relay": 80}, connections: 9, channels: 20, relayToData: 20},
		"channels":   {goroutines: map[string]float64{"relay": 50}, connections: 9, channels: 21, relayToData: 20},
		"database":   {goroutines: map[string]float64{"relay": 50}, connections: 9, channels: 20, relayToData: 40},
	} {
		if got := now.beyond(before); !strings.Contains(got, text) || (text == "") != (got == "") {
			t.Errorf("want something about %q, got %q", text, got)
		}
	}
}

// TestTheMatrixIsWhole wants each row once, and a reason for each that cannot pass.
func TestTheMatrixIsWhole(t *testing.T) {
	t.Parallel()
	for i, each := range matrix {
		if each.number != i+1 || each.fault == "" || each.run == nil || each.inject == "" {
			t.Errorf("line %d of the matrix: %+v", i+1, each.number)
		}
	}
	if len(matrix) != 37 {
		t.Errorf("%d rows, want 37", len(matrix))
	}
}
