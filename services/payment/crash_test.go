package payment_test

import (
	"context"
	"flag"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/payment"
	"github.com/jcp/ticketwave/services/payment/gateway"
	"github.com/jcp/ticketwave/services/payment/gateway/stripe"
	"github.com/jcp/ticketwave/services/payment/gateway/stripe/stripetest"
)

// mortal is a gateway whose caller dies: before the call, or after it took effect and before anything is recorded. Dying ends
// the goroutine where it is, as the end of the process does.
type mortal struct {
	gateway.Gateway
	before, after atomic.Int32 // how many of the next calls
}

func dies(n *atomic.Int32) {
	if n.Add(-1) >= 0 {
		runtime.Goexit()
	}
	n.Store(0)
}

func (m *mortal) Open(ctx context.Context, c gateway.Checkout) (gateway.Session, error) {
	dies(&m.before)
	s, err := m.Gateway.Open(ctx, c)
	dies(&m.after)
	return s, err
}

func (m *mortal) Close(ctx context.Context, session string) error {
	dies(&m.before)
	err := m.Gateway.Close(ctx, session)
	dies(&m.after)
	return err
}

func (m *mortal) Refund(ctx context.Context, r gateway.Refund) (string, error) {
	dies(&m.before)
	reference, err := m.Gateway.Refund(ctx, r)
	dies(&m.after)
	return reference, err
}

// restart lets the leases of the dead run out.
func (x *till) restart(t testing.TB) {
	t.Helper()
	x.exec(t, `UPDATE payment.tasks SET next_at = clock_timestamp() WHERE state = 'due'`)
}

func TestRestartInTheMiddleOfEachCall(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ story, status, published string }{
		{"prepare pay", "completed", "data-prepared completed"},
		{"prepare pay refund", "refunded", "data-prepared completed refunded"},
		{"prepare cancel", "cancelled", "data-prepared cancelled"},
		{"prepare quietpay expire deliver", "expired", "data-prepared expired refunded"},
	} {
		t.Run(strings.ReplaceAll(c.story, " ", "-"), func(t *testing.T) {
			t.Parallel()
			dead := &mortal{}
			x := newTill(t, func(s *gateway.Sandbox) gateway.Gateway {
				dead.Gateway = remote{s}
				return dead
			})
			for _, when := range []*atomic.Int32{&dead.before, &dead.after} {
				booking := uuid.New()
				for _, step := range strings.Fields(c.story) {
					dead.before.Store(0)
					when.Store(3)
					x.step(t, booking, step)
					for range 4 {
						x.restart(t)
						x.work(t)
					}
				}
				if got := x.status(t, booking); got != c.status {
					t.Errorf("status %s, want %s", got, c.status)
				}
				x.hears(t, booking, c.published)
				if n := scalar[int](t, x, `SELECT count(*) FROM payment.tasks AS t JOIN payment.payments AS p ON p.id = payment_id
					WHERE booking_id = $1 AND attempts < 4`, booking); n != 0 {
					t.Errorf("%d tasks met no death", n)
				}
				x.balances(t)
			}
		})
	}
}

// A payment that ends while its session is being opened is not told of as prepared, and its session is closed.
func TestAnEndWhileTheSessionIsOpened(t *testing.T) {
	t.Parallel()
	for end, want := range map[string]string{"cancel": "cancelled", "expire": "preparation-failed", "refund": "cancelled"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			dead := &mortal{}
			x := newTill(t, func(s *gateway.Sandbox) gateway.Gateway {
				dead.Gateway = remote{s}
				return dead
			})
			opened, never := uuid.New(), uuid.New()
			dead.after.Store(1)
			x.step(t, opened, "prepare")
			if err := x.prepare(asks(never)); err != nil { // and its task is not begun
				t.Fatal(err)
			}
			for _, booking := range []uuid.UUID{opened, never} {
				switch end {
				case "cancel":
					if err := x.cancel(booking); err != nil {
						t.Fatal(err)
					}
				case "refund":
					if err := x.refund(booking, x.paymentID(t, booking)); err != nil {
						t.Fatal(err)
					}
				case "expire":
					x.expire(t, booking)
				}
			}
			x.restart(t)
			x.work(t)
			x.hears(t, opened, want)
			x.hears(t, never, want)
			if n := scalar[int](t, x, `SELECT count(*) FROM payment.sandbox_sessions`); n != 1 {
				t.Errorf("%d sessions were opened, want that of the first alone", n)
			}
			if state := scalar[string](t, x, `SELECT state FROM payment.sandbox_sessions`); state != "closed" {
				t.Errorf("the session is %s", state)
			}
			x.balances(t)
		})
	}
}

