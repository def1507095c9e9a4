package retention

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// store is the SQL: calls of functions in the schema, whose name is one of two constants.
type store struct {
	conn   *pgx.Conn
	schema string
	keep   float64 // seconds
}

func open(ctx context.Context, cfg Config) (store, error) {
	config := cfg.Connect.Copy()
	config.ConnectTimeout = 5 * time.Second
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.RuntimeParams["application_name"] = cfg.Schema + " retention"
	config.RuntimeParams["statement_timeout"] = "5s"
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "10s"
	config.RuntimeParams["default_transaction_isolation"] = "read committed"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return store{}, fmt.Errorf("connect: %w", err)
	}
	return store{conn: conn, schema: cfg.Schema, keep: cfg.Keep.Seconds()}, nil
}

func (s store) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx)
}

// tryLock makes this session the only one that works on the schema, until it closes.
func (s store) tryLock(ctx context.Context) (mine bool, err error) {
	const outboxLock, inboxLock = 7310294558216, 7310294558217
	key := int64(outboxLock)
	if s.schema == "inbox" {
		key = inboxLock
	}
	return one[bool](ctx, s, `pg_try_advisory_lock($1)`, key)
}

// mark notes the time, and in an outbox what is relayed.
func (s store) mark(ctx context.Context) error {
	_, err := s.conn.Exec(ctx, `SELECT `+s.schema+`.mark(make_interval(secs => $1))`, s.keep)
	if err != nil {
		return fmt.Errorf("%s.mark: %w", s.schema, err)
	}
	return nil
}

func (s store) missing(ctx context.Context, ahead int) ([]string, error) {
	return s.days(ctx, `missing_partitions($1)`, ahead)
}

func (s store) old(ctx context.Context) ([]string, error) {
	return s.days(ctx, `old_partitions(make_interval(secs => $1))`, s.keep)
}

func (s store) add(ctx context.Context, day string) (reason string, err error) {
	return one[string](ctx, s, `coalesce(`+s.schema+`.add_partition($1::text::date), '')`, day)
}

func (s store) empty(ctx context.Context, day string) (reason string, err error) {
	return one[string](ctx, s, `coalesce(`+s.schema+`.empty_partition($1::text::date, make_interval(secs => $2)), '')`, day, s.keep)
}

func (s store) drop(ctx context.Context, day string) (reason string, err error) {
	return one[string](ctx, s, `coalesce(`+s.schema+`.drop_partition($1::text::date, make_interval(secs => $2)), '')`, day, s.keep)
}

func (s store) sweep(ctx context.Context, most int) (int64, error) {
	return one[int64](ctx, s, s.schema+`.sweep_default(make_interval(secs => $1), $2)`, s.keep, most)
}

func (s store) state(ctx context.Context, into *Report) error {
	err := s.conn.QueryRow(ctx, `
		SELECT ahead, coalesce(oldest::text, ''), default_bytes, coalesce(refusal, '')
		FROM `+s.schema+`.partition_state()`).Scan(&into.Ahead, &into.Oldest, &into.DefaultBytes, &into.Refusal)
	if err != nil {
		return fmt.Errorf("%s.partition_state: %w", s.schema, err)
	}
	return nil
}

func (s store) days(ctx context.Context, call string, args ...any) ([]string, error) {
	rows, err := s.conn.Query(ctx, `SELECT day::text FROM `+s.schema+`.`+call+` AS day`, args...)
	if err != nil {
		return nil, fmt.Errorf("%s.%s: %w", s.schema, call, err)
	}
	days, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("%s.%s: %w", s.schema, call, err)
	}
	return days, nil
}

func one[T any](ctx context.Context, s store, call string, args ...any) (value T, err error) {
	if err = s.conn.QueryRow(ctx, `SELECT `+call, args...).Scan(&value); err != nil {
		err = fmt.Errorf("%s: %w", call, err)
	}
	return value, err
}
