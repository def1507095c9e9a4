package payment_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/services/payment"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// signers are the secrets of the till's sandbox.
func (x *till) signers(t testing.TB) gateway.Secrets {
	t.Helper()
	return gateway.Secrets{scalar[[]byte](t, x, `SELECT secret FROM payment.sandbox_secret`)}
}

func notice(typ, id, amount string) string {
	return fmt.Sprintf(`{"type":"payment.%s","timestamp":"2026-05-04T18:30:00Z","data":{"paymentId":"%s","charge":"ch_%s","amount":"%s","currency":"EUR"}}`, typ, id, id, amount)
}

// post sends a webhook with the headers that it would have, and returns the status.
func (x *till) post(t testing.TB, s gateway.Secrets, id string, at time.Time, body string, path string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, x.server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	s.Sign(req.Header, id, at, []byte(body))
	resp, err := x.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

var hook = payment.WebhookPath(gateway.SandboxName)

func TestForgedAndOldWebhooksChangeNothing(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	booking := uuid.New()
	id := x.prepared(t, booking)
	own, now := x.signers(t), time.Now()
	stranger := gateway.Secrets{bytes.Repeat([]byte("x"), 32)}
	body := notice("captured", id, "50.00")
	for name, c := range map[string]struct {
		s    gateway.Secrets
		id   string
		at   time.Time
		body string
		path string
		want int
	}{
		"forged":            {stranger, "evt_1", now, body, hook, http.StatusUnauthorized},
		"unsigned":          {nil, "evt_1", now, body, hook, http.StatusUnauthorized},
		"old":               {own, "evt_1", now.Add(-6 * time.Minute), body, hook, http.StatusUnauthorized},
		"from the future":   {own, "evt_1", now.Add(6 * time.Minute), body, hook, http.StatusUnauthorized},
		"no JSON":           {own, "evt_1", now, "paid", hook, http.StatusBadRequest},
		"no amount":         {own, "evt_1", now, notice("captured", id, "0.00"), hook, http.StatusBadRequest},
		"no such payment":   {own, "evt_1", now, notice("captured", uuid.NewString(), "50.00"), hook, http.StatusNotFound},
		"no such gateway":   {own, "evt_1", now, body, payment.WebhookPath("paypal"), http.StatusNotFound},
		"another's":         {own, "evt_1", now, body, payment.WebhookPath("stripe"), http.StatusNotFound},
		"too large":         {own, "evt_1", now, body + strings.Repeat(" ", 64<<10), hook, http.StatusRequestEntityTooLarge},
		"of no interest":    {own, "evt_1", now, notice("disputed", id, "50.00"), hook, http.StatusNoContent},
		"an id with spaces": {own, "evt 1", now, body, hook, http.StatusUnauthorized},
	} {
		if got := x.post(t, c.s, c.id, c.at, c.body, c.path); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if got := x.status(t, booking); got != "prepared" || scalar[int](t, x, `SELECT count(*) FROM payment.webhooks`) != 0 {
		t.Errorf("status %s", got)
	}
	x.hears(t, booking, "data-prepared")
	if got := x.post(t, own, "evt_1", now, body, hook); got != http.StatusNoContent {
		t.Errorf("a good one: %d", got)
	}
	x.hears(t, booking, "data-prepared completed")
}

// The same webhook many times at once, under its own id and others, captures the money once.
func TestReplayedWebhooksTakeEffectOnce(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	booking := uuid.New()
	id := x.prepared(t, booking)
	own, now := x.signers(t), time.Now()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if got := x.post(t, own, fmt.Sprint("evt_", i%3), now, notice("captured", id, "50.00"), hook); got != http.StatusNoContent {
				t.Errorf("status %d", got)
			}
		})
	}
	wg.Wait()
	x.work(t)
	x.hears(t, booking, "data-prepared completed")
	if n := scalar[int](t, x, `SELECT count(*) FROM payment.ledger`); n != 1 {
		t.Errorf("%d entries", n)
	}
}

// A wrong amount is no payment of the booking: it goes back, and so does a second charge.
func TestMoneyThatWasNotAskedFor(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	own := x.signers(t)
	wrong, twice := uuid.New(), uuid.New()
	id := x.prepared(t, wrong)
	x.exec(t, `UPDATE payment.sandbox_sessions SET state = 'paid' WHERE id = $1`, id)
	x.post(t, own, "evt_wrong", time.Now(), notice("captured", id, "49.99"), hook)
	x.work(t)
	x.hears(t, wrong, "data-prepared failed refunded")

	id = x.paid(t, twice)
	second := uuid.NewString()
	x.exec(t, `INSERT INTO payment.sandbox_sessions (id, amount_minor, currency, expires_at, state) VALUES ($1, 5000, 'EUR', now(), 'paid')`, second)
	x.post(t, own, "evt_twice", time.Now(), strings.Replace(notice("captured", id, "50.00"), "ch_"+id, "ch_"+second, 1), hook)
	x.work(t)
	x.hears(t, twice, "data-prepared completed")
	x.balances(t)
	if err := x.refund(twice, id); err != nil {
		t.Fatal(err)
	}
	x.work(t)
	x.hears(t, twice, "data-prepared completed refunded")
	x.balances(t)
}