// striped is a till that takes its money at Stripe.
func striped(t testing.TB) (*till, *stripetest.Server) {
	t.Helper()
	server := stripetest.NewServer()
	t.Cleanup(server.Close)
	g, err := stripe.New(stripe.Config{Key: stripetest.Key, URL: server.URL, ReturnURL: "https://shop.example", WebhookSecrets: []string{stripetest.Secret}})
	if err != nil {
		t.Fatal(err)
	}
	return newTill(t, func(*gateway.Sandbox) gateway.Gateway { return g }), server
}

func (x *till) session(t testing.TB, booking uuid.UUID) string {
	t.Helper()
	return scalar[string](t, x, `SELECT coalesce(session, '') FROM payment.payments WHERE booking_id = $1`, booking)
}

func (x *till) send(t testing.TB, s *stripetest.Server, body []byte, want int) {
	t.Helper()
	got, err := s.Send(context.Background(), x.server.URL+payment.WebhookPath(stripe.Name), body, stripetest.Secret, time.Now())
	if err != nil || got != want {
		t.Errorf("webhook: %d %v, want %d", got, err, want)
	}
}

// keeps checks the books against what Stripe holds.
func (x *till) keeps(t testing.TB, s *stripetest.Server) {
	t.Helper()
	var held int64
	for _, session := range s.Sessions() {
		if session.PaymentStatus == "paid" {
			held += session.AmountTotal
		}
	}
	for _, refund := range s.Refunds() {
		held -= refund.Amount
	}
	if n := scalar[int64](t, x, `SELECT coalesce(sum(amount_minor), 0)::bigint FROM payment.payments WHERE status = 'completed'`); n != held {
		t.Errorf("Stripe holds %d for completed payments of %d", held, n)
	}
	x.reconciles(t)
}

func TestStripe(t *testing.T) {
	t.Parallel()
	x, s := striped(t)
	paid, refunded, late, cancelled := uuid.New(), uuid.New(), uuid.New(), uuid.New()
	for _, booking := range []uuid.UUID{paid, refunded, late, cancelled} {
		x.prepared(t, booking)
	}
	x.send(t, s, s.Pay(x.session(t, paid), false), http.StatusNoContent)
	body := s.Pay(x.session(t, refunded), false)
	for range 2 {
		x.send(t, s, body, http.StatusNoContent)
	}
	if err := x.refund(refunded, x.paymentID(t, refunded)); err != nil {
		t.Fatal(err)
	}
	x.send(t, s, s.Pay(x.session(t, late), true), http.StatusNoContent)
	x.step(t, late, "expire")
	x.send(t, s, s.Arrive(x.session(t, late), false), http.StatusNoContent)
	x.send(t, s, s.Event("checkout.session.completed", x.session(t, late)), http.StatusNoContent)
	x.step(t, cancelled, "cancel")
	if s.Pay(x.session(t, cancelled), false) != nil {
		t.Error("a cancelled payment can be made")
	}
	x.send(t, s, s.Event("checkout.session.expired", x.session(t, cancelled)), http.StatusNoContent)
	x.work(t)
	x.hears(t, paid, "data-prepared completed")
	x.hears(t, refunded, "data-prepared completed refunded")
	x.hears(t, late, "data-prepared expired refunded")
	x.hears(t, cancelled, "data-prepared cancelled")
	if url := x.said(t, paid)[0].(*contracts.PaymentDataPrepared).PaymentURL; url != s.URL+"/c/pay/"+x.session(t, paid) {
		t.Errorf("to be paid at %s", url)
	}
	x.keeps(t, s)
}

