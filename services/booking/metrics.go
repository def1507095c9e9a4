package booking

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const measureTimeout = 5 * time.Second

// Metrics are the service's own. They show what Measure saw last.
func (s *Service) Metrics() []prometheus.Collector { return []prometheus.Collector{s.overdue} }

// Measure looks for the first deadline that was not kept. The metrics show nothing when it fails.
func (s *Service) Measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	var late float64
	if err := s.pool.QueryRow(ctx, firstOverdue).Scan(&late); err != nil {
		s.overdue.Reset()
		return fmt.Errorf("measure deadlines: %w", err)
	}
	s.overdue.WithLabelValues().Set(late)
	return nil
}
