package payment_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
)

// While a deployment is rolled the build before prepares payments too: without a session, which the database then opens.
func TestGoesOnWithPaymentsOfTheBuildBefore(t *testing.T) {
	t.Parallel()
	x := newTill(t, nil)
	for _, c := range []struct {
		name, want string
		then       func(booking uuid.UUID, id string)
	}{
		{"paid", "completed", func(_ uuid.UUID, id string) { x.press(t, id, "pay"); x.deliver(t) }},
		{"declined", "failed", func(_ uuid.UUID, id string) { x.press(t, id, "decline"); x.deliver(t) }},
		{"expired", "expired", func(booking uuid.UUID, _ string) { x.expire(t, booking) }},
		{"cancelled", "cancelled", func(booking uuid.UUID, _ string) {
			if err := x.cancel(booking); err != nil {
				t.Error(err)
			}
		}},
		{"late", "expired", func(booking uuid.UUID, id string) { x.press(t, id, "late"); x.expire(t, booking); x.deliver(t) }},
	} {
		booking, id := uuid.New(), uuid.Must(uuid.NewV7())
		for range 2 { // asked again it makes no second payment, and no second session
			if _, err := x.pool.Exec(context.Background(), `
				INSERT INTO payment.payments (id, booking_id, user_id, amount_minor, currency, url, expires_at)
				VALUES ($1, $2, $3, 5000, 'EUR', $4, now() + interval '15 minutes')
				ON CONFLICT (booking_id) DO NOTHING`, id, booking, uuid.New(), x.server.URL+"/pay/"+id.String()); err != nil {
				t.Fatal(err)
			}
		}
		c.then(booking, id.String())
		x.work(t)
		if got := x.status(t, booking); got != c.want {
			t.Errorf("%s: the payment is %s", c.name, got)
		}
		if n := scalar[int](t, x, `SELECT count(*) FROM payment.sandbox_sessions WHERE id = $1`, id); n != 1 {
			t.Errorf("%s: %d sessions", c.name, n)
		}
	}
	x.balances(t)
}
