package stripe_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stripe/stripe-go/v84/webhook"

	"github.com/jcp/ticketwave/services/payment/gateway"
	"github.com/jcp/ticketwave/services/payment/gateway/stripe"
	"github.com/jcp/ticketwave/services/payment/gateway/stripe/stripetest"
)

func pair(t testing.TB) (*stripetest.Server, *stripe.Gateway) {
	t.Helper()
	server := stripetest.NewServer()
	t.Cleanup(server.Close)
	g, err := stripe.New(stripe.Config{
		Key: stripetest.Key, URL: server.URL, ReturnURL: "https://shop.example/thanks", WebhookSecrets: []string{"whsec_old", stripetest.Secret},
	})
	if err != nil {
		t.Fatal(err)
	}
	return server, g
}

func checkout(key string) gateway.Checkout {
	now := time.Now()
	return gateway.Checkout{
		Key: key, PaymentID: uuid.New(), BookingID: uuid.New(), Amount: 5000, Currency: "EUR", AskedAt: now, ExpiresAt: now.Add(15 * time.Minute),
	}
}

func TestASessionIsOpenedOnce(t *testing.T) {
	t.Parallel()
	server, g := pair(t)
	c := checkout("one")
	first, err := g.Open(t.Context(), c)
	again, err2 := g.Open(t.Context(), c)
	if err := errors.Join(err, err2); err != nil || first != again || len(server.Sessions()) != 1 {
		t.Fatalf("%+v %+v %v", first, again, err)
	}
	s := server.Sessions()[0]
	if s.ID != first.Ref || s.URL != first.URL || s.AmountTotal != 5000 || s.Currency != "eur" || s.Reference != c.PaymentID.String() ||
		s.Metadata["ticketwave_payment"] != c.PaymentID.String() {
		t.Errorf("%+v", s)
	}
	long := checkout("two")
	long.ExpiresAt = long.AskedAt.Add(48 * time.Hour)
	if _, err := g.Open(t.Context(), long); err != nil {
		t.Errorf("a payment for two days: %v", err)
	}
}

