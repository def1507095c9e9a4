package admin

import (
	"context"
	_ "embed" // the specification
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/internal/build"
	"github.com/jcp/ticketwave/outbox/operate"
)

//go:embed openapi.yaml
var specification []byte

// Config describes a server. Zero values take the defaults.
type Config struct {
	// Operator does the work.
	Operator *operate.Operator
	// Tokens say who may ask.
	Tokens *Tokens
	// Logger gets the access log. Default slog.Default.
	Logger *slog.Logger
	// Limits bound what clients can take.
	Limits Limits
}

// Server is the administration API.
type Server struct {
	cfg    Config
	gate   *gate
	routes *http.ServeMux
}

var _ api.ServerInterface = (*Server)(nil)

// New checks the configuration.
func New(cfg Config) (*Server, error) {
	if cfg.Operator == nil {
		return nil, errors.New("admin: config has no Operator")
	}
	if cfg.Tokens == nil {
		return nil, errors.New("admin: config has no Tokens")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Limits = cfg.Limits.withDefaults()
	s := &Server{cfg: cfg, routes: http.NewServeMux()}
	s.gate = newGate(cfg)
	api.HandlerWithOptions(s, api.StdHTTPServerOptions{
		BaseRouter: s.routes, Middlewares: []api.MiddlewareFunc{s.bounded, permitted}, ErrorHandlerFunc: s.badParameter,
	})
	return s, nil
}

// Handler answers every request of the specification, and tells nobody else anything.
func (s *Server) Handler() http.Handler {
	return s.logged(s.gate.wrap(http.HandlerFunc(s.route)))
}

// route answers 404 and 405 as problems.
func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	if _, pattern := s.routes.Handler(r); pattern != "" {
		if err := readable(r); err != nil && !open(r) {
			s.fail(w, r, err)
			return
		}
		s.routes.ServeHTTP(w, r)
		return
	}
	probe := &statusOnly{header: http.Header{}}
	s.routes.ServeHTTP(probe, r)
	if allow := probe.header.Get("Allow"); probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allow)
		s.fail(w, r, &problem{status: probe.status, slug: "method-not-allowed", detail: "this path takes " + allow})
		return
	}
	s.fail(w, r, &problem{status: http.StatusNotFound, slug: "no-such-path", detail: "there is no such path; /openapi.yaml lists them"})
}

// statusOnly keeps an answer's status and headers.
type statusOnly struct {
	header http.Header
	status int
}

// Header is what the answer would carry.
func (s *statusOnly) Header() http.Header { return s.header }

// Write drops the body.
func (s *statusOnly) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader keeps the status.
func (s *statusOnly) WriteHeader(status int) { s.status = status }

// Livez says that the process runs.
func (s *Server) Livez(w http.ResponseWriter, _ *http.Request) {
	send(w, http.StatusOK, "application/json", api.Probe{Status: "ok"})
}

// Readyz says whether the token file lets anybody in.
func (s *Server) Readyz(w http.ResponseWriter, r *http.Request) {
	if err := s.cfg.Tokens.Check(); err != nil {
		s.cfg.Logger.Error("token file not usable, nobody is let in", "error", err)
		s.fail(w, r, &problem{status: http.StatusServiceUnavailable, slug: "unavailable", detail: "the token file cannot be used"})
		return
	}
	send(w, http.StatusOK, "application/json", api.Probe{Status: "ok"})
}

// Spec is the specification itself.
func (s *Server) Spec(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/openapi+yaml")
	_, _ = w.Write(specification) // a client that has gone
}

// Whoami tells a client who it is.
func (s *Server) Whoami(w http.ResponseWriter, r *http.Request) {
	who := caller(r.Context())
	s.answer(w, r, api.Identity{Name: who.Name, Role: who.Role, Build: build.Revision(), Databases: s.cfg.Operator.Databases()}, nil)
}

// answer writes v, or the problem that err is.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	send(w, http.StatusOK, "application/json", v)
}

// fail answers with a problem and logs what the client is not told.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := explain(err)
	if p.status >= http.StatusInternalServerError {
		s.cfg.Logger.Error("request failed", "path", r.Pattern, "request", requestID(r.Context()), "error", err)
	}
	p.write(w, requestID(r.Context()))
}

// badParameter answers for a parameter that the generated code could not read.
func (s *Server) badParameter(w http.ResponseWriter, r *http.Request, err error) {
	field := ""
	var format *api.InvalidParamFormatError
	var missing *api.RequiredParamError
	var many *api.TooManyValuesForParamError
	switch {
	case errors.As(err, &format):
		field = format.ParamName
	case errors.As(err, &missing):
		field = missing.ParamName
	case errors.As(err, &many):
		field = many.ParamName
	}
	s.fail(w, r, malformed(field, "the parameter cannot be read as what the specification says it is"))
}

// long are the operations that go through all that there is, however much that may be.
var long = []string{"/replay/plans", "/replay/plans/{hash}/apply", "/dead/redrive", "/dead/discard", "/cursors/rebase", "/reconciliation", "/audit/verify"}

// bounded gives a request its time.
func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit := s.cfg.Limits.Timeout
		if slices.ContainsFunc(long, func(path string) bool { return strings.HasSuffix(r.Pattern, path) }) {
			limit = s.cfg.Limits.ApplyTimeout
			if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit + writeTimeout)); err != nil {
				s.fail(w, r, err)
				return
			}
		}
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
