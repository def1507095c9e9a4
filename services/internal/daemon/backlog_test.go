package daemon_test

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// shows waits until the metrics have all lines.
func (p *process) shows(lines ...string) {
	p.t.Helper()
	var exposition string
	outboxtest.Eventually(p.t, patience, func() bool {
		_, _, exposition = p.get("/metrics")
		for _, line := range lines {
			if !strings.Contains(exposition, "\n"+line+"\n") {
				return false
			}
		}
		return true
	}, "the metrics do not show %q", lines)
}

// counting is a service that shows whether it was asked to measure.
type counting struct {
	*stub
	looks  prometheus.Gauge
	broken atomic.Bool
}

func (c *counting) Metrics() []prometheus.Collector { return []prometheus.Collector{c.looks} }

func (c *counting) Measure(context.Context) error {
	if c.broken.Load() {
		return errors.New("broken")
	}
	c.looks.Set(1)
	return nil
}

func TestMetricsOfWhatWaitsInTheInbox(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	address, _ := broker(t)
	network := outboxtest.NewProxy(t, db.ServiceURL)
	own := &counting{stub: quick(), looks: prometheus.NewGauge(prometheus.GaugeOpts{Name: "own_looks"})}
	p := start(t, openPool(t, network.URL), address, own)
	p.becomes("/readyz", http.StatusOK)
	p.shows(`own_looks 1`, `ticketwave_inbox_measured{service="booking"} 1`, `ticketwave_inbox_stuck_messages{service="booking",state="parked"} 0`,
		`ticketwave_inbox_stuck_oldest_seconds{service="booking"} 0`)
	for _, m := range []struct {
		key    string
		parked bool
	}{{"a", true}, {"a", false}, {"b", false}, {"b", false}, {"b", true}, {"c", false}} {
		_, err := db.Exec(t.Context(), `
			WITH m AS (INSERT INTO inbox.messages (message_id, consumer, state) VALUES (gen_random_uuid(), 'booking', 'stuck') RETURNING message_id)
			INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, attempts, class, parked, next_attempt)
			SELECT 'booking', message_id, 0, 'some.type', $1, '{}', '{}', 1, 'handler', $2, clock_timestamp() + interval '1 hour' FROM m`, m.key, m.parked)
		if err != nil {
			t.Fatal(err)
		}
	}
	p.shows(`ticketwave_inbox_stuck_messages{service="booking",state="parked"} 1`, `ticketwave_inbox_stuck_messages{service="booking",state="retrying"} 2`,
		`ticketwave_inbox_stuck_messages{service="booking",state="behind"} 3`)
	if _, _, exposition := p.get("/metrics"); !regexp.MustCompile(`\nticketwave_inbox_stuck_oldest_seconds{service="booking"} [0-9.e-]+\n`).MatchString(exposition) {
		t.Error("the metrics do not say for how long")
	}
	network.Down()
	p.shows(`ticketwave_inbox_measured{service="booking"} 0`)
	if _, _, exposition := p.get("/metrics"); strings.Contains(exposition, "\nticketwave_inbox_stuck_messages{") {
		t.Error("the metrics show what was stuck before the database went away")
	}
	network.Up()
	p.shows(`ticketwave_inbox_measured{service="booking"} 1`)
	own.broken.Store(true)
	p.shows(`ticketwave_inbox_measured{service="booking"} 0`)
	p.stop()
}