// When new payments are made in the sandbox again, those that were made at Stripe go on there.
func TestBackFromStripe(t *testing.T) {
	t.Parallel()
	x, s := striped(t)
	asked, paid, refunded, late, cancelled := uuid.New(), uuid.New(), uuid.New(), uuid.New(), uuid.New()
	for _, booking := range []uuid.UUID{paid, refunded, late, cancelled} {
		x.prepared(t, booking)
	}
	if err := x.prepare(asks(asked)); err != nil { // and Stripe is not called yet
		t.Fatal(err)
	}
	x.open(t, x.listen(t), gateway.SandboxName)
	here := uuid.New()
	x.prepared(t, here)
	if at := scalar[string](t, x, `SELECT gateway FROM payment.payments WHERE booking_id = $1`, here); at != gateway.SandboxName {
		t.Errorf("a new payment is made at %s", at)
	}
	x.step(t, here, "decline")
	for _, booking := range []uuid.UUID{asked, paid, refunded} {
		x.send(t, s, s.Pay(x.session(t, booking), false), http.StatusNoContent)
	}
	x.step(t, refunded, "refund")
	x.step(t, cancelled, "cancel")
	body := s.Pay(x.session(t, late), false)
	x.step(t, late, "expire")
	x.send(t, s, body, http.StatusNoContent)
	x.work(t)
	x.hears(t, here, "data-prepared failed")
	x.hears(t, asked, "data-prepared completed")
	x.hears(t, paid, "data-prepared completed")
	x.hears(t, refunded, "data-prepared completed refunded")
	x.hears(t, late, "data-prepared expired refunded")
	x.hears(t, cancelled, "data-prepared cancelled")
	x.keeps(t, s)
}

// Stripe ends a session by itself, or a slow payment fails.
func TestStripeEndsAPayment(t *testing.T) {
	t.Parallel()
	x, s := striped(t)
	over, failed := uuid.New(), uuid.New()
	x.prepared(t, over)
	x.prepared(t, failed)
	x.send(t, s, s.Event("checkout.session.expired", x.session(t, over)), http.StatusNoContent)
	x.send(t, s, s.Pay(x.session(t, failed), true), http.StatusNoContent)
	x.send(t, s, s.Arrive(x.session(t, failed), true), http.StatusNoContent)
	x.hears(t, over, "data-prepared expired")
	x.hears(t, failed, "data-prepared failed")
	x.keeps(t, s)
}

// Every request is lost once, unheard once, answered with too many requests and with a failure that sticks to its key.
func TestStripeFails(t *testing.T) {
	t.Parallel()
	x, s := striped(t)
	faults := map[string]int{}
	s.Fail(func(r *http.Request) stripetest.Fault {
		faults[r.URL.Path]++
		return []stripetest.Fault{stripetest.Lost, stripetest.Unheard, stripetest.Busy, stripetest.Broken, stripetest.None}[min(faults[r.URL.Path]-1, 4)]
	})
	persist := func() {
		for range 8 {
			x.restart(t)
			x.work(t)
		}
	}
	paid, cancelled := uuid.New(), uuid.New()
	x.prepared(t, paid)
	persist()
	x.prepared(t, cancelled)
	x.send(t, s, s.Pay(x.session(t, paid), false), http.StatusNoContent)
	if err := x.refund(paid, x.paymentID(t, paid)); err != nil {
		t.Fatal(err)
	}
	x.step(t, cancelled, "cancel")
	persist()
	x.hears(t, paid, "data-prepared completed refunded")
	x.hears(t, cancelled, "data-prepared cancelled")
	if n := len(s.Refunds()); n != 1 {
		t.Errorf("%d refunds", n)
	}
	x.keeps(t, s)
}

// A payment that Stripe will never open ends; a refund that it refuses is owed, and asked for again
// under another key.
func TestStripeRefuses(t *testing.T) {
	t.Parallel()
	x, s := striped(t)
	small, paid := uuid.New(), uuid.New()
	request := asks(small)
	request.Amount = 1
	if err := x.prepare(request); err != nil {
		t.Fatal(err)
	}
	x.work(t)
	x.hears(t, small, "preparation-failed")
	if e := x.said(t, small)[0].(*contracts.PaymentPreparationFailed); e.Reason != contracts.PreparationRefused {
		t.Errorf("%+v", e)
	}
	x.exec(t, `DELETE FROM payment.tasks WHERE state = 'refused'`) // of the opening
	id := x.prepared(t, paid)
	x.send(t, s, s.Pay(x.session(t, paid), false), http.StatusNoContent)
	x.exec(t, `UPDATE payment.ledger SET reference = 'pi_gone'`)
	if err := x.refund(paid, id); err != nil {
		t.Fatal(err)
	}
	x.work(t)
	if state := scalar[string](t, x, `SELECT state || ' ' || round FROM payment.tasks WHERE kind = 'refund'`); state == "due 0" || !strings.HasPrefix(state, "due ") {
		t.Errorf("the refund is %s", state)
	}
	if err := x.prepare(asks(uuid.New())); err != nil {
		t.Fatal(err)
	}
	x.counts(t, 1, 1)
	x.exec(t, `UPDATE payment.tasks SET state = 'refused' WHERE kind = 'refund'`) // given up, and owed
	x.counts(t, 1, 1)
	x.exec(t, `UPDATE payment.tasks SET state = 'due' WHERE kind = 'refund'`)
	x.exec(t, `UPDATE payment.ledger SET reference = $1`, "pi_"+x.session(t, paid))
	x.exec(t, `UPDATE payment.tasks SET charge = $1, next_at = clock_timestamp() WHERE kind = 'refund'`, "pi_"+x.session(t, paid))
	x.work(t)
	x.counts(t, 0, 0)
	x.hears(t, paid, "data-prepared completed refunded")
	x.keeps(t, s)
}

