// Package stripetest is a local server that speaks as much of Stripe's HTTP as TicketWave uses: Checkout Sessions, refunds,
// idempotency keys, and signed webhooks. It keeps Stripe's rules, and fails when it is told to.
package stripetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stripe/stripe-go/v84/webhook"
)

// Key and Secret are what the server takes and signs with.
const (
	Key    = "sk_test_stripetest"
	Secret = "whsec_stripetest"
)

// Fault is how a request goes wrong.
type Fault int

// The faults. Lost and Unheard cut the connection, before and after the effect; Broken answers 500 after no effect, and will
// answer that under the key for ever.
const (
	None Fault = iota
	Lost
	Unheard
	Broken
	Busy
)

// Session is a Checkout Session.
type Session struct {
	ID            string            `json:"id"`
	Object        string            `json:"object"`
	URL           string            `json:"url"`
	Status        string            `json:"status"`
	PaymentStatus string            `json:"payment_status"`
	AmountTotal   int64             `json:"amount_total"`
	Currency      string            `json:"currency"`
	PaymentIntent *string           `json:"payment_intent"`
	Reference     string            `json:"client_reference_id"`
	Metadata      map[string]string `json:"metadata"`
	ExpiresAt     int64             `json:"expires_at"`
}

// Refund is a refund.
type Refund struct {
	ID            string `json:"id"`
	Object        string `json:"object"`
	Amount        int64  `json:"amount"`
	PaymentIntent string `json:"payment_intent"`
	Status        string `json:"status"`
}

// Server is the server. Set Fault before the requests that it is for.
type Server struct {
	*httptest.Server

	mu       sync.Mutex
	fault    func(r *http.Request) Fault
	sessions []*Session
	refunds  []*Refund
	pending  bool
	answers  map[string]answer
	requests []string
	events   int
}

// answer is what was said under an idempotency key.
type answer struct {
	params string
	status int
	body   []byte
}

// NewServer starts a server. Close stops it.
func NewServer() *Server {
	s := &Server{answers: map[string]answer{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	return s
}

// Fail chooses how requests go wrong from now on; nil: none does. fault is called one request at a time.
func (s *Server) Fail(fault func(r *http.Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// Withhold lets refunds be pending from now on, until they are settled.
func (s *Server) Withhold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = true
}

// Settle gives pending refunds a status, and later ones are not pending.
func (s *Server) Settle(status string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = false
	for _, refund := range s.refunds {
		if refund.Status == "pending" {
			refund.Status = status
		}
	}
}

// Sessions are all there are.
func (s *Server) Sessions() []Session { return copied(&s.mu, &s.sessions) }

// Refunds are all there are.
func (s *Server) Refunds() []Refund { return copied(&s.mu, &s.refunds) }

func copied[T any](mu *sync.Mutex, from *[]*T) []T {
	mu.Lock()
	defer mu.Unlock()
	all := make([]T, len(*from))
	for i, v := range *from {
		all[i] = *v
	}
	return all
}

// Requests are the method and path of each, and its idempotency key.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	key := r.Header.Get("Idempotency-Key")
	s.requests = append(s.requests, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+key))
	fault := None
	if s.fault != nil {
		fault = s.fault(r)
	}
	if fault == Lost {
		panic(http.ErrAbortHandler)
	}
	status, answer := s.once(r, key, string(body), fault)
	if fault == Unheard {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Request-Id", "req_"+strconv.Itoa(len(s.requests)))
	w.WriteHeader(status)
	_, _ = w.Write(answer) //nolint:gosec // JSON, for tests
}

// once answers a key's first request, and repeats that answer.
func (s *Server) once(r *http.Request, key, params string, fault Fault) (int, []byte) {
	if user, _, _ := r.BasicAuth(); user != Key && r.Header.Get("Authorization") != "Bearer "+Key {
		return refuse(http.StatusUnauthorized, "invalid_request_error", "", "Invalid API Key provided")
	}
	if fault == Busy {
		return refuse(http.StatusTooManyRequests, "invalid_request_error", "rate_limit", "Too many requests")
	}
	if known, ok := s.answers[key]; ok && key != "" {
		if known.params != r.URL.Path+"?"+params {
			return refuse(http.StatusBadRequest, "idempotency_error", "", "Keys for idempotent requests can only be used with the same parameters")
		}
		return known.status, known.body
	}
	status, body := http.StatusInternalServerError, []byte(nil)
	if fault == Broken {
		_, body = refuse(status, "api_error", "", "An unknown error occurred")
	} else {
		status, body = s.answer(r)
	}
	if key != "" {
		s.answers[key] = answer{r.URL.Path + "?" + params, status, body}
	}
	return status, body
}

func refuse(status int, typ, code, text string) (int, []byte) {
	return ok(status, map[string]any{"error": map[string]string{"type": typ, "code": code, "message": text}})
}

func ok(status int, v any) (int, []byte) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return status, body
}

func (s *Server) answer(r *http.Request) (int, []byte) {
	if err := r.ParseForm(); err != nil {
		return refuse(http.StatusBadRequest, "invalid_request_error", "", "Unreadable form")
	}
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/v1/checkout/sessions":
		return s.create(r)
	case len(path) >= 4 && strings.HasPrefix(r.URL.Path, "/v1/checkout/sessions/"):
		return s.session(r.Method, path[3], len(path) == 5 && path[4] == "expire")
	case r.Method == http.MethodPost && r.URL.Path == "/v1/refunds":
		return s.refund(r)
	case r.Method == http.MethodGet && len(path) == 3 && path[1] == "refunds":
		for _, refund := range s.refunds {
			if refund.ID == path[2] {
				return ok(http.StatusOK, refund)
			}
		}
		return refuse(http.StatusNotFound, "invalid_request_error", "resource_missing", "No such refund")
	case r.Method == http.MethodGet && r.URL.Path == "/v1/refunds":
		found := []*Refund{}
		for _, refund := range s.refunds {
			if refund.PaymentIntent == r.Form.Get("payment_intent") {
				found = append(found, refund)
			}
		}
		return ok(http.StatusOK, map[string]any{"object": "list", "data": found, "has_more": false, "url": "/v1/refunds"})
	}
	return refuse(http.StatusNotFound, "invalid_request_error", "", "Unrecognized request URL")
}

