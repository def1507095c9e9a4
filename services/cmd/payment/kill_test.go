package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/payment"
	"github.com/jcp/ticketwave/services/payment/gateway"
	"github.com/jcp/ticketwave/services/payment/gateway/stripe"
	"github.com/jcp/ticketwave/services/payment/gateway/stripe/stripetest"
)

// TestMain lets the test binary be the program.
func TestMain(m *testing.M) {
	if os.Getenv("TW_TEST_BE_PAYMENT") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

const patience = 30 * time.Second

// output is what a process writes, read while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// world is the program, Stripe, and a database in which requests are handled by the test.
type world struct {
	t      *testing.T
	db     *outboxtest.Database
	pool   *pgxpool.Pool
	asked  *payment.Service
	stripe *stripetest.Server
	addr   string
	env    []string
	out    *output

	mu    sync.Mutex
	proc  *exec.Cmd
	ended chan error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, db: outboxtest.NewDatabase(t, "payment", "payment"), stripe: stripetest.NewServer(), out: &output{}}
	t.Cleanup(w.stripe.Close)
	w.pool = outboxtest.NewPool(t, w.db.ServiceURL)
	g, err := stripe.New(stripe.Config{Key: "unused", URL: w.stripe.URL, ReturnURL: "http://unused", WebhookSecrets: []string{"unused"}})
	if err != nil {
		t.Fatal(err)
	}
	if w.asked, err = payment.New(payment.Config{Pool: w.pool, Logger: slog.New(slog.DiscardHandler), Gateways: []gateway.Gateway{g}, Active: stripe.Name}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	_ = l.Close()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(stripetest.Key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.env = []string{
		"TW_TEST_BE_PAYMENT=1", "TW_DATABASE_URL=" + w.db.ServiceURL, "TW_AMQP_URL=" + outboxtest.NewVHost(t), "TW_HTTP_ADDR=" + w.addr,
		"TW_PAYMENT_GATEWAY=stripe", "TW_STRIPE_URL=" + w.stripe.URL, "TW_STRIPE_KEY_FILE=" + key, "TW_STRIPE_WEBHOOK_SECRETS=" + stripetest.Secret,
	}
	return w
}

func (w *world) start() {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.CommandContext(w.t.Context(), self)
	cmd.Env, cmd.Stdout, cmd.Stderr = w.env, w.out, w.out
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.proc, w.ended = cmd, make(chan error, 1)
	ended := w.ended
	w.mu.Unlock()
	go func() { ended <- cmd.Wait() }()
	outboxtest.Eventually(w.t, patience, func() bool {
		resp, err := http.Get("http://" + w.addr + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, "the process is ready: %s", w.out.text())
}

func (w *world) wait() error {
	w.t.Helper()
	select {
	case err := <-w.ended:
		return err
	case <-time.After(patience):
		w.t.Fatalf("the process does not end: %s", w.out.text())
		return nil
	}
}

// killAt kills the process in the middle of its next request to a path, when Stripe has done it and not answered yet.
func (w *world) killAt(suffix string) {
	var once sync.Once
	w.stripe.Fail(func(r *http.Request) (fault stripetest.Fault) {
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, suffix) {
			once.Do(func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				_ = w.proc.Process.Kill()
				fault = stripetest.Unheard
			})
		}
		return fault
	})
}

// resurrect starts the process again when it is dead, and lets its leases run out.
func (w *world) resurrect() {
	w.t.Helper()
	if err := w.wait(); err == nil {
		w.t.Error("the process was not killed")
	}
	w.exec(`UPDATE payment.tasks SET next_at = clock_timestamp() WHERE state = 'due'`)
	w.start()
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) become(booking uuid.UUID, status string) {
	w.t.Helper()
	outboxtest.Eventually(w.t, patience, func() bool {
		var got string
		var due int
		err := w.db.QueryRow(context.Background(), `
			SELECT status, (SELECT count(*) FROM payment.tasks WHERE state <> 'done') FROM payment.payments WHERE booking_id = $1`, booking).Scan(&got, &due)
		return err == nil && got == status && due == 0
	}, "the payment is %s: %s", status, w.out.text())
}

func ask[T any](w *world, handler func(context.Context, pgx.Tx, []inbox.Item[T]) error, request T) {
	w.t.Helper()
	ctx := context.Background()
	if err := outbox.InTx(ctx, w.pool, func(tx pgx.Tx) error { return handler(ctx, tx, inbox.One(ctx, request)) }); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) prepare(booking uuid.UUID) {
	w.t.Helper()
	now := time.Now()
	ask(w, w.asked.Prepare, contracts.PreparePaymentData{
		BookingID: booking.String(), UserID: uuid.NewString(), Amount: 5000, Currency: "EUR", RequestedAt: now, ExpiresAt: now.Add(time.Hour),
	})
}

func TestKilledInTheMiddleOfEachCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	paid, cancelled := uuid.New(), uuid.New()

	w.killAt("/sessions")
	w.prepare(paid)
	w.resurrect()
	w.become(paid, "prepared")
	if n := len(w.stripe.Sessions()); n != 1 {
		t.Fatalf("%d sessions were opened", n)
	}
	body := w.stripe.Pay(w.stripe.Sessions()[0].ID, false)
	to := "http://" + w.addr + payment.WebhookPath(stripe.Name)
	for _, secret := range []string{"whsec_forged", stripetest.Secret, stripetest.Secret} {
		if got, err := w.stripe.Send(t.Context(), to, body, secret, time.Now()); err != nil || (got == http.StatusNoContent) != (secret == stripetest.Secret) {
			t.Errorf("a webhook signed with %s: %d %v", secret, got, err)
		}
	}
	w.become(paid, "completed")

	w.killAt("/refunds")
	var id string
	if err := w.db.QueryRow(t.Context(), `SELECT id::text FROM payment.payments`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	ask(w, w.asked.Refund, contracts.RefundPayment{BookingID: paid.String(), PaymentID: id, Reason: contracts.UndoBookingExpired, RequestedAt: time.Now()})
	w.resurrect()
	w.become(paid, "refunded")
	if n := len(w.stripe.Refunds()); n != 1 {
		t.Errorf("%d refunds", n)
	}

	w.prepare(cancelled)
	w.become(cancelled, "prepared")
	w.killAt("/expire")
	ask(w, w.asked.Cancel, contracts.CancelPayment{BookingID: cancelled.String(), Reason: contracts.UndoBookingCancelled, RequestedAt: time.Now()})
	w.resurrect()
	w.become(cancelled, "cancelled")
	if s := w.stripe.Sessions()[1]; s.Status != "expired" {
		t.Errorf("the session is %s", s.Status)
	}

	if err := w.proc.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := w.wait(); err != nil {
		t.Errorf("after SIGTERM: %v: %s", err, w.out.text())
	}
	for _, secret := range []string{stripetest.Key, stripetest.Secret} {
		if strings.Contains(w.out.text(), secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
}
