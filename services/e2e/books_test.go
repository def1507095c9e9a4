package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/services/internal/bus"
	schema "github.com/jcp/ticketwave/sql"
)

// open counts what is not done yet, by service.
var open = []struct{ service, what, query string }{
	{"booking", "bookings have not ended", `SELECT count(*) FROM booking.bookings WHERE ended_at IS NULL`},
	{"catalog", "tickets are held", `SELECT coalesce(sum(held), 0) FROM catalog.events`},
	{"payment", "payments can be made", `SELECT count(*) FROM payment.payments WHERE status IN ('preparing', 'prepared')`},
	{"payment", "tasks at the gateway are not done", `SELECT count(*) FROM payment.tasks WHERE state <> 'done'`},
	{"payment", "webhooks are not delivered", `SELECT count(*) FROM payment.sandbox_webhooks WHERE delivered_at IS NULL`},
	{"saga", "sagas have not ended", `SELECT count(*) FROM saga.instances WHERE state NOT IN ('committed', 'compensated')`},
}

// underWay is what has not come to its end in the city, in bookings and in messages; empty when all is at rest. What is
// counted while it moves may hide something, but not twice.
func (c *city) underWay(t *testing.T) (list []string) {
	for _, o := range open {
		if n := count(t, c.pool(o.service), o.query); n > 0 {
			list = append(list, fmt.Sprintf("%d %s", n, o.what))
		}
	}
	written := map[string]int{}
	for _, service := range schema.Services {
		for _, topic := range all(t, c, service, pgx.RowToStructByPos[counted], `SELECT topic, count(*) FROM outbox.messages GROUP BY topic`) {
			written[topic.What] += topic.N
		}
	}
	for _, queue := range contracts.Topology().Queues {
		want := 0
		for _, typ := range queue.Types {
			want += written[typ]
		}
		if n := count(t, c.pool(queue.Name), `SELECT count(*) FROM inbox.messages WHERE state = 'done'`); n != want {
			list = append(list, fmt.Sprintf("%s has handled %d messages of %d", queue.Name, n, want))
		}
	}
	return list
}

type counted struct {
	What string
	N    int
}

