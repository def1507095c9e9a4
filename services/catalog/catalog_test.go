package catalog_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/catalog"
	"github.com/jcp/ticketwave/services/internal/web"
)

// shop is a catalog on a database of its own, connected as the service's role.
type shop struct {
	db      *outboxtest.Database
	pool    *pgxpool.Pool
	service *catalog.Service
	router  *web.Router
	logs    *lockedBuffer
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{db: outboxtest.NewDatabase(t, "catalog", "catalog"), logs: &lockedBuffer{}}
	config, err := pgxpool.ParseConfig(s.db.ServiceURL)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 16
	if s.pool, err = pgxpool.NewWithConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.pool.Close)
	logger := slog.New(slog.NewJSONHandler(s.logs, nil))
	if s.service, err = catalog.New(catalog.Config{Pool: s.pool, Logger: logger}); err != nil {
		t.Fatal(err)
	}
	s.router = web.NewRouter(web.Config{Logger: slog.New(slog.DiscardHandler)})
	s.service.Routes(s.router)
	return s
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// lines are the log's so far, emptied, with what differs from run to run left out.
func (b *lockedBuffer) lines(t *testing.T) []map[string]any {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []map[string]any
	for decoder := json.NewDecoder(&b.buf); ; {
		var line map[string]any
		if err := decoder.Decode(&line); errors.Is(err, io.EOF) {
			return lines
		} else if err != nil {
			t.Fatal(err)
		}
		delete(line, "time")
		lines = append(lines, line)
	}
}

// body is a valid POST /api/events with some fields replaced, or removed by nil.
func body(replace map[string]any) string {
	fields := map[string]any{"name": "Symphony No. 9", "startsAt": "2150-09-12T19:30:00Z", "price": "25.00", "currency": "EUR", "capacity": 100}
	for name, value := range replace {
		fields[name] = value
		if value == nil {
			delete(fields, name)
		}
	}
	text, _ := json.Marshal(fields)
	return string(text)
}

func (s *shop) request(method, path, body string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, path, strings.NewReader(body))
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(web.CorrelationHeader, "flow-1")
	answer := httptest.NewRecorder()
	s.router.ServeHTTP(answer, request)
	return answer
}

// create puts an event with so many tickets on sale.
func (s *shop) create(t *testing.T, capacity int) catalog.Event {
	t.Helper()
	answer := s.request(http.MethodPost, "/api/events", body(map[string]any{"capacity": capacity}))
	if answer.Code != http.StatusCreated {
		t.Fatalf("create: %d %s", answer.Code, answer.Body)
	}
	return decode[catalog.Event](t, answer.Body.Bytes())
}

func (s *shop) event(t *testing.T, id uuid.UUID) catalog.Event {
	t.Helper()
	answer := s.request(http.MethodGet, "/api/events/"+id.String(), "")
	if answer.Code != http.StatusOK {
		t.Fatalf("get: %d %s", answer.Code, answer.Body)
	}
	return decode[catalog.Event](t, answer.Body.Bytes())
}

