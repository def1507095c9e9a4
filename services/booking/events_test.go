package booking_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jcp/ticketwave/contracts"
)

const paymentID = "0193c5a0-0000-7000-8000-00000000000a"

// answers are what the other services may say about a booking of two tickets at 25.50.
type answers struct{ id string }

func (a answers) reserved() contracts.InventoryUpdated {
	return contracts.InventoryUpdated{
		EventID: documented, BookingID: a.id, PreviousAvailableTickets: 100, CurrentAvailableTickets: 98,
		UpdateType: contracts.UpdateReserved, Version: 2, UpdatedAt: time.Now().UTC(),
	}
}

func (a answers) refused() contracts.InventoryUpdateRejected {
	return contracts.InventoryUpdateRejected{
		EventID: documented, BookingID: a.id, QuantityRequested: 2, AvailableTickets: 1, Reason: contracts.RejectSoldOut, RejectedAt: time.Now().UTC(),
	}
}

func (a answers) payable() contracts.PaymentDataPrepared {
	return contracts.PaymentDataPrepared{
		BookingID: a.id, PaymentID: paymentID, Amount: 5100, Currency: "EUR", ExpiresAt: time.Date(2150, 1, 1, 0, 0, 0, 0, time.UTC),
		PaymentURL: "https://pay.example/1", PreparedAt: time.Now().UTC(),
	}
}

func (a answers) told(success bool) contracts.NotificationSent {
	e := contracts.NotificationSent{
		BookingID: a.id, UserID: user, NotificationType: contracts.NotificationBookingCreated, Channel: contracts.ChannelEmail,
		Success: success, SentAt: time.Now().UTC(),
	}
	if !success {
		why := "no mail server"
		e.ErrorMessage = &why
	}
	return e
}

// hear calls the handler of an answer named by one letter.
func (s *shop) hear(id string, what rune) error {
	a := answers{id}
	switch what {
	case 'i':
		return handle(s, s.svc.OnInventoryUpdated, a.reserved())
	case 'x':
		return handle(s, s.svc.OnInventoryUpdateRejected, a.refused())
	case 'p':
		return handle(s, s.svc.OnPaymentDataPrepared, a.payable())
	case 'n':
		return handle(s, s.svc.OnNotificationSent, a.told(true))
	case 'f':
		return handle(s, s.svc.OnNotificationSent, a.told(false))
	}
	return s.hearOfTheEnd(id, what)
}

// state is what clients see of the answers: status, reason, reserved, payable, notified.
func state(b map[string]any) string {
	return fmt.Sprint(b["status"], " ", b["reason"], " ", b["ticketsReserved"], " ", b["paymentUrl"] != nil, " ", b["notified"])
}

