package payment

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/internal/batch"
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

// insertPayments gives nil for a booking that has a payment. It waits for another transaction of the same booking. A
// payment's id ends its URL.
func insertPayments(ctx context.Context, tx pgx.Tx, url string, requests []inbox.Item[contracts.PreparePaymentData]) ([]*Payment, error) {
	statements := make([]batch.Statement, len(requests))
	for i, r := range requests {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("draw a payment id: %w", err)
		}
		statements[i] = batch.Statement{SQL: `
		INSERT INTO payment.payments (id, booking_id, user_id, amount_minor, currency, url, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (booking_id) DO NOTHING
		RETURNING ` + columns,
			Args: []any{id, r.Event.BookingID, r.Event.UserID, int64(r.Event.Amount), r.Event.Currency, url + id.String(), r.Event.ExpiresAt}}
	}
	return batch.Rows(ctx, tx, statements, scan)
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