func decode[T any](t *testing.T, text []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func asks(event, booking uuid.UUID, quantity int) contracts.UpdateEventInventory {
	return contracts.UpdateEventInventory{
		EventID: event.String(), BookingID: booking.String(), QuantityReduced: quantity, RequestedAt: time.Now().UTC(),
	}
}

// reserve handles the request as a consumer does: in a transaction of its own.
// reserve tries again, as the consumer does, after another transaction of the same booking.
func (s *shop) reserve(t *testing.T, request contracts.UpdateEventInventory) {
	t.Helper()
	ctx := outbox.WithCausality(t.Context(), outbox.Causality{CorrelationID: "flow-2", CausationID: "request-1"})
	again := func() error {
		return outbox.InTx(ctx, s.pool, func(tx pgx.Tx) error { return s.service.Reserve(ctx, tx, inbox.One(ctx, request)) })
	}
	err := again()
	if twice := (*pgconn.PgError)(nil); errors.As(err, &twice) && twice.Code == "23505" {
		err = again()
	}
	if err != nil {
		t.Error(err)
	}
}

type stored struct {
	Topic    string
	Key      string
	Payload  []byte
	Metadata map[string]string
}

// published are the messages about a key, oldest first.
func (s *shop) published(t *testing.T, key uuid.UUID) []stored {
	t.Helper()
	rows, err := s.db.Query(t.Context(), `SELECT topic, key, payload, metadata FROM outbox.messages WHERE key = $1 ORDER BY id`, key.String())
	if err != nil {
		t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowToStructByPos[stored])
	if err != nil {
		t.Fatal(err)
	}
	return messages
}

// only is the one message about the key, of the type of E and valid.
func only[E contracts.Event](t *testing.T, messages []stored) E {
	t.Helper()
	if len(messages) != 1 {
		t.Fatalf("%d messages: %s", len(messages), messages)
	}
	event := decode[E](t, messages[0].Payload)
	if err := event.Validate(); err != nil || messages[0].Topic != event.EventType() || messages[0].Key != event.EventKey() {
		t.Fatalf("%s %s: %s: %v", messages[0].Topic, messages[0].Key, messages[0].Payload, err)
	}
	return event
}

// addsUp checks what must hold at every moment.
func (s *shop) addsUp(t *testing.T) {
	t.Helper()
	var wrong int
	err := s.db.QueryRow(t.Context(), `
		SELECT count(*) FROM catalog.events AS e, LATERAL (
			SELECT coalesce(sum(quantity) FILTER (WHERE hold = 'held'), 0) AS held, coalesce(sum(quantity) FILTER (WHERE hold = 'sold'), 0) AS sold,
			       count(*) FILTER (WHERE outcome = 'reserved') + count(*) FILTER (WHERE outcome = 'reserved' AND hold <> 'held') AS changes
			FROM catalog.reservations WHERE event_id = e.id) AS r
		WHERE available + e.held + e.sold <> capacity OR e.held <> r.held OR e.sold <> r.sold OR version - 1 <> changes`).Scan(&wrong)
	if err != nil {
		t.Fatal(err)
	}
	if wrong > 0 {
		t.Fatalf("the inventory of %d events does not add up", wrong)
	}
}

func TestNewNeedsAPool(t *testing.T) {
	t.Parallel()
	if _, err := catalog.New(catalog.Config{}); err == nil {
		t.Error("made without a pool")
	}
}

// The role of the service can do its work and no more.
func TestRoleIsConfined(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e := s.create(t, 5)
	s.reserve(t, asks(e.ID, uuid.New(), 1))
	for _, statement := range []string{
		`UPDATE catalog.events SET capacity = 9`,
		`UPDATE catalog.events SET price_minor = 1`,
		`DELETE FROM catalog.events`,
		`TRUNCATE catalog.events`,
		`INSERT INTO catalog.reservations (booking_id, event_id, quantity, answered_at) VALUES (gen_random_uuid(), gen_random_uuid(), 1, now())`,
		`UPDATE catalog.reservations SET outcome = 'sold_out'`,
		`UPDATE catalog.reservations SET quantity = 2`,
		`UPDATE catalog.reservations SET event_id = gen_random_uuid()`,
		`DELETE FROM catalog.reservations`,
		`CREATE TABLE catalog.mine (a int)`,
		`DROP TABLE catalog.reservations`,
		`SELECT payload FROM outbox.messages`,
		`UPDATE outbox.messages SET key = 'x'`,
		`DELETE FROM outbox.messages`,
		`INSERT INTO outbox.messages (uuid, topic, key, payload, transaction_id) VALUES (gen_random_uuid(), 't', 'k', '', '1')`,
		`SELECT * FROM outbox.cursor`,
		`UPDATE outbox.config SET source = 'booking'`,
		`DELETE FROM inbox.messages`,
	} {
		_, err := s.pool.Exec(t.Context(), statement)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "42501" { // insufficient_privilege
			t.Errorf("%s: %v", statement, err)
		}
	}
}

// The table itself holds the promise, against any code.
func TestTableCannotBeOversold(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.create(t, 5)
	for _, statement := range []string{
		`UPDATE catalog.events SET available = -1`,
		`UPDATE catalog.events SET available = capacity + 1`,
		`UPDATE catalog.events SET available = available - 1`,
		`UPDATE catalog.events SET held = 1`,
		`UPDATE catalog.events SET available = available + 1, sold = -1`,
		`INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome, available_before) VALUES (gen_random_uuid(), gen_random_uuid(), 1, 'reserved', 1)`,
		`INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome, hold) VALUES (gen_random_uuid(), gen_random_uuid(), 1, 'sold_out', 'sold')`,
		`INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome) VALUES (gen_random_uuid(), gen_random_uuid(), 1, 'reserved')`,
	} {
		_, err := s.db.Exec(t.Context(), statement)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "23514" { // check_violation
			t.Errorf("%s: %v", statement, err)
		}
	}
}