// counts checks the gauges.
func (x *till) counts(t testing.TB, waiting, refused int) {
	t.Helper()
	if err := x.service.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	for state, want := range map[string]int{"waiting": waiting, "refused": refused} {
		tasks, oldest := value(t, x, "ticketwave_payment_tasks", state), value(t, x, "ticketwave_payment_tasks_oldest_seconds", state)
		if tasks != float64(want) || (oldest > 0) != (want > 0) {
			t.Errorf("%s: %g tasks, the oldest %g s, want %d tasks", state, tasks, oldest, want)
		}
	}
}

// value is that of a gauge, of the state unless that is empty, or -1.
func value(t testing.TB, x *till, name, state string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(x.service.Metrics()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (state == "" || m.GetLabel()[0].GetValue() == state) {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

// A webhook that comes before its session is recorded is sent again.
func TestAWebhookBeforeItsSession(t *testing.T) {
	t.Parallel()
	x, s := striped(t)
	booking := uuid.New()
	s.Fail(func(*http.Request) stripetest.Fault { return stripetest.Unheard })
	if err := x.prepare(asks(booking)); err != nil {
		t.Fatal(err)
	}
	x.work(t)
	body := s.Pay(s.Sessions()[0].ID, false)
	x.send(t, s, body, http.StatusServiceUnavailable)
	s.Fail(nil)
	x.restart(t)
	x.work(t)
	x.send(t, s, body, http.StatusNoContent)
	x.hears(t, booking, "data-prepared completed")
	x.keeps(t, s)
}

// TestAnyLife plays long random stories, with deaths in the middle of calls, and webhooks that come late, twice and in any order.
func TestAnyLife(t *testing.T) {
	t.Parallel()
	dead := &mortal{}
	x := newTill(t, func(s *gateway.Sandbox) gateway.Gateway {
		dead.Gateway = remote{s}
		return dead
	})
	home := newTill(t, nil)
	steps := []string{"prepare", "cancel", "refund", "expire", "deliver", "quietpay", "late", "quietdecline", "again", "die", "restart"}
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		if err := checks.Value.Set("30"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		if t.Failed() {
			r.FailNow()
		}
		x := rapid.SampledFrom([]*till{x, home}).Draw(r, "till")
		booking := uuid.New()
		requests := 0
		var story []string
		defer func() {
			if t.Failed() {
				t.Logf("after %v", story)
			}
		}()
		for _, step := range rapid.SliceOfN(rapid.SampledFrom(steps), 1, 12).Draw(r, "steps") {
			story = append(story, step)
			status := x.status(t, booking)
			opened := scalar[bool](t, x, `SELECT EXISTS (SELECT FROM payment.payments WHERE booking_id = $1 AND url IS NOT NULL)`, booking)
			switch {
			case step == "die":
				if rapid.Bool().Draw(r, "after") {
					dead.after.Store(1)
				} else {
					dead.before.Store(1)
				}
			case step == "restart":
				x.restart(t)
				x.work(t)
			case step == "again":
				x.exec(t, `UPDATE payment.sandbox_webhooks SET delivered_at = NULL, attempts = 0 WHERE session_id::text = $1`, x.idOr(t, booking))
				x.deliver(t)
			case step == "refund" && status == "none", strings.Contains("quietpay late quietdecline", step) && !opened:
			default:
				if step == "prepare" || step == "cancel" || step == "refund" {
					requests++
				}
				x.step(t, booking, step)
			}
		}
		dead.before.Store(0)
		dead.after.Store(0)
		x.restart(t)
		x.work(t)
		x.deliver(t)
		x.restart(t)
		x.work(t)
		x.expire(t, booking)
		x.work(t)
		x.balances(t)
		said := x.said(t, booking)
		consistent(t, said)
		if requests > 0 && len(said) == 0 {
			t.Errorf("%d requests and no answer", requests)
		}
	})
}

func (x *till) idOr(t testing.TB, booking uuid.UUID) string {
	t.Helper()
	return scalar[string](t, x, `SELECT coalesce((SELECT id::text FROM payment.payments WHERE booking_id = $1), '')`, booking)
}

// consistent checks that a payment ends once: after an end nothing but that end, and a refund, is told.
func consistent(t *testing.T, said []contracts.Event) {
	t.Helper()
	text := words(said)
	end := ""
	for _, word := range strings.Fields(text) {
		switch {
		case word == "data-prepared" && end == "", word == "refunded" && end != "":
		case word != "data-prepared" && (end == "" || end == word):
			end = word
		default:
			t.Errorf("published %q", text)
			return
		}
	}
}

// held is a gateway that does not answer before it is released.
type held struct {
	gateway.Gateway
	calls   atomic.Int32
	release chan struct{}
}

func (h *held) Open(ctx context.Context, c gateway.Checkout) (gateway.Session, error) {
	if c.Amount == heldAmount {
		h.calls.Add(1)
		select {
		case <-h.release:
		case <-ctx.Done():
		}
	}
	return h.Gateway.Open(ctx, c)
}

// heldAmount is what the payments cost that held holds up.
const heldAmount = 1313

// Calls that are slow hold up no other while there is room, and there is room for 16.
func TestASlowCallHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	slow := &held{release: make(chan struct{})}
	x := newTill(t, func(s *gateway.Sandbox) gateway.Gateway {
		slow.Gateway = remote{s}
		return slow
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- x.service.Run(ctx) }()
	prepare := func(amount contracts.Amount) uuid.UUID {
		booking := uuid.New()
		request := asks(booking)
		request.Amount = amount
		if err := x.prepare(request); err != nil {
			t.Fatal(err)
		}
		return booking
	}
	for range 15 {
		prepare(heldAmount)
	}
	outboxtest.Eventually(t, patience, func() bool { return slow.calls.Load() == 15 }, "15 calls are under way")
	quick := prepare(5000)
	outboxtest.Eventually(t, patience/2, func() bool { return x.status(t, quick) == "prepared" }, "another payment is prepared meanwhile")
	for range 2 {
		prepare(heldAmount)
	}
	outboxtest.Eventually(t, patience, func() bool { return slow.calls.Load() == 16 }, "16 calls are under way")
	if n := scalar[int](t, x, `SELECT count(*) FROM payment.tasks WHERE attempts = 0`); n != 1 {
		t.Errorf("%d tasks wait for room, want 1", n)
	}
	close(slow.release)
	outboxtest.Eventually(t, patience, func() bool {
		return scalar[int](t, x, `SELECT count(*) FROM payment.payments WHERE status <> 'prepared'`) == 0
	}, "all are prepared")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestTheLoops lets payment run by itself: a payment expires, its late money comes and goes back.
func TestTheLoops(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, x *till) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- x.service.Run(ctx) }()
		booking := uuid.New()
		if err := x.prepare(asks(booking)); err != nil {
			t.Fatal(err)
		}
		outboxtest.Eventually(t, patience, func() bool { return x.status(t, booking) == "prepared" }, "the payment is prepared")
		id := x.paymentID(t, booking)
		x.press(t, id, "late")
		x.exec(t, `UPDATE payment.payments SET expires_at = clock_timestamp()`)
		x.exec(t, `UPDATE payment.sandbox_webhooks SET next_at = clock_timestamp() + interval '2 s'`)
		outboxtest.Eventually(t, patience, func() bool { return words(x.said(t, booking)) == "data-prepared expired refunded" }, "the late money is given back")
		outboxtest.Eventually(t, patience, func() bool {
			return scalar[int](t, x, `SELECT count(*) FROM payment.tasks WHERE state = 'due'`) == 0
		}, "the session is closed")
		x.balances(t)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
