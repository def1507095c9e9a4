package payment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/internal/batch"
	"github.com/jcp/ticketwave/services/internal/loop"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// one is pgx.ErrNoRows when there is none.
func one[T any](ctx context.Context, db querier, scan pgx.RowToFunc[T], sql string, args ...any) (row T, err error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return row, err
	}
	return pgx.CollectExactlyOneRow(rows, scan)
}

// found reports whether there was a row.
func found(err error) (bool, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

const columns = `id, booking_id, user_id, amount_minor, currency, status, reason, url, gateway, expires_at, prepared_at, settled_at,
	session, correlation_id, causation_id, trace_parent`

// scan is pgx.RowToStructByName in UTC.
func scan(row pgx.CollectableRow) (Payment, error) {
	p, err := pgx.RowToStructByName[Payment](row)
	p.ExpiresAt, p.PreparedAt = p.ExpiresAt.UTC(), p.PreparedAt.UTC()
	if p.SettledAt != nil {
		at := p.SettledAt.UTC()
		p.SettledAt = &at
	}
	return p, err
}

// lockBookings makes other requests about the bookings wait: a request and the cancellation that overtakes it may run at the
// same time, and each must see the other's mark. The order of the bookings is that of their locks.
func lockBookings(ctx context.Context, tx pgx.Tx, bookings []string) error {
	_, err := tx.Exec(ctx, `
		SELECT pg_advisory_xact_lock(hashtextextended(booking, 5003017310294)) FROM unnest($1::text[]) WITH ORDINALITY AS b (booking, n) ORDER BY n`, bookings)
	return err
}

// insertPayments gives nil for a booking that has a payment or a cancellation; lockBookings comes before it. What has no time
// left, or a currency that the gateway does not take, is stored as Unavailable.
func insertPayments(ctx context.Context, tx pgx.Tx, g gateway.Gateway, requests []inbox.Item[contracts.PreparePaymentData]) ([]*Payment, error) {
	statements := make([]batch.Statement, len(requests))
	for i, r := range requests {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("draw a payment id: %w", err)
		}
		opened, status := gateway.Session{}, Preparing
		if local, ok := g.(gateway.Local); ok {
			opened, status = local.Plan(gateway.Checkout{PaymentID: id}), Prepared
		}
		reason := ""
		if !g.Takes(r.Event.Currency) {
			reason = string(contracts.PreparationCurrencyNotSupported)
		}
		flow := outbox.CausalityFrom(r.Context())
		statements[i] = batch.Statement{SQL: `
		INSERT INTO payment.payments (id, booking_id, user_id, amount_minor, currency, gateway, expires_at, correlation_id, causation_id, trace_parent,
		                              status, reason, url, session, settled_at)
		SELECT $1::uuid, $2::uuid, $3::uuid, $4::bigint, $5, $6, $7::timestamptz, $8, $9, $10,
		       CASE WHEN why IS NULL THEN $11 ELSE 'unavailable' END, why,
		       CASE WHEN why IS NULL THEN nullif($12, '') END, CASE WHEN why IS NULL THEN nullif($13, '') END,
		       CASE WHEN why IS NOT NULL THEN clock_timestamp() END
		  FROM (SELECT CASE WHEN $14 <> '' THEN $14 WHEN $7::timestamptz <= clock_timestamp() THEN 'too_late' END AS why) AS judged
		 WHERE NOT EXISTS (SELECT FROM payment.cancellations WHERE booking_id = $2::uuid)
		ON CONFLICT (booking_id) DO NOTHING
		RETURNING ` + columns,
			Args: []any{id, r.Event.BookingID, r.Event.UserID, int64(r.Event.Amount), r.Event.Currency, g.Name(), r.Event.ExpiresAt,
				flow.CorrelationID, flow.CausationID, flow.TraceParent, string(status), opened.URL, opened.Ref, reason}}
	}
	return batch.Rows(ctx, tx, statements, scan)
}

// cancelPayments ends those that can still be paid, in the order given, and gives nil for the others.
func cancelPayments(ctx context.Context, tx pgx.Tx, bookings []string) ([]*Payment, error) {
	return perBooking(ctx, tx, bookings, `
		UPDATE payment.payments SET status = 'cancelled', settled_at = clock_timestamp()
		WHERE booking_id = $1 AND status IN ('preparing', 'prepared')
		RETURNING `+columns, scan)
}

