package lease

import (
	"context"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// store is the SQL. The schema's name is one of two constants, checked by Config.
type store struct {
	pool   *pgxpool.Pool
	schema string
	name   string
	member uuid.UUID
	label  string
	build  string
}

// view is the pool as one beat saw it.
type view struct {
	members []memberRow
	leases  []leaseRow
}

type memberRow struct {
	ID   uuid.UUID
	Beat int64
}

type leaseRow struct {
	Partition int
	Owner     uuid.UUID // uuid.Nil when free
	Token     int64
	Beat      int64
}

func (s store) sql(text string) string { return strings.ReplaceAll(text, "{schema}", s.schema) }

func (s store) prepare(ctx context.Context, partitions int) error {
	_, err := s.pool.Exec(ctx, s.sql(`
		INSERT INTO {schema}.leases (pool, partition)
		SELECT $1, n FROM generate_series(0, $2::int - 1) AS n
		ON CONFLICT DO NOTHING`), s.name, partitions)
	return err
}

// renew moves our counters and reads everybody's, in one round trip. A lost beat harms nobody, so it does
// not wait for the disk.
func (s store) renew(ctx context.Context) (view, error) {
	batch := &pgx.Batch{}
	batch.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
	batch.Queue(s.sql(`
		INSERT INTO {schema}.members AS m (pool, member, label, build) VALUES ($1, $2, $3, $4)
		ON CONFLICT (pool, member) DO UPDATE SET beat = m.beat + 1, beat_at = clock_timestamp()`), s.name, s.member, s.label, s.build)
	batch.Queue(s.sql(holdLeases), s.name, s.member)
	var v view
	batch.Queue(s.sql(`
		SELECT member, beat FROM {schema}.members WHERE pool = $1 ORDER BY member`), s.name,
	).Query(func(rows pgx.Rows) (err error) {
		v.members, err = pgx.CollectRows(rows, pgx.RowToStructByPos[memberRow])
		return err
	})
	batch.Queue(s.sql(`
		SELECT partition, coalesce(owner, '00000000-0000-0000-0000-000000000000'), token, beat
		FROM {schema}.leases WHERE pool = $1 ORDER BY partition`), s.name,
	).Query(func(rows pgx.Rows) (err error) {
		v.leases, err = pgx.CollectRows(rows, pgx.RowToStructByPos[leaseRow])
		return err
	})
	return v, s.pool.SendBatch(ctx, batch).Close()
}

const holdLeases = `UPDATE {schema}.leases SET beat = beat + 1 WHERE pool = $1 AND owner = $2`

// hold moves the counters of our leases alone.
func (s store) hold(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, s.sql(holdLeases), s.name, s.member)
	return err
}

// take makes us the owner if nothing has moved since l was seen.
func (s store) take(ctx context.Context, l leaseRow) (token int64, ok bool, err error) {
	rows, err := s.pool.Query(ctx, s.sql(`
		UPDATE {schema}.leases SET owner = $1, token = token + 1, beat = beat + 1
		WHERE pool = $2 AND partition = $3 AND token = $4 AND beat = $5
		RETURNING token`), s.member, s.name, l.Partition, l.Token, l.Beat)
	if err != nil {
		return 0, false, err
	}
	tokens, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(tokens) == 0 {
		return 0, false, err
	}
	return tokens[0], true, nil
}

func (s store) release(ctx context.Context, held Held) error {
	_, err := s.pool.Exec(ctx, s.sql(`
		UPDATE {schema}.leases SET owner = NULL, token = token + 1
		WHERE pool = $1 AND partition = $2 AND token = $3 AND owner = $4`),
		s.name, held.Partition, held.Token, s.member)
	return err
}

func (s store) leave(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, s.sql(`
		DELETE FROM {schema}.members WHERE pool = $1 AND member = $2`), s.name, s.member)
	return err
}

func (s store) forget(ctx context.Context, m memberRow) error {
	_, err := s.pool.Exec(ctx, s.sql(`
		DELETE FROM {schema}.members WHERE pool = $1 AND member = $2 AND beat = $3`), s.name, m.ID, m.Beat)
	return err
}
