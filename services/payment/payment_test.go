package payment_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
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
	"github.com/jcp/ticketwave/services/payment/gateway"
)

const patience = 20 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// till is payment on a database of its own, connected as the service's role, and served over HTTP. Its loops do not run: tests
// take their steps.
type till struct {
	db      *outboxtest.Database
	pool    *pgxpool.Pool
	service *payment.Service
	sandbox *gateway.Sandbox // another process of the same sandbox
	beside  []gateway.Gateway
	server  *httptest.Server
}

// newTill makes a till whose payments are opened at the gateway that elsewhere returns, or in the sandbox.
func newTill(t testing.TB, elsewhere func(*gateway.Sandbox) gateway.Gateway) *till {
	t.Helper()
	x := &till{db: outboxtest.NewDatabase(t, "payment", "payment")}
	x.pool = outboxtest.NewPool(t, x.db.ServiceURL)
	router := x.listen(t)
	var err error
	if x.sandbox, err = gateway.NewSandbox(gateway.SandboxConfig{
		Pool: x.pool, Logger: quiet, BaseURL: x.server.URL, WebhookURL: x.server.URL + payment.WebhookPath("sandbox"), Lateness: time.Millisecond,
	}); err != nil {
		t.Fatal(err)
	}
	active := gateway.SandboxName
	if elsewhere != nil {
		x.beside = []gateway.Gateway{elsewhere(x.sandbox)}
		active = x.beside[0].Name()
	}
	x.open(t, router, active)
	return x
}

func (x *till) listen(t testing.TB) *web.Router {
	t.Helper()
	router := web.NewRouter(web.Config{Logger: quiet})
	x.server = httptest.NewServer(router)
	t.Cleanup(x.server.Close)
	return router
}

// open makes the service, whose new payments are made at the active gateway.
func (x *till) open(t testing.TB, router *web.Router, active string) {
	t.Helper()
	var err error
	if x.service, err = payment.New(payment.Config{
		Pool: x.pool, Logger: quiet, BaseURL: x.server.URL + "/", Lateness: time.Millisecond, Gateways: x.beside, Active: active,
	}); err != nil {
		t.Fatal(err)
	}
	x.service.Routes(router)
}

// remote is a sandbox that has to be called: its sessions are not opened in the payment's transaction.
type remote struct{ gateway.Gateway }

func remotely(s *gateway.Sandbox) gateway.Gateway { return remote{s} }

func asks(booking uuid.UUID) contracts.PreparePaymentData {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return contracts.PreparePaymentData{
		BookingID: booking.String(), UserID: uuid.NewString(), Amount: 5000, Currency: "EUR", RequestedAt: now, ExpiresAt: now.Add(time.Hour),
	}
}

// handle runs a handler as the inbox does.
func handle[T any](x *till, handler func(context.Context, pgx.Tx, []inbox.Item[T]) error, request T) error {
	ctx := outbox.WithCausality(context.Background(), outbox.Causality{CorrelationID: "flow", CausationID: "cause"})
	return outbox.InTx(ctx, x.pool, func(tx pgx.Tx) error { return handler(ctx, tx, inbox.One(ctx, request)) })
}

func (x *till) prepare(request contracts.PreparePaymentData) error {
	return handle(x, x.service.Prepare, request)
}

func (x *till) cancel(booking uuid.UUID) error {
	return handle(x, x.service.Cancel, contracts.CancelPayment{
		BookingID: booking.String(), Reason: contracts.UndoBookingCancelled, RequestedAt: time.Now(),
	})
}

func (x *till) refund(booking uuid.UUID, id string) error {
	return handle(x, x.service.Refund, contracts.RefundPayment{
		BookingID: booking.String(), PaymentID: id, Reason: contracts.UndoBookingCancelled, RequestedAt: time.Now(),
	})
}

// prepared is the id of a new payment that can be made.
func (x *till) prepared(t testing.TB, booking uuid.UUID) string {
	t.Helper()
	if err := x.prepare(asks(booking)); err != nil {
		t.Fatal(err)
	}
	x.work(t)
	return x.paymentID(t, booking)
}

func (x *till) paymentID(t testing.TB, booking uuid.UUID) string {
	t.Helper()
	return scalar[string](t, x, `SELECT id::text FROM payment.payments WHERE booking_id = $1`, booking)
}

func (x *till) status(t testing.TB, booking uuid.UUID) string {
	t.Helper()
	return scalar[string](t, x, `SELECT coalesce((SELECT status FROM payment.payments WHERE booking_id = $1), 'none')`, booking)
}