func TestFailuresAreToldApart(t *testing.T) {
	t.Parallel()
	server, g := pair(t)
	small := checkout("small")
	small.Amount = 1
	if _, err := g.Open(t.Context(), small); !errors.Is(err, gateway.ErrRefused) || !strings.Contains(err.Error(), "amount_too_small") {
		t.Errorf("too small: %v", err)
	}
	for fault, spent := range map[stripetest.Fault]bool{stripetest.Lost: false, stripetest.Unheard: false, stripetest.Broken: true, stripetest.Busy: false} {
		c := checkout(fmt.Sprint("fault", fault))
		server.Fail(func(*http.Request) stripetest.Fault { return fault })
		_, err := g.Open(t.Context(), c)
		if err == nil || errors.Is(err, gateway.ErrRefused) || errors.Is(err, gateway.ErrKeySpent) != spent {
			t.Errorf("fault %d: %v", fault, err)
		}
		server.Fail(nil)
		if _, err = g.Open(t.Context(), c); (err != nil) != spent {
			t.Errorf("again after fault %d: %v", fault, err)
		}
		if c.Key += "-1"; spent {
			if _, err := g.Open(t.Context(), c); err != nil {
				t.Errorf("under another key: %v", err)
			}
		}
	}
	c := checkout("changed")
	if _, err := g.Open(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.Amount++
	if _, err := g.Open(t.Context(), c); !errors.Is(err, gateway.ErrKeySpent) {
		t.Errorf("a key with other parameters: %v", err)
	}
	wrong, err := stripe.New(stripe.Config{Key: "sk_wrong", URL: server.URL, ReturnURL: "https://a", WebhookSecrets: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.Open(t.Context(), checkout("wrong")); err == nil || errors.Is(err, gateway.ErrRefused) || strings.Contains(err.Error(), "sk_wrong") {
		t.Errorf("a wrong key: %v", err)
	}
}

func TestCloseAndRefund(t *testing.T) {
	t.Parallel()
	server, g := pair(t)
	closed, err := g.Open(t.Context(), checkout("closed"))
	paid, err2 := g.Open(t.Context(), checkout("paid"))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	server.Pay(paid.Ref, false)
	for _, ref := range []string{closed.Ref, closed.Ref, paid.Ref} {
		if err := g.Close(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
	if all := server.Sessions(); all[0].Status != "expired" || all[1].Status != "complete" {
		t.Errorf("%+v", all)
	}
	if err := g.Close(t.Context(), "cs_none"); !errors.Is(err, gateway.ErrRefused) {
		t.Error(err)
	}
	var refunds []string
	for _, key := range []string{"a", "a", "b"} {
		ref, err := g.Refund(t.Context(), gateway.Refund{Key: key, Charge: "pi_" + paid.Ref, Amount: 5000, Currency: "EUR"})
		if err != nil {
			t.Error(err)
		}
		refunds = append(refunds, ref)
	}
	if refunds[0] == "" || refunds[0] != refunds[1] || refunds[0] != refunds[2] || len(server.Refunds()) != 1 {
		t.Errorf("refunds %v", refunds)
	}
	if _, err := g.Refund(t.Context(), gateway.Refund{Key: "c", Charge: "pi_none", Amount: 1}); !errors.Is(err, gateway.ErrRefused) {
		t.Error(err)
	}
}

// A refund that Stripe keeps waiting is not done; one that has failed is made again under another key.
func TestARefundIsDoneWhenItSucceeded(t *testing.T) {
	t.Parallel()
	server, g := pair(t)
	for _, end := range []string{"succeeded", "failed"} {
		paid, err := g.Open(t.Context(), checkout(end))
		if err != nil {
			t.Fatal(err)
		}
		server.Pay(paid.Ref, false)
		refund := gateway.Refund{Key: "refund, " + end, Charge: "pi_" + paid.Ref, Amount: 5000, Currency: "EUR"}
		server.Withhold()
		for range 2 {
			if ref, err := g.Refund(t.Context(), refund); ref != "" || err == nil || errors.Is(err, gateway.ErrRefused) || errors.Is(err, gateway.ErrKeySpent) {
				t.Errorf("pending: %q %v", ref, err)
			}
		}
		server.Settle(end)
		ref, err := g.Refund(t.Context(), refund)
		if end == "failed" {
			if !errors.Is(err, gateway.ErrKeySpent) {
				t.Errorf("failed: %q %v", ref, err)
			}
			refund.Key = "another"
			ref, err = g.Refund(t.Context(), refund)
		}
		if ref == "" || err != nil {
			t.Errorf("%s: %q %v", end, ref, err)
		}
	}
	if n := len(server.Refunds()); n != 3 {
		t.Errorf("%d refunds", n)
	}
}

func header(body []byte, secret string, at time.Time) http.Header {
	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: secret, Timestamp: at})
	return http.Header{"Stripe-Signature": {signed.Header}}
}

func TestWebhooks(t *testing.T) {
	t.Parallel()
	server, g := pair(t)
	c := checkout("one")
	s, err := g.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var events []gateway.Event
	for _, body := range [][]byte{
		server.Pay(s.Ref, true), server.Arrive(s.Ref, true), server.Arrive(s.Ref, false), server.Event("checkout.session.completed", s.Ref),
		server.Event("checkout.session.expired", s.Ref), server.Event("invoice.paid", s.Ref),
	} {
		e, err := g.Receive(t.Context(), header(body, stripetest.Secret, time.Now()), body)
		if err != nil {
			t.Errorf("%s: %v", body, err)
		}
		events = append(events, e)
	}
	for i, want := range []gateway.Kind{gateway.Ignored, gateway.Declined, gateway.Captured, gateway.Captured, gateway.Expired, gateway.Ignored} {
		e := events[i]
		if e.Kind != want || e.ID == "" || want != gateway.Ignored && e.PaymentID != c.PaymentID ||
			want == gateway.Captured && (e.Charge != "pi_"+s.Ref || e.Amount != 5000 || e.Currency != "EUR") {
			t.Errorf("event %d: %+v, want %s", i, e, want)
		}
	}
}

func TestWebhooksAreRefused(t *testing.T) {
	t.Parallel()
	server, g := pair(t)
	s, err := g.Open(t.Context(), checkout("one"))
	if err != nil {
		t.Fatal(err)
	}
	body, now := server.Pay(s.Ref, false), time.Now()
	twice := header(body, stripetest.Secret, now)
	twice.Add("Stripe-Signature", twice.Get("Stripe-Signature"))
	for name, c := range map[string]struct {
		h    http.Header
		body []byte
		want error
	}{
		"unsigned":       {http.Header{}, body, gateway.ErrSignature},
		"signed twice":   {twice, body, gateway.ErrSignature},
		"nonsense":       {http.Header{"Stripe-Signature": {"nonsense"}}, body, gateway.ErrSignature},
		"another secret": {header(body, "whsec_other", now), body, gateway.ErrSignature},
		"another body":   {header(body, stripetest.Secret, now), append(body, ' '), gateway.ErrSignature},
		"old":            {header(body, stripetest.Secret, now.Add(-gateway.ReplayWindow-time.Minute)), body, gateway.ErrSignature},
		"no JSON":        {header([]byte("x"), stripetest.Secret, now), []byte("x"), gateway.ErrMalformed},
		"no event":       {header([]byte("{}"), stripetest.Secret, now), []byte("{}"), gateway.ErrMalformed},
	} {
		if e, err := g.Receive(t.Context(), c.h, c.body); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v %v", name, e, err)
		}
	}
	foreign := []byte(strings.ReplaceAll(string(body), "ticketwave_payment", "other"))
	if e, err := g.Receive(t.Context(), header(foreign, stripetest.Secret, now), foreign); err != nil || e.Kind != gateway.Ignored {
		t.Errorf("another application's: %+v %v", e, err)
	}
	if e, err := g.Receive(t.Context(), header(body, "whsec_old", now), body); err != nil || e.Kind != gateway.Captured {
		t.Errorf("with the other secret: %+v %v", e, err)
	}
}

// FuzzReceive gives signed and unsigned bodies: what is taken is signed, and can be stored.
func FuzzReceive(f *testing.F) {
	server, g := pair(f)
	s, err := g.Open(f.Context(), checkout("one"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(server.Pay(s.Ref, false), "", true)
	f.Add(server.Event("checkout.session.expired", s.Ref), "", true)
	f.Add([]byte(`{"object":"event","type":"checkout.session.completed"}`), "", true)
	f.Add([]byte(`{"object":"event","id":"evt_1","type":"checkout.session.completed","data":{"object":{"metadata":{"ticketwave_payment":"x"}}}}`), "t=1,v1=00", false)
	f.Fuzz(func(t *testing.T, body []byte, signature string, sign bool) {
		h := http.Header{"Stripe-Signature": {signature}}
		if sign {
			h = header(body, stripetest.Secret, time.Now())
		}
		e, err := g.Receive(t.Context(), h, body)
		if err != nil {
			return
		}
		if !sign {
			t.Fatalf("forged: %q", body)
		}
		if err := e.Check(); err != nil {
			t.Error(err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, cfg := range []stripe.Config{
		{WebhookSecrets: []string{"a"}, ReturnURL: "https://a"}, {Key: "k", ReturnURL: "https://a"}, {Key: "k", WebhookSecrets: []string{"a"}},
		{Key: "k\n", WebhookSecrets: []string{"a"}, ReturnURL: "https://a"}, {Key: "k", WebhookSecrets: []string{""}, ReturnURL: "https://a"},
	} {
		if _, err := stripe.New(cfg); err == nil {
			t.Errorf("%d secrets are taken", len(cfg.WebhookSecrets))
		}
	}
}

func TestTakes(t *testing.T) {
	t.Parallel()
	_, g := pair(t)
	for currency, want := range map[string]bool{"EUR": true, "USD": true, "CHF": true, "JPY": false, "KWD": false, "XXX": false, "eur": false} {
		if g.Takes(currency) != want {
			t.Errorf("%s: %t", currency, !want)
		}
	}
}
