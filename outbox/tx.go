package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrCommitUnknown says that the connection broke during COMMIT: the transaction may or may not have taken
// effect. It is never tried again; a caller with an idempotency key may.
var ErrCommitUnknown = errors.New("the outcome of the commit is unknown")

// DB is what InTx needs of a pool. *pgxpool.Pool is one.
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

const (
	txTries    = 5
	txPauseMin = 5 * time.Millisecond
)

// InTx runs fn in a transaction and commits it. When fn returns an error or panics, everything is rolled back.
// A deadlock or serialization failure runs fn again, up to five times in all with growing pauses, so fn must
// have no effect outside tx. After a commit that appended messages the relay gets a wake-up hint, outside the
// transaction and without waiting for it.
func InTx(ctx context.Context, db DB, fn func(tx pgx.Tx) error) error {
	pause := txPauseMin
	for try := 1; ; try++ {
		wrote, err := inTxOnce(ctx, db, fn)
		if err == nil && wrote {
			hint(db)
		}
		if err == nil || try == txTries || !conflict(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause *= 2
	}
}

func inTxOnce(ctx context.Context, db DB, fn func(tx pgx.Tx) error) (wrote bool, err error) {
	raw, err := db.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	tx := &trackedTx{Tx: raw, wrote: new(atomic.Bool)}
	committed := false
	defer func() {
		if !committed {
			rollback(ctx, raw)
		}
	}()
	if err := fn(tx); err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil { // known before COMMIT goes out, unknown after
		return false, fmt.Errorf("commit: %w", err)
	}
	committed = true
	return tx.wrote.Load(), commit(ctx, raw)
}

func commit(ctx context.Context, tx pgx.Tx) error {
	err := tx.Commit(ctx)
	switch {
	case err == nil:
		return nil
	case refused(err), errors.Is(err, pgx.ErrTxCommitRollback), errors.Is(err, pgx.ErrTxClosed):
		return fmt.Errorf("commit: %w", err)
	}
	return fmt.Errorf("%w: %w", ErrCommitUnknown, err)
}

// refused reports that the server answered with an error and lives on. A FATAL one, which ends the session, may
// follow a commit that took effect: a server told to stop while it waits for its standbys sends one.
func refused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.SeverityUnlocalized == "ERROR"
}

// rollback gives the connection back even when ctx has ended.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // a broken connection is discarded by the pool
}

// conflict reports an error after which the same transaction may succeed: nothing of it took effect.
func conflict(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// trackedTx notes whether something was appended, in it or in a savepoint of it.
type trackedTx struct {
	pgx.Tx
	wrote *atomic.Bool
}

// Begin starts a savepoint.
func (t *trackedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	inner, err := t.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &trackedTx{Tx: inner, wrote: t.wrote}, nil
}
