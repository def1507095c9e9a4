package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/internal/backlog"
)

const (
	// measureTimeout bounds a measurement, measureStatement each of its statements.
	measureTimeout   = 3 * time.Second
	measureStatement = "1000" // ms
	// mostMeasured is up to where the messages of a partition are counted that are not relayed.
	mostMeasured = 1000
)

// Backlog is how far the relaying of a partition is, by whatever relay.
type Backlog struct {
	Partition int
	// Lag is how many messages are committed and not relayed, those in outbox.stuck apart: counted up to 1,000, from
	// there on about.
	Lag int64
	// LagAge is the age of the oldest of them, zero without any.
	LagAge time.Duration
	// Retrying and Parked count the stuck messages that are the first of their key, Behind those that wait for them; of
	// the 5,000 of the database that have been stuck the longest.
	Retrying, Parked, Behind int64
	// Oldest is the age of the oldest message that is not relayed, stuck ones included.
	Oldest time.Duration
}

// Transactions are those of a database that stay open: messages of theirs wait, and keys that they wrote are locked.
type Transactions struct {
	// Kind is open or prepared.
	Kind string
	// Oldest is the age of the oldest.
	Oldest time.Duration
	// Long is how many are older than a minute.
	Long int64
}

// Measurement is how a database stands.
type Measurement struct {
	Partitions   []Backlog
	Transactions []Transactions
}

// Measure looks at a database, within three seconds and at a bounded cost whatever its size.
func (r *Relay) Measure(ctx context.Context, database string) (*Measurement, error) {
	for _, s := range r.sources {
		if s.db.Name == database {
			found, err := s.measure(ctx)
			if err != nil {
				return nil, fmt.Errorf("measure database %s: %w", database, err)
			}
			return found, nil
		}
	}
	return nil, fmt.Errorf("relay: no database %q", database)
}

// Holding is what this process has of a database.
type Holding struct {
	// Leases is how many of its partitions belong to this relay.
	Leases int
	// Relaying says of each partition whether this relay works on it: not while it cannot, although it has the lease.
	Relaying []bool
}

// Holding is that of this moment. It asks nobody.
func (r *Relay) Holding(database string) Holding {
	for _, s := range r.sources {
		if s.db.Name == database {
			h := Holding{Leases: int(s.leases.Load()), Relaying: make([]bool, len(s.relaying))}
			for p := range s.relaying {
				h.Relaying[p] = s.relaying[p].Load()
			}
			return h
		}
	}
	return Holding{}
}

// stuckCounts gives the stuck messages of each partition that has any.
const stuckCounts = `
	SELECT s.partition::int,
	       count(*) FILTER (WHERE s.head AND NOT s.parked), count(*) FILTER (WHERE s.head AND s.parked), count(*) FILTER (WHERE NOT s.head),
	       extract(epoch FROM clock_timestamp() - min(s.created_at))::float8
	FROM (
		SELECT o.*, NOT EXISTS (SELECT FROM outbox.stuck AS e WHERE e.key = o.key AND e.message_id < o.message_id) AS head
		FROM (SELECT key, message_id, partition, parked, created_at FROM outbox.stuck ORDER BY seq LIMIT 5000) AS o
	) AS s
	GROUP BY 1`

// measure reads all in one round trip and one transaction.
func (s *source) measure(ctx context.Context) (*Measurement, error) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	var (
		batch pgx.Batch
		found []Backlog
		open  []Transactions
	)
	batch.Queue(`
		SELECT set_config('statement_timeout', $1, true), set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true)`,
		measureStatement)
	batch.Queue(backlog.Query, mostMeasured+1).Query(func(rows pgx.Rows) error {
		lags, err := pgx.CollectRows(rows, pgx.RowToStructByPos[backlog.Lag])
		for p, l := range lags {
			n, _ := l.Messages(mostMeasured)
			age := max(0, seconds(l.Seconds))
			found = append(found, Backlog{Partition: p, Lag: n, LagAge: age, Oldest: age})
		}
		return err
	})
	batch.Queue(stuckCounts).Query(func(rows pgx.Rows) error {
		var (
			b   Backlog
			age float64
		)
		_, err := pgx.ForEachRow(rows, []any{&b.Partition, &b.Retrying, &b.Parked, &b.Behind, &age}, func() error {
			if b.Partition < 0 || b.Partition >= len(found) {
				return fmt.Errorf("outbox.stuck has a message of partition %d", b.Partition)
			}
			at := &found[b.Partition]
			at.Retrying, at.Parked, at.Behind, at.Oldest = b.Retrying, b.Parked, b.Behind, max(at.Oldest, seconds(age))
			return nil
		})
		return err
	})
	batch.Queue(`SELECT kind, oldest, long FROM outbox.open_transactions()`).Query(func(rows pgx.Rows) error {
		var (
			t   Transactions
			age float64
		)
		_, err := pgx.ForEachRow(rows, []any{&t.Kind, &age, &t.Long}, func() error {
			t.Oldest = max(0, seconds(age))
			open = append(open, t)
			return nil
		})
		return err
	})
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, err
	}
	return &Measurement{Partitions: found, Transactions: open}, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
