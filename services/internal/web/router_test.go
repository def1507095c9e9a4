package web_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/internal/web"
)

// ask sends one request to a router.
func ask(h http.Handler, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// router has one GET route, /, that ends as it is told.
func router(cfg web.Config, end web.Handler) *web.Router {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := web.NewRouter(cfg)
	r.Handle(http.MethodGet, "/", end)
	return r
}

func fails(err error) web.Handler {
	return func(http.ResponseWriter, *http.Request) error { return err }
}

func fine(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, http.StatusOK, map[string]int{"n": 1})
}

// problem is the body of every answer that is an error.
type problem struct {
	Type, Title, Detail, Field, CorrelationID string
	Status                                    int
}

func problemOf(t *testing.T, w *httptest.ResponseRecorder) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	if w.Header().Get("Content-Type") != "application/problem+json" || p.Status != w.Code || p.Type != "about:blank" || p.Title == "" ||
		p.CorrelationID == "" || p.CorrelationID != w.Header().Get(web.CorrelationHeader) {
		t.Errorf("no proper problem: %d %v %s", w.Code, w.Header(), w.Body)
	}
	return p
}

func TestErrorsBecomeProblems(t *testing.T) {
	t.Parallel()
	pg := func(code string) error {
		return fmt.Errorf("insert: %w", &pgconn.PgError{Code: code, Message: "geheim"})
	}
	for name, c := range map[string]struct {
		err    error
		status int
		field  string
		retry  string
	}{
		"not found":          {err: web.NotFound("no %s", "x"), status: 404},
		"malformed":          {err: web.Malformed("a", "bad"), status: 400, field: "a"},
		"refused":            {err: web.Refused("a", "bad"), status: 422, field: "a"},
		"conflict":           {err: web.Conflict("bad"), status: 409},
		"wrapped":            {err: fmt.Errorf("deep: %w", web.Refused("a", "bad")), status: 422, field: "a"},
		"own retry":          {err: &web.Error{Status: 503, RetryAfter: 1500 * time.Millisecond}, status: 503, retry: "2"},
		"anything":           {err: errors.New("geheim"), status: 500},
		"commit unknown":     {err: fmt.Errorf("%w: geheim", outbox.ErrCommitUnknown), status: 503, retry: "2"},
		"client gone":        {err: context.Canceled, status: 499},
		"too slow":           {err: context.DeadlineExceeded, status: 503, retry: "2"},
		"cannot connect":     {err: connectError(t), status: 503, retry: "2"},
		"connection lost":    {err: fmt.Errorf("x: %w", io.ErrUnexpectedEOF), status: 503, retry: "2"},
		"network":            {err: &net.OpError{Op: "read", Err: errors.New("geheim")}, status: 503, retry: "2"},
		"pool closed":        {err: puddle.ErrClosedPool, status: 503, retry: "2"},
		"shutdown":           {err: pg("57P01"), status: 503, retry: "2"},
		"too many clients":   {err: pg("53300"), status: 503, retry: "2"},
		"idle transaction":   {err: pg("25P03"), status: 503, retry: "2"},
		"standby":            {err: pg("25006"), status: 503, retry: "2"},
		"deadlock":           {err: pg("40P01"), status: 503, retry: "2"},
		"statement timeout":  {err: pg("57014"), status: 503, retry: "2"},
		"unique violation":   {err: pg("23505"), status: 500},
		"undefined table":    {err: pg("42P01"), status: 500},
		"check of an answer": {err: pg("23514"), status: 500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ask(router(web.Config{}, fails(c.err)), http.MethodGet, "/", "")
			p := problemOf(t, w)
			if w.Code != c.status || p.Field != c.field || w.Header().Get("Retry-After") != c.retry {
				t.Errorf("%d %v %+v", w.Code, w.Header(), p)
			}
			if strings.Contains(w.Body.String(), "geheim") {
				t.Errorf("the client reads %s", w.Body)
			}
		})
	}
}

func connectError(t *testing.T) error {
	t.Helper()
	_, err := pgconn.Connect(context.Background(), "postgres://127.0.0.1:1/x")
	if err == nil {
		t.Fatal("somebody listens on port 1")
	}
	return err
}

func TestCausesOf5xxAreLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	cfg := web.Config{Logger: slog.New(slog.NewJSONHandler(&log, nil))}
	ask(router(cfg, fails(errors.New("the cause"))), http.MethodGet, "/", "")
	if !strings.Contains(log.String(), "the cause") {
		t.Error(log.String())
	}
	log.Reset()
	ask(router(cfg, fails(web.NotFound("the cause"))), http.MethodGet, "/", "")
	if strings.Contains(log.String(), "the cause") || !strings.Contains(log.String(), `"status":404`) {
		t.Error(log.String())
	}
}

