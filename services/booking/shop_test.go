package booking_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/internal/web"
)

const (
	documented = "123e4567-e89b-12d3-a456-426614174000" // 25.50 EUR a ticket
	unknown    = "123e4567-e89b-12d3-a456-426614174999"
	user       = "0193c5a0-0000-7000-8000-000000000001"
	bookings   = "/api/bookings"
	example    = "/api/example/create-booking-with-flow"
)

// shop is the service on a database of its own, with one event on sale.
type shop struct {
	t      *testing.T
	svc    *booking.Service
	db     *outboxtest.Database
	pool   *pgxpool.Pool // as the service's own role
	router *web.Router
	log    *logs
}

func newShop(t *testing.T) *shop {
	t.Helper()
	return newShopWith(t, booking.Config{})
}

// newShopWith takes all of the configuration but pool and logger.
func newShopWith(t *testing.T, cfg booking.Config) *shop {
	t.Helper()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	s := &shop{t: t, db: db, pool: outboxtest.NewPool(t, db.ServiceURL), log: &logs{}}
	log := daemon.NewLogger(s.log, slog.LevelInfo, "booking")
	cfg.Pool, cfg.Logger = s.pool, log
	svc, err := booking.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.svc, s.router = svc, web.NewRouter(web.Config{Logger: log})
	svc.Routes(s.router)
	s.publish(onSale(1, 2550))
	return s
}

// logs is a log that a test reads.
type logs struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(b)
}

// lines are the records of one flow.
func (l *logs) lines(t *testing.T, flow string) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []map[string]any
	for _, line := range strings.Split(strings.TrimSpace(l.String()), "\n") {
		record := decode[map[string]any](t, []byte(line))
		if record["correlation_id"] == flow {
			found = append(found, record)
		}
	}
	return found
}

func onSale(version int64, price contracts.Amount) contracts.CatalogEventPublished {
	return contracts.CatalogEventPublished{
		EventID: documented, Name: "Symphony No. 9", StartsAt: time.Date(2150, 9, 12, 19, 30, 0, 0, time.UTC), Price: price,
		Currency: "EUR", Capacity: 100, Version: version, PublishedAt: time.Now().UTC(),
	}
}

func (s *shop) publish(e contracts.CatalogEventPublished) {
	s.t.Helper()
	if err := s.offer(e); err != nil {
		s.t.Fatal(err)
	}
}

// handle calls a handler with one event as the consumer does: in a transaction that ends with it.
func handle[E any](s *shop, handler func(context.Context, pgx.Tx, []inbox.Item[E]) error, e E) error {
	return outbox.InTx(context.Background(), s.pool, func(tx pgx.Tx) error {
		return handler(context.Background(), tx, inbox.One(context.Background(), e))
	})
}

// offer tells booking of an event.
func (s *shop) offer(e contracts.CatalogEventPublished) error {
	return outbox.InTx(context.Background(), s.pool, func(tx pgx.Tx) error { return s.svc.OnCatalogEventPublished(context.Background(), tx, e) })
}

// request sends name: value pairs of headers along.
func (s *shop) request(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.router.ServeHTTP(w, r)
	return w
}

func order(event, user string, tickets int) string {
	return fmt.Sprintf(`{"eventId":%q,"userId":%q,"ticketCount":%d}`, event, user, tickets)
}

// book makes a booking of two tickets.
func (s *shop) book() map[string]any {
	s.t.Helper()
	w := s.request(http.MethodPost, bookings, order(documented, user, 2))
	if w.Code != http.StatusCreated {
		s.t.Fatalf("%d %s", w.Code, w.Body)
	}
	return decode[map[string]any](s.t, w.Body.Bytes())
}

func (s *shop) get(id any) map[string]any {
	s.t.Helper()
	w := s.request(http.MethodGet, fmt.Sprint(bookings, "/", id), "")
	if w.Code != http.StatusOK {
		s.t.Fatalf("%d %s", w.Code, w.Body)
	}
	return decode[map[string]any](s.t, w.Body.Bytes())
}

// row is an outbox row.
type row struct {
	UUID     uuid.UUID
	Topic    string
	Key      string
	Payload  []byte
	Metadata map[string]string
}

func (s *shop) outbox() []row {
	s.t.Helper()
	rows, err := s.db.Query(context.Background(), `SELECT uuid, topic, key, payload, metadata FROM outbox.messages ORDER BY id`)
	if err != nil {
		s.t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

func (s *shop) count(table string) int {
	s.t.Helper()
	var n int
	if err := s.db.QueryRow(context.Background(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func decode[T any](t *testing.T, document []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(document, &v); err != nil {
		t.Fatalf("%v in %s", err, document)
	}
	return v
}
