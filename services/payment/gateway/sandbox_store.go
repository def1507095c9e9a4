package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// one is pgx.ErrNoRows when there is none.
func one[T any](ctx context.Context, db querier, scan pgx.RowToFunc[T], sql string, args ...any) (row T, err error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return row, err
	}
	return pgx.CollectExactlyOneRow(rows, scan)
}

// session is a row.
type session struct {
	ID        uuid.UUID        `db:"id"`
	Amount    contracts.Amount `db:"amount_minor"`
	Currency  string           `db:"currency"`
	ExpiresAt time.Time        `db:"expires_at"`
	State     string           `db:"state"`
	Over      bool             `db:"over"`
}

const sessionColumns = `id, amount_minor, currency, expires_at, state, expires_at <= clock_timestamp() AS over`

func insertSessions(ctx context.Context, tx pgx.Tx, checkouts []Checkout) error {
	inserts := &pgx.Batch{}
	for _, c := range checkouts {
		inserts.Queue(`
		INSERT INTO payment.sandbox_sessions (id, amount_minor, currency, expires_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (id) DO NOTHING`, c.PaymentID, int64(c.Amount), c.Currency, c.ExpiresAt)
	}
	return tx.SendBatch(ctx, inserts).Close()
}

func sessionByID(ctx context.Context, db querier, id uuid.UUID) (session, error) {
	return one(ctx, db, pgx.RowToStructByName[session], `SELECT `+sessionColumns+` FROM payment.sandbox_sessions WHERE id = $1`, id)
}

// changeSession moves an open session on, and reports whether it did. Money is taken until the session's end alone.
func changeSession(ctx context.Context, db querier, id uuid.UUID, state string) (bool, error) {
	_, err := one(ctx, db, pgx.RowTo[uuid.UUID], `
		UPDATE payment.sandbox_sessions SET state = $2, changed_at = clock_timestamp()
		WHERE id = $1 AND state = 'open' AND ($2 = 'closed' OR expires_at > clock_timestamp())
		RETURNING id`, id, state)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// refundSession returns the refund that there is then, or pgx.ErrNoRows where nothing was captured.
func refundSession(ctx context.Context, db querier, id uuid.UUID, reference string) (string, error) {
	return one(ctx, db, pgx.RowTo[string], `
		UPDATE payment.sandbox_sessions SET refund = coalesce(refund, $2), changed_at = clock_timestamp()
		WHERE id = $1 AND state IN ('paid', 'paying')
		RETURNING refund`, id, reference)
}

func storedSecret(ctx context.Context, db querier) ([]byte, error) {
	return one(ctx, db, pgx.RowTo[[]byte], `SELECT secret FROM payment.sandbox_secret`)
}

// insertWebhook stores a webhook that is due after the later of now and the session's end, where late is positive.
func insertWebhook(ctx context.Context, tx pgx.Tx, id string, s session, body []byte, late time.Duration) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO payment.sandbox_webhooks (id, session_id, body, due_at, next_at)
		SELECT $1, $2, $3, due, due
		  FROM (SELECT CASE WHEN $4::float8 > 0 THEN greatest(clock_timestamp(), $5::timestamptz) + $4 * interval '1 second'
		                    ELSE clock_timestamp() END AS due) AS t`,
		id, s.ID, string(body), late.Seconds(), s.ExpiresAt)
	return err
}

// delivery is a webhook that is due.
type delivery struct {
	ID       string  `db:"id"`
	Body     string  `db:"body"`
	Attempts int     `db:"attempts"`
	Age      float64 `db:"age"` // seconds since it was first due
}

// claimWebhooks takes webhooks that are due and puts them off for the time that a delivery may take.
func claimWebhooks(ctx context.Context, db querier, most int, lease time.Duration) ([]delivery, error) {
	rows, err := db.Query(ctx, `
		UPDATE payment.sandbox_webhooks AS w
		   SET attempts = w.attempts + 1, next_at = clock_timestamp() + $2::float8 * interval '1 second'
		  FROM (SELECT id, next_at FROM payment.sandbox_webhooks
		         WHERE delivered_at IS NULL AND given_up_at IS NULL AND next_at <= clock_timestamp()
		         ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED) AS due
		 WHERE w.id = due.id
		RETURNING w.id, w.body, w.attempts, extract(epoch FROM clock_timestamp() - w.due_at)::float8 AS age`, most, lease.Seconds())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[delivery])
}

func markDelivered(ctx context.Context, db execer, id string) error {
	_, err := db.Exec(ctx, `UPDATE payment.sandbox_webhooks SET delivered_at = clock_timestamp(), error = NULL WHERE id = $1`, id)
	return err
}

// markFailed puts a webhook off, or gives it up when again is not positive.
func markFailed(ctx context.Context, db execer, id, cause string, again time.Duration) error {
	_, err := db.Exec(ctx, `
		UPDATE payment.sandbox_webhooks
		   SET error = $2, next_at = clock_timestamp() + $3::float8 * interval '1 second',
		       given_up_at = CASE WHEN $3::float8 > 0 THEN NULL ELSE clock_timestamp() END
		 WHERE id = $1 AND delivered_at IS NULL`, id, cause, again.Seconds())
	return err
}