func TestNoRoute(t *testing.T) {
	t.Parallel()
	r := router(web.Config{}, fine)
	r.Handle(http.MethodPost, "/", fine)
	r.Handle(http.MethodGet, "/things/{id}", fine)
	if w := ask(r, http.MethodGet, "/nothing", ""); w.Code != 404 || !strings.Contains(problemOf(t, w).Detail, "/nothing") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for path, allow := range map[string]string{"/": "GET, HEAD, POST", "/things/1": "GET, HEAD"} {
		w := ask(r, http.MethodPut, path, "")
		if problemOf(t, w); w.Code != 405 || w.Header().Get("Allow") != allow {
			t.Errorf("%s: %d, allowed %q", path, w.Code, w.Header().Get("Allow"))
		}
	}
	if w := ask(r, http.MethodHead, "/things/1", ""); w.Code != 200 {
		t.Errorf("HEAD: %d", w.Code)
	}
}

func TestAPanicIsA500(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	r := router(web.Config{Logger: slog.New(slog.NewJSONHandler(&log, nil))}, func(http.ResponseWriter, *http.Request) error { panic("geheim") })
	w := ask(r, http.MethodGet, "/", "")
	if problemOf(t, w); w.Code != 500 || strings.Contains(w.Body.String(), "geheim") || !strings.Contains(log.String(), "geheim") {
		t.Errorf("%d %s; the log: %s", w.Code, w.Body, log.String())
	}
}

// A client must not take half an answer for the whole.
func TestAPanicInTheMiddleCutsTheConnection(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(router(web.Config{}, func(w http.ResponseWriter, _ *http.Request) error {
		_, _ = w.Write([]byte("half"))
		_ = http.NewResponseController(w).Flush()
		panic("in the middle")
	}))
	defer server.Close()
	resp, err := server.Client().Get(server.URL)
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("the answer looks whole")
	}
}

func TestRequestsHaveATimeout(t *testing.T) {
	t.Parallel()
	r := router(web.Config{Timeout: time.Millisecond}, func(_ http.ResponseWriter, r *http.Request) error {
		<-r.Context().Done()
		return fmt.Errorf("query: %w", r.Context().Err())
	})
	if w := ask(r, http.MethodGet, "/", ""); w.Code != 503 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestObserve(t *testing.T) {
	t.Parallel()
	var seen []string
	r := router(web.Config{Observe: func(method, route string, status int, took time.Duration) {
		seen = append(seen, fmt.Sprint(method, " ", route, " ", status, " ", took >= 0))
	}}, fine)
	r.Handle(http.MethodGet, "/things/{id}", fails(web.NotFound("x")))
	for _, path := range []string{"/", "/things/1", "/nothing"} {
		ask(r, http.MethodGet, path, "")
	}
	ask(r, http.MethodDelete, "/", "")
	if got := strings.Join(seen, ", "); got != "GET / 200 true, GET /things/{id} 404 true, GET  404 true, DELETE  405 true" {
		t.Error(got)
	}
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	r := router(web.Config{Admit: func() error { return &web.Error{Status: 503, Detail: "closed"} }}, fine)
	r.Handle(http.MethodGet, "/readyz", fine)
	if w := ask(r, http.MethodGet, "/", ""); w.Code != 503 || problemOf(t, w).Detail != "closed" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(r, http.MethodGet, "/readyz", ""); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestEveryAnswerIsSecured(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/", "/nothing"} {
		h := ask(router(web.Config{}, fine), http.MethodGet, path, "").Header()
		if h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Length") == "" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestCausality(t *testing.T) {
	t.Parallel()
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, c := range map[string]struct {
		headers            []string
		correlation, trace string // "" is any fresh correlation, and no trace
	}{
		"none":              {},
		"own":               {headers: []string{web.CorrelationHeader, "flow-1:a.b_c", "traceparent", trace}, correlation: "flow-1:a.b_c", trace: trace},
		"too long":          {headers: []string{web.CorrelationHeader, strings.Repeat("x", 65)}},
		"no line break":     {headers: []string{web.CorrelationHeader, "a\nb"}},
		"two":               {headers: []string{web.CorrelationHeader, "a", web.CorrelationHeader, "b"}},
		"zero trace":        {headers: []string{"traceparent", "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01"}},
		"zero span":         {headers: []string{"traceparent", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"}},
		"another version":   {headers: []string{"traceparent", "ff" + trace[2:]}},
		"upper-case traces": {headers: []string{"traceparent", strings.ToUpper(trace)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got outbox.Causality
			w := ask(router(web.Config{}, func(_ http.ResponseWriter, r *http.Request) error {
				got = outbox.CausalityFrom(r.Context())
				return nil
			}), http.MethodGet, "/", "", c.headers...)
			if got.CorrelationID != w.Header().Get(web.CorrelationHeader) || got.TraceParent != c.trace ||
				c.correlation != "" && got.CorrelationID != c.correlation || c.correlation == "" && len(got.CorrelationID) != 36 ||
				len(got.CausationID) != 36 || got.CausationID == got.CorrelationID {
				t.Errorf("%+v", got)
			}
		})
	}
}
