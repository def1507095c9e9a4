package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/jcp/ticketwave/outbox"
)

// Handler answers a request or returns why it cannot, before it has written anything.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Config of a Router. The zero value works.
type Config struct {
	// Logger gets a line per request, and the cause of every 5xx. Default slog.Default().
	Logger *slog.Logger
	// Timeout ends the context of a request. Default 10 s.
	Timeout time.Duration
	// Observe, if set, is told of every request. route is the pattern, "" for none.
	Observe func(method, route string, status int, took time.Duration)
	// Admit, if set, is asked before every request but those of probes and scrapers; its error is the answer.
	Admit func() error
}

// Router is the http.Handler of one service.
type Router struct {
	cfg Config
	mux *mux.Router
}

// NewRouter returns a router without routes: everything is a 404 problem.
func NewRouter(cfg Config) *Router {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	r := &Router{cfg: cfg, mux: mux.NewRouter().SkipClean(true)}
	r.mux.NotFoundHandler = r.handler(func(_ http.ResponseWriter, req *http.Request) error {
		return NotFound("there is nothing at %s", quoted(req.URL.Path))
	})
	r.mux.MethodNotAllowedHandler = r.handler(r.methodNotAllowed)
	return r
}

// Handle adds a route. The pattern is gorilla/mux's, with variables such as {id}. A GET route answers HEAD too.
func (r *Router) Handle(method, pattern string, h Handler) {
	methods := []string{method}
	if method == http.MethodGet {
		methods = append(methods, http.MethodHead)
	}
	r.mux.Handle(pattern, r.handler(h)).Methods(methods...)
}

// Mount adds a stock handler for GET.
func (r *Router) Mount(pattern string, h http.Handler) {
	r.mux.Handle(pattern, h).Methods(http.MethodGet, http.MethodHead)
}

// handler turns returned errors into problems.
func (r *Router) handler(h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if err := h(w, req); err != nil {
			r.fail(w, req, err)
		}
	})
}

// fail answers with the problem and logs the cause where it is ours.
func (r *Router) fail(w http.ResponseWriter, req *http.Request, err error) {
	e := explain(err)
	if e.Status >= 500 {
		level := slog.LevelError
		if slices.Contains(quiet, req.URL.Path) {
			level = slog.LevelDebug // a probe that says no does its work
		}
		r.cfg.Logger.Log(req.Context(), level, "request failed", "method", req.Method, "path", req.URL.Path, "status", e.Status, "error", err.Error())
	}
	writeProblem(w, req, e)
}

func (r *Router) methodNotAllowed(w http.ResponseWriter, req *http.Request) error {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe := req.Clone(req.Context())
		probe.Method = method
		var match mux.RouteMatch
		if r.mux.Match(probe, &match) && match.MatchErr == nil {
			allowed = append(allowed, method)
		}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return &Error{Status: http.StatusMethodNotAllowed, Detail: "use " + strings.Join(allowed, " or ")}
}

// ServeHTTP answers one request, and logs it.
func (r *Router) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	secure(w.Header())
	req = withCausality(w, req)
	ctx, cancel := context.WithTimeout(req.Context(), r.cfg.Timeout)
	defer cancel()
	req = req.WithContext(ctx)
	recorder := &recorder{ResponseWriter: w}
	start := time.Now()
	defer func() { r.done(recorder, req, time.Since(start)) }()
	defer r.recover(recorder, req)
	req.Body = http.MaxBytesReader(recorder, req.Body, MaxBody+1)
	if err := r.admit(req); err != nil {
		r.fail(recorder, req, err)
		return
	}
	r.mux.ServeHTTP(recorder, req)
}

func (r *Router) admit(req *http.Request) error {
	if r.cfg.Admit == nil || slices.Contains(quiet, req.URL.Path) {
		return nil
	}
	return r.cfg.Admit()
}

// secure sets the headers of an API whose answers are never a page and never to be kept.
func secure(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
}

// recover answers a panic with a 500 that says nothing of it. When the answer has begun the connection is cut,
// so that no client takes half of it for the whole.
func (r *Router) recover(w *recorder, req *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler)
	}
	r.cfg.Logger.ErrorContext(req.Context(), "handler panicked", "path", req.URL.Path, "error", fmt.Sprint(cause), "stack", string(debug.Stack()))
	if w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	writeProblem(w, req, explain(fmt.Errorf("panic: %v", cause)))
}

// quiet are the routes that probes and scrapers ask for all day.
var quiet = []string{"/livez", "/readyz", "/metrics"}

func (r *Router) done(w *recorder, req *http.Request, took time.Duration) {
	status := w.status
	if status == 0 {
		status = http.StatusOK
	}
	route := r.route(req)
	level := slog.LevelInfo
	if slices.Contains(quiet, route) {
		level = slog.LevelDebug
	}
	r.cfg.Logger.Log(req.Context(), level, "request", "method", req.Method, "path", req.URL.Path, "route", route,
		"status", status, "bytes", w.bytes, "ms", float64(took.Microseconds())/1000, "request_id", outbox.CausalityFrom(req.Context()).CausationID)
	if r.cfg.Observe != nil {
		r.cfg.Observe(req.Method, route, status, took)
	}
}

// route is the pattern that the request matched.
func (r *Router) route(req *http.Request) string {
	var match mux.RouteMatch
	if !r.mux.Match(req, &match) || match.Route == nil {
		return ""
	}
	pattern, err := match.Route.GetPathTemplate()
	if err != nil {
		return ""
	}
	return pattern
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// WriteHeader notes the status.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write counts.
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