func (s *Server) create(r *http.Request) (int, []byte) {
	amount, err := strconv.ParseInt(r.Form.Get("line_items[0][price_data][unit_amount]"), 10, 64)
	ends, err2 := strconv.ParseInt(r.Form.Get("expires_at"), 10, 64)
	away := time.Until(time.Unix(ends, 0))
	switch {
	case err != nil || err2 != nil || r.Form.Get("mode") != "payment" || r.Form.Get("success_url") == "" || r.Form.Get("line_items[0][quantity]") != "1":
		return refuse(http.StatusBadRequest, "invalid_request_error", "parameter_missing", "Missing required param")
	case away < 30*time.Minute || away > 24*time.Hour:
		return refuse(http.StatusBadRequest, "invalid_request_error", "", "The expires_at timestamp must be between 30 minutes and 24 hours from Checkout Session creation")
	case amount < 50:
		return refuse(http.StatusBadRequest, "invalid_request_error", "amount_too_small", "The amount is too small")
	}
	id := fmt.Sprintf("cs_test_%d", len(s.sessions)+1)
	session := &Session{
		ID: id, Object: "checkout.session", URL: s.URL + "/c/pay/" + id, Status: "open", PaymentStatus: "unpaid", AmountTotal: amount,
		Currency: r.Form.Get("line_items[0][price_data][currency]"), Reference: r.Form.Get("client_reference_id"),
		Metadata: map[string]string{}, ExpiresAt: ends,
	}
	for name := range r.Form {
		if key, ok := strings.CutPrefix(name, "metadata["); ok {
			session.Metadata[strings.TrimSuffix(key, "]")] = r.Form.Get(name)
		}
	}
	s.sessions = append(s.sessions, session)
	return ok(http.StatusOK, session)
}

func (s *Server) find(id string) *Session {
	for _, session := range s.sessions {
		if session.ID == id {
			return session
		}
	}
	return nil
}

func (s *Server) session(method, id string, expire bool) (int, []byte) {
	session := s.find(id)
	switch {
	case session == nil:
		return refuse(http.StatusNotFound, "invalid_request_error", "resource_missing", "No such checkout.session")
	case method == http.MethodPost && expire && session.Status != "open":
		return refuse(http.StatusBadRequest, "invalid_request_error", "", "Only Checkout Sessions with a status in [\"open\"] can be expired")
	case method == http.MethodPost && expire:
		session.Status = "expired"
	}
	return ok(http.StatusOK, session)
}

func (s *Server) refund(r *http.Request) (int, []byte) {
	intent := r.Form.Get("payment_intent")
	var paid *Session
	for _, session := range s.sessions {
		if session.PaymentIntent != nil && *session.PaymentIntent == intent && session.PaymentStatus == "paid" {
			paid = session
		}
	}
	if paid == nil {
		return refuse(http.StatusNotFound, "invalid_request_error", "resource_missing", "No such payment_intent")
	}
	for _, refund := range s.refunds {
		if refund.PaymentIntent == intent && refund.Status != "failed" {
			return refuse(http.StatusBadRequest, "invalid_request_error", "charge_already_refunded", "Charge has already been refunded.")
		}
	}
	refund := &Refund{ID: fmt.Sprintf("re_%d", len(s.refunds)+1), Object: "refund", Amount: paid.AmountTotal, PaymentIntent: intent, Status: "succeeded"}
	if s.pending {
		refund.Status = "pending"
	}
	s.refunds = append(s.refunds, refund)
	return ok(http.StatusOK, refund)
}

// Pay lets a person pay an open session, and returns the webhook's body; nil when the session is not open. With later the
// money is only on its way: Arrive brings it.
func (s *Server) Pay(id string, later bool) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.find(id)
	if session == nil || session.Status != "open" {
		return nil
	}
	intent := "pi_" + id
	session.Status, session.PaymentIntent = "complete", &intent
	if !later {
		session.PaymentStatus = "paid"
	}
	return s.event("checkout.session.completed", session)
}

// Arrive lets the money of a session come that was paid to come later, or fail to, and returns the webhook's body.
func (s *Server) Arrive(id string, fails bool) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.find(id)
	if fails {
		return s.event("checkout.session.async_payment_failed", session)
	}
	session.PaymentStatus = "paid"
	return s.event("checkout.session.async_payment_succeeded", session)
}

// Event is the body of any webhook about a session.
func (s *Server) Event(typ, id string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.event(typ, s.find(id))
}

func (s *Server) event(typ string, session *Session) []byte {
	s.events++
	_, body := ok(0, map[string]any{
		"id": fmt.Sprintf("evt_%d", s.events), "object": "event", "api_version": "2025-01-01.acacia", "created": time.Now().Unix(),
		"type": typ, "data": map[string]any{"object": session},
	})
	return body
}

// Send delivers a webhook, signed at the given time, and returns the answer's status.
func (s *Server) Send(ctx context.Context, to string, body []byte, secret string, at time.Time) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: secret, Timestamp: at})
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Stripe-Signature", signed.Header)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}
