package catalog_test

import (
	"testing"

	"github.com/google/uuid"
)

// While a deployment is rolled both builds take tickets. T is a request that the build before handles, the other letters are
// those of TestHoldsInEveryOrder.
func TestGoesOnWithReservationsOfTheBuildBefore(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for requests, want := range map[string]string{
		"T":   " 8 2 0",
		"Tu":  "h 8 2 0",
		"Tr":  "2 10 0 0",
		"Trr": "22 10 0 0",
		"Tc":  "s 8 0 2",
		"Tcc": "ss 8 0 2",
		"rT":  "0 10 0 0",
		"uT":  "h 8 2 0",
		"ucT": "hs 8 0 2",
	} {
		t.Run(requests, func(t *testing.T) {
			e, booking := s.create(t, 10), uuid.New()
			for _, what := range requests {
				if what != 'T' {
					if err := s.ask(e.ID, booking, what); err != nil {
						t.Fatalf("%c: %v", what, err)
					}
					continue
				}
				if _, err := s.pool.Exec(t.Context(), `
					WITH taken AS (
						UPDATE catalog.events
						SET available = available - $3, version = version + 1
						WHERE id = $2 AND available >= $3 AND NOT EXISTS (SELECT FROM catalog.reservations WHERE booking_id = $1)
						RETURNING available, version
					)
					INSERT INTO catalog.reservations (booking_id, event_id, quantity, outcome, available_before, available_after, version)
					SELECT $1, $2, $3, 'reserved', available + $3, available, version FROM taken`, booking, e.ID, 2); err != nil {
					t.Fatal(err)
				}
			}
			if got := heard(t, s.published(t, booking)) + " " + s.counts(t, e.ID); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
	s.addsUp(t)
}
