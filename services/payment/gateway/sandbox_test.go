package gateway_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/internal/web"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

var quiet = slog.New(slog.DiscardHandler)

// unreachable is a pool of a server that is not there.
func unreachable(tb testing.TB) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(context.Background(), "postgres://nobody@127.0.0.1:1/none")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	return pool
}

// shop is a sandbox and who hears its webhooks.
type shop struct {
	db      *outboxtest.Database
	pool    *pgxpool.Pool
	sandbox *gateway.Sandbox
	page    *httptest.Server

	mu     sync.Mutex
	heard  []gateway.Event
	ids    []string
	answer atomic.Int64 // the status that webhooks get
}

func newShop(t *testing.T, change func(*gateway.SandboxConfig)) *shop {
	t.Helper()
	x := &shop{db: outboxtest.NewDatabase(t, "payment", "payment")}
	x.pool = outboxtest.NewPool(t, x.db.ServiceURL)
	x.answer.Store(http.StatusNoContent)
	receiver := httptest.NewServer(http.HandlerFunc(x.receive))
	t.Cleanup(receiver.Close)
	router := web.NewRouter(web.Config{Logger: quiet})
	x.page = httptest.NewServer(router)
	t.Cleanup(x.page.Close)
	cfg := gateway.SandboxConfig{Pool: x.pool, Logger: quiet, BaseURL: x.page.URL, WebhookURL: receiver.URL, Lateness: time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	var err error
	if x.sandbox, err = gateway.NewSandbox(cfg); err != nil {
		t.Fatal(err)
	}
	x.sandbox.Routes(router)
	return x
}

func (x *shop) receive(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	e, err := x.sandbox.Receive(r.Context(), r.Header, body)
	status := int(x.answer.Load())
	if err != nil {
		status = http.StatusUnauthorized
	}
	x.mu.Lock()
	x.ids = append(x.ids, e.ID)
	if status < 300 {
		x.heard = append(x.heard, e)
	}
	x.mu.Unlock()
	w.WriteHeader(status)
}

func (x *shop) open(t *testing.T, expires time.Duration) (string, gateway.Session) {
	t.Helper()
	c := gateway.Checkout{PaymentID: uuid.New(), Amount: 123450, Currency: "CHF", ExpiresAt: time.Now().Add(expires)}
	session, err := x.sandbox.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := x.sandbox.Open(t.Context(), c)
	if err != nil || again != session || session.URL != x.page.URL+"/pay/"+c.PaymentID.String() {
		t.Errorf("%+v, again %+v, %v", session, again, err)
	}
	return c.PaymentID.String(), session
}

func (x *shop) read(t *testing.T, address string) (int, http.Header, string) {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func (x *shop) press(t *testing.T, address, action string, header ...string) int {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, address, strings.NewReader(url.Values{"action": {action}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSeeOther {
		if to, err := resp.Location(); err != nil || to.String() != address {
			t.Errorf("redirected to %s: %v", to, err)
		}
	}
	return resp.StatusCode
}

func (x *shop) webhooks(t *testing.T, condition string) (n int) {
	t.Helper()
	if err := x.db.QueryRow(t.Context(), `SELECT count(*) FROM payment.sandbox_webhooks WHERE `+condition).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (x *shop) deliver(t *testing.T) {
	t.Helper()
	if _, err := x.sandbox.Deliver(t.Context()); err != nil {
		t.Fatal(err)
	}
}

var style = regexp.MustCompile(`(?s)<style>(.*)</style>`)

func TestTheCheckoutPage(t *testing.T) {
	t.Parallel()
	x := newShop(t, nil)
	id, session := x.open(t, time.Hour)
	status, header, page := x.read(t, session.URL)
	for _, want := range []string{"1234.50 CHF", `value="pay"`, `value="decline"`, `value="late"`, "UTC", id, `method="post"`} {
		if status != http.StatusOK || !strings.Contains(page, want) {
			t.Errorf("no %q in the page: %d\n%s", want, status, page)
		}
	}
	if strings.Contains(page, "<script") || header.Get("Content-Type") != "text/html; charset=utf-8" || header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", header)
	}
	sum := sha256.Sum256([]byte(style.FindStringSubmatch(page)[1]))
	policy := header.Get("Content-Security-Policy")
	if !strings.Contains(policy, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") || !strings.Contains(policy, "form-action 'self'") {
		t.Errorf("the policy %q does not let the page's own style through", policy)
	}
	for _, c := range []struct {
		address, action string
		header          []string
		want            int
	}{
		{session.URL, "steal", nil, http.StatusBadRequest},
		{session.URL, "", nil, http.StatusBadRequest},
		{session.URL, "pay", []string{"Content-Type", "text/plain"}, http.StatusUnsupportedMediaType},
		{session.URL, "pay", []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		{session.URL, "pay", []string{"Origin", "https://evil.example"}, http.StatusForbidden},
		{x.page.URL + "/pay/" + uuid.NewString(), "pay", nil, http.StatusNotFound},
		{x.page.URL + "/pay/17", "pay", nil, http.StatusBadRequest},
	} {
		if got := x.press(t, c.address, c.action, c.header...); got != c.want {
			t.Errorf("%s %v: %d, want %d", c.action, c.header, got, c.want)
		}
	}
	if n := x.webhooks(t, "true"); n != 0 {
		t.Errorf("%d webhooks before anything happened", n)
	}
	if got := x.press(t, session.URL, "pay", "Sec-Fetch-Site", "same-origin"); got != http.StatusSeeOther {
		t.Errorf("pay: %d", got)
	}
	if _, _, page := x.read(t, session.URL); strings.Contains(page, "<form") || !strings.Contains(page, "Paid") {
		t.Errorf("after paying: %s", page)
	}
	for _, action := range []string{"pay", "decline", "late"} {
		x.press(t, session.URL, action)
	}
	if n := x.webhooks(t, "true"); n != 1 {
		t.Errorf("%d webhooks of one payment", n)
	}
	x.deliver(t)
	if len(x.heard) != 1 || x.heard[0].Kind != gateway.Captured || x.heard[0].PaymentID.String() != id || x.heard[0].Amount != 123450 || x.heard[0].Currency != "CHF" {
		t.Errorf("heard %+v", x.heard)
	}
}

func TestASessionEnds(t *testing.T) {
	t.Parallel()
	x := newShop(t, nil)
	_, over := x.open(t, -time.Second)
	_, closed := x.open(t, time.Hour)
	_, declined := x.open(t, time.Hour)
	x.press(t, declined.URL, "decline")
	for range 2 {
		if err := x.sandbox.Close(t.Context(), closed.Ref); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []gateway.Session{over, closed, declined} {
		if _, _, page := x.read(t, s.URL); strings.Contains(page, "<form") {
			t.Errorf("a session that has ended can be paid: %s", page)
		}
		x.press(t, s.URL, "pay")
		x.press(t, s.URL, "late")
	}
	x.deliver(t)
	if len(x.heard) != 1 || x.heard[0].Kind != gateway.Declined {
		t.Errorf("heard %+v", x.heard)
	}
	for _, bad := range []string{"ch_" + over.Ref, "ch_" + closed.Ref, "ch_" + declined.Ref, "ch_17", "17", "ch_" + uuid.NewString()} {
		if ref, err := x.sandbox.Refund(t.Context(), gateway.Refund{Key: "k", Charge: bad, Amount: 1, Currency: "CHF"}); !errors.Is(err, gateway.ErrRefused) {
			t.Errorf("refund of %s: %s %v", bad, ref, err)
		}
	}
	if err := x.sandbox.Close(t.Context(), "17"); !errors.Is(err, gateway.ErrRefused) {
		t.Error(err)
	}
}

func TestARefundIsMadeOnce(t *testing.T) {
	t.Parallel()
	x := newShop(t, nil)
	_, s := x.open(t, time.Hour)
	x.press(t, s.URL, "pay")
	first, err := x.sandbox.Refund(t.Context(), gateway.Refund{Key: "one", Charge: "ch_" + s.Ref})
	again, err2 := x.sandbox.Refund(t.Context(), gateway.Refund{Key: "two", Charge: "ch_" + s.Ref})
	if err := errors.Join(err, err2); err != nil || first == "" || again != first {
		t.Errorf("%q %q %v", first, again, err)
	}
}

func TestWebhooksAreTriedAgain(t *testing.T) {
	t.Parallel()
	x := newShop(t, nil)
	_, s := x.open(t, time.Hour)
	x.answer.Store(http.StatusServiceUnavailable)
	x.press(t, s.URL, "pay")
	x.deliver(t)
	if n := x.webhooks(t, "delivered_at IS NULL AND attempts = 1 AND error LIKE '%503%' AND next_at > due_at + interval '100 ms'"); n != 1 {
		t.Fatal("the webhook is not put off")
	}
	x.answer.Store(http.StatusOK)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- x.sandbox.Run(ctx) }()
	outboxtest.Eventually(t, 10*time.Second, func() bool { return x.webhooks(t, "delivered_at IS NOT NULL AND error IS NULL") == 1 }, "the webhook is delivered")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.ids) != 2 || x.ids[0] != x.ids[1] || len(x.heard) != 1 {
		t.Errorf("ids %v", x.ids)
	}
}

func TestAWebhookIsGivenUp(t *testing.T) {
	t.Parallel()
	x := newShop(t, func(c *gateway.SandboxConfig) { c.GiveUpAfter = time.Microsecond })
	_, s := x.open(t, time.Hour)
	x.answer.Store(http.StatusInternalServerError)
	x.press(t, s.URL, "pay")
	x.deliver(t)
	if n := x.webhooks(t, "given_up_at IS NOT NULL"); n != 1 {
		t.Error("the webhook is not given up")
	}
	x.deliver(t)
	if len(x.ids) != 1 {
		t.Errorf("%d deliveries", len(x.ids))
	}
}

// A webhook whose sender died after the delivery, and before it noted that, comes again under its id.
func TestAWebhookOutlivesItsSender(t *testing.T) {
	t.Parallel()
	x := newShop(t, nil)
	_, s := x.open(t, time.Hour)
	x.press(t, s.URL, "pay")
	claimed := `UPDATE payment.sandbox_webhooks SET attempts = 1, next_at = clock_timestamp() + interval '%s'`
	if _, err := x.db.Exec(t.Context(), strings.Replace(claimed, "%s", "1 hour", 1)); err != nil { // as a sender does
		t.Fatal(err)
	}
	x.deliver(t)
	if len(x.ids) != 0 {
		t.Error("sent while another sender has it")
	}
	if _, err := x.db.Exec(t.Context(), strings.Replace(claimed, "%s", "0 s", 1)); err != nil {
		t.Fatal(err)
	}
	x.deliver(t)
	if len(x.heard) != 1 {
		t.Errorf("heard %v", x.heard)
	}
}

func TestLateMoney(t *testing.T) {
	t.Parallel()
	x := newShop(t, func(c *gateway.SandboxConfig) { c.Lateness = time.Hour })
	_, s := x.open(t, time.Hour)
	x.press(t, s.URL, "late")
	x.deliver(t)
	if n := x.webhooks(t, "due_at > clock_timestamp() + interval '119 minutes'"); n != 1 || len(x.ids) != 0 {
		t.Error("the money does not come after the session's end")
	}
}

// Every process of an installation has the secret of the database, and nobody else has.
func TestSandboxesShareTheirSecret(t *testing.T) {
	t.Parallel()
	x := newShop(t, nil)
	var kept http.Header
	var body []byte
	spy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		kept = r.Header.Clone()
		body, _ = io.ReadAll(r.Body)
	}))
	t.Cleanup(spy.Close)
	other, err := gateway.NewSandbox(gateway.SandboxConfig{Pool: x.pool, Logger: quiet, BaseURL: "http://a", WebhookURL: spy.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, s := x.open(t, time.Hour)
	x.press(t, s.URL, "pay")
	if n, err := other.Deliver(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if e, err := x.sandbox.Receive(t.Context(), kept, body); err != nil || e.PaymentID.String() != s.Ref {
		t.Errorf("%+v %v", e, err)
	}
	stranger, err := gateway.NewSandbox(gateway.SandboxConfig{
		Pool: x.pool, Logger: quiet, BaseURL: "http://a", WebhookURL: spy.URL, Secrets: secrets(t, newSecret('z')),
	})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := stranger.Receive(t.Context(), kept, body); !errors.Is(err, gateway.ErrSignature) {
		t.Errorf("%+v %v", e, err)
	}
}

func TestNewSandboxRefuses(t *testing.T) {
	t.Parallel()
	pool := unreachable(t)
	for _, cfg := range []gateway.SandboxConfig{
		{BaseURL: "http://a", WebhookURL: "http://a"}, {Pool: pool, WebhookURL: "http://a"}, {Pool: pool, BaseURL: "http://a"},
		{Pool: pool, BaseURL: "ftp://a", WebhookURL: "http://a"}, {Pool: pool, BaseURL: "http://a", WebhookURL: "://"},
	} {
		if _, err := gateway.NewSandbox(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
