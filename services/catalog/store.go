package catalog

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/internal/batch"
	"github.com/jcp/ticketwave/services/internal/web"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const eventColumns = `id, name, starts_at, price_minor, currency, capacity, available, held, sold, version, created_at`

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

// outcome is what became of a booking's request. It is "released" where the release came before the request.
type outcome string

const (
	outcomeReserved     outcome = "reserved"
	outcomeSoldOut      outcome = "sold_out"
	outcomeUnknownEvent outcome = "unknown_event"
)

// hold is what became of a booking's tickets.
type hold string

const (
	holdReleased hold = "released"
	holdSold     hold = "sold"
)

// isFinal is false while the tickets are held, and where there never were any.
func (h hold) isFinal() bool { return h == holdReleased || h == holdSold }

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
	Hold            hold
	SettledAt       *time.Time
}

const reservationColumns = `booking_id, event_id, quantity, outcome, available_before, available_after, version, answered_at, hold, settled_at`

// group are the requests of a batch about one event, in their order.
type group struct {
	event      string
	bookings   []string
	quantities []int
}

// byEvent puts requests together; the order of events is that in which they come first.
func byEvent[E any](requests []inbox.Item[E], add func(e E) (event, booking string, quantity int)) (groups []*group) {
	known := map[string]*group{}
	for _, r := range requests {
		event, booking, quantity := add(r.Event)
		g := known[event]
		if g == nil {
			g = &group{event: event}
			known[event], groups = g, append(groups, g)
		}
		g.bookings, g.quantities = append(g.bookings, booking), append(g.quantities, quantity)
	}
	return groups
}

// perEvent locks each event's row and then runs its statement, all in one round trip, and gives the reservations in the order
// of the requests, nil for one that was left as it was. The lock is a statement of its own: what the next one sees is
// younger than the lock, so it knows all that was decided under it before.
func perEvent[E contracts.Event](ctx context.Context, tx pgx.Tx, requests []inbox.Item[E], groups []*group, sql string, args func(g *group) []any) ([]*reservation, error) {
	var statements []batch.Statement
	for _, g := range groups {
		statements = append(statements,
			batch.Statement{SQL: `SELECT FROM catalog.events WHERE id = $1 FOR NO KEY UPDATE`, Args: []any{g.event}},
			batch.Statement{SQL: sql, Args: args(g)})
	}
	rows, err := batch.All(ctx, tx, statements, pgx.RowToStructByName[reservation])
	if err != nil {
		return nil, err
	}
	of := make(map[string]*reservation, len(rows))
	for i := range rows {
		of[rows[i].BookingID.String()] = &rows[i]
	}
	found := make([]*reservation, len(requests))
	for i, r := range requests {
		found[i] = of[r.Event.EventKey()]
	}
	return found, nil
}

// takeAll gives nil, and takes nothing, for a request when fewer tickets are left, there is no such event, or the booking
// asked before. It fails on the primary key, and takes nothing, when the same booking asks for tickets of another event at
// the same moment. The bookings of one event take turns in the order of the batch, and its row is written once for all.
func takeAll(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.UpdateEventInventory]) ([]*reservation, error) {
	groups := byEvent(requests, func(e contracts.UpdateEventInventory) (string, string, int) {
		return e.EventID, e.BookingID, e.QuantityReduced
	})
	return perEvent(ctx, tx, requests, groups, `
		WITH RECURSIVE event AS MATERIALIZED (
			SELECT available, version FROM catalog.events WHERE id = $1
		), asked AS MATERIALIZED (
			SELECT booking, quantity, row_number() OVER (ORDER BY n) AS n
			FROM unnest($2::text[]::uuid[], $3::int[]) WITH ORDINALITY AS a (booking, quantity, n)
			WHERE (SELECT true FROM catalog.reservations WHERE booking_id = booking) IS NULL
		), turns AS (
			SELECT 0::bigint AS n, NULL::uuid AS booking, 0 AS quantity, available AS before, available, version FROM event
			UNION ALL
			SELECT a.n, a.booking, a.quantity, t.available, t.available - CASE WHEN a.quantity <= t.available THEN a.quantity ELSE 0 END,
			       t.version + CASE WHEN a.quantity <= t.available THEN 1 ELSE 0 END
			FROM turns AS t JOIN asked AS a ON a.n = t.n + 1
		), written AS (
			UPDATE catalog.events AS e
			SET available = last.available, held = held + e.available - last.available, version = last.version
			FROM (SELECT available, version FROM turns ORDER BY n DESC LIMIT 1) AS last
			WHERE e.id = $1 AND last.version > e.version
		)
		INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome, available_before, available_after, version, hold)
		SELECT booking, $1, quantity, 'reserved', before, available, version, 'held' FROM turns WHERE available < before ORDER BY n
		RETURNING `+reservationColumns, func(g *group) []any { return []any{g.event, g.bookings, g.quantities} })
}

