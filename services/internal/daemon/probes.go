package daemon

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/jcp/ticketwave/services/internal/bus"
	"github.com/jcp/ticketwave/services/internal/web"
)

const probeTimeout = time.Second

// probes adds /livez, /readyz and /metrics.
func (d *daemon) probes(r *web.Router) {
	r.Handle(http.MethodGet, "/livez", func(w http.ResponseWriter, _ *http.Request) error {
		return web.WriteJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	r.Handle(http.MethodGet, "/readyz", d.readyz)
	r.Mount("/metrics", promhttp.HandlerFor(d.metrics.registry, promhttp.HandlerOpts{}))
}

// readiness is the answer of /readyz?verbose. Of the broker nothing depends.
type readiness struct {
	Status   string    `json:"status"`
	Database string    `json:"database"`
	Broker   bus.State `json:"broker"`
}

func (d *daemon) readyz(w http.ResponseWriter, r *http.Request) error {
	notReady := d.ready(r.Context())
	switch {
	case r.URL.Query().Has("verbose"):
		return d.verbose(w, notReady)
	case notReady != nil:
		return notReady
	}
	return web.WriteJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

func (d *daemon) verbose(w http.ResponseWriter, notReady error) error {
	answer, status := readiness{Status: "ready", Database: "answers", Broker: d.bus.State()}, http.StatusOK
	var why *web.Error
	if errors.As(notReady, &why) {
		answer.Status, answer.Database, status = "not ready", why.Detail, why.Status
	}
	return web.WriteJSON(w, status, answer)
}

// ready asks the database. What it says about an error is fit for anybody.
func (d *daemon) ready(ctx context.Context) error {
	if err := d.admit(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if _, err := d.cfg.Pool.Exec(ctx, `SELECT 1`); err != nil {
		d.cfg.Logger.DebugContext(ctx, "not ready", "error", err)
		return unavailable("the database does not answer")
	}
	return nil
}

// admit refuses every request of the service until the schema has been checked.
func (d *daemon) admit() error {
	if !d.checked.Load() {
		return unavailable("the service waits for its database")
	}
	return nil
}

func unavailable(detail string) error {
	return &web.Error{Status: http.StatusServiceUnavailable, Detail: detail, RetryAfter: pauseMax}
}
