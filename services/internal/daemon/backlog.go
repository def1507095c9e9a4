package daemon

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/jcp/ticketwave/outbox/inbox"
)

// backlog shows what was last seen to wait in the inbox, and nothing of it when the last look failed.
type backlog struct {
	stuck, oldest, measured *prometheus.Desc

	mu     sync.Mutex
	looked bool
	last   inbox.Backlog
	seen   bool // the inbox, at the last look
	rest   bool // what else is measured
}

func newBacklog(service string) *backlog {
	labels := prometheus.Labels{"service": service}
	return &backlog{
		stuck: prometheus.NewDesc("ticketwave_inbox_stuck_messages",
			"Messages in inbox.stuck: retrying and parked are the first of their key, behind waits for them.", []string{"state"}, labels),
		oldest:   prometheus.NewDesc("ticketwave_inbox_stuck_oldest_seconds", "For how long the first of them has been there.", nil, labels),
		measured: prometheus.NewDesc("ticketwave_inbox_measured", "1 if the database answered the last look at the inbox and at what else is measured.", nil, labels),
	}
}

// set takes what was seen, whether the inbox was, and whether the rest was.
func (b *backlog) set(last inbox.Backlog, seen, rest bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.looked, b.last, b.seen, b.rest = true, last, seen, rest
}

// Describe lists the metrics.
func (b *backlog) Describe(out chan<- *prometheus.Desc) {
	out <- b.stuck
	out <- b.oldest
	out <- b.measured
}

// Collect asks nobody.
func (b *backlog) Collect(out chan<- prometheus.Metric) {
	b.mu.Lock()
	looked, last, seen, rest := b.looked, b.last, b.seen, b.rest
	b.mu.Unlock()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	switch {
	case !looked:
		return
	case seen && rest:
		gauge(b.measured, 1)
	default:
		gauge(b.measured, 0)
	}
	if seen {
		gauge(b.stuck, float64(last.Retrying), "retrying")
		gauge(b.stuck, float64(last.Parked), "parked")
		gauge(b.stuck, float64(last.Behind), "behind")
		gauge(b.oldest, last.Oldest.Seconds())
	}
}
