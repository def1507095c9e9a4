package schema

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrOld says that a database lacks migrations that this program needs.
var ErrOld = errors.New("the database is older than this program")

// Check returns nil when every schema is at least at the version that this program was built with, ErrOld
// with what to run when one is not, and another error when the database does not answer.
func Check(ctx context.Context, pool *pgxpool.Pool, schemas ...string) error {
	for _, name := range schemas {
		need, err := newest(name)
		if err != nil {
			return err
		}
		found, err := version(ctx, pool, name)
		if err != nil {
			return fmt.Errorf("read the version of schema %s: %w", name, err)
		}
		if found < need {
			return fmt.Errorf("%w: in database %s schema %s is at version %d, this program needs %d: run \"ticketwave migrate\"",
				ErrOld, pool.Config().ConnConfig.Database, name, found, need)
		}
	}
	return nil
}

// newest is the highest migration number in a folder.
func newest(name string) (int64, error) {
	entries, err := fs.ReadDir(files, name)
	if err != nil {
		return 0, fmt.Errorf("schema %q is not one of this program: %w", name, err)
	}
	var highest int64
	for _, entry := range entries {
		number, _, _ := strings.Cut(entry.Name(), "_")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("migration %s/%s has no number", name, entry.Name())
		}
		highest = max(highest, n)
	}
	return highest, nil
}

func version(ctx context.Context, pool *pgxpool.Pool, name string) (int64, error) {
	var v int64
	err := pool.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+pgx.Identifier{name, "schema_version"}.Sanitize()+` WHERE is_applied`).Scan(&v)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000" || pg.Code == "42501") {
		return 0, nil // no such table or schema, or not yet granted
	}
	return v, err
}
