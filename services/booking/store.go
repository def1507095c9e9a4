package booking

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/batch"
	"github.com/jcp/ticketwave/services/internal/web"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const bookingColumns = `id, event_id, user_id, ticket_count, price_minor, amount_minor, currency, created_at, status, reason,
	expires_at, reserved_at, payment_id, payment_url, notified, notification_error, updated_at`

// scanBooking is pgx.RowToStructByName in UTC.
func scanBooking(row pgx.CollectableRow) (Booking, error) {
	b, err := pgx.RowToStructByName[Booking](row)
	if err != nil {
		return b, err
	}
	b.CreatedAt, b.ExpiresAt, b.UpdatedAt = b.CreatedAt.UTC(), b.ExpiresAt.UTC(), b.UpdatedAt.UTC()
	if b.ReservedAt != nil {
		*b.ReservedAt = b.ReservedAt.UTC()
	}
	return b, nil
}

// one runs a query for one row; pgx.ErrNoRows when there is none.
func one[T any](ctx context.Context, db querier, scan pgx.RowToFunc[T], sql string, args ...any) (T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		var none T
		return none, err
	}
	return pgx.CollectExactlyOneRow(rows, scan)
}

func insertBooking(ctx context.Context, tx pgx.Tx, b *Booking) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO booking.bookings
		       (id, event_id, user_id, ticket_count, price_minor, amount_minor, currency, created_at, status, expires_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $8)`,
		b.ID, b.EventID, b.UserID, b.TicketCount, int64(b.UnitPrice), int64(b.TotalAmount), b.Currency, b.CreatedAt, string(b.Status), b.ExpiresAt)
	return err
}

// bookingByID is pgx.ErrNoRows when there is none.
func bookingByID(ctx context.Context, db querier, id string) (*Booking, error) {
	b, err := one(ctx, db, scanBooking, `SELECT `+bookingColumns+` FROM booking.bookings WHERE id = $1`, id)
	return &b, err
}

// bookingsOf is the user's page in the order of ids, and one more booking if more follow.
func bookingsOf(ctx context.Context, db querier, user uuid.UUID, page web.Page) ([]Booking, error) {
	rows, err := db.Query(ctx, `
		SELECT `+bookingColumns+` FROM booking.bookings
		WHERE user_id = $1 AND id > $2
		ORDER BY id
		LIMIT $3`, user, page.After, page.Limit+1)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanBooking)
}

// change is a guarded update of a booking.
type change struct {
	bookingID string
	update    string
	args      []any // $2 and on
}

// changeAll runs the changes, in one round trip, and returns the bookings as they then stand; nil for one whose guard did
// not let it through, or that does not exist.
func changeAll(ctx context.Context, tx pgx.Tx, changes []change) ([]*Booking, error) {
	statements := make([]batch.Statement, len(changes))
	for i, c := range changes {
		statements[i] = batch.Statement{SQL: c.update + ` RETURNING ` + bookingColumns, Args: append([]any{c.bookingID}, c.args...)}
	}
	return batch.Rows(ctx, tx, statements, scanBooking)
}

func setReserved(id string, now time.Time) change {
	return change{id, `
		UPDATE booking.bookings
		SET reserved_at = $2, updated_at = $2,
		    status = CASE WHEN payment_id IS NULL THEN status ELSE 'awaiting_payment' END
		WHERE id = $1 AND status = 'pending' AND reserved_at IS NULL`, []any{now}}
}

func setRejected(id, reason string, now time.Time) change {
	return change{id, `
		UPDATE booking.bookings
		SET status = 'rejected', reason = $2, updated_at = $3
		WHERE id = $1 AND status = 'pending' AND reserved_at IS NULL`, []any{reason, now}}
}

// setPayment records the first payment whatever the status, so that a rejected booking knows what it does not need.
func setPayment(e contracts.PaymentDataPrepared, now time.Time) change {
	return change{e.BookingID, `
		UPDATE booking.bookings
		SET payment_id = $2, payment_url = $3, expires_at = $4, updated_at = $5,
		    status = CASE WHEN status = 'pending' AND reserved_at IS NOT NULL THEN 'awaiting_payment' ELSE status END
		WHERE id = $1 AND payment_id IS NULL`, []any{e.PaymentID, e.PaymentURL, e.ExpiresAt, now}}
}

func setNotified(e contracts.NotificationSent, now time.Time) change {
	return change{e.BookingID, `
		UPDATE booking.bookings
		SET notified = $2, notification_error = $3, updated_at = $4
		WHERE id = $1 AND notified IS NOT TRUE`, []any{e.Success, e.ErrorMessage, now}}
}

// eventOnSale is pgx.ErrNoRows when the catalog has not told of the event.
func eventOnSale(ctx context.Context, tx pgx.Tx, id uuid.UUID) (onSale, error) {
	return one(ctx, tx, pgx.RowToStructByName[onSale], `SELECT id, price_minor, currency FROM booking.events WHERE id = $1`, id)
}

// upsertEvent is false when a version as new is there.
func upsertEvent(ctx context.Context, tx pgx.Tx, e contracts.CatalogEventPublished) (bool, error) {
	tag, err := tx.Exec(ctx, `
		INSERT INTO booking.events AS known (id, name, price_minor, currency, starts_at, version)
		VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (id) DO UPDATE
		SET name = excluded.name, price_minor = excluded.price_minor, currency = excluded.currency,
		    starts_at = excluded.starts_at, version = excluded.version
		WHERE known.version < excluded.version`,
		e.EventID, e.Name, int64(e.Price), e.Currency, e.StartsAt, e.Version)
	return tag.RowsAffected() == 1, err
}

// answer is what a request was answered with.
type answer struct {
	Status   int    `db:"status"`
	Location string `db:"location"`
	Body     []byte `db:"body"`
}

// claimKey is true when the key is new. It waits for another transaction that holds it.
func claimKey(ctx context.Context, tx pgx.Tx, key string, request []byte) (bool, error) {
	tag, err := tx.Exec(ctx, `
		INSERT INTO booking.idempotency_keys (key, request) VALUES ($1, $2)
		ON CONFLICT (key) DO NOTHING`, key, request)
	return tag.RowsAffected() == 1, err
}

func storeAnswer(ctx context.Context, tx pgx.Tx, key string, a answer) error {
	_, err := tx.Exec(ctx, `UPDATE booking.idempotency_keys SET status = $2, location = $3, body = $4 WHERE key = $1`,
		key, a.Status, a.Location, a.Body)
	return err
}

// storedAnswer is pgx.ErrNoRows when the key was used for another request.
func storedAnswer(ctx context.Context, tx pgx.Tx, key string, request []byte) (answer, error) {
	return one(ctx, tx, pgx.RowToStructByName[answer],
		`SELECT status, location, body FROM booking.idempotency_keys WHERE key = $1 AND request = $2`, key, request)
}
