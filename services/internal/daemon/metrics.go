package daemon

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/internal/bus"
)

// metrics are what Prometheus sees of a service.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	outcomes *prometheus.CounterVec
	types    []string
	backlog  *backlog
}

func newMetrics(service string, pool *pgxpool.Pool, connected func() bool) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		backlog:  newBacklog(service),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ticketwave_http_request_seconds", Help: "Time to answer a request.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"method", "route", "status"}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ticketwave_inbox_outcomes_total", Help: "What became of messages, by result and event type.",
		}, []string{"result", "type"}),
	}
	for _, q := range bus.Topology().Queues {
		m.types = append(m.types, q.Types...)
	}
	broker := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ticketwave_broker_connected", Help: "1 while messages can be consumed.",
	}, func() float64 {
		if connected() {
			return 1
		}
		return 0
	})
	m.registry.MustRegister(m.requests, m.outcomes, broker, m.backlog,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(poolMetrics(pool)...)
	return m
}

// poolMetrics read the pool's own counters.
func poolMetrics(pool *pgxpool.Pool) []prometheus.Collector {
	gauge := func(name, help string, value func(*pgxpool.Stat) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ticketwave_pool_" + name, Help: help},
			func() float64 { return value(pool.Stat()) })
	}
	counter := func(name, help string, value func(*pgxpool.Stat) float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "ticketwave_pool_" + name, Help: help},
			func() float64 { return value(pool.Stat()) })
	}
	return []prometheus.Collector{
		gauge("max_connections", "Most connections the pool may open.", func(s *pgxpool.Stat) float64 { return float64(s.MaxConns()) }),
		gauge("connections", "Open connections.", func(s *pgxpool.Stat) float64 { return float64(s.TotalConns()) }),
		gauge("connections_in_use", "Connections at work.", func(s *pgxpool.Stat) float64 { return float64(s.AcquiredConns()) }),
		counter("waits_total", "Times that no connection was idle.", func(s *pgxpool.Stat) float64 { return float64(s.EmptyAcquireCount()) }),
		counter("wait_seconds_total", "Time spent waiting for a connection.", func(s *pgxpool.Stat) float64 { return s.EmptyAcquireWaitTime().Seconds() }),
	}
}

// other stands for what a stranger chose: label values must stay few.
const other = "other"

func (m *metrics) request(method, route string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		method = other
	}
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Observe(took.Seconds())
}

func (m *metrics) outcome(o inbox.Outcome) {
	typ := o.Meta.Type
	if !slices.Contains(m.types, typ) {
		typ = other
	}
	m.outcomes.WithLabelValues(string(o.Result), typ).Inc()
}
