// Package batch sends several statements in one round trip.
package batch

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Statement is one of a batch.
type Statement struct {
	SQL  string
	Args []any
}

// Rows runs the statements in their order and returns the row of each, nil where it gave none. After an error the
// transaction is aborted.
func Rows[T any](ctx context.Context, tx pgx.Tx, statements []Statement, scan pgx.RowToFunc[T]) ([]*T, error) {
	return each(ctx, tx, statements, func(rows pgx.Rows) (*T, error) {
		row, err := pgx.CollectExactlyOneRow(rows, scan)
		switch {
		case err == nil:
			return &row, nil
		case errors.Is(err, pgx.ErrNoRows):
			return nil, nil
		}
		return nil, err
	})
}

// All runs the statements in their order and returns all rows that they gave. Rows without columns, of a SELECT FROM that
// only locks, are left out. After an error the transaction is aborted.
func All[T any](ctx context.Context, tx pgx.Tx, statements []Statement, scan pgx.RowToFunc[T]) ([]T, error) {
	found, err := each(ctx, tx, statements, func(rows pgx.Rows) ([]T, error) {
		if len(rows.FieldDescriptions()) == 0 {
			rows.Close()
			return nil, rows.Err()
		}
		return pgx.CollectRows(rows, scan)
	})
	return slices.Concat(found...), err
}

// each collects what each statement gave.
func each[R any](ctx context.Context, tx pgx.Tx, statements []Statement, collect func(pgx.Rows) (R, error)) (found []R, err error) {
	if len(statements) == 0 {
		return nil, nil
	}
	queue := &pgx.Batch{}
	for _, s := range statements {
		queue.Queue(s.SQL, s.Args...)
	}
	results := tx.SendBatch(ctx, queue)
	defer func() {
		if closed := results.Close(); err == nil {
			err = closed
		}
	}()
	found = make([]R, len(statements))
	for i := range statements {
		rows, err := results.Query()
		if err != nil {
			return nil, err
		}
		if found[i], err = collect(rows); err != nil {
			return nil, err
		}
	}
	return found, nil
}
