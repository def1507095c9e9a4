package schema

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// createLock is the cluster-wide advisory lock, taken in the admin database, under which roles and databases
// are made: both belong to the whole cluster, and neither can be made twice.
const createLock = 0x7469636b65747761

// ahead is how many daily partitions are made in advance. Each costs every query of the relay, and the loops that keep
// the partitions make them long before they are needed.
const ahead = 7

// Migrate makes the roles and databases of the plan that are missing and brings every schema up to date. It
// may be run again and by several processes at once; each returns when everything is there. adminURL is a
// role that may create databases and roles, in any database of the cluster, the same one for all processes.
func Migrate(ctx context.Context, adminURL string, plan Plan, log *slog.Logger) error {
	if err := plan.validate(); err != nil {
		return err
	}
	if err := create(ctx, adminURL, plan); err != nil {
		return err
	}
	for _, db := range plan.Databases {
		if err := migrateDatabase(ctx, adminURL, db, plan, log); err != nil {
			return fmt.Errorf("database %s: %w", db.Name, err)
		}
	}
	return nil
}

func migrateDatabase(ctx context.Context, adminURL string, db Database, plan Plan, log *slog.Logger) error {
	url, err := URL(adminURL, db.Name, "", "")
	if err != nil {
		return err
	}
	conn, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	for _, name := range db.schemas() {
		if err := migrateSchema(ctx, url, conn, name, log.With("database", db.Name, "schema", name)); err != nil {
			return fmt.Errorf("schema %s: %w", name, err)
		}
	}
	return settle(ctx, conn, db, log.With("database", db.Name))
}

// migrateSchema applies one folder under goose's session lock.
func migrateSchema(ctx context.Context, url string, conn *pgx.Conn, name string, log *slog.Logger) error {
	folder, err := fs.Sub(files, name)
	if err != nil {
		return err
	}
	if err := createSchema(ctx, conn, name); err != nil {
		return err
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return errors.New("bad PostgreSQL URL")
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120))
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, folder,
		goose.WithTableName(name+".schema_version"), goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	for pause := lockPauseMin; ; pause *= 2 {
		applied, err := provider.Up(ctx)
		for _, m := range applied {
			log.Info("migration applied", "version", m.Source.Version, "ms", m.Duration.Milliseconds())
		}
		if !lockTaken(err) || pause > lockPauseMax {
			return err
		}
		log.Warn("a migration waits for a lock that an open transaction holds", "schema", name, "pause", pause)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// A migration that does not get a table's lock in its time lets the writers by and is tried again, for about a minute.
const (
	lockPauseMin = 100 * time.Millisecond
	lockPauseMax = 20 * time.Second
)

func lockTaken(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03" // lock_not_available
}

func createSchema(ctx context.Context, conn *pgx.Conn, name string) error {
	return locked(ctx, conn, createLock, func() error {
		_, err := conn.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+pgx.Identifier{name}.Sanitize())
		return err
	})
}

// settle does what is done at every run: who may read the versions, the outbox's source, partitions ahead.
func settle(ctx context.Context, conn *pgx.Conn, db Database, log *slog.Logger) error {
	return locked(ctx, conn, createLock, func() error {
		for _, name := range db.schemas() {
			for _, role := range groups(name) {
				_, err := conn.Exec(ctx, fmt.Sprintf(`GRANT USAGE ON SCHEMA %[1]s TO %[2]s; GRANT SELECT ON %[1]s.schema_version TO %[2]s`, name, role))
				if err != nil {
					return err
				}
			}
		}
		for _, name := range []string{"outbox", "inbox"} {
			if slices.Contains(db.Schemas, name) {
				if err := addPartitions(ctx, conn, name, log); err != nil {
					return fmt.Errorf("add partitions to %s: %w", name, err)
				}
			}
		}
		if !slices.Contains(db.Schemas, "outbox") {
			return nil
		}
		return setSource(ctx, conn, db.Source)
	})
}

// addPartitions makes the days that are missing, one at a time. A day that cannot be made now without making
// somebody wait is left to the loops that keep the partitions.
func addPartitions(ctx context.Context, conn *pgx.Conn, name string, log *slog.Logger) error {
	rows, err := conn.Query(ctx, `SELECT day::text FROM `+name+`.missing_partitions($1) AS day`, ahead)
	if err != nil {
		return err
	}
	days, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, day := range days {
		var reason *string
		err := conn.QueryRow(ctx, `SELECT `+name+`.add_partition($1::text::date)`, day).Scan(&reason)
		switch {
		case lockTaken(err):
			log.Warn("partition not made, its lock is taken", "schema", name, "day", day)
		case err != nil:
			return err
		case reason != nil:
			log.Warn("partition not made", "schema", name, "day", day, "reason", *reason)
		}
	}
	return nil
}

func setSource(ctx context.Context, conn *pgx.Conn, source string) error {
	var stored string
	err := conn.QueryRow(ctx, `
		WITH made AS (INSERT INTO outbox.config (source) VALUES ($1) ON CONFLICT DO NOTHING RETURNING source)
		SELECT source FROM made UNION ALL SELECT source FROM outbox.config LIMIT 1`, source).Scan(&stored)
	if err == nil && stored != source {
		err = fmt.Errorf("its outbox belongs to source %q, not %q: is this the right database?", stored, source)
	}
	return err
}

func connect(ctx context.Context, url string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, errors.New("bad PostgreSQL URL")
	}
	config.ConnectTimeout = 10 * time.Second
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return conn, nil
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // a lock that was left is gone with the session
}

// locked runs fn while the session holds the advisory lock, waiting for it at most two minutes.
func locked(ctx context.Context, conn *pgx.Conn, id int64, fn func() error) error {
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if _, err := conn.Exec(wait, `SELECT pg_advisory_lock($1)`, id); err != nil {
		return fmt.Errorf("wait for another migration: %w", err)
	}
	err := fn()
	if conn.IsClosed() {
		return err
	}
	_, unlock := conn.Exec(ctx, `SELECT pg_advisory_unlock($1)`, id)
	return errors.Join(err, unlock)
}
