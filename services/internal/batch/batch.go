// Package batch sends several statements in one round trip.
package batch

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// Statement is one of a batch.
type Statement struct {
	SQL  string
	Args []any
}

// Rows runs the statements in their order and returns the row of each, nil where it gave none. After an error the
// transaction is aborted.
func Rows[T any](ctx context.Context, tx pgx.Tx, statements []Statement, scan pgx.RowToFunc[T]) (found []*T, err error) {
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
	found = make([]*T, len(statements))
	for i := range statements {
		rows, err := results.Query()
		if err != nil {
			return nil, err
		}
		row, err := pgx.CollectExactlyOneRow(rows, scan)
		switch {
		case err == nil:
			found[i] = &row
		case !errors.Is(err, pgx.ErrNoRows):
			return nil, err
		}
	}
	return found, nil
}
