package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	schema "github.com/jcp/ticketwave/sql"
)

// stored is a row of an outbox.
type stored struct {
	ID         int64
	UUID       uuid.UUID
	Topic, Key string
	Cause      uuid.UUID // the message or the request whose handling wrote it, or none
	Payload    []byte    // of what the catalog tells about its events, and of what users were told of
	source     string
}

// picture is all that the checks look at, as it stood at one quiet moment.
type picture struct {
	topology  rabbitmq.Topology
	messages  map[uuid.UUID]*stored           // every outbox row ever seen
	outboxes  map[string][]*stored            // those that are there, by id
	inboxes   map[string]map[uuid.UUID]string // the state of each message, by consumer
	stuckIn   map[string]map[uuid.UUID]string // the class of each, by consumer
	stuckOut  map[string]map[uuid.UUID]string
	backlog   map[string]int // messages that the cursor has not passed
	prepared  int            // transactions
	tapped    []uuid.UUID    // what was published, in order, with repetitions
	queues    map[string]int // messages in each
	bookings  []bookingRow
	sold      []reservationRow
	events    []eventRow
	payments  []paymentRow
	called    map[string]bool // bookings that were cancelled at the payment service before they asked for a payment
	books     []booksRow
	undone    map[string]int                // what is still to be done, by service and kind
	mails     map[uuid.UUID]int             // notifications, by request
	journal   map[string][]int64            // versions of each event, as booking took them over
	orders    []order                       // of the clients
	appended  []uuid.UUID                   // commits confirmed to the harness
	foreign   map[uuid.UUID]bool            // published by the harness itself
	untapped  map[string]bool               // types that the tap has not heard all of
	tolerated map[uuid.UUID]string          // stuck on purpose, by class
	dead      map[string]int                // messages expected in the dead-letter queues
	wrong     []string                      // what clients complain about
	refilled  map[string]map[uuid.UUID]bool // by service: what it had lost, and a replay brought
}

type bookingRow struct {
	ID, EventID, UserID string
	TicketCount         int
	AmountMinor         int64
	Currency, Status    string
	Inventory, Payment  string
	PaymentID           *string
	Reserved            bool
	Notified            *bool
}

type reservationRow struct {
	BookingID, EventID string
	Quantity           int
	Outcome, Hold      string
}

type eventRow struct {
	ID                              string
	Capacity, Available, Held, Sold int
}

type paymentRow struct {
	ID, BookingID      string
	AmountMinor        int64
	Currency, Status   string
	Captured, Refunded int64 // in the books
}

// booksRow is a currency of the books.
type booksRow struct {
	Currency                      string
	Captured, Refunded, Completed int64
}

// keepJournal makes booking's database write down in which order it takes over what the catalog tells.
func (w *world) keepJournal(t *testing.T) {
	t.Helper()
	w.do(t, "booking", `
		CREATE SCHEMA chaos;
		CREATE TABLE chaos.journal (seq bigint GENERATED ALWAYS AS IDENTITY, event_id uuid NOT NULL, version bigint NOT NULL);
		CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
		BEGIN
			INSERT INTO chaos.journal (event_id, version) VALUES (NEW.id, NEW.version);
			RETURN NULL;
		END $$;
		CREATE TRIGGER chaos_journal AFTER INSERT OR UPDATE ON booking.events FOR EACH ROW EXECUTE FUNCTION chaos.note()`)
}

// tapName is a queue that gets a copy of everything that is published.
const tapName = "chaos.tap"

func (w *world) openTap(t *testing.T) {
	t.Helper()
	topology := w.topology(t)
	err := w.mq.with(w.vhost, func(ch *amqp.Channel) error {
		if _, err := ch.QueueDeclare(tapName, true, false, false, false, nil); err != nil {
			return err
		}
		return tapKeys(topology, func(key string) error { return ch.QueueBind(tapName, key, topology.Exchange, false, nil) })
	})
	if err != nil {
		t.Fatalf("open the tap: %v", err)
	}
}

