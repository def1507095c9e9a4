package booking

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/loop"
	"github.com/jcp/ticketwave/services/internal/web"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// A booking that an older build made may know neither flow nor cause: its own id stands for them.
const bookingColumns = `id, event_id, user_id, ticket_count, price_minor, amount_minor, currency, created_at, status, reason,
	inventory, payment, led, settling, expires_at, reserved_at, payment_id, payment_url, notified, notification_error, updated_at,
	deadline_at, ended_at, coalesce(correlation_id, id::text) AS correlation_id, coalesce(causation_id, id::text) AS causation_id,
	coalesce(trace_parent, '') AS trace_parent`

// scanBooking is pgx.RowToStructByName in UTC.
func scanBooking(row pgx.CollectableRow) (Booking, error) {
	b, err := pgx.RowToStructByName[Booking](row)
	b.inUTC()
	return b, err
}

func (b *Booking) inUTC() {
	for _, at := range []*time.Time{&b.CreatedAt, &b.ExpiresAt, &b.UpdatedAt, b.ReservedAt, b.DeadlineAt, b.EndedAt} {
		if at != nil {
			*at = at.UTC()
		}
	}
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

// insertBooking stores a new booking and the first step of its timeline.
func insertBooking(ctx context.Context, tx pgx.Tx, b *Booking, first entry) error {
	inserts := &pgx.Batch{}
	inserts.Queue(`
		INSERT INTO booking.bookings
		       (id, event_id, user_id, ticket_count, price_minor, amount_minor, currency, created_at, status, expires_at, updated_at,
		        inventory, payment, led, deadline_at, correlation_id, causation_id, trace_parent)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $8, $11, $12, $13, $14, nullif($15, ''), nullif($16, ''), nullif($17, ''))`,
		b.ID, b.EventID, b.UserID, b.TicketCount, int64(b.UnitPrice), int64(b.TotalAmount), b.Currency, b.CreatedAt, string(b.Status), b.ExpiresAt,
		string(b.Inventory), string(b.Payment), b.Led, b.DeadlineAt, b.CorrelationID, b.CausationID, b.TraceParent)
	first.insert(inserts)
	return tx.SendBatch(ctx, inserts).Close()
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

// locked is a booking that nobody else changes before the transaction ends, and the database's time.
type locked struct {
	Booking
	Now time.Time `db:"now"`
}

func scanLocked(row pgx.CollectableRow) (*locked, error) {
	b, err := pgx.RowToAddrOfStructByName[locked](row)
	if err == nil {
		b.inUTC()
		b.Now = b.Now.UTC()
	}
	return b, err
}

// lockBookings waits for the bookings, in the order of their ids, and gives those that there are.
func lockBookings(ctx context.Context, tx pgx.Tx, ids []uuid.UUID) ([]*locked, error) {
	rows, err := tx.Query(ctx, `
		SELECT `+bookingColumns+`, clock_timestamp() AS now FROM booking.bookings
		WHERE id = ANY ($1)
		ORDER BY id
		FOR NO KEY UPDATE`, ids)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanLocked)
}

// isDue is a booking whose deadline has passed by the database's clock, and was not put off.
const isDue = `deadline_at <= now() AND (deadline_next_at IS NULL OR deadline_next_at <= now())`

// lockDue gives bookings whose deadline has passed, or the one named if its has, the longest due first, and leaves out those that
// somebody else has.
func lockDue(ctx context.Context, tx pgx.Tx, which uuid.NullUUID, most int) ([]*locked, error) {
	if which.Valid {
		most = 1
	}
	rows, err := tx.Query(ctx, `
		SELECT `+bookingColumns+`, clock_timestamp() AS now FROM booking.bookings
		WHERE `+isDue+` AND ($1::uuid IS NULL OR id = $1)
		ORDER BY deadline_at
		LIMIT $2
		FOR NO KEY UPDATE SKIP LOCKED`, which, most)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanLocked)
}

// dueBookings are the ids of some whose deadline has passed, the longest due first.
func dueBookings(ctx context.Context, db querier, most int) ([]uuid.UUID, error) {
	rows, err := db.Query(ctx, `SELECT id FROM booking.bookings WHERE `+isDue+` ORDER BY deadline_at LIMIT $1`, most)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
}

// putOffDeadline lets a booking that is due wait, longer each time, up to five minutes.
var putOffDeadline = `
	UPDATE booking.bookings
	SET deadline_failures = deadline_failures + 1,
	    deadline_next_at = ` + loop.NextTry("deadline_failures") + `
	WHERE id = $1 AND deadline_at <= clock_timestamp()`

// firstOverdue is for how many seconds the first deadline is past that was not kept.
const firstOverdue = `
	SELECT greatest(coalesce(extract(epoch FROM clock_timestamp() - (
		SELECT deadline_at FROM booking.bookings WHERE deadline_at IS NOT NULL ORDER BY deadline_at LIMIT 1)), 0), 0)::float8`

// update writes all of a booking that can change. The booking is locked.
func (b *Booking) update(writes *pgx.Batch) {
	writes.Queue(`
		UPDATE booking.bookings
		SET status = $2, reason = $3, inventory = $4, payment = $5, settling = $6, expires_at = $7, reserved_at = $8, payment_id = $9,
		    payment_url = $10, notified = $11, notification_error = $12, deadline_at = $13, ended_at = $14, updated_at = $15,
		    causation_id = $16, deadline_failures = 0, deadline_next_at = NULL
		WHERE id = $1`,
		b.ID, string(b.Status), b.Reason, string(b.Inventory), string(b.Payment), b.Settling, b.ExpiresAt, b.ReservedAt, b.PaymentID,
		b.PaymentURL, b.Notified, b.NotificationError, b.DeadlineAt, b.EndedAt, b.UpdatedAt, b.CausationID)
}

// insert adds the entry to its booking's timeline.
func (e entry) insert(writes *pgx.Batch) {
	writes.Queue(`
		INSERT INTO booking.timeline (booking_id, at, step, service, cause, correlation_id, detail, status, sent)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		e.BookingID, e.At, e.Step, e.Service, e.Cause, e.CorrelationID, e.Detail, string(e.Status), e.Sent)
}

// maxSteps bounds an answer; a booking has some twenty.
const maxSteps = 1000

// timelineOf is empty for a booking that does not exist.
func timelineOf(ctx context.Context, db querier, id uuid.UUID) ([]entry, error) {
	rows, err := db.Query(ctx, `
		SELECT booking_id, at, step, service, cause, correlation_id, detail, status, sent FROM booking.timeline
		WHERE booking_id = $1
		ORDER BY seq
		LIMIT $2`, id, maxSteps)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[entry])
}

// eventOnSale is pgx.ErrNoRows when the catalog has not told of the event.
func eventOnSale(ctx context.Context, tx pgx.Tx, id uuid.UUID) (onSale, error) {
	return one(ctx, tx, pgx.RowToStructByName[onSale], `
		SELECT id, price_minor, currency, clock_timestamp() AS now FROM booking.events WHERE id = $1`, id)
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
