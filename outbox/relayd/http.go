package relayd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/jcp/ticketwave/outbox/relay"
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

// metrics are what Prometheus sees of the daemon.
type metrics struct {
	registry *prometheus.Registry
	attempts *prometheus.CounterVec
	delay    *prometheus.HistogramVec
}

func newMetrics(d *Daemon) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "outbox_relay_attempts_total", Help: "Attempts to relay a message, by result.",
		}, []string{"database", "partition", "result"}),
		delay: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "outbox_relay_delay_seconds", Help: "From the row's insertion to the broker's confirm, by two clocks.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"database"}),
	}
	connected := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "outbox_relay_broker_connected", Help: "1 while the broker takes messages.",
	}, d.connected)
	m.registry.MustRegister(m.attempts, m.delay, connected, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (d *Daemon) connected() float64 {
	if p := d.running.Load(); p != nil {
		if s := p.publisher.State(); s.Connected && !s.Blocked {
			return 1
		}
	}
	return 0
}

// observe counts attempts.
func (m *metrics) observe(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		produced, err := next(msg)
		delivery, ok := relay.DeliveryFrom(msg.Context())
		if !ok {
			return produced, err
		}
		result := "relayed"
		if err != nil {
			result = "failed"
		} else {
			m.delay.WithLabelValues(delivery.Database).Observe(max(0, time.Since(delivery.CreatedAt).Seconds()))
		}
		m.attempts.WithLabelValues(delivery.Database, strconv.Itoa(delivery.Partition), result).Inc()
		return produced, err
	}
}