func scalar[T any](t testing.TB, x *till, sql string, args ...any) (v T) {
	t.Helper()
	if err := x.db.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (x *till) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := x.db.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// work does the tasks that are due.
func (x *till) work(t testing.TB) {
	t.Helper()
	for {
		n, err := x.service.Work(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// deliver sends all webhooks of the sandbox, the late ones too.
func (x *till) deliver(t testing.TB) {
	t.Helper()
	for {
		x.exec(t, `UPDATE payment.sandbox_webhooks SET next_at = clock_timestamp() WHERE delivered_at IS NULL AND attempts < 5`)
		n, err := x.sandbox.Deliver(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// expire lets the payment's time pass.
func (x *till) expire(t testing.TB, booking uuid.UUID) {
	t.Helper()
	x.exec(t, `UPDATE payment.payments SET expires_at = clock_timestamp() WHERE booking_id = $1`, booking)
	if _, err := x.service.Expire(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// press is a button of the checkout page.
func (x *till) press(t testing.TB, id, action string) {
	t.Helper()
	resp, err := x.server.Client().PostForm(x.server.URL+"/pay/"+id, url.Values{"action": {action}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s %s", action, resp.Status, body)
	}
}

// paid is the id of a payment that has been made.
func (x *till) paid(t testing.TB, booking uuid.UUID) string {
	t.Helper()
	id := x.prepared(t, booking)
	x.press(t, id, "pay")
	x.deliver(t)
	return id
}

// message is what was published.
type message struct {
	Topic, Payload, Correlation, Causation string
}

// said are the events published about a booking, in their order, each valid.
func (x *till) said(t testing.TB, booking uuid.UUID) []contracts.Event {
	t.Helper()
	rows, err := x.db.Query(context.Background(), `
		SELECT topic, convert_from(payload, 'UTF8'), coalesce(metadata->>$2, ''), coalesce(metadata->>$3, '')
		FROM outbox.messages WHERE key = $1 ORDER BY id`, booking.String(), outbox.HeaderCorrelationID, outbox.HeaderCausationID)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[message])
	if err != nil {
		t.Fatal(err)
	}
	var events []contracts.Event
	for _, m := range all {
		if m.Correlation != "flow" || m.Causation != "cause" {
			t.Errorf("%s has correlation %q and causation %q", m.Topic, m.Correlation, m.Causation)
		}
		events = append(events, decode(t, m))
	}
	return events
}

func decode(t testing.TB, m message) contracts.Event {
	t.Helper()
	for _, make := range []func() contracts.Event{
		as[contracts.PaymentDataPrepared], as[contracts.PaymentPreparationFailed], as[contracts.PaymentCompleted], as[contracts.PaymentFailed],
		as[contracts.PaymentExpired], as[contracts.PaymentCancelled], as[contracts.PaymentRefunded],
	} {
		if e := make(); e.EventType() == m.Topic {
			if err := errors.Join(json.Unmarshal([]byte(m.Payload), e), e.Validate()); err != nil {
				t.Fatalf("%s: %v", m.Payload, err)
			}
			return e
		}
	}
	t.Fatalf("unexpected event %s", m.Topic)
	return nil
}

func as[T any]() contracts.Event { return any(new(T)).(contracts.Event) }

// words are the names of the events, short.
func words(events []contracts.Event) string {
	var all []string
	for _, e := range events {
		name := strings.TrimSuffix(strings.TrimPrefix(e.EventType(), "ticketwave.payment.payment-"), ".v1")
		all = append(all, name)
	}
	return strings.Join(all, " ")
}

func (x *till) hears(t testing.TB, booking uuid.UUID, want string) {
	t.Helper()
	if got := words(x.said(t, booking)); got != want {
		t.Errorf("published %q, want %q", got, want)
	}
}

// balances checks the books against the payments, and the sandbox's against both.
func (x *till) balances(t testing.TB) {
	t.Helper()
	x.reconciles(t)
	if n := scalar[int64](t, x, `
		SELECT coalesce((SELECT sum(amount_minor) FROM payment.sandbox_sessions WHERE state IN ('paid', 'paying') AND refund IS NULL), 0)::bigint
		     - coalesce((SELECT sum(completed_minor) FROM payment.books), 0)::bigint`); n != 0 {
		t.Errorf("the sandbox holds %d more than what the payments say", n)
	}
}

// reconciles checks the books against the payments.
func (x *till) reconciles(t testing.TB) {
	t.Helper()
	if n := scalar[int64](t, x, `SELECT coalesce(sum(captured_minor - refunded_minor - completed_minor), 0)::bigint FROM payment.books`); n != 0 {
		t.Errorf("captured - refunded - completed = %d", n)
	}
	if n := scalar[int](t, x, `SELECT count(*) FROM payment.payments AS p
		WHERE (SELECT coalesce(sum(CASE kind WHEN 'captured' THEN amount_minor ELSE -amount_minor END), 0) FROM payment.ledger WHERE payment_id = p.id)
		   <> CASE p.status WHEN 'completed' THEN amount_minor ELSE 0 END`); n != 0 {
		t.Errorf("%d payments do not balance", n)
	}
	if n := scalar[int](t, x, `SELECT count(*) FROM payment.tasks WHERE state <> 'done'`); n != 0 {
		t.Errorf("%d tasks are left", n)
	}
}

// both runs a test with the sandbox at home and with one that has to be called.
func both(t *testing.T, test func(*testing.T, *till)) {
	for name, elsewhere := range map[string]func(*gateway.Sandbox) gateway.Gateway{"local": nil, "remote": remotely} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newTill(t, elsewhere))
		})
	}
}

func TestABookingHasOnePaymentHoweverOftenItAsks(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
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
	got := x.said(t, booking)
	if len(got) != 4 {
		t.Fatalf("%d answers, want 4", len(got))
	}
	for _, e := range got {
		e, ok := e.(*contracts.PaymentDataPrepared)
		if !ok || e.PaymentID != got[0].(*contracts.PaymentDataPrepared).PaymentID || e.Amount != 5000 ||
			e.PaymentURL != x.server.URL+"/pay/"+e.PaymentID || !e.ExpiresAt.Equal(request.ExpiresAt) {
			t.Errorf("answer %+v", e)
		}
	}
}

func TestARollbackLeavesNothing(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	booking, changed := uuid.New(), errors.New("changed my mind")
	err := outbox.InTx(t.Context(), x.pool, func(tx pgx.Tx) error {
		return errors.Join(x.service.Prepare(t.Context(), tx, inbox.One(t.Context(), asks(booking))), changed)
	})
	if !errors.Is(err, changed) || len(x.said(t, booking)) != 0 {
		t.Errorf("error %v", err)
	}
	if body := x.get(t, "/api/payments?bookingId="+booking.String(), http.StatusOK); body != `{"items":[]}` {
		t.Error(body)
	}
}

func (x *till) get(t testing.TB, path string, want int) string {
	t.Helper()
	resp, err := x.server.Client().Get(x.server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		t.Errorf("GET %s: status %d, want %d: %s %v", path, resp.StatusCode, want, body, err)
	}
	return string(body)
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	booking := uuid.New()
	id := x.prepared(t, booking)
	for _, path := range []string{"/api/payments/" + id, "/api/payments?bookingId=" + booking.String()} {
		if body := x.get(t, path, http.StatusOK); !strings.Contains(body, `"amount":"50.00","currency":"EUR","status":"prepared"`) ||
			!strings.Contains(body, `"captured":"0.00","refunded":"0.00"`) || strings.Contains(body, "orrelation") {
			t.Error(body)
		}
	}
	x.get(t, "/api/payments/"+uuid.NewString(), http.StatusNotFound)
	x.get(t, "/api/payments/17", http.StatusBadRequest)
	x.get(t, "/api/payments", http.StatusBadRequest)
	x.get(t, "/api/payments?bookingId=17", http.StatusBadRequest)
	x.get(t, "/api/payments?userId="+id, http.StatusBadRequest)
}

func TestTheRoleMayNotRewriteTheBooks(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	x.paid(t, uuid.New())
	for _, statement := range []string{
		`UPDATE payment.payments SET amount_minor = 1`, `UPDATE payment.payments SET expires_at = now()`, `DELETE FROM payment.payments`,
		`TRUNCATE payment.payments`, `UPDATE payment.ledger SET amount_minor = 1`, `DELETE FROM payment.ledger`,
		`UPDATE payment.ledger SET kind = 'refunded'`, `DELETE FROM payment.tasks`, `UPDATE payment.tasks SET charge = 'x'`,
		`DELETE FROM payment.webhooks`, `DELETE FROM payment.cancellations`, `UPDATE payment.sandbox_sessions SET amount_minor = 1`,
		`UPDATE payment.sandbox_webhooks SET body = ''`, `UPDATE payment.sandbox_secret SET secret = secret`,
	} {
		if _, err := x.pool.Exec(t.Context(), statement); err == nil {
			t.Errorf("%s is allowed", statement)
		}
	}
}

// A payment that cannot be read is put off alone, each time for longer.
func TestAPaymentThatFailsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	x := newTill(t, remotely)
	bad, good, later := uuid.New(), uuid.New(), uuid.New()
	spoil := func(at string) {
		x.exec(t, `UPDATE payment.payments SET prepared_at = $1::timestamptz WHERE booking_id = $2`, at, bad)
	}
	for _, booking := range []uuid.UUID{bad, good} {
		if err := x.prepare(asks(booking)); err != nil {
			t.Fatal(err)
		}
	}
	const tasks = `SELECT count(*) FROM payment.tasks AS t JOIN payment.payments AS p ON p.id = payment_id WHERE booking_id = $1 AND `
	spoil("infinity")
	for _, attempts := range []int{0, 59} { // the last ends the trying, which cannot be stored either
		x.exec(t, `UPDATE payment.tasks SET attempts = $1, next_at = clock_timestamp() WHERE state = 'due'`, attempts)
		if _, err := x.service.Work(t.Context()); err != nil {
			t.Fatal(err)
		}
		if x.status(t, good) != "prepared" || scalar[int](t, x, tasks+`t.state = 'due' AND attempts = $2 AND error <> ''
			AND next_at < clock_timestamp() + interval '5 min 1 s'`, bad, attempts+1) != 1 {
			t.Fatalf("after %d attempts: the task is not put off, or the good payment is %s", attempts, x.status(t, good))
		}
	}
	spoil("2026-01-01")
	x.restart(t)
	x.work(t)
	x.hears(t, bad, "data-prepared")

	x.prepared(t, later)
	spoil("infinity")
	expire := func(want int) {
		t.Helper()
		if n, err := x.service.Expire(t.Context()); err != nil || n != want {
			t.Errorf("%d taken, want %d: %v", n, want, err)
		}
	}
	x.exec(t, `UPDATE payment.payments SET expires_at = clock_timestamp() - interval '1 s' WHERE booking_id <> $1`, later)
	expire(2) // one of them ends
	x.exec(t, `UPDATE payment.payments SET expires_at = clock_timestamp() - interval '1 h' WHERE booking_id = $1`, bad)
	if err := x.service.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if late := value(t, x, "ticketwave_deadline_overdue_seconds", ""); late < 3600 || late > 3700 {
		t.Errorf("a payment should have ended %v s ago, want an hour", late)
	}
	x.exec(t, `UPDATE payment.payments SET expiry_next_at = expiry_next_at + interval '1 h'`)
	expire(0)
	x.exec(t, `UPDATE payment.payments SET expires_at = clock_timestamp()`)
	expire(1)
	x.hears(t, good, "data-prepared expired")
	x.hears(t, later, "data-prepared expired")
	const again = `UPDATE payment.payments SET expiry_next_at = clock_timestamp() WHERE booking_id = $1`
	x.exec(t, again, bad)
	expire(1)
	if n := scalar[int](t, x, `SELECT expiry_failures FROM payment.payments WHERE booking_id = $1`, bad); n != 2 {
		t.Errorf("it was put off %d times, want 2", n)
	}
	spoil("2026-01-01")
	x.exec(t, again, bad)
	expire(1)
	x.hears(t, bad, "data-prepared expired")
}

func TestNewRefusesABadURL(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	for _, base := range []string{"ftp://a", "pay.example", "http://", "http://a?b=c", "http://a#b"} {
		if _, err := payment.New(payment.Config{Pool: x.pool, BaseURL: base}); err == nil {
			t.Errorf("%s is taken", base)
		}
		if _, err := payment.New(payment.Config{Pool: x.pool, WebhookURL: strings.TrimRight(base, "?b=c#")}); err == nil && !strings.HasPrefix(base, "http://a") {
			t.Errorf("webhook URL %s is taken", base)
		}
	}
}

// TestLives plays every short story of a payment. A step ends with its tasks done, and all webhooks delivered but those of
// "quiet" steps, whose webhooks come at the next "deliver".
func TestLives(t *testing.T) {
	t.Parallel()
	stories := []struct{ story, status, published string }{
		{"prepare pay", "completed", "data-prepared completed"},
		{"prepare pay prepare cancel", "completed", "data-prepared completed completed completed"},
		{"prepare pay refund", "refunded", "data-prepared completed refunded"},
		{"prepare pay refund refund cancel prepare", "refunded", "data-prepared completed refunded refunded refunded refunded"},
		{"prepare pay expire", "completed", "data-prepared completed"},
		{"prepare pay pay decline", "completed", "data-prepared completed"},
		{"prepare decline", "failed", "data-prepared failed"},
		{"prepare decline cancel expire pay", "failed", "data-prepared failed failed"},
		{"prepare expire", "expired", "data-prepared expired"},
		{"prepare expire cancel expire prepare pay", "expired", "data-prepared expired expired expired"},
		{"prepare cancel", "cancelled", "data-prepared cancelled"},
		{"prepare cancel cancel prepare expire pay decline", "cancelled", "data-prepared cancelled cancelled cancelled"},
		{"cancel", "none", "cancelled"},
		{"cancel prepare", "none", "cancelled cancelled"},
		{"cancel cancel prepare prepare cancel", "none", "cancelled cancelled cancelled cancelled cancelled"},
		{"prepare late expire deliver", "expired", "data-prepared expired refunded"},
		{"prepare late expire deliver refund cancel", "expired", "data-prepared expired refunded refunded expired"},
		{"prepare late cancel deliver", "cancelled", "data-prepared cancelled refunded"},
		{"prepare late deliver", "completed", "data-prepared completed"},
		{"prepare late overdue deliver expire", "expired", "data-prepared expired refunded"},
		{"prepare quietpay overdue deliver expire", "expired", "data-prepared expired refunded"},
		{"prepare overdue cancel expire pay", "cancelled", "data-prepared cancelled"},
		{"prepare quietpay cancel deliver", "cancelled", "data-prepared cancelled refunded"},
		{"prepare quietpay expire deliver", "expired", "data-prepared expired refunded"},
		{"prepare quietdecline cancel deliver", "cancelled", "data-prepared cancelled"},
		{"prepare refund pay", "cancelled", "data-prepared cancelled"},
		{"prepare quietpay refund deliver", "cancelled", "data-prepared cancelled refunded"},
		{"prepare decline refund", "failed", "data-prepared failed failed"},
		{"tooLate prepare cancel refund", "unavailable", "preparation-failed preparation-failed preparation-failed preparation-failed"},
		{"noCurrency prepare cancel", "unavailable", "preparation-failed preparation-failed preparation-failed"},
	}
	both(t, func(t *testing.T, x *till) {
		for _, c := range stories {
			t.Run(strings.ReplaceAll(c.story, " ", "-"), func(t *testing.T) {
				booking := uuid.New()
				for _, step := range strings.Fields(c.story) {
					x.step(t, booking, step)
				}
				if got := x.status(t, booking); got != c.status {
					t.Errorf("status %s, want %s", got, c.status)
				}
				x.hears(t, booking, c.published)
				x.balances(t)
			})
		}
	})
}

// step is one step of a story.
func (x *till) step(t testing.TB, booking uuid.UUID, step string) {
	t.Helper()
	var err error
	switch step {
	case "prepare":
		err = x.prepare(asks(booking))
	case "tooLate":
		request := asks(booking)
		request.ExpiresAt = time.Now().Add(-time.Second)
		err = x.prepare(request)
	case "noCurrency":
		request := asks(booking)
		request.Currency = "XXX"
		err = x.prepare(request)
	case "cancel":
		err = x.cancel(booking)
	case "refund":
		err = x.refund(booking, x.paymentID(t, booking))
	case "expire":
		x.expire(t, booking)
	case "overdue": // and nobody has looked yet
		x.exec(t, `UPDATE payment.payments SET expires_at = clock_timestamp() WHERE booking_id = $1`, booking)
	case "deliver":
		x.deliver(t)
	case "pay", "decline":
		x.press(t, x.paymentID(t, booking), step)
		x.deliver(t)
	case "late":
		x.press(t, x.paymentID(t, booking), step)
	case "quietpay", "quietdecline":
		x.press(t, x.paymentID(t, booking), strings.TrimPrefix(step, "quiet"))
	default:
		err = fmt.Errorf("no such step")
	}
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	x.work(t)
}

func TestACancellationAndItsRequestAtTheSameTime(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, x *till) {
		for range 25 {
			booking := uuid.New()
			var wg sync.WaitGroup
			for _, do := range []func() error{func() error { return x.prepare(asks(booking)) }, func() error { return x.cancel(booking) }} {
				wg.Go(func() {
					if err := do(); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			x.work(t)
			said := words(x.said(t, booking))
			if status := x.status(t, booking); !slices.Contains([]string{"cancelled", "none"}, status) || !strings.HasSuffix(said, "cancelled") {
				t.Fatalf("status %s, published %q", status, said)
			}
		}
		x.balances(t)
	})
}

func TestARefundOfAnotherPaymentIsParked(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	booking := uuid.New()
	x.paid(t, booking)
	for _, b := range []uuid.UUID{booking, uuid.New()} {
		if err := x.refund(b, uuid.NewString()); err == nil || !strings.Contains(err.Error(), "has no payment") {
			t.Errorf("error %v", err)
		}
	}
}
