package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Backlog is what a consumer has in inbox.stuck: of the 5,000 messages that have been there the longest, how many are the
// first of their key and are tried again or parked, how many wait behind them, and for how long the first has been there.
type Backlog struct {
	Retrying, Parked, Behind int64
	Oldest                   time.Duration
}

const (
	backlogTimeout   = 3 * time.Second
	backlogStatement = "1000" // ms
)

// Backlog reads that of all processes, within three seconds and at a bounded cost.
func (c *Consumer) Backlog(ctx context.Context) (b Backlog, err error) {
	ctx, cancel := context.WithTimeout(ctx, backlogTimeout)
	defer cancel()
	var (
		batch pgx.Batch
		age   float64
	)
	batch.Queue(`SELECT set_config('statement_timeout', $1, true)`, backlogStatement)
	batch.Queue(`
		SELECT count(*) FILTER (WHERE s.head AND NOT s.parked), count(*) FILTER (WHERE s.head AND s.parked), count(*) FILTER (WHERE NOT s.head),
		       coalesce(extract(epoch FROM clock_timestamp() - min(s.stuck_at)), 0)::float8
		FROM (
			SELECT o.*, NOT EXISTS (SELECT FROM inbox.stuck AS e WHERE e.consumer = $1 AND e.key = o.key AND e.seq < o.seq) AS head
			FROM (SELECT key, seq, parked, stuck_at FROM inbox.stuck WHERE consumer = $1 ORDER BY seq LIMIT 5000) AS o
		) AS s`, c.cfg.Name).QueryRow(func(row pgx.Row) error { return row.Scan(&b.Retrying, &b.Parked, &b.Behind, &age) })
	if err := c.cfg.Pool.SendBatch(ctx, &batch).Close(); err != nil {
		return Backlog{}, fmt.Errorf("read the backlog of %s: %w", c.cfg.Name, err)
	}
	b.Oldest = max(0, time.Duration(age*float64(time.Second)))
	return b, nil
}