// lockPayments reads and locks, in the order given.
func lockPayments(ctx context.Context, tx pgx.Tx, bookings []string) ([]*Payment, error) {
	return perBooking(ctx, tx, bookings, `SELECT `+columns+` FROM payment.payments WHERE booking_id = $1 FOR UPDATE`, scan)
}

// tombstones leaves a mark for each booking without a payment, and returns when each was cancelled.
func tombstones(ctx context.Context, tx pgx.Tx, bookings []string) ([]*time.Time, error) {
	if _, err := perBooking(ctx, tx, bookings, `
		INSERT INTO payment.cancellations (booking_id)
		SELECT $1::uuid WHERE NOT EXISTS (SELECT FROM payment.payments WHERE booking_id = $1::uuid)
		ON CONFLICT DO NOTHING RETURNING cancelled_at`, pgx.RowTo[time.Time]); err != nil {
		return nil, err
	}
	return perBooking(ctx, tx, bookings, `SELECT cancelled_at FROM payment.cancellations WHERE booking_id = $1`, pgx.RowTo[time.Time])
}

func perBooking[T any](ctx context.Context, tx pgx.Tx, bookings []string, sql string, scan pgx.RowToFunc[T]) ([]*T, error) {
	statements := make([]batch.Statement, len(bookings))
	for i, booking := range bookings {
		statements[i] = batch.Statement{SQL: sql, Args: []any{booking}}
	}
	return batch.Rows(ctx, tx, statements, scan)
}

// paymentOf is pgx.ErrNoRows when the booking has none.
func paymentOf(ctx context.Context, db querier, bookingID string) (Payment, error) {
	return one(ctx, db, scan, `SELECT `+columns+` FROM payment.payments WHERE booking_id = $1`, bookingID)
}

// paymentByID is pgx.ErrNoRows when there is none.
func paymentByID(ctx context.Context, db querier, id uuid.UUID) (Payment, error) {
	return one(ctx, db, scan, `SELECT `+columns+` FROM payment.payments WHERE id = $1`, id)
}

// lockPayment is pgx.ErrNoRows when there is none.
func lockPayment(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Payment, error) {
	return one(ctx, tx, scan, `SELECT `+columns+` FROM payment.payments WHERE id = $1 FOR UPDATE`, id)
}

// isDue is a payment whose time is over by the database's clock, and whose expiry is not put off.
const isDue = `status IN ('preparing', 'prepared') AND expires_at <= clock_timestamp()
	AND (expiry_next_at IS NULL OR expiry_next_at <= clock_timestamp())`

// duePayments are the ids of some that are due, the longest due first.
func duePayments(ctx context.Context, db querier, most int) ([]uuid.UUID, error) {
	rows, err := db.Query(ctx, `SELECT id FROM payment.payments WHERE `+isDue+` ORDER BY expires_at LIMIT $1`, most)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
}

// firstOverdue is for how many seconds the time of a payment is over that has not ended.
func firstOverdue(ctx context.Context, db querier) (float64, error) {
	late, err := one(ctx, db, pgx.RowTo[float64], `
		SELECT greatest(coalesce(extract(epoch FROM clock_timestamp() - (
			SELECT expires_at FROM payment.payments WHERE status IN ('preparing', 'prepared') ORDER BY expires_at LIMIT 1)), 0), 0)::float8`)
	if err != nil {
		return 0, fmt.Errorf("look for payments whose time is over: %w", err)
	}
	return late, nil
}

// putOffExpiry lets a payment that is due wait, longer each time, up to five minutes.
func putOffExpiry(ctx context.Context, db execer, id uuid.UUID) error {
	_, err := db.Exec(ctx, `
		UPDATE payment.payments
		   SET expiry_failures = expiry_failures + 1,
		       expiry_next_at = `+loop.NextTry("expiry_failures")+`
		 WHERE id = $1 AND status IN ('preparing', 'prepared')`, id)
	return err
}