// refuse notes how many tickets are left, or that there is no such event. It is pgx.ErrNoRows when the booking asked before.
func refuse(ctx context.Context, tx pgx.Tx, request contracts.UpdateEventInventory) (reservation, error) {
	return oneReservation(ctx, tx, `
		INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome, available_before, available_after, version)
		SELECT $1, $2, $3, CASE WHEN e.id IS NULL THEN 'unknown_event' ELSE 'sold_out' END,
		       coalesce(e.available, 0), coalesce(e.available, 0), coalesce(e.version, 0)
		FROM (VALUES ($2::uuid)) AS asked (id) LEFT JOIN catalog.events AS e USING (id)
		ON CONFLICT (booking_id) DO NOTHING
		RETURNING `+reservationColumns,
		request.BookingID, request.EventID, request.QuantityReduced)
}

// releaseAll gives the tickets back that are held for the bookings, and notes of those that have none that they get none
// any more. It gives nil, and changes nothing, for a booking that has not asked, or whose tickets were released or sold.
func releaseAll(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.ReleaseEventInventory]) ([]*reservation, error) {
	groups := byEvent(requests, func(e contracts.ReleaseEventInventory) (string, string, int) { return e.EventID, e.BookingID, 0 })
	return perEvent(ctx, tx, requests, groups, `
		WITH released AS (
			UPDATE catalog.reservations
			SET hold = 'released', settled_at = clock_timestamp()
			WHERE booking_id = ANY ($2::text[]::uuid[]) AND event_id = $1 AND hold IN ('held', 'none')
			RETURNING `+reservationColumns+`
		), given AS (
			UPDATE catalog.events
			SET available = available + total, held = held - total, version = version + n
			FROM (SELECT sum(quantity) AS total, count(*) AS n FROM released WHERE outcome = 'reserved') AS r
			WHERE id = $1 AND n > 0
		)
		SELECT `+reservationColumns+` FROM released`, func(g *group) []any { return []any{g.event, g.bookings} })
}

// commitAll sells the tickets that are held for the bookings. It gives nil, and changes nothing, for a booking that holds none.
func commitAll(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.CommitEventInventory]) ([]*reservation, error) {
	groups := byEvent(requests, func(e contracts.CommitEventInventory) (string, string, int) { return e.EventID, e.BookingID, 0 })
	return perEvent(ctx, tx, requests, groups, `
		WITH committed AS (
			UPDATE catalog.reservations
			SET hold = 'sold', settled_at = clock_timestamp()
			WHERE booking_id = ANY ($2::text[]::uuid[]) AND event_id = $1 AND hold = 'held'
			RETURNING `+reservationColumns+`
		), taken AS (
			UPDATE catalog.events
			SET held = held - total, sold = sold + total, version = version + n
			FROM (SELECT sum(quantity) AS total, count(*) AS n FROM committed) AS c
			WHERE id = $1 AND n > 0
		)
		SELECT `+reservationColumns+` FROM committed`, func(g *group) []any { return []any{g.event, g.bookings} })
}

// forestall notes that a booking gets no tickets when it asks. It is pgx.ErrNoRows when it has asked.
func forestall(ctx context.Context, tx pgx.Tx, request contracts.ReleaseEventInventory) (reservation, error) {
	return oneReservation(ctx, tx, `
		INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome, hold, settled_at)
		VALUES ($1, $2, 0, 'released', 'released', clock_timestamp())
		ON CONFLICT (booking_id) DO NOTHING
		RETURNING `+reservationColumns, request.BookingID, request.EventID)
}

// reservationOf is pgx.ErrNoRows when the booking has not asked.
func reservationOf(ctx context.Context, tx pgx.Tx, bookingID string) (reservation, error) {
	return oneReservation(ctx, tx, `SELECT `+reservationColumns+` FROM catalog.reservations WHERE booking_id = $1`, bookingID)
}

func oneReservation(ctx context.Context, tx pgx.Tx, sql string, args ...any) (reservation, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return reservation{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[reservation])
}
