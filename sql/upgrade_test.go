package schema_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	schema "github.com/jcp/ticketwave/sql"
)

// before are the versions of the build before holds, deadlines and sagas.
var before = map[string]int64{"booking": 1, "catalog": 2, "payment": 1}

// asBefore takes the services' own schemas back to that build. The databases' roles and other schemas are there.
func asBefore(t *testing.T, plan schema.Plan) {
	t.Helper()
	migrate(t, plan)
	for _, db := range plan.Databases {
		version, changed := before[db.Source]
		if !changed {
			continue
		}
		if _, err := as(t, db.Name, "").Exec(t.Context(), `DROP SCHEMA `+db.Source+` CASCADE; CREATE SCHEMA `+db.Source+`;
			GRANT USAGE ON SCHEMA `+db.Source+` TO `+db.Source+`_service`); err != nil {
			t.Fatal(err)
		}
		config, err := pgx.ParseConfig(urlOf(t, db.Name, "", password))
		if err != nil {
			t.Fatal(err)
		}
		conn := stdlib.OpenDB(*config)
		provider, err := goose.NewProvider(goose.DialectPostgres, conn, os.DirFS(db.Source),
			goose.WithTableName(db.Source+".schema_version"), goose.WithDisableGlobalRegistry(true))
		if err == nil {
			_, err = provider.UpTo(t.Context(), version)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// old runs statements of the build before, as the service.
type old struct {
	t    *testing.T
	pool *pgxpool.Pool
}

func (o old) do(sql string, args ...any) {
	o.t.Helper()
	tag, err := o.pool.Exec(context.WithoutCancel(o.t.Context()), sql, args...)
	if err != nil || tag.RowsAffected() != 1 {
		o.t.Errorf("%s: %d rows, %v", sql, tag.RowsAffected(), err)
	}
}

func (o old) book(id string) {
	o.do(`INSERT INTO booking.bookings
		       (id, event_id, user_id, ticket_count, price_minor, amount_minor, currency, created_at, status, expires_at, updated_at)
		VALUES ($1, $2, $3, 2, 2500, 5000, 'EUR', now(), 'pending', now() + interval '15 minutes', now())`, id, named(id+" event", false), named(id+" user", false))
}

func (o old) reserve(id string) {
	o.do(`UPDATE booking.bookings
		SET reserved_at = now(), updated_at = now(),
		    status = CASE WHEN payment_id IS NULL THEN status ELSE 'awaiting_payment' END
		WHERE id = $1 AND status = 'pending' AND reserved_at IS NULL`, id)
}

func (o old) reject(id string) {
	o.do(`UPDATE booking.bookings
		SET status = 'rejected', reason = 'sold_out', updated_at = now()
		WHERE id = $1 AND status = 'pending' AND reserved_at IS NULL`, id)
}

func (o old) prepare(id string) {
	o.do(`UPDATE booking.bookings
		SET payment_id = $2, payment_url = 'http://x', expires_at = now() + interval '20 minutes', updated_at = now(),
		    status = CASE WHEN status = 'pending' AND reserved_at IS NOT NULL THEN 'awaiting_payment' ELSE status END
		WHERE id = $1 AND payment_id IS NULL`, id, named(id+" payment", false))
}

func (o old) notify(id string) {
	o.do(`UPDATE booking.bookings SET notified = true, notification_error = NULL, updated_at = now() WHERE id = $1 AND notified IS NOT TRUE`, id)
}

func (o old) sell(event string) {
	o.do(`INSERT INTO catalog.events (id, name, starts_at, price_minor, currency, capacity, available)
		VALUES ($1, 'Night', now() + interval '1 day', 2500, 'EUR', 10, 10) ON CONFLICT (id) DO NOTHING`, event)
}

func (o old) take(event, booking string) {
	o.do(`WITH taken AS (
			UPDATE catalog.events
			SET available = available - $3, version = version + 1
			WHERE id = $2 AND available >= $3 AND NOT EXISTS (SELECT FROM catalog.reservations WHERE booking_id = $1)
			RETURNING available, version
		)
		INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome, available_before, available_after, version)
		SELECT $1, $2, $3, 'reserved', available + $3, available, version FROM taken`, booking, event, 2)
}

func (o old) refuse(event, booking string) {
	o.do(`INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome, available_before, available_after, version)
		SELECT $1, $2, 20, CASE WHEN e.id IS NULL THEN 'unknown_event' ELSE 'sold_out' END,
		       coalesce(e.available, 0), coalesce(e.available, 0), coalesce(e.version, 0)
		FROM (VALUES ($2::uuid)) AS asked (id) LEFT JOIN catalog.events AS e USING (id)
		ON CONFLICT (booking_id) DO NOTHING`, booking, event)
}

func (o old) pay(id, booking string) {
	o.do(`INSERT INTO payment.payments (id, booking_id, user_id, amount_minor, currency, url, expires_at)
		VALUES ($1, $2, $2, 5000, 'EUR', 'http://x', now() + interval '15 minutes')
		ON CONFLICT (booking_id) DO NOTHING`, id, booking)
}

// TestTheBuildBeforeGoesOn lets statements of the build before run before the migrations and after them: what it wrote and what
// it writes comes to the same.
func TestTheBuildBeforeGoesOn(t *testing.T) {
	t.Parallel()
	plan := fresh(t)
	asBefore(t, plan)
	databases := map[string]schema.Database{}
	for _, db := range plan.Databases {
		databases[db.Source] = db
	}
	var (
		admins = map[string]*pgxpool.Pool{}
		o      = map[string]old{}
	)
	for service := range before {
		admins[service] = as(t, databases[service].Name, "")
		o[service] = old{t, as(t, databases[service].Name, databases[service].Login)}
	}
	for _, migrated := range []bool{false, true} {
		if migrated {
			migrate(t, plan)
		}
		for letters := range bookingsBefore {
			o["booking"].book(named(letters, migrated))
			befalls(o["booking"], named(letters, migrated), letters)
			if !migrated { // and one that goes on after it
				o["booking"].book(named(letters+" further", false))
			}
		}
		event := named("event", migrated)
		o["catalog"].sell(event)
		o["catalog"].take(event, named("first", migrated))
		o["catalog"].take(event, named("second", migrated))
		o["catalog"].refuse(event, named("third", migrated))
		o["payment"].pay(named("payment", migrated), named("first", migrated))
	}
	for letters := range bookingsBefore {
		befalls(o["booking"], named(letters+" further", false), letters)
	}
	for _, migrated := range []bool{false, true} {
		for letters, want := range bookingsBefore {
			if got := query[string](t, admins["booking"], stands, named(letters, migrated)); got != want {
				t.Errorf("%q, migrated before: %v: the booking is %s, want %s", letters, migrated, got, want)
			}
		}
		if got := query[string](t, admins["catalog"], `SELECT concat_ws(' ', available, held, sold) FROM catalog.events WHERE id = $1`, named("event", migrated)); got != "6 4 0" {
			t.Errorf("migrated before: %v: available, held, sold are %s, want 6 4 0", migrated, got)
		}
		if got := query[string](t, admins["catalog"], `SELECT string_agg(outcome || ' ' || hold, ', ' ORDER BY outcome, booking_id) FROM catalog.reservations WHERE event_id = $1`,
			named("event", migrated)); got != "reserved held, reserved held, sold_out none" {
			t.Errorf("migrated before: %v: the reservations are %s", migrated, got)
		}
		if got := query[string](t, admins["payment"], `
			SELECT p.status || ' ' || s.state FROM payment.payments AS p JOIN payment.sandbox_sessions AS s ON s.id::text = p.session
			WHERE p.id = $1 AND s.amount_minor = p.amount_minor AND s.expires_at = p.expires_at`, named("payment", migrated)); got != "prepared open" {
			t.Errorf("migrated before: %v: the payment is %s", migrated, got)
		}
	}
	for letters, want := range bookingsBefore {
		if got := query[string](t, admins["booking"], stands, named(letters+" further", false)); got != want {
			t.Errorf("%q after the migration: the booking is %s, want %s", letters, got, want)
		}
	}
}

// stands is how far a booking has come, and whether it waits or has ended.
const stands = `SELECT concat_ws(' ', status, inventory, payment,
	CASE WHEN deadline_at > expires_at THEN 'waits' WHEN ended_at = updated_at THEN 'ended' WHEN ended_at IS NOT NULL THEN 'had ended' END)
	FROM booking.bookings WHERE id = $1`

// bookingsBefore are what befell a booking: t tickets, x none, p payment, n told; and how it then stands.
var bookingsBefore = map[string]string{
	"":    "pending asked asked waits",
	"t":   "pending held asked waits",
	"p":   "pending asked prepared waits",
	"tpn": "awaiting_payment held prepared waits",
	"pnt": "awaiting_payment held prepared waits",
	"x":   "rejected refused asked ended",
	"px":  "rejected refused prepared ended",
}

// befalls lets the build before go on with a booking.
func befalls(o old, id, letters string) {
	o.t.Helper()
	for _, what := range letters {
		switch what {
		case 't':
			o.reserve(id)
		case 'x':
			o.reject(id)
		case 'p':
			o.prepare(id)
		case 'n':
			o.notify(id)
		}
	}
}

// named is the id of something in the test.
func named(name string, migrated bool) string {
	sum := sha256.Sum256(fmt.Append(nil, name, migrated))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
