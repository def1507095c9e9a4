package admin

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

// addresses is how many clients' failed logins are remembered.
const addresses = 4096

// gate lets in who has a token, within the limits.
type gate struct {
	tokens *Tokens
	log    *slog.Logger
	used   *limiters
	failed *limiters
	room   chan struct{}
}

func newGate(cfg Config) *gate {
	return &gate{
		tokens: cfg.Tokens, log: cfg.Logger, room: make(chan struct{}, cfg.Limits.Requests),
		used:   newLimiters(cfg.Limits.PerToken, cfg.Limits.TokenBurst, maxTokens),
		failed: newLimiters(cfg.Limits.FailedLogins, cfg.Limits.FailedBurst, addresses),
	}
}

type contextKey int

const (
	callerKey contextKey = iota
	requestKey
)

// caller is whose token the request carries.
func caller(ctx context.Context) Token {
	t, _ := ctx.Value(callerKey).(Token)
	return t
}

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey).(string)
	return id
}

// open are the paths that answer everybody.
func open(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && (r.URL.Path == "/livez" || r.URL.Path == "/readyz")
}

func (g *gate) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if open(r) {
			next.ServeHTTP(w, r)
			return
		}
		token, ok := g.tokens.Lookup(Bearer(r.Header))
		if !ok {
			g.refuse(w, r)
			return
		}
		note(r.Context(), token.Name)
		if wait, ok := g.used.allow(token.Name); !ok {
			(&problem{status: http.StatusTooManyRequests, slug: "too-many-requests", detail: "too many requests with this token", retryAfter: wait}).
				write(w, requestID(r.Context()))
			return
		}
		select {
		case g.room <- struct{}{}:
			defer func() { <-g.room }()
		default:
			(&problem{status: http.StatusServiceUnavailable, slug: "overloaded", detail: "too many requests are being worked on", retryAfter: time.Second}).
				write(w, requestID(r.Context()))
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey, token)))
	})
}

// refuse answers who has no valid token: 401, or 429 when that happens too often.
func (g *gate) refuse(w http.ResponseWriter, r *http.Request) {
	wait, ok := g.failed.allow(addressKey(r.RemoteAddr))
	p := &problem{status: http.StatusUnauthorized, slug: "unauthorized", detail: "a valid bearer token is needed"}
	if !ok {
		p = &problem{status: http.StatusTooManyRequests, slug: "too-many-failed-logins", detail: "too many requests without a valid token", retryAfter: wait}
	} else if err := g.tokens.Check(); err != nil {
		g.log.Error("token file not usable, nobody is let in", "error", err)
	}
	w.Header().Set("Connection", "close") // whatever body there is stays unread
	p.write(w, requestID(r.Context()))
}

// Bearer is the request's token, or "".
func Bearer(h http.Header) string {
	given := h.Values("Authorization")
	if len(given) != 1 {
		return ""
	}
	scheme, token, ok := strings.Cut(given[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// permitted checks the role that the specification asks for. An operation without one is refused.
func permitted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		roles, _ := r.Context().Value(api.BearerScopes).([]string)
		who := caller(r.Context())
		switch {
		case open(r), who.Role == api.Operator && len(roles) > 0,
			who.Role == api.Viewer && slices.Equal(roles, []string{"viewer"}),
			who.Role == api.Viewer && slices.Equal(roles, []string{"operator-unless-dry-run"}) && dryRun(r):
			next.ServeHTTP(w, r)
			return
		}
		(&problem{status: http.StatusForbidden, slug: "forbidden", detail: "this takes an operator's token; a viewer may look and try with dryRun=true"}).
			write(w, requestID(r.Context()))
	})
}

// dryRun is how the handlers read the parameter too: once, and exactly true.
func dryRun(r *http.Request) bool {
	given := r.URL.Query()["dryRun"]
	return len(given) == 1 && given[0] == "true"
}

// readable refuses a query that would be read in part: one that cannot be parsed, and a dryRun that is not exactly true or
// false, so that no trial becomes a deed.
func readable(r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return malformed("", "the query cannot be read")
	}
	for name, values := range query {
		if strings.EqualFold(name, "dryRun") && (name != "dryRun" || len(values) != 1 || values[0] != "true" && values[0] != "false") {
			return malformed("dryRun", "must be given once, as dryRun=true or dryRun=false")
		}
	}
	return nil
}

// record is what the access log is told of a request while it is worked on.
type record struct{ actor string }

type recordKey struct{}

// note tells the access log who asks.
func note(ctx context.Context, actor string) {
	if r, ok := ctx.Value(recordKey{}).(*record); ok {
		r.actor = actor
	}
}

// logged writes one line for each request, and turns a panic into a problem.
func (s *Server) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		rec := &record{}
		ctx := context.WithValue(context.WithValue(r.Context(), recordKey{}, rec), requestKey, rand.Text()[:16])
		r = r.WithContext(ctx)
		out := &recorder{ResponseWriter: w}
		w = out
		header := w.Header()
		header.Set("Cache-Control", "no-store")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Request-ID", requestID(ctx))
		defer func() {
			if cause := recover(); cause != nil {
				if cause == http.ErrAbortHandler { //nolint:errorlint // a value of net/http, compared as there
					panic(cause)
				}
				s.cfg.Logger.Error("panic", "request", requestID(ctx), "cause", cause)
				if out.status == 0 {
					(&problem{status: http.StatusInternalServerError, slug: "internal", detail: "an internal error"}).write(w, requestID(ctx))
				}
			}
			if open(r) && out.status == http.StatusOK {
				return
			}
			path := "(unknown)" // what a client without a token asks for is none of the log's business
			if rec.actor != "" {
				_, path = s.routes.Handler(r)
			}
			s.cfg.Logger.Info("admin request", "method", r.Method, "route", path, "status", out.status, "actor", rec.actor,
				"remote", addressKey(r.RemoteAddr), "request", requestID(ctx), "ms", time.Since(begin).Milliseconds())
		}()
		next.ServeHTTP(w, r)
	})
}

// recorder remembers the status.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers the first status.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write counts as a status of 200 when none was set.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets [http.ResponseController] reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
