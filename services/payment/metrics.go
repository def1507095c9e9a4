package payment

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jcp/ticketwave/services/internal/loop"
)

const measureTimeout = 5 * time.Second

// gauges are what Prometheus sees of the tasks that are open, by state: waiting, or refused at least once; and of the payments
// whose time is over.
type gauges struct{ tasks, oldest, overdue *prometheus.GaugeVec }

func newGauges() gauges {
	return gauges{
		tasks: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ticketwave_payment_tasks",
			Help: "Calls to be made at the gateways: waiting, or refused at least once and still owed. Every process counts the same.",
		}, []string{"state"}),
		oldest: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ticketwave_payment_tasks_oldest_seconds", Help: "For how long the first of them has been there; 0 where there is none.",
		}, []string{"state"}),
		overdue: loop.NewOverdue(),
	}
}

// Metrics are the service's own. They show what Measure saw last.
func (s *Service) Metrics() []prometheus.Collector {
	return []prometheus.Collector{s.gauges.tasks, s.gauges.oldest, s.gauges.overdue}
}

// Measure counts the tasks that are open, and looks for the first payment that should have ended. The metrics show nothing when it
// fails.
func (s *Service) Measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	counts, err := countTasks(ctx, s.pool)
	if err != nil {
		err = fmt.Errorf("count tasks: %w", err)
	}
	var late float64
	if err == nil {
		late, err = firstOverdue(ctx, s.pool)
	}
	if err != nil {
		s.gauges.tasks.Reset()
		s.gauges.oldest.Reset()
		s.gauges.overdue.Reset()
		return err
	}
	s.gauges.overdue.WithLabelValues().Set(late)
	for _, c := range counts {
		s.gauges.tasks.WithLabelValues(c.State).Set(float64(c.Tasks))
		s.gauges.oldest.WithLabelValues(c.State).Set(c.Oldest)
	}
	return nil
}

// taskCount is how many tasks are in a state, and the age of the oldest in seconds.
type taskCount struct {
	State  string  `db:"state"`
	Tasks  int64   `db:"tasks"`
	Oldest float64 `db:"oldest"`
}

// countTasks counts what is open. A round begins when the gateway has answered for good that it does not do it. Refunds that were
// given up are owed all the same; nothing follows of other tasks that were.
func countTasks(ctx context.Context, db querier) ([]taskCount, error) {
	rows, err := db.Query(ctx, `
		SELECT s.state, count(t.since) AS tasks, coalesce(extract(epoch FROM clock_timestamp() - min(t.since)), 0)::float8 AS oldest
		  FROM (VALUES ('waiting'), ('refused')) AS s (state)
		  LEFT JOIN (SELECT CASE WHEN round = 0 THEN 'waiting' ELSE 'refused' END AS state, created_at AS since
		               FROM payment.tasks WHERE state = 'due'
		             UNION ALL
		             SELECT 'refused', created_at FROM payment.tasks WHERE state = 'refused' AND kind = 'refund') AS t USING (state)
		 GROUP BY s.state`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[taskCount])
}
