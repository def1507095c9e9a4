package booking_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
)

// writeAsBefore runs a statement that the build before holds and deadlines runs, as the service's role.
func (s *shop) writeAsBefore(sql string, args ...any) {
	s.t.Helper()
	if err := outbox.InTx(context.Background(), s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(context.Background(), sql, args...)
		return err
	}); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// While a deployment is rolled both builds write the same rows. Capitals are what the build before wrote: B the booking, I tickets held, X
// refused, P payment prepared. A b at the beginning is a booking that this build makes; other letters are what it hears, as hear has them.
func TestGoesOnWithBookingsOfTheBuildBefore(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for sequence, want := range map[string][2]string{
		"Bip":    {"awaiting_payment <nil> held prepared", ""},
		"BIp":    {"awaiting_payment <nil> held prepared", ""},
		"BiP":    {"awaiting_payment <nil> held prepared", ""},
		"BIPc":   {"confirmed <nil> held completed", "commit-event-inventory send-booking-notification"},
		"BPIcs":  {"confirmed <nil> sold completed", "commit-event-inventory send-booking-notification"},
		"bIPc":   {"confirmed <nil> held completed", "commit-event-inventory send-booking-notification"},
		"bIPt":   {"expired <nil> held prepared", "release-event-inventory cancel-payment send-booking-notification"},
		"Bt":     {"expired <nil> asked asked", "release-event-inventory cancel-payment send-booking-notification"},
		"BIPe":   {"expired <nil> held expired", "release-event-inventory send-booking-notification"},
		"BIPC":   {"cancelled <nil> held prepared", "release-event-inventory cancel-payment send-booking-notification"},
		"BIPdr":  {"payment_failed declined released failed", "release-event-inventory send-booking-notification"},
		"BX":     {"rejected sold_out refused asked", ""},
		"BXpe":   {"rejected sold_out refused expired", ""},
		"BPXcb":  {"rejected sold_out refused refunded", "refund-payment"},
		"bX":     {"rejected sold_out refused asked", ""},
		"bCP":    {"cancelled <nil> asked prepared", "release-event-inventory cancel-payment send-booking-notification"},
		"bcIt":   {"expired <nil> held completed", "release-event-inventory refund-payment send-booking-notification"},
		"BIPtcb": {"expired <nil> held refunded", "release-event-inventory cancel-payment send-booking-notification refund-payment"},
	} {
		t.Run(sequence, func(t *testing.T) {
			id, made := "", 0
			for i, what := range sequence {
				if i == 0 && what == 'b' { // later it is a refund that is heard of
					id, made = s.book()["id"].(string), 3
					continue
				}
				switch what {
				case 'B':
					id = uuid.Must(uuid.NewV7()).String()
					s.writeAsBefore(`INSERT INTO booking.bookings
					       (id, event_id, user_id, ticket_count, price_minor, amount_minor, currency, created_at, status, expires_at, updated_at)
					VALUES ($1, $2, $3, 2, 2550, 5100, 'EUR', now(), 'pending', now() + interval '15 minutes', now())`, id, documented, user)
				case 'I':
					s.writeAsBefore(`UPDATE booking.bookings
					SET reserved_at = now(), updated_at = now(),
					    status = CASE WHEN payment_id IS NULL THEN status ELSE 'awaiting_payment' END
					WHERE id = $1 AND status = 'pending' AND reserved_at IS NULL`, id)
				case 'X':
					s.writeAsBefore(`UPDATE booking.bookings
					SET status = 'rejected', reason = 'sold_out', updated_at = now()
					WHERE id = $1 AND status = 'pending' AND reserved_at IS NULL`, id)
				case 'P':
					s.writeAsBefore(`UPDATE booking.bookings
					SET payment_id = $2, payment_url = 'https://pay.example/1', expires_at = now() + interval '15 minutes', updated_at = now(),
					    status = CASE WHEN status = 'pending' AND reserved_at IS NOT NULL THEN 'awaiting_payment' ELSE status END
					WHERE id = $1 AND payment_id IS NULL`, id, paymentID)
				default:
					if err := s.hear(id, what); err != nil {
						t.Fatalf("%c: %v", what, err)
					}
				}
			}
			var names []string
			for _, r := range s.outbox() {
				if r.Key == id {
					names = append(names, strings.Split(r.Topic, ".")[2])
				}
			}
			sent := slices.DeleteFunc(names[made:], func(name string) bool { return strings.HasPrefix(name, "booking-") })
			if got := [2]string{end(s.get(id)), strings.Join(sent, " ")}; got != want {
				t.Errorf("got  %q,\nwant %q", got, want)
			}
		})
	}
}