// Answers: i inventory, x rejection, p payment, n notified, f not notified.
func TestAnswersInEveryOrder(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for sequence, want := range map[string]string{
		"":      "pending <nil> false false <nil>",
		"i":     "pending <nil> true false <nil>",
		"p":     "pending <nil> false true <nil>",
		"n":     "pending <nil> false false true",
		"f":     "pending <nil> false false false",
		"x":     "rejected sold_out false false <nil>",
		"ip":    "awaiting_payment <nil> true true <nil>",
		"pi":    "awaiting_payment <nil> true true <nil>",
		"ipn":   "awaiting_payment <nil> true true true",
		"inp":   "awaiting_payment <nil> true true true",
		"nip":   "awaiting_payment <nil> true true true",
		"npi":   "awaiting_payment <nil> true true true",
		"pni":   "awaiting_payment <nil> true true true",
		"pin":   "awaiting_payment <nil> true true true",
		"iippn": "awaiting_payment <nil> true true true",
		"ppiin": "awaiting_payment <nil> true true true",
		"ipipi": "awaiting_payment <nil> true true <nil>",
		"xp":    "rejected sold_out false false <nil>",
		"px":    "rejected sold_out false false <nil>",
		"pxp":   "rejected sold_out false false <nil>",
		"xxn":   "rejected sold_out false false true",
		"nx":    "rejected sold_out false false true",
		// the catalog gives one answer; if it ever gave both, the first one counts
		"xi":   "rejected sold_out false false <nil>",
		"ix":   "pending <nil> true false <nil>",
		"ipx":  "awaiting_payment <nil> true true <nil>",
		"fn":   "pending <nil> false false true",
		"nf":   "pending <nil> false false true",
		"ff":   "pending <nil> false false false",
		"fipn": "awaiting_payment <nil> true true true",
	} {
		t.Run(sequence, func(t *testing.T) {
			id := s.book()["id"].(string)
			for _, what := range sequence {
				if err := s.hear(id, what); err != nil {
					t.Fatalf("%c: %v", what, err)
				}
			}
			if got := state(s.get(id)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func TestWhatAnswersSayIsShown(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := s.book()["id"].(string)
	for _, what := range "ipf" {
		if err := s.hear(id, what); err != nil {
			t.Fatal(err)
		}
	}
	b := s.get(id)
	for name, want := range map[string]any{
		"paymentId": paymentID, "paymentUrl": "https://pay.example/1", "expiresAt": "2150-01-01T00:00:00Z", "notificationError": "no mail server",
	} {
		if b[name] != want {
			t.Errorf("%s is %v, want %v", name, b[name], want)
		}
	}
	if !at(t, b["updatedAt"]).After(at(t, b["createdAt"])) {
		t.Errorf("created %v, updated %v", b["createdAt"], b["updatedAt"])
	}
	if err := s.hear(id, 'n'); err != nil {
		t.Fatal(err)
	}
	if b = s.get(id); b["notified"] != true || b["notificationError"] != nil {
		t.Errorf("told at last: %v", b)
	}
}

// A repeated answer changes nothing at all, not even the time of the last change.
func TestRepeatedAnswersChangeNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, sequence := range []string{"ipn", "xpn"} {
		id := s.book()["id"].(string)
		for _, what := range sequence {
			if err := s.hear(id, what); err != nil {
				t.Fatal(err)
			}
		}
		before := s.get(id)
		for _, what := range sequence + "x" {
			if err := s.hear(id, what); err != nil {
				t.Fatal(err)
			}
		}
		if after := s.get(id); !reflect.DeepEqual(before, after) {
			t.Errorf("%s: before %v, after %v", sequence, before, after)
		}
	}
}

func TestWhatIsNoConcernOfABooking(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := s.book()["id"].(string)
	released := answers{id}.reserved()
	released.UpdateType, released.PreviousAvailableTickets, released.CurrentAvailableTickets = contracts.UpdateReleased, 98, 100
	confirmed := answers{id}.told(true)
	confirmed.NotificationType = contracts.NotificationBookingConfirmed
	if err := errors.Join(handle(s, s.svc.OnInventoryUpdated, released), handle(s, s.svc.OnNotificationSent, confirmed)); err != nil {
		t.Fatal(err)
	}
	if got := state(s.get(id)); got != "pending <nil> false false <nil>" {
		t.Error(got)
	}
}

// Answers that can never be handled are marked as such by package inbox; what shows here is that they are errors
// and change nothing.
func TestImpossibleAnswers(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := s.book()["id"].(string)
	nobody, mine := answers{unknown}, answers{id}
	otherEvent, otherCount := mine.reserved(), mine.reserved()
	otherEvent.EventID, otherCount.CurrentAvailableTickets = unknown, 97
	otherRefusal := mine.refused()
	otherRefusal.EventID = unknown
	otherAmount, otherCurrency, otherURL := mine.payable(), mine.payable(), mine.payable()
	otherAmount.Amount, otherCurrency.Currency, otherURL.PaymentURL = 5101, "CHF", "ftp://pay.example"
	for name, err := range map[string]error{
		"inventory of nobody":        handle(s, s.svc.OnInventoryUpdated, nobody.reserved()),
		"rejection of nobody":        handle(s, s.svc.OnInventoryUpdateRejected, nobody.refused()),
		"payment of nobody":          handle(s, s.svc.OnPaymentDataPrepared, nobody.payable()),
		"notification of nobody":     handle(s, s.svc.OnNotificationSent, nobody.told(true)),
		"tickets of another event":   handle(s, s.svc.OnInventoryUpdated, otherEvent),
		"another number of tickets":  handle(s, s.svc.OnInventoryUpdated, otherCount),
		"refusal of another event":   handle(s, s.svc.OnInventoryUpdateRejected, otherRefusal),
		"another amount":             handle(s, s.svc.OnPaymentDataPrepared, otherAmount),
		"another currency":           handle(s, s.svc.OnPaymentDataPrepared, otherCurrency),
		"a URL that nobody can open": handle(s, s.svc.OnPaymentDataPrepared, otherURL),
		"an empty event":             s.offer(contracts.CatalogEventPublished{}),
		"an empty inventory":         handle(s, s.svc.OnInventoryUpdated, contracts.InventoryUpdated{}),
		"an empty rejection":         handle(s, s.svc.OnInventoryUpdateRejected, contracts.InventoryUpdateRejected{}),
		"an empty payment":           handle(s, s.svc.OnPaymentDataPrepared, contracts.PaymentDataPrepared{}),
		"an empty notification":      handle(s, s.svc.OnNotificationSent, contracts.NotificationSent{}),
	} {
		if err == nil || !strings.Contains(fmt.Sprintf("%#v", err), "permanent") {
			t.Errorf("%s: %#v is not permanent", name, err)
		}
	}
	if got := state(s.get(id)); got != "pending <nil> false false <nil>" {
		t.Error(got)
	}
}

func TestTheNewestVersionOfAnEventCounts(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	price := func() any { return s.book()["unitPrice"] }
	s.publish(onSale(3, 3000))
	s.publish(onSale(2, 100))
	s.publish(onSale(3, 200))
	if got := price(); got != "30.00" {
		t.Errorf("the price is %v, want that of version 3", got)
	}
	s.publish(onSale(4, contracts.MaxAmount))
	isProblem(t, s.request("POST", bookings, order(documented, user, 2)), 422, "ticketCount")
	if w := s.request("POST", bookings, order(documented, user, 1)); w.Code != 201 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// The service's role can do its work and no more.
func TestGrants(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.book()
	for _, statement := range []string{
		`DELETE FROM booking.timeline`, `UPDATE booking.timeline SET step = 'x'`, `UPDATE booking.bookings SET led = true`,
		`DELETE FROM booking.bookings`, `UPDATE booking.bookings SET amount_minor = 1`, `UPDATE booking.bookings SET user_id = id`,
		`DELETE FROM booking.events`, `DELETE FROM booking.idempotency_keys`, `UPDATE booking.idempotency_keys SET request = ''`,
		`TRUNCATE booking.bookings`, `CREATE TABLE booking.x ()`, `SELECT * FROM outbox.messages`,
	} {
		_, err := s.pool.Exec(context.Background(), statement)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "42501" {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if other := s.db.RelayURL; other != "" {
		var allowed bool
		if err := s.db.QueryRow(context.Background(), `SELECT has_table_privilege('outbox_relay', 'booking.bookings', 'SELECT')
			OR has_table_privilege('outbox_writer', 'booking.bookings', 'SELECT')`).Scan(&allowed); err != nil || allowed {
			t.Errorf("others may read bookings: %v %v", allowed, err)
		}
	}
}
