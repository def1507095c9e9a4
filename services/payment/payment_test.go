package payment_test

import (
	"context"
	"encoding/json"
	"errors"
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
	"github.com/jcp/ticketwave/services/internal/web"
	"github.com/jcp/ticketwave/services/payment"
)

// till is payment on a database of its own, connected as the service's role.
type till struct {
	db      *outboxtest.Database
	pool    *pgxpool.Pool
	service *payment.Service
	router  *web.Router
}

func newTill(t *testing.T) *till {
	t.Helper()
	x := &till{db: outboxtest.NewDatabase(t, "payment", "payment")}
	x.pool = outboxtest.NewPool(t, x.db.ServiceURL)
	quiet := slog.New(slog.DiscardHandler)
	var err error
	if x.service, err = payment.New(payment.Config{Pool: x.pool, Logger: quiet, BaseURL: "https://pay.example/"}); err != nil {
		t.Fatal(err)
	}
	x.router = web.NewRouter(web.Config{Logger: quiet})
	x.service.Routes(x.router)
	return x
}

func asks(booking uuid.UUID) contracts.PreparePaymentData {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return contracts.PreparePaymentData{
		BookingID: booking.String(), UserID: uuid.NewString(), Amount: 5000, Currency: "EUR", RequestedAt: now, ExpiresAt: now.Add(time.Hour),
	}
}

func (x *till) prepare(request contracts.PreparePaymentData) error {
	ctx := context.Background()
	return outbox.InTx(ctx, x.pool, func(tx pgx.Tx) error { return x.service.Prepare(ctx, tx, inbox.One(ctx, request)) })
}

// answers are the events published about a booking.
func (x *till) answers(t *testing.T, booking uuid.UUID) []contracts.PaymentDataPrepared {
	t.Helper()
	rows, err := x.db.Query(t.Context(), `SELECT payload FROM outbox.messages WHERE key = $1 AND topic = $2 ORDER BY id`, booking.String(), contracts.TypePaymentDataPrepared)
	if err != nil {
		t.Fatal(err)
	}
	payloads, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	var found []contracts.PaymentDataPrepared
	for _, payload := range payloads {
		var e contracts.PaymentDataPrepared
		if err := errors.Join(json.Unmarshal(payload, &e), e.Validate()); err != nil {
			t.Fatalf("%s: %v", payload, err)
		}
		found = append(found, e)
	}
	return found
}

func TestABookingHasOnePaymentHoweverOftenItAsks(t *testing.T) {
	t.Parallel()
	x := newTill(t)
	booking := uuid.New()
	request := asks(booking)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := x.prepare(request); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := x.answers(t, booking)
	if len(got) != 4 {
		t.Fatalf("%d answers, want 4", len(got))
	}
	for _, e := range got {
		if e.PaymentID != got[0].PaymentID || e.Amount != 5000 || e.PaymentURL != "https://pay.example/pay/"+e.PaymentID || !e.ExpiresAt.Equal(request.ExpiresAt) {
			t.Errorf("answer %+v", e)
		}
	}
}

func TestARollbackLeavesNothing(t *testing.T) {
	t.Parallel()
	x := newTill(t)
	booking, changed := uuid.New(), errors.New("changed my mind")
	err := outbox.InTx(t.Context(), x.pool, func(tx pgx.Tx) error {
		return errors.Join(x.service.Prepare(t.Context(), tx, inbox.One(t.Context(), asks(booking))), changed)
	})
	if !errors.Is(err, changed) || len(x.answers(t, booking)) != 0 {
		t.Errorf("error %v", err)
	}
	if body := x.get(t, "/api/payments?bookingId="+booking.String(), http.StatusOK); body != `{"items":[]}` {
		t.Error(body)
	}
}

func (x *till) get(t *testing.T, path string, want int) string {
	t.Helper()
	w := httptest.NewRecorder()
	x.router.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	if w.Code != want {
		t.Errorf("GET %s: status %d, want %d: %s", path, w.Code, want, w.Body)
	}
	return w.Body.String()
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	x := newTill(t)
	booking := uuid.New()
	if err := x.prepare(asks(booking)); err != nil {
		t.Fatal(err)
	}
	id := x.answers(t, booking)[0].PaymentID
	for _, path := range []string{"/api/payments/" + id, "/api/payments?bookingId=" + booking.String()} {
		if body := x.get(t, path, http.StatusOK); !strings.Contains(body, `"amount":"50.00","currency":"EUR","status":"prepared"`) {
			t.Error(body)
		}
	}
	x.get(t, "/api/payments/"+uuid.NewString(), http.StatusNotFound)
	x.get(t, "/api/payments/17", http.StatusBadRequest)
	x.get(t, "/api/payments", http.StatusBadRequest)
	x.get(t, "/api/payments?bookingId=17", http.StatusBadRequest)
	x.get(t, "/api/payments?userId="+id, http.StatusBadRequest)
}

func TestTheRoleMayNotRewritePayments(t *testing.T) {
	t.Parallel()
	x := newTill(t)
	for _, statement := range []string{`UPDATE payment.payments SET amount_minor = 1`, `DELETE FROM payment.payments`, `TRUNCATE payment.payments`} {
		if _, err := x.pool.Exec(t.Context(), statement); err == nil {
			t.Errorf("%s is allowed", statement)
		}
	}
}

func TestNewRefusesABadURL(t *testing.T) {
	t.Parallel()
	x := newTill(t)
	for _, base := range []string{"ftp://a", "pay.example", "http://", "http://a?b=c", "http://a#b"} {
		if _, err := payment.New(payment.Config{Pool: x.pool, BaseURL: base}); err == nil {
			t.Errorf("%s is taken", base)
		}
	}
}
