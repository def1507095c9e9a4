package payment

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const columns = `id, booking_id, user_id, amount_minor, currency, status, url, expires_at, prepared_at`

// scan is pgx.RowToStructByName in UTC.
func scan(row pgx.CollectableRow) (Payment, error) {
	p, err := pgx.RowToStructByName[Payment](row)
	p.ExpiresAt, p.PreparedAt = p.ExpiresAt.UTC(), p.PreparedAt.UTC()
	return p, err
}

// insertPayment is pgx.ErrNoRows when the booking has a payment. It waits for another transaction of the same booking.
func insertPayment(ctx context.Context, tx pgx.Tx, id uuid.UUID, url string, r contracts.PreparePaymentData) (Payment, error) {
	rows, err := tx.Query(ctx, `
		INSERT INTO payment.payments (id, booking_id, user_id, amount_minor, currency, url, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (booking_id) DO NOTHING
		RETURNING `+columns,
		id, r.BookingID, r.UserID, int64(r.Amount), r.Currency, url, r.ExpiresAt)
	if err != nil {
		return Payment{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scan)
}

// paymentOf is pgx.ErrNoRows when the booking has none.
func paymentOf(ctx context.Context, db querier, bookingID string) (Payment, error) {
	rows, err := db.Query(ctx, `SELECT `+columns+` FROM payment.payments WHERE booking_id = $1`, bookingID)
	if err != nil {
		return Payment{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scan)
}

// paymentByID is pgx.ErrNoRows when there is none.
func paymentByID(ctx context.Context, db querier, id uuid.UUID) (Payment, error) {
	rows, err := db.Query(ctx, `SELECT `+columns+` FROM payment.payments WHERE id = $1`, id)
	if err != nil {
		return Payment{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scan)
}
