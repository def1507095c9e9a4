package relayd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler answers /livez (the process runs), /readyz (every database answers and the topology is known; the
// broker's state is shown and takes nothing out) and /metrics.
func (d *Daemon) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, map[string]any{"status": "ok"}) })
	mux.HandleFunc("GET /readyz", d.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}

func (d *Daemon) readyz(w http.ResponseWriter, r *http.Request) {
	p := d.running.Load()
	if p == nil {
		answer(w, http.StatusServiceUnavailable, map[string]any{"status": "waiting for a topology"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	body := map[string]any{"status": "ok", "broker": p.publisher.State()}
	status := http.StatusOK
	if err := p.relay.Ping(ctx); err != nil {
		d.cfg.Logger.Warn("not ready", "error", err)
		status, body["status"] = http.StatusServiceUnavailable, "a database does not answer"
	}
	answer(w, status, body)
}

func answer(w http.ResponseWriter, status int, body map[string]any) {
	document, err := json.Marshal(body)
	if err != nil {
		status, document = http.StatusInternalServerError, []byte(fmt.Sprintf("{%q:%q}", "status", "not encodable"))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(document) // a client that has gone
}

// Serve answers with [Daemon.Handler] at the listener as long as relaying goes on, which is [Daemon.Run] or calls it.
func (d *Daemon) Serve(ctx context.Context, listener net.Listener, relaying func(context.Context) error) error {
	server := &http.Server{
		Handler: d.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	err := relaying(ctx)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = errors.Join(err, server.Shutdown(closing))
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}
