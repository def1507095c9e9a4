package saga

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/jcp/ticketwave/services/internal/loop"
)

// gauges are what Prometheus sees of the instances. They are vectors so that they can show nothing.
type gauges struct{ instances, overdue *prometheus.GaugeVec }

func newGauges() gauges {
	return gauges{
		instances: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ticketwave_saga_instances", Help: "Sagas that have not ended, of each state the 5,000 oldest; stuck ones wait for an operator or a newer build.",
		}, []string{"state"}),
		overdue: loop.NewOverdue(),
	}
}

// Metrics are the coordinator's own.
func (s *Service) Metrics() []prometheus.Collector {
	return []prometheus.Collector{s.gauges.instances, s.gauges.overdue}
}

// Measure looks at the instances that have not ended.
func (s *Service) Measure(ctx context.Context) error {
	m, err := measure(ctx, s.pool, s.versions)
	if err != nil {
		s.gauges.instances.Reset()
		s.gauges.overdue.Reset()
		return err
	}
	for state, n := range m.Counts {
		s.gauges.instances.WithLabelValues(state).Set(float64(n))
	}
	s.gauges.overdue.WithLabelValues().Set(m.Overdue.Seconds())
	return nil
}