// expirePayments ends payments that are due, or the one named if it is. Others at the same work are not waited for.
func expirePayments(ctx context.Context, tx pgx.Tx, which uuid.NullUUID, most int) ([]Payment, error) {
	if which.Valid {
		most = 1
	}
	rows, err := tx.Query(ctx, `
		UPDATE payment.payments AS p
		   SET status = CASE p.status WHEN 'prepared' THEN 'expired' ELSE 'unavailable' END,
		       reason = CASE p.status WHEN 'prepared' THEN NULL ELSE 'too_late' END,
		       settled_at = clock_timestamp()
		  FROM (SELECT id AS due FROM payment.payments
		         WHERE ($1::uuid IS NULL OR id = $1) AND `+isDue+`
		         ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED) AS d
		 WHERE p.id = d.due
		RETURNING `+columns, which, most)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// move changes the state of a payment that is in the state from, and reports whether it was.
func move(ctx context.Context, tx pgx.Tx, id uuid.UUID, from, to Status, reason string) (Payment, bool, error) {
	p, err := one(ctx, tx, scan, `
		UPDATE payment.payments SET status = $3, reason = nullif($4, ''), settled_at = clock_timestamp()
		WHERE id = $1 AND status = $2
		RETURNING `+columns, id, string(from), string(to), reason)
	ok, err := found(err)
	return p, ok, err
}

// complete ends a payment with its money, if it can still be made and its time is not over by the database's clock, and reports
// whether it did.
func complete(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Payment, bool, error) {
	p, err := one(ctx, tx, scan, `
		UPDATE payment.payments SET status = 'completed', settled_at = clock_timestamp()
		WHERE id = $1 AND status = 'prepared' AND expires_at > clock_timestamp()
		RETURNING `+columns, id)
	ok, err := found(err)
	return p, ok, err
}

// opened stores the session of a payment. One that still waits for it becomes Prepared, and that is reported.
func opened(ctx context.Context, tx pgx.Tx, id uuid.UUID, session gateway.Session) (Payment, bool, error) {
	p, err := one(ctx, tx, scan, `
		UPDATE payment.payments
		   SET url = coalesce(url, $2), session = coalesce(session, $3),
		       prepared_at = CASE status WHEN 'preparing' THEN clock_timestamp() ELSE prepared_at END,
		       status = CASE status WHEN 'preparing' THEN 'prepared' ELSE status END
		 WHERE id = $1
		RETURNING `+columns, id, session.URL, session.Ref)
	return p, err == nil && p.Status == Prepared, err
}

// seen reports whether the webhook is new, and remembers it. It waits for another transaction with the same webhook.
func seen(ctx context.Context, tx pgx.Tx, gatewayName, id string) (isNew bool, err error) {
	_, err = one(ctx, tx, pgx.RowTo[string], `
		INSERT INTO payment.webhooks (gateway, id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id`, gatewayName, id)
	return found(err)
}

// capture enters money that has come, and reports whether it was not entered before.
func capture(ctx context.Context, tx pgx.Tx, p Payment, e gateway.Event) (isNew bool, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return false, err
	}
	_, err = one(ctx, tx, pgx.RowTo[uuid.UUID], `
		INSERT INTO payment.ledger (id, payment_id, kind, amount_minor, currency, gateway, reference)
		VALUES ($1, $2, 'captured', $3, $4, $5, $6)
		ON CONFLICT (gateway, kind, reference) DO NOTHING
		RETURNING id`, id, p.ID, int64(e.Amount), e.Currency, p.Gateway, e.Charge)
	return found(err)
}

// giveBack enters the refund of a charge, once.
func giveBack(ctx context.Context, tx pgx.Tx, p Payment, charge, reference string) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO payment.ledger (id, payment_id, kind, amount_minor, currency, gateway, reference, gives_back)
		SELECT $1, payment_id, 'refunded', amount_minor, currency, gateway, $4, id
		  FROM payment.ledger WHERE payment_id = $2 AND kind = 'captured' AND reference = $3
		ON CONFLICT (gives_back) DO NOTHING`, id, p.ID, charge, reference)
	return err
}

// charge is money that has come.
type charge struct {
	Reference string           `db:"reference"`
	Amount    contracts.Amount `db:"amount_minor"`
	Currency  string           `db:"currency"`
	// RefundedAt is when it was given back, if it was.
	RefundedAt *time.Time `db:"refunded_at"`
}

// charges are those of a payment, in the order in which they were entered.
func charges(ctx context.Context, db querier, paymentID uuid.UUID) ([]charge, error) {
	rows, err := db.Query(ctx, `
		SELECT c.reference, c.amount_minor, c.currency, r.entered_at AS refunded_at
		  FROM payment.ledger AS c LEFT JOIN payment.ledger AS r ON r.gives_back = c.id
		 WHERE c.payment_id = $1 AND c.kind = 'captured'
		 ORDER BY c.id`, paymentID)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[charge])
}