// all are the rows that a service's database has.
func all[T any](t *testing.T, c *city, service string, scan pgx.RowToFunc[T], query string, args ...any) []T {
	t.Helper()
	rows, err := c.pool(service).Query(context.Background(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	found, err := pgx.CollectRows(rows, scan)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return found
}

// rest waits until nothing is under way, and fails the test when something is stuck, or was put aside.
func (c *city) rest(patience time.Duration) {
	c.t.Helper()
	limit, tick := time.After(patience), time.NewTicker(200*time.Millisecond)
	defer tick.Stop()
	var list []string
	for quiet := 0; quiet < 2; {
		if list = c.underWay(c.t); len(list) > 0 {
			quiet = 0
		} else {
			quiet++
		}
		select {
		case <-limit:
			c.t.Errorf("not at rest within %s: %s", patience, strings.Join(list, ", "))
			quiet = 2
		case <-tick.C:
		}
	}
	c.checkNothingStuck()
}

// checkNothingStuck wants no message stuck at its sender or its consumer, and none put aside.
func (c *city) checkNothingStuck() {
	c.t.Helper()
	for _, service := range schema.Services {
		for _, where := range []string{"outbox", "inbox"} {
			for _, row := range all(c.t, c, service, pgx.RowTo[string], `SELECT to_jsonb(s)::text FROM `+where+`.stuck AS s ORDER BY seq LIMIT 3`) {
				c.t.Errorf("stuck in %s's %s: %s", service, where, row)
			}
		}
	}
	conn, err := amqp.Dial(c.amqp)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		c.t.Fatal(err)
	}
	topology := bus.Topology()
	for _, q := range topology.Queues {
		for p := range topology.Partitions {
			name := rabbitmq.DeadName(topology.QueueName(q.Name, p))
			dead, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
			if err != nil {
				c.t.Fatalf("%s: %v", name, err)
			}
			if dead.Messages > 0 {
				c.t.Errorf("%s has %d messages", name, dead.Messages)
			}
		}
	}
}

// account is what all services know of one booking.
type account struct {
	ID      string `db:"id"`
	EventID string `db:"event_id"`
	Tickets int    `db:"ticket_count"`
	Amount  int    `db:"amount_minor"`
	Status  string `db:"status"`
	Led     bool   `db:"led"`

	seats   seats
	money   money
	letters []string
	saga    string // the instance's state; empty for none
}

type seats struct {
	BookingID, Hold string
	Quantity        int
}

type money struct {
	BookingID, Status          string
	Amount, Captured, Refunded int
	Taken, Returned            int // as the gateway has it
}

// accounts are those of every booking, by its id. The city must be at rest.
func (c *city) accounts() map[string]*account {
	c.t.Helper()
	known := map[string]*account{}
	for _, a := range all(c.t, c, "booking", pgx.RowToAddrOfStructByNameLax[account], `
		SELECT id::text, event_id::text, ticket_count, amount_minor, status, led FROM booking.bookings`) {
		known[a.ID] = a
	}
	of := func(id, what string) *account {
		if known[id] == nil {
			c.t.Errorf("there are %s of %s, which is no booking", what, id)
			return &account{}
		}
		return known[id]
	}
	for _, s := range all(c.t, c, "catalog", pgx.RowToStructByPos[seats], `SELECT booking_id::text, hold, quantity FROM catalog.reservations`) {
		of(s.BookingID, "tickets").seats = s
	}
	for _, m := range all(c.t, c, "payment", pgx.RowToStructByPos[money], `
		SELECT booking_id::text, status, p.amount_minor,
		       coalesce(sum(l.amount_minor) FILTER (WHERE kind = 'captured'), 0)::bigint,
		       coalesce(sum(l.amount_minor) FILTER (WHERE kind = 'refunded'), 0)::bigint,
		       coalesce((SELECT sum(amount_minor) FROM payment.sandbox_sessions WHERE id = p.id AND state IN ('paying', 'paid')), 0)::bigint,
		       coalesce((SELECT sum(amount_minor) FROM payment.sandbox_sessions WHERE id = p.id AND refund IS NOT NULL), 0)::bigint
		FROM payment.payments AS p LEFT JOIN payment.ledger AS l ON l.payment_id = p.id
		GROUP BY p.id`) {
		of(m.BookingID, "payments").money = m
	}
	for _, l := range all(c.t, c, "notification", pgx.RowToStructByPos[told], `
		SELECT booking_id::text, type FROM notification.notifications WHERE success`) {
		a := of(l.BookingID, "letters")
		a.letters = append(a.letters, l.What)
	}
	for _, s := range all(c.t, c, "saga", pgx.RowToStructByPos[told], `SELECT id::text, state FROM saga.instances`) {
		of(s.BookingID, "sagas").saga = s.What
	}
	return known
}

type told struct{ BookingID, What string }

// farewells are the letters that tell of an end.
var farewells = map[string]contracts.NotificationType{
	"confirmed": contracts.NotificationBookingConfirmed, "rejected": contracts.NotificationBookingRejected,
	"payment_failed": contracts.NotificationPaymentFailed, "cancelled": contracts.NotificationBookingCancelled,
	"expired": contracts.NotificationBookingExpired,
}

// wrong is what does not belong together.
func (a *account) wrong() (found []string) {
	is := func(right bool, what string, got any) {
		if !right {
			found = append(found, fmt.Sprintf("%s: %+v", what, got))
		}
	}
	m, end := a.money, ""
	if a.Led {
		end = "compensated"
	}
	if a.Status == "confirmed" {
		is(a.seats.Hold == "sold" && a.seats.Quantity == a.Tickets, "tickets of a confirmed booking", a.seats)
		is(m.Status == "completed" && m.Captured == a.Amount && m.Refunded == 0, "money of a confirmed booking", m)
		if a.Led {
			end = "committed"
		}
	} else {
		is(a.seats.Hold != "sold" && a.seats.Hold != "held", "tickets of a booking that is not confirmed", a.seats)
		is(m.Status != "completed" && m.Captured == m.Refunded, "money of a booking that is not confirmed", m)
	}
	is(m.Status == "" || m.Amount == a.Amount, "the payment's amount", m)
	is(m.Captured == m.Taken && m.Refunded == m.Returned, "the ledger and the gateway", m)
	is(a.saga == end, "the saga's state", a.saga)
	letters := []string{string(contracts.NotificationBookingCreated), string(farewells[a.Status])}
	slices.Sort(letters)
	slices.Sort(a.letters)
	is(slices.Equal(a.letters, letters), "letters", a.letters)
	return found
}

// TestTheBooksFindWhatIsWrong spoils the account of a booking that has ended well in every way, and wants each to be found.
func TestTheBooksFindWhatIsWrong(t *testing.T) {
	t.Parallel()
	confirmed := account{
		Tickets: 2, Amount: 5000, Status: "confirmed", Led: true, seats: seats{Hold: "sold", Quantity: 2},
		money:   money{Status: "completed", Amount: 5000, Captured: 5000, Taken: 5000},
		letters: []string{string(contracts.NotificationBookingCreated), string(contracts.NotificationBookingConfirmed)}, saga: "committed",
	}
	expired := account{
		Tickets: 2, Amount: 5000, Status: "expired", seats: seats{Hold: "released", Quantity: 2},
		money:   money{Status: "expired", Amount: 5000, Captured: 5000, Refunded: 5000, Taken: 5000, Returned: 5000},
		letters: []string{string(contracts.NotificationBookingCreated), string(contracts.NotificationBookingExpired)},
	}
	rejected := account{
		Tickets: 2, Amount: 5000, Status: "rejected", seats: seats{Hold: "none", Quantity: 2},
		letters: []string{string(contracts.NotificationBookingCreated), string(contracts.NotificationBookingRejected)},
	}
	for what, c := range map[string]struct {
		of    account
		spoil func(a *account)
	}{
		"seats of nobody":          {confirmed, func(a *account) { a.seats = seats{} }},
		"seats still held":         {confirmed, func(a *account) { a.seats.Hold = "held" }},
		"a seat too few":           {confirmed, func(a *account) { a.seats.Quantity = 1 }},
		"a seat not paid":          {confirmed, func(a *account) { a.money = money{} }},
		"money given back":         {confirmed, func(a *account) { a.money.Refunded, a.money.Returned = 5000, 5000 }},
		"money taken twice":        {confirmed, func(a *account) { a.money.Captured = 10000 }},
		"another amount":           {confirmed, func(a *account) { a.money.Amount, a.money.Captured, a.money.Taken = 4000, 4000, 4000 }},
		"money at the gateway":     {rejected, func(a *account) { a.money.Taken = 5000 }},
		"a refund not made":        {expired, func(a *account) { a.money.Returned = 0 }},
		"a refund not noted":       {expired, func(a *account) { a.money.Refunded = 0 }},
		"money without a seat":     {expired, func(a *account) { a.money.Status, a.money.Refunded, a.money.Returned = "completed", 0, 0 }},
		"a hold without end":       {expired, func(a *account) { a.seats.Hold = "held" }},
		"a seat without a booking": {expired, func(a *account) { a.seats.Hold = "sold" }},
		"no letter":                {expired, func(a *account) { a.letters = a.letters[:1] }},
		"a letter twice":           {rejected, func(a *account) { a.letters = append(a.letters, a.letters[1]) }},
		"another letter":           {rejected, func(a *account) { a.letters = slices.Clone(expired.letters) }},
		"a saga that goes on":      {confirmed, func(a *account) { a.saga = "compensating" }},
		"a saga of nobody":         {expired, func(a *account) { a.saga = "compensated" }},
		"no saga":                  {confirmed, func(a *account) { a.saga = "" }},
	} {
		if a := c.of; len(a.wrong()) > 0 {
			t.Errorf("%s: a booking that has ended well is said to be wrong: %s", what, a.wrong())
		}
		c.of.letters = slices.Clone(c.of.letters)
		if c.spoil(&c.of); len(c.of.wrong()) == 0 {
			t.Errorf("%s is not found", what)
		}
	}
}

// maxStories bounds how many bookings are told of.
const maxStories = 5

// checkBooks wants every seat and every cent of a city at rest to belong to a confirmed booking, or to nobody, and returns
// the accounts that it has seen.
func (c *city) checkBooks() map[string]*account {
	c.t.Helper()
	accounts, sold, paid, stories := c.accounts(), map[string]int{}, 0, 0
	for _, id := range slices.Sorted(maps.Keys(accounts)) {
		a := accounts[id]
		if a.Status == "confirmed" {
			sold[a.EventID] += a.Tickets
			paid += a.Amount
		}
		if wrong := a.wrong(); len(wrong) > 0 {
			if stories++; stories <= maxStories {
				c.t.Errorf("booking %s is %s: %s\n%s", id, a.Status, strings.Join(wrong, "; "), c.story(id))
			}
		}
	}
	if stories > 0 {
		c.t.Errorf("%d of %d bookings have not ended well", stories, len(accounts))
	}
	for _, e := range all(c.t, c, "catalog", pgx.RowToStructByPos[stock], `SELECT id::text, capacity, available, held, sold FROM catalog.events`) {
		if e.Available < 0 || e.Held != 0 || e.Sold != sold[e.ID] || e.Available+e.Held+e.Sold != e.Capacity {
			c.t.Errorf("confirmed bookings have %d tickets of event %+v", sold[e.ID], e)
		}
	}
	books := all(c.t, c, "payment", pgx.RowToStructByPos[balance], `SELECT currency, captured_minor, refunded_minor, completed_minor FROM payment.books`)
	for _, b := range books {
		if b.Captured-b.Refunded != b.Completed || b.Completed != paid {
			c.t.Errorf("confirmed bookings cost %d, the books have %+v", paid, b)
		}
	}
	if kept := count(c.t, c.pool("payment"), `
		SELECT coalesce(sum(amount_minor), 0) FROM payment.sandbox_sessions WHERE state IN ('paying', 'paid') AND refund IS NULL`); kept != paid {
		c.t.Errorf("confirmed bookings cost %d, the gateway has kept %d", paid, kept)
	}
	if len(books) > 1 || len(books) == 0 && paid > 0 {
		c.t.Errorf("the books have %d currencies", len(books))
	}
	c.checkTies(accounts)
	return accounts
}

// tied is a message as its sender has it, with what ties it to others.
type tied struct{ ID, Topic, Key, Booking, Flow, Cause string }

// checkTies wants every message that was ever written to say which booking it is about, which flow it belongs to, and what
// caused it.
func (c *city) checkTies(accounts map[string]*account) {
	c.t.Helper()
	written := map[string][]tied{}
	for _, service := range schema.Services {
		written[service] = all(c.t, c, service, pgx.RowToStructByPos[tied], `
			SELECT uuid::text, topic, key, coalesce(convert_from(payload, 'UTF8')::jsonb ->> 'bookingId', ''),
			       coalesce(metadata ->> 'correlationid', ''), coalesce(metadata ->> 'causationid', '')
			FROM outbox.messages`)
	}
	for i, why := range untied(written, accounts) {
		if i == maxStories {
			c.t.Error("and more")
			break
		}
		c.t.Error(why)
	}
}

// untied is what the messages of all services do not say of themselves. What is caused by no message is caused by an HTTP request: what
// booking sends, and the catalog's offers.
func untied(written map[string][]tied, accounts map[string]*account) (found []string) {
	about := map[string]string{} // the key of a message
	for _, messages := range written {
		for _, m := range messages {
			about[m.ID] = m.Key
		}
	}
	for service, messages := range written {
		for _, m := range messages {
			key, known := about[m.Cause]
			_, notRequest := uuid.Parse(m.Cause)
			why := ""
			offer := m.Topic == contracts.TypeCatalogEventPublished
			switch {
			case !offer && (m.Key != m.Booking || accounts[m.Booking] == nil):
				why = "is not of the booking that it is about"
			case m.Flow == "":
				why = "belongs to no flow"
			case known && key != m.Key:
				why = "is caused by a message about something else"
			case !known && (notRequest != nil || service != "booking" && !offer):
				why = "is caused by nothing"
			}
			if why != "" {
				found = append(found, fmt.Sprintf("%s has sent a message that %s: %+v", service, why, m))
			}
		}
	}
	return found
}

// TestWhatIsTiedToNothingIsFound spoils messages that are as they must be.
func TestWhatIsTiedToNothingIsFound(t *testing.T) {
	t.Parallel()
	const id, request = "0193c5a0-0000-7000-8000-000000000001", "0193c5a0-0000-7000-8000-000000000002"
	accounts := map[string]*account{id: {}, "other": {}}
	for what, spoil := range map[string]func(asked, answer, offer *tied){
		"":                        func(_, _, _ *tied) {},
		"no key of a booking":     func(_, answer, _ *tied) { answer.Key = "event" },
		"no booking in it":        func(asked, _, _ *tied) { asked.Booking = "" },
		"no such booking":         func(asked, answer, _ *tied) { answer.Key, answer.Booking = "none", "none" },
		"no flow":                 func(_, answer, _ *tied) { answer.Flow = "" },
		"no flow of an event":     func(_, _, offer *tied) { offer.Flow = "" },
		"no cause":                func(_, answer, _ *tied) { answer.Cause = "" },
		"no request":              func(asked, _, _ *tied) { asked.Cause = "" },
		"a request to nobody":     func(_, answer, _ *tied) { answer.Cause = request },
		"the cause of another":    func(_, answer, _ *tied) { answer.Cause = "offer" },
		"the answer to another's": func(_, answer, _ *tied) { answer.Key, answer.Booking = "other", "other" },
	} {
		asked := tied{"asked", contracts.TypeUpdateEventInventory, id, id, "flow", request}
		answer := tied{"answer", contracts.TypeInventoryUpdated, id, id, "flow", "asked"}
		offer := tied{"offer", contracts.TypeCatalogEventPublished, "event", "", "another flow", request}
		payment := tied{"payment", contracts.TypePaymentExpired, id, id, "flow", "asked"}
		spoil(&asked, &answer, &offer)
		found := untied(map[string][]tied{"booking": {asked}, "catalog": {answer, offer}, "payment": {payment}}, accounts)
		if (len(found) == 0) != (what == "") {
			t.Errorf("%q: found %v", what, found)
		}
	}
}

type stock struct {
	ID                              string
	Capacity, Available, Held, Sold int
}

type balance struct {
	Currency                      string
	Captured, Refunded, Completed int
}

// tales are what each service has of a booking, as rows of JSON.
var tales = []struct{ service, query string }{
	{"booking", `SELECT to_jsonb(b)::text FROM booking.bookings AS b WHERE id = $1`},
	{"booking", `SELECT concat_ws(' ', to_char(at, 'HH24:MI:SS.US'), rpad(status, 16), rpad(service, 12), step, detail, cause,
		(SELECT string_agg(m ->> 'type', ', ') FROM jsonb_array_elements(sent) AS m)) FROM booking.timeline WHERE booking_id = $1 ORDER BY seq`},
	{"catalog", `SELECT to_jsonb(r)::text FROM catalog.reservations AS r WHERE booking_id = $1`},
	{"payment", `SELECT to_jsonb(p)::text FROM payment.payments AS p WHERE booking_id = $1`},
	{"payment", `SELECT to_jsonb(l)::text FROM payment.ledger AS l JOIN payment.payments AS p ON p.id = payment_id WHERE booking_id = $1`},
	{"payment", `SELECT to_jsonb(t)::text FROM payment.tasks AS t JOIN payment.payments AS p ON p.id = payment_id WHERE booking_id = $1`},
	{"payment", `SELECT to_jsonb(w)::text FROM payment.sandbox_webhooks AS w JOIN payment.payments AS p ON p.id = session_id WHERE booking_id = $1`},
	{"notification", `SELECT to_jsonb(n)::text FROM notification.notifications AS n WHERE booking_id = $1`},
	{"saga", `SELECT concat_ws(' ', to_char(at, 'HH24:MI:SS.US'), state, kind, step, type, note) FROM saga.history WHERE instance_id = $1 ORDER BY n`},
}

// story is the timeline of a booking and what each service has of it.
func (c *city) story(id string) string {
	var text strings.Builder
	for _, tale := range tales {
		for _, row := range all(c.t, c, tale.service, pgx.RowTo[string], tale.query, id) {
			fmt.Fprintf(&text, "  %-12s %s\n", tale.service, row)
		}
	}
	return text.String()
}
