package catalog

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/web"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const eventColumns = `id, name, starts_at, price_minor, currency, capacity, available, version, created_at`

// scanEvent is pgx.RowToStructByName in UTC.
func scanEvent(row pgx.CollectableRow) (Event, error) {
	e, err := pgx.RowToStructByName[Event](row)
	e.StartsAt, e.CreatedAt = e.StartsAt.UTC(), e.CreatedAt.UTC()
	return e, err
}

// insertEvent is false when the id is taken. It waits for another transaction that is about to take it.
func insertEvent(ctx context.Context, tx pgx.Tx, e Event) (Event, bool, error) {
	rows, err := tx.Query(ctx, `
		INSERT INTO catalog.events (id, name, starts_at, price_minor, currency, capacity, available)
		VALUES ($1, $2, $3, $4, $5, $6, $6)
		ON CONFLICT (id) DO NOTHING
		RETURNING `+eventColumns,
		e.ID, e.Name, e.StartsAt, int64(e.Price), e.Currency, e.Capacity)
	if err != nil {
		return Event{}, false, err
	}
	created, err := pgx.CollectExactlyOneRow(rows, scanEvent)
	if errors.Is(err, pgx.ErrNoRows) {
		return Event{}, false, nil
	}
	return created, err == nil, err
}

// eventByID is pgx.ErrNoRows when there is none.
func eventByID(ctx context.Context, db querier, id uuid.UUID) (Event, error) {
	rows, err := db.Query(ctx, `SELECT `+eventColumns+` FROM catalog.events WHERE id = $1`, id)
	if err != nil {
		return Event{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scanEvent)
}

// eventsOn is the page in the order of ids, and one more event if more follow.
func eventsOn(ctx context.Context, db querier, page web.Page) ([]Event, error) {
	rows, err := db.Query(ctx, `
		SELECT `+eventColumns+` FROM catalog.events
		WHERE id > $1
		ORDER BY id
		LIMIT $2`, page.After, page.Limit+1)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanEvent)
}

// outcome is what became of a booking's request.
type outcome string

const (
	outcomeReserved     outcome = "reserved"
	outcomeSoldOut      outcome = "sold_out"
	outcomeUnknownEvent outcome = "unknown_event"
)

// reservation is a booking's request and its answer.
type reservation struct {
	BookingID       uuid.UUID
	EventID         uuid.UUID
	Quantity        int
	Outcome         outcome
	AvailableBefore int
	AvailableAfter  int
	Version         int64
	AnsweredAt      time.Time
}

// claim is false when the booking asked before. It waits for another transaction of the same booking.
func claim(ctx context.Context, tx pgx.Tx, request contracts.UpdateEventInventory) (bool, error) {
	tag, err := tx.Exec(ctx, `
		INSERT INTO catalog.reservations (booking_id, event_id, quantity)
		VALUES ($1, $2, $3)
		ON CONFLICT (booking_id) DO NOTHING`,
		request.BookingID, request.EventID, request.QuantityReduced)
	return tag.RowsAffected() == 1, err
}

// take is false, and takes nothing, when fewer tickets are left or there is no such event.
func take(ctx context.Context, tx pgx.Tx, request contracts.UpdateEventInventory) (bool, error) {
	tag, err := tx.Exec(ctx, `
		WITH taken AS (
			UPDATE catalog.events
			SET available = available - $3, version = version + 1
			WHERE id = $2 AND available >= $3
			RETURNING available, version
		)
		UPDATE catalog.reservations
		SET outcome = 'reserved', available_before = taken.available + $3, available_after = taken.available,
		    version = taken.version, answered_at = clock_timestamp()
		FROM taken
		WHERE booking_id = $1`,
		request.BookingID, request.EventID, request.QuantityReduced)
	return tag.RowsAffected() == 1, err
}

// refuse notes how many tickets are left. Without such an event the claim stands as it is.
func refuse(ctx context.Context, tx pgx.Tx, request contracts.UpdateEventInventory) error {
	_, err := tx.Exec(ctx, `
		UPDATE catalog.reservations AS r
		SET outcome = 'sold_out', available_before = e.available, available_after = e.available,
		    version = e.version, answered_at = clock_timestamp()
		FROM catalog.events AS e
		WHERE r.booking_id = $1 AND e.id = $2`,
		request.BookingID, request.EventID)
	return err
}

func reservationOf(ctx context.Context, tx pgx.Tx, bookingID string) (reservation, error) {
	rows, err := tx.Query(ctx, `
		SELECT booking_id, event_id, quantity, outcome, available_before, available_after, version, answered_at
		FROM catalog.reservations
		WHERE booking_id = $1`, bookingID)
	if err != nil {
		return reservation{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[reservation])
}
