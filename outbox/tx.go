package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/internal/failpoint"
)

// ErrCommitUnknown says that the connection broke during COMMIT: the transaction may or may not have taken
// effect. It is never tried again; a caller with an idempotency key may.
var ErrCommitUnknown = errors.New("the outcome of the commit is unknown")

// DB is what InTx needs of a pool. *pgxpool.Pool is one.
type DB interface {
	Acquire(ctx context.Context) (*pgxpool.Conn, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

var errEndsByItself = errors.New("outbox.InTx ends its transaction itself: return nil to commit, an error to roll back")

var errOpenSavepoint = errors.New("a savepoint is still open: commit it or roll it back, its events cannot be told apart")

const (
	txTries    = 5
	txPauseMin = 5 * time.Millisecond
)

// InTx runs fn in a transaction and commits it. When fn returns an error or panics, everything is rolled back.
// A deadlock or serialization failure runs fn again, up to five times in all with growing pauses, so fn must
// have no effect outside tx, and must leave COMMIT and ROLLBACK to InTx. What fn appends is written together with
// the COMMIT: after every other statement, sorted by key, so that the locks on keys are held for one round trip
// and no deadlock goes through them. A savepoint must be one of tx.Begin: events appended in it are dropped when
// it is rolled back. After a commit with events the relay gets a wake-up hint, outside the transaction and
// without waiting for it.
func InTx(ctx context.Context, db DB, fn func(tx pgx.Tx) error) error {
	pause := txPauseMin
	for try := 1; ; try++ {
		touched, err := inTxOnce(ctx, db, fn)
		if err == nil && touched != (partitions{}) {
			hint(db, touched)
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

func inTxOnce(ctx context.Context, db DB, fn func(tx pgx.Tx) error) (touched partitions, err error) {
	conn, err := db.Acquire(ctx)
	if err != nil {
		return touched, fmt.Errorf("begin: %w", err)
	}
	defer conn.Release() // closes a connection whose transaction has not ended
	raw, err := conn.Conn().Begin(ctx)
	if err != nil {
		return touched, fmt.Errorf("begin: %w", err)
	}
	unit := &unitTx{Tx: raw}
	committed := false
	defer func() {
		if !committed {
			rollback(ctx, raw)
		}
	}()
	if err := fn(unit); err != nil {
		return touched, err
	}
	if err := ctx.Err(); err != nil { // known before COMMIT goes out, unknown after
		return touched, fmt.Errorf("commit: %w", err)
	}
	if unit.savepoints > 0 {
		return touched, errOpenSavepoint
	}
	if err := sortByKey(unit.rows); err != nil {
		return touched, err
	}
	if len(unit.rows) == 0 {
		committed = true
		return touched, outcome(raw.Commit(ctx))
	}
	for _, r := range unit.rows {
		touched[PartitionOf(r.key)] = true
	}
	failpoint.Hit("outbox.before-commit")
	committed, err = commitWith(ctx, raw, unit.rows)
	failpoint.Hit("outbox.after-commit")
	return touched, err
}

// commitWith writes the rows and commits in one round trip. When sent is false nothing was committed.
func commitWith(ctx context.Context, tx pgx.Tx, rows []row) (sent bool, err error) {
	batch := &pgx.Batch{}
	text, args := insert(rows)
	batch.Queue(text, args...)
	batch.Queue("commit")
	results := tx.SendBatch(ctx, batch)
	defer func() { _ = results.Close() }() // its errors are those of the calls below
	if _, err = results.Exec(); err != nil {
		err = fmt.Errorf("append %d messages: %w", len(rows), err)
		if refused(err) || pgconn.SafeToRetry(err) {
			return false, err
		}
		return true, fmt.Errorf("%w: %w", ErrCommitUnknown, err)
	}
	tag, err := results.Exec()
	if err == nil && tag.String() != "COMMIT" {
		err = pgx.ErrTxCommitRollback
	}
	return true, outcome(err)
}

// outcome is that of a COMMIT.
func outcome(err error) error {
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

// unitTx is a transaction of InTx, or a savepoint in it: it gathers what is appended.
type unitTx struct {
	pgx.Tx
	parent     *unitTx // of a savepoint
	savepoints int     // that have begun in it and not ended
	ended      bool    // a savepoint that was committed or rolled back
	rows       []row
}

// Begin starts a savepoint.
func (u *unitTx) Begin(ctx context.Context) (pgx.Tx, error) {
	inner, err := u.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	u.savepoints++
	return &unitTx{Tx: inner, parent: u}, nil
}

// end counts a savepoint's first end.
func (u *unitTx) end() {
	if !u.ended {
		u.ended = true
		u.parent.savepoints--
	}
}

// Commit ends a savepoint. The transaction itself is committed by InTx.
func (u *unitTx) Commit(ctx context.Context) error {
	if u.parent == nil {
		return errEndsByItself
	}
	if u.savepoints > 0 {
		return errOpenSavepoint
	}
	if err := u.Tx.Commit(ctx); err != nil {
		return err
	}
	u.end()
	u.parent.rows = append(u.parent.rows, u.rows...)
	u.rows = nil
	return nil
}

// Rollback undoes a savepoint. The transaction itself is rolled back when its function returns an error.
func (u *unitTx) Rollback(ctx context.Context) error {
	if u.parent == nil {
		return errEndsByItself
	}
	u.rows = nil
	u.end()
	return u.Tx.Rollback(ctx)
}