func tapKeys(topology rabbitmq.Topology, do func(key string) error) error {
	for _, q := range topology.Queues {
		for _, typ := range q.Types {
			for p := range topology.Partitions {
				if err := do(topology.RoutingKey(typ, p)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// topology is what is stored, and so what everybody goes by.
func (w *world) topology(t *testing.T) (topology rabbitmq.Topology) {
	t.Helper()
	var document []byte
	w.admin(t, "booking", `SELECT topology FROM outbox.config`, nil, &document)
	if err := json.Unmarshal(document, &topology); err != nil {
		t.Fatalf("the stored topology: %v", err)
	}
	return topology
}

// drainTap takes over what has come to the tap. Nothing may be on its way to it. It is a classic queue, and needs no
// acknowledgements: those to a quorum queue may be lost when the channel closes right behind them.
func (w *world) drainTap() error {
	return w.mq.with(w.vhost, func(ch *amqp.Channel) error {
		left, err := ch.QueueDeclarePassive(tapName, true, false, false, false, nil)
		if err != nil {
			return err
		}
		deliveries, err := ch.Consume(tapName, "", true, true, false, false, nil)
		if err != nil {
			return err
		}
		limit := time.After(30 * time.Second)
		for n := left.Messages; n > 0; n-- {
			select {
			case d, ok := <-deliveries:
				if !ok {
					return fmt.Errorf("the tap broke off with %d messages in it", n)
				}
				id, _ := uuid.Parse(d.MessageId) // none is told by the checks
				w.tapped = append(w.tapped, id)
			case <-limit:
				return fmt.Errorf("the tap has %d messages and does not give them", n)
			}
		}
		return nil
	})
}

func collect[T any](ctx context.Context, w *world, service, query string, args ...any) ([]T, error) {
	rows, err := w.pools[service].Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", service, err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", service, err)
	}
	return found, nil
}

// look takes the picture.
func (w *world) look(t *testing.T) (*picture, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, pool := range w.pools {
		pool.Reset() // connections from before a crash
	}
	p := &picture{
		topology: w.topology(t), outboxes: map[string][]*stored{}, inboxes: map[string]map[uuid.UUID]string{},
		stuckIn: map[string]map[uuid.UUID]string{}, stuckOut: map[string]map[uuid.UUID]string{}, backlog: map[string]int{},
		called: map[string]bool{}, undone: map[string]int{}, mails: map[uuid.UUID]int{}, journal: map[string][]int64{}, foreign: maps.Clone(w.foreign),
	}
	for _, service := range schema.Services {
		if err := w.lookAt(ctx, service, p); err != nil {
			return nil, err
		}
	}
	if err := w.lookAtState(ctx, p); err != nil {
		return nil, err
	}
	if err := w.drainTap(); err != nil {
		return nil, err
	}
	var err error
	if p.queues, err = w.depths(ctx); err != nil {
		return nil, err
	}
	p.messages, p.tapped = maps.Clone(w.known), w.tapped
	w.clients.mu.Lock()
	defer w.clients.mu.Unlock()
	for _, o := range w.clients.orders {
		p.orders = append(p.orders, *o)
	}
	p.appended, p.wrong = w.clients.appended, w.clients.wrong
	return p, nil
}

// lookAt reads the outbox and the inbox of a service.
func (w *world) lookAt(ctx context.Context, service string, p *picture) error {
	rows, err := collect[struct {
		ID         int64
		UUID       uuid.UUID
		Topic, Key string
		Cause      *uuid.UUID
		Payload    []byte
	}](ctx, w, service, `
		SELECT id, uuid, topic, key, (metadata->>'causationid')::uuid, CASE WHEN topic = ANY ($1) THEN payload END FROM outbox.messages ORDER BY id`,
		[]string{contracts.TypeCatalogEventPublished, contracts.TypeNotificationSent})
	if err != nil {
		return err
	}
	for _, r := range rows {
		s := &stored{ID: r.ID, UUID: r.UUID, Topic: r.Topic, Key: r.Key, Payload: r.Payload, source: service}
		if r.Cause != nil {
			s.Cause = *r.Cause
		}
		p.outboxes[service] = append(p.outboxes[service], s)
		w.known[s.UUID] = s
	}
	type pair struct {
		ID    uuid.UUID
		State string
	}
	for into, query := range map[*map[string]map[uuid.UUID]string]string{
		&p.inboxes:  `SELECT message_id, state FROM inbox.messages WHERE consumer = '` + service + `'`,
		&p.stuckIn:  `SELECT message_id, coalesce(class, 'behind another') FROM inbox.stuck`,
		&p.stuckOut: `SELECT uuid, coalesce(class, 'behind another') FROM outbox.stuck`,
	} {
		found, err := collect[pair](ctx, w, service, query)
		if err != nil {
			return err
		}
		(*into)[service] = map[uuid.UUID]string{}
		for _, f := range found {
			(*into)[service][f.ID] = f.State
		}
	}
	p.backlog[service], err = w.backlog(ctx, service)
	if err != nil {
		return err
	}
	return w.pools[service].QueryRow(ctx, `SELECT count(*) FROM pg_prepared_xacts`).Scan(&p.prepared)
}

// backlog counts the rows that the newest cursor has not passed.
func (w *world) backlog(ctx context.Context, service string) (n int, err error) {
	err = w.pools[service].QueryRow(ctx, `
		SELECT count(*) FROM outbox.messages AS m LEFT JOIN LATERAL (
			SELECT relayed FROM outbox.cursor AS c WHERE c.partition = m.partition ORDER BY seq DESC LIMIT 1) AS c ON true
		WHERE c.relayed IS NULL OR NOT pg_visible_in_snapshot(m.transaction_id, c.relayed)`).Scan(&n)
	if err != nil {
		err = fmt.Errorf("backlog of %s: %w", service, err)
	}
	return n, err
}

// lookAtState reads what the services themselves keep.
func (w *world) lookAtState(ctx context.Context, p *picture) (err error) {
	if p.bookings, err = collect[bookingRow](ctx, w, "booking", `
		SELECT id::text, event_id::text, user_id::text, ticket_count, amount_minor, currency, status, inventory, payment,
		       payment_id::text, reserved_at IS NOT NULL, notified
		FROM booking.bookings`); err != nil {
		return err
	}
	if p.sold, err = collect[reservationRow](ctx, w, "catalog", `SELECT booking_id::text, event_id::text, quantity, outcome, hold FROM catalog.reservations`); err != nil {
		return err
	}
	if p.events, err = collect[eventRow](ctx, w, "catalog", `SELECT id::text, capacity, available, held, sold FROM catalog.events`); err != nil {
		return err
	}
	if err := w.lookAtMoney(ctx, p); err != nil {
		return err
	}
	for what, count := range undone {
		service, _, _ := strings.Cut(what, ":")
		found, err := collect[struct{ N int }](ctx, w, service, count)
		if err != nil {
			return err
		}
		p.undone[what] = found[0].N
	}
	sent, err := collect[struct{ ID uuid.UUID }](ctx, w, "notification", `SELECT message_id FROM notification.notifications`)
	if err != nil {
		return err
	}
	for _, s := range sent {
		p.mails[s.ID]++
	}
	taken, err := collect[struct {
		Event   string
		Version int64
	}](ctx, w, "booking", `SELECT event_id::text, version FROM chaos.journal ORDER BY seq`)
	if err != nil {
		return err
	}
	for _, j := range taken {
		p.journal[j.Event] = append(p.journal[j.Event], j.Version)
	}
	return nil
}

// lookAtMoney reads payments, and the books.
func (w *world) lookAtMoney(ctx context.Context, p *picture) (err error) {
	if p.payments, err = collect[paymentRow](ctx, w, "payment", `
		SELECT p.id::text, p.booking_id::text, p.amount_minor, p.currency, p.status,
		       coalesce(sum(l.amount_minor) FILTER (WHERE l.kind = 'captured'), 0)::bigint, coalesce(sum(l.amount_minor) FILTER (WHERE l.kind = 'refunded'), 0)::bigint
		FROM payment.payments AS p LEFT JOIN payment.ledger AS l ON l.payment_id = p.id GROUP BY p.id`); err != nil {
		return err
	}
	if p.books, err = collect[booksRow](ctx, w, "payment", `SELECT currency, captured_minor, refunded_minor, completed_minor FROM payment.books`); err != nil {
		return err
	}
	marks, err := collect[struct{ ID string }](ctx, w, "payment", `SELECT booking_id::text FROM payment.cancellations`)
	if err != nil {
		return err
	}
	for _, m := range marks {
		p.called[m.ID] = true
	}
	return nil
}

// undone counts what services still have to do, or could not do; the service comes first in a name.
var undone = map[string]string{
	"booking: bookings that have not ended":          `SELECT count(*) FROM booking.bookings WHERE NOT (` + isSettled + `)`,
	"payment: calls to the gateway":                  `SELECT count(*) FROM payment.tasks WHERE state <> 'done'`,
	"payment: webhooks of the sandbox":               `SELECT count(*) FROM payment.sandbox_webhooks WHERE delivered_at IS NULL`,
	"saga: instances that have not ended, or cannot": `SELECT count(*) FROM saga.instances WHERE state NOT IN ('committed', 'compensated')`,
}

// depths are the messages in each queue but the tap, those that are out for acknowledgement included.
func (w *world) depths(ctx context.Context) (map[string]int, error) {
	var queues []struct {
		Name     string
		Messages int
	}
	if err := w.mq.manage(ctx, http.MethodGet, "/api/queues/"+w.vhost, nil, &queues); err != nil {
		return nil, err
	}
	depths := map[string]int{}
	for _, q := range queues {
		if q.Name != tapName {
			depths[q.Name] = q.Messages
		}
	}
	return depths, nil
}

// outstanding says what is still on its way, or nothing. It is cheap and may err on the side of too much.
func (w *world) outstanding(dead map[string]int, tolerated map[uuid.UUID]string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var left []string
	for _, service := range schema.Services {
		n, err := w.backlog(ctx, service)
		if err != nil {
			return err.Error()
		}
		var stuckOut, stuckIn int
		err = w.pools[service].QueryRow(ctx, `
			SELECT (SELECT count(*) FROM outbox.stuck), (SELECT count(*) FROM inbox.stuck WHERE message_id <> ALL ($1))`, ids(tolerated)).Scan(&stuckOut, &stuckIn)
		if err != nil {
			return err.Error()
		}
		if n+stuckOut+stuckIn > 0 {
			left = append(left, fmt.Sprintf("%s: %d not relayed, %d in outbox.stuck, %d in inbox.stuck", service, n, stuckOut, stuckIn))
		}
	}
	for what, count := range undone {
		service, _, _ := strings.Cut(what, ":")
		var n int
		if err := w.pools[service].QueryRow(ctx, count).Scan(&n); err != nil {
			return err.Error()
		}
		if n > 0 {
			left = append(left, fmt.Sprintf("%s: %d", what, n))
		}
	}
	depths, err := w.depths(ctx)
	if err != nil {
		return err.Error()
	}
	for name, n := range depths {
		if n > dead[name] {
			left = append(left, fmt.Sprintf("queue %s: %d", name, n))
		}
	}
	return strings.Join(left, "; ")
}

func ids(of map[uuid.UUID]string) []uuid.UUID {
	list := []uuid.UUID{}
	for id := range of {
		list = append(list, id)
	}
	return list
}

// quiet waits until nothing is on its way any more.
func (w *world) quiet(t *testing.T, limit time.Duration, dead map[string]int, tolerated map[uuid.UUID]string) bool {
	t.Helper()
	last, since := "", time.Time{}
	if within(limit, func() bool {
		switch last = w.outstanding(dead, tolerated); {
		case last != "":
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		}
		return !since.IsZero() && time.Since(since) > 1500*time.Millisecond // the broker's figures are half a second old, or a little more
	}) {
		return true
	}
	t.Errorf("I6: not quiet within %s: %s", limit, last)
	return false
}
