package booking_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/internal/web"
)

// hearOfTheEnd calls the handler of an answer named by one letter: u no payment can be made, c completed, d declined, e expired,
// k cancelled, b given back, r tickets released, s tickets sold. Of others, C is the user's cancel and t a deadline that passes.
func (s *shop) hearOfTheEnd(id string, what rune) error {
	now := time.Now().UTC()
	switch what {
	case 'u':
		return handle(s, s.svc.OnPaymentPreparationFailed, contracts.PaymentPreparationFailed{BookingID: id, Reason: contracts.PreparationRefused, FailedAt: now})
	case 'c':
		return handle(s, s.svc.OnPaymentCompleted, contracts.PaymentCompleted{BookingID: id, PaymentID: paymentID, Amount: 5100, Currency: "EUR", CompletedAt: now})
	case 'd':
		return handle(s, s.svc.OnPaymentFailed, contracts.PaymentFailed{BookingID: id, PaymentID: paymentID, Reason: contracts.PaymentDeclined, FailedAt: now})
	case 'e':
		return handle(s, s.svc.OnPaymentExpired, contracts.PaymentExpired{BookingID: id, PaymentID: paymentID, ExpiredAt: now})
	case 'k':
		return handle(s, s.svc.OnPaymentCancelled, contracts.PaymentCancelled{BookingID: id, CancelledAt: now})
	case 'b':
		return handle(s, s.svc.OnPaymentRefunded, contracts.PaymentRefunded{BookingID: id, PaymentID: paymentID, Amount: 5100, Currency: "EUR", RefundedAt: now})
	case 'r':
		return handle(s, s.svc.OnInventoryReleased, contracts.InventoryReleased{EventID: documented, BookingID: id, QuantityReleased: 2, ReleasedAt: now})
	case 's':
		return handle(s, s.svc.OnInventoryCommitted, contracts.InventoryCommitted{EventID: documented, BookingID: id, QuantityCommitted: 2, CommittedAt: now})
	case 'C':
		if w := s.cancel(id); w.Code != http.StatusOK && w.Code != http.StatusConflict {
			return fmt.Errorf("%d %s", w.Code, w.Body)
		}
		return nil
	case 't':
		s.pass(id)
		_, err := s.svc.ExpireDue(context.Background())
		return err
	}
	return errors.New("no such answer")
}

// settle calls the handler of the coordinator's word.
func (s *shop) settle(id string, outcome contracts.SagaOutcome) error {
	return handle(s, s.svc.OnSettleBooking, contracts.SettleBooking{BookingID: id, Outcome: outcome, RequestedAt: time.Now().UTC()})
}

// pass lets the deadline of a booking pass, if it has one.
func (s *shop) pass(id string) {
	s.t.Helper()
	if _, err := s.db.Exec(context.Background(), `
		UPDATE booking.bookings SET deadline_at = now() - interval '1 s' WHERE id = $1 AND deadline_at IS NOT NULL`, id); err != nil {
		s.t.Fatal(err)
	}
}

// sent are the messages about a booking after those that made it, by their names and reasons.
func (s *shop) sent(id string) string {
	s.t.Helper()
	var names []string
	for _, r := range s.outbox() {
		if r.Key != id {
			continue
		}
		body := decode[map[string]any](s.t, r.Payload)
		name := strings.Split(r.Topic, ".")[2]
		for _, field := range []string{"reason", "notificationType"} {
			if body[field] != nil {
				name += " " + fmt.Sprint(body[field])
			}
		}
		if err := validates(r); err != nil {
			s.t.Errorf("%s: %v in %s", r.Topic, err, r.Payload)
		}
		names = append(names, name)
	}
	made := 3
	if len(names) > 0 && names[0] == "booking-created" {
		made = 1
	}
	return strings.Join(names[made:], ", ")
}

// validates decodes a row as its receiver does.
func validates(r row) error {
	for _, e := range []contracts.Event{
		&contracts.UpdateEventInventory{}, &contracts.PreparePaymentData{}, &contracts.SendBookingNotification{},
		&contracts.ReleaseEventInventory{}, &contracts.CommitEventInventory{}, &contracts.CancelPayment{}, &contracts.RefundPayment{},
		&contracts.BookingCreated{}, &contracts.BookingConfirmed{}, &contracts.BookingRejected{}, &contracts.BookingCancelled{}, &contracts.BookingExpired{},
	} {
		if e.EventType() == r.Topic {
			return errors.Join(json.Unmarshal(r.Payload, e), e.Validate())
		}
	}
	return errors.New("nobody knows the type")
}

// end is what clients see of the end: status, reason, tickets, payment.
func end(b map[string]any) string {
	return fmt.Sprint(b["status"], " ", b["reason"], " ", b["inventory"], " ", b["payment"])
}

// ending is what booking says of an end beside what it asks for.
func ending(end string) string {
	words := strings.Fields(end)
	return map[string]string{
		"confirmed": "booking-confirmed", "rejected": "booking-rejected " + words[1], "payment_failed": "booking-rejected payment_failed",
		"expired": "booking-expired", "cancelled": "booking-cancelled",
	}[words[0]]
}

// Beside the letters of TestAnswersInEveryOrder those of hearOfTheEnd.
func TestEndsInChoreography(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const (
		confirmed = "commit-event-inventory, send-booking-notification booking_confirmed"
		rejected  = "send-booking-notification booking_rejected"
		cancelled = "send-booking-notification booking_cancelled"
		expired   = "send-booking-notification booking_expired"
		failed    = "send-booking-notification payment_failed"
	)
	for sequence, want := range map[string][2]string{
		"ip":      {"awaiting_payment <nil> held prepared", ""},
		"ipc":     {"confirmed <nil> held completed", confirmed},
		"ipcs":    {"confirmed <nil> sold completed", confirmed},
		"ipcsscc": {"confirmed <nil> sold completed", confirmed},
		"pci":     {"confirmed <nil> held completed", confirmed},
		"ci":      {"confirmed <nil> held completed", confirmed},
		"ic":      {"confirmed <nil> held completed", confirmed},
		"icp":     {"confirmed <nil> held completed", confirmed},
		"ipcC":    {"confirmed <nil> held completed", confirmed},
		"ipct":    {"confirmed <nil> held completed", confirmed},
		"x":       {"rejected sold_out refused asked", "cancel-payment booking_rejected, " + rejected},
		"xk":      {"rejected sold_out refused cancelled", "cancel-payment booking_rejected, " + rejected},
		"px":      {"rejected sold_out refused prepared", "cancel-payment booking_rejected, " + rejected},
		"pcx":     {"rejected sold_out refused completed", "refund-payment booking_rejected, " + rejected},
		"pcxb":    {"rejected sold_out refused refunded", "refund-payment booking_rejected, " + rejected},
		"pxcb":    {"rejected sold_out refused refunded", "cancel-payment booking_rejected, " + rejected + ", refund-payment booking_rejected"},
		"ux":      {"rejected payment_unavailable refused unavailable", "release-event-inventory booking_rejected, " + rejected},
		"iu":      {"rejected payment_unavailable held unavailable", "release-event-inventory booking_rejected, " + rejected},
		"ui":      {"rejected payment_unavailable held unavailable", "release-event-inventory booking_rejected, " + rejected},
		"uir":     {"rejected payment_unavailable released unavailable", "release-event-inventory booking_rejected, " + rejected},
		"uri":     {"rejected payment_unavailable released unavailable", "release-event-inventory booking_rejected, " + rejected},
		"ipd":     {"payment_failed declined held failed", "release-event-inventory payment_failed, " + failed},
		"ipdr":    {"payment_failed declined released failed", "release-event-inventory payment_failed, " + failed},
		"d":       {"payment_failed declined asked failed", "release-event-inventory payment_failed, " + failed},
		"ipdb":    {"payment_failed declined held refunded", "release-event-inventory payment_failed, " + failed},
		"ipbd":    {"payment_failed declined held refunded", "release-event-inventory payment_failed, " + failed},
		"ipe":     {"expired <nil> held expired", "release-event-inventory booking_expired, " + expired},
		"iper":    {"expired <nil> released expired", "release-event-inventory booking_expired, " + expired},
		"e":       {"expired <nil> asked expired", "release-event-inventory booking_expired, " + expired},
		"ipbe":    {"expired <nil> held refunded", "release-event-inventory booking_expired, " + expired},
		"ipeb":    {"expired <nil> held refunded", "release-event-inventory booking_expired, " + expired},
		"ipec":    {"expired <nil> held completed", "release-event-inventory booking_expired, " + expired + ", refund-payment booking_expired"},
		"t":       {"expired <nil> asked asked", "release-event-inventory booking_expired, cancel-payment booking_expired, " + expired},
		"tt":      {"expired <nil> asked asked", "release-event-inventory booking_expired, cancel-payment booking_expired, " + expired},
		"ipt":     {"expired <nil> held prepared", "release-event-inventory booking_expired, cancel-payment booking_expired, " + expired},
		"pct":     {"expired <nil> asked completed", "release-event-inventory booking_expired, refund-payment booking_expired, " + expired},
		"C":       {"cancelled <nil> asked asked", "release-event-inventory booking_cancelled, cancel-payment booking_cancelled, " + cancelled},
		"CC":      {"cancelled <nil> asked asked", "release-event-inventory booking_cancelled, cancel-payment booking_cancelled, " + cancelled},
		"Cirpk":   {"cancelled <nil> released cancelled", "release-event-inventory booking_cancelled, cancel-payment booking_cancelled, " + cancelled},
		"Crikp":   {"cancelled <nil> released cancelled", "release-event-inventory booking_cancelled, cancel-payment booking_cancelled, " + cancelled},
		"Cx":      {"cancelled <nil> refused asked", "release-event-inventory booking_cancelled, cancel-payment booking_cancelled, " + cancelled},
		"ipCcb":   {"cancelled <nil> held refunded", "release-event-inventory booking_cancelled, cancel-payment booking_cancelled, " + cancelled + ", refund-payment booking_cancelled"},
		"ipCccbc": {"cancelled <nil> held refunded", "release-event-inventory booking_cancelled, cancel-payment booking_cancelled, " + cancelled + ", refund-payment booking_cancelled"},
		"ipCe":    {"cancelled <nil> held expired", "release-event-inventory booking_cancelled, cancel-payment booking_cancelled, " + cancelled},
	} {
		t.Run(sequence, func(t *testing.T) {
			id := s.book()["id"].(string)
			for _, what := range sequence {
				if err := s.hear(id, what); err != nil {
					t.Fatalf("%c: %v", what, err)
				}
			}
			b := s.get(id)
			if told := ending(want[0]); told != "" {
				want[1] = told + ", " + want[1]
			}
			if got := [2]string{end(b), s.sent(id)}; got != want {
				t.Errorf("got  %q,\nwant %q", got, want)
			}
			if b["paymentUrl"] != nil && b["status"] != "awaiting_payment" {
				t.Error("a booking that has ended can be paid")
			}
		})
	}
}

// Where a coordinator leads, booking asks nobody for anything. Capitals are the coordinator's words: O confirmed, X sold out, D payment
// failed, E expired, K cancelled.
func TestEndsInOrchestration(t *testing.T) {
	t.Parallel()
	s := newShopWith(t, booking.Config{Orchestration: true})
	words := map[rune]contracts.SagaOutcome{
		'O': contracts.OutcomeConfirmed, 'X': contracts.OutcomeSoldOut, 'D': contracts.OutcomePaymentFailed, 'E': contracts.OutcomeExpired, 'K': contracts.OutcomeCancelled,
	}
	for sequence, want := range map[string][2]string{
		"":      {"pending <nil> asked asked", ""},
		"ip":    {"awaiting_payment <nil> held prepared", ""},
		"ipc":   {"awaiting_payment <nil> held completed", ""},
		"ipcO":  {"confirmed <nil> held completed", "booking-confirmed"},
		"Oipc":  {"confirmed <nil> held completed", "booking-confirmed"},
		"Oci":   {"confirmed <nil> held completed", "booking-confirmed"},
		"iOc":   {"confirmed <nil> held completed", "booking-confirmed"},
		"O":     {"pending <nil> asked asked", ""},
		"ipcOO": {"confirmed <nil> held completed", "booking-confirmed, booking-confirmed"},
		"ipcOE": {"confirmed <nil> held completed", "booking-confirmed, booking-confirmed"},
		"ipcOs": {"confirmed <nil> sold completed", "booking-confirmed"},
		"x":     {"pending <nil> refused asked", ""},
		"xX":    {"rejected sold_out refused asked", "booking-rejected sold_out"},
		"X":     {"rejected sold_out asked asked", "booking-rejected sold_out"},
		"ipd":   {"awaiting_payment <nil> held failed", ""},
		"ipdD":  {"payment_failed declined held failed", "booking-rejected payment_failed"},
		"ipdbD": {"payment_failed declined held refunded", "booking-rejected payment_failed"},
		"ipD":   {"payment_failed <nil> held prepared", "booking-rejected payment_failed"},
		"ipdC":  {"cancelled <nil> held failed", "booking-cancelled"},
		"ipdX":  {"rejected sold_out held failed", "booking-rejected sold_out"},
		"ipeE":  {"expired <nil> held expired", "booking-expired"},
		"ipK":   {"cancelled <nil> held prepared", "booking-cancelled"},
		"ipC":   {"cancelled <nil> held prepared", "booking-cancelled"},
		"ipCO":  {"cancelled <nil> held prepared", "booking-cancelled, booking-cancelled"},
		"OC":    {"cancelled <nil> asked asked", "booking-cancelled"},
		"Ot":    {"expired <nil> asked asked", "booking-expired"},
		"ipt":   {"expired <nil> held prepared", "booking-expired"},
		"iptc":  {"expired <nil> held completed", "booking-expired"},
		"CE":    {"cancelled <nil> asked asked", "booking-cancelled, booking-cancelled"},
	} {
		t.Run(sequence, func(t *testing.T) {
			id := s.book()["id"].(string)
			for _, what := range sequence {
				err := s.hear(id, what)
				if word, ok := words[what]; ok {
					err = s.settle(id, word)
				}
				if err != nil {
					t.Fatalf("%c: %v", what, err)
				}
			}
			if got := [2]string{end(s.get(id)), s.sent(id)}; got != want {
				t.Errorf("got  %q,\nwant %q", got, want)
			}
		})
	}
}

func TestABookingIsHandedOver(t *testing.T) {
	t.Parallel()
	s := newShopWith(t, booking.Config{Orchestration: true})
	b := s.book()
	rows := s.outbox()
	if len(rows) != 1 {
		t.Fatalf("%d rows in the outbox", len(rows))
	}
	same(t, rows[0], contracts.BookingCreated{
		BookingID: b["id"].(string), EventID: documented, UserID: user, Quantity: 2, TotalAmount: 5100, Currency: "EUR",
		ExpiresAt: at(t, b["expiresAt"]), CreatedAt: at(t, b["createdAt"]),
	})
}

// What nobody listens to is not published: it would wait at its sender.
func TestNothingIsToldToNobody(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.book()
	heard := map[string]bool{}
	for _, q := range contracts.Topology().Queues {
		for _, typ := range q.Types {
			heard[typ] = true
		}
	}
	for _, sequence := range []string{"ipc", "x", "C", "t", "ipd"} {
		id := s.book()["id"].(string)
		for _, what := range sequence {
			if err := s.hear(id, what); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, r := range s.outbox() {
		if !heard[r.Topic] {
			t.Errorf("nobody listens to %s", r.Topic)
		}
	}
}

// What cannot be true of a booking is an error that parks its message, and changes nothing.
func TestContradictions(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := s.book()["id"].(string)
	for _, what := range "ipc" {
		if err := s.hear(id, what); err != nil {
			t.Fatal(err)
		}
	}
	before := s.get(id)
	other := contracts.PaymentCompleted{BookingID: id, PaymentID: unknown, Amount: 5100, Currency: "EUR", CompletedAt: time.Now()}
	less := contracts.PaymentCompleted{BookingID: id, PaymentID: paymentID, Amount: 5000, Currency: "EUR", CompletedAt: time.Now()}
	elsewhere := contracts.InventoryCommitted{EventID: unknown, BookingID: id, QuantityCommitted: 2, CommittedAt: time.Now()}
	for name, err := range map[string]error{
		"released": s.hear(id, 'r'), "refused": s.hear(id, 'x'), "unavailable": s.hear(id, 'u'), "declined": s.hear(id, 'd'), "expired": s.hear(id, 'e'),
		"cancelled": s.hear(id, 'k'), "refunded": s.hear(id, 'b'), "settled": s.settle(id, contracts.OutcomeConfirmed),
		"another payment": handle(s, s.svc.OnPaymentCompleted, other), "less money": handle(s, s.svc.OnPaymentCompleted, less),
		"another event": handle(s, s.svc.OnInventoryCommitted, elsewhere),
	} {
		if err == nil || !strings.Contains(fmt.Sprintf("%#v", err), "permanent") {
			t.Errorf("%s: %#v is not permanent", name, err)
		}
	}
	if after := s.get(id); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("before %v, after %v", before, after)
	}
	if open := s.book()["id"].(string); s.hear(open, 's') == nil {
		t.Error("the tickets of an open booking are sold")
	}
}

func (s *shop) cancel(id any) *httptest.ResponseRecorder {
	return s.request(http.MethodPost, fmt.Sprint(bookings, "/", id, "/cancel"), "")
}

func TestCancel(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := s.book()["id"].(string)
	first := s.cancel(id)
	again := s.cancel(id)
	if first.Code != http.StatusOK || again.Code != http.StatusOK || first.Body.String() != again.Body.String() {
		t.Errorf("%d %s, then %d %s", first.Code, first.Body, again.Code, again.Body)
	}
	if b := decode[map[string]any](t, first.Body.Bytes()); b["status"] != "cancelled" || b["id"] != id {
		t.Errorf("%v", b)
	}
	isProblem(t, s.cancel(unknown), 404, "")
	isProblem(t, s.cancel("17"), 400, "id")
	isProblem(t, s.request(http.MethodGet, bookings+"/"+id+"/cancel", ""), 405, "")
	for sequence, why := range map[string]string{"ipc": "confirmed", "x": "rejected", "ipe": "expired", "ipd": "payment"} {
		id := s.book()["id"].(string)
		for _, what := range sequence {
			if err := s.hear(id, what); err != nil {
				t.Fatal(err)
			}
		}
		before := s.get(id)
		problem := isProblem(t, s.cancel(id), 409, "")
		if detail := fmt.Sprint(problem["detail"]); !strings.Contains(detail, why) || !strings.Contains(detail, id) {
			t.Errorf("%s: %v", sequence, problem)
		}
		if after := s.get(id); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("%s: before %v, after %v", sequence, before, after)
		}
	}
}

// Of a user who cancels, money that comes, and a deadline that passes at the same moment one comes first, and what was sent fits.
func TestTheFirstToComeDecides(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	seen := map[string]int{}
	for range 30 {
		id := s.book()["id"].(string)
		for _, what := range "ip" {
			if err := s.hear(id, what); err != nil {
				t.Fatal(err)
			}
		}
		s.pass(id)
		var all sync.WaitGroup
		for _, do := range []func() error{
			func() error { return s.hear(id, 'c') },
			func() error { return s.hear(id, 'C') },
			func() error { _, err := s.svc.ExpireDue(context.Background()); return err },
		} {
			all.Go(func() {
				if err := do(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		status := fmt.Sprint(s.get(id)["status"])
		seen[status]++
		if got := s.sent(id); strings.Contains(got, "commit") != (status == "confirmed") || strings.Contains(got, "release") != (status != "confirmed") ||
			strings.Contains(got, "refund") != (status != "confirmed") || strings.Count(got, "notification") != 1 {
			t.Errorf("%s: %s", status, got)
		}
	}
	t.Logf("%v", seen)
}

func TestABookingWithoutGraceExpiresWithItsPayment(t *testing.T) {
	t.Parallel()
	s := newShopWith(t, booking.Config{Hold: time.Minute, Grace: booking.NoGrace})
	s.book()
	var hold, grace time.Duration
	err := s.db.QueryRow(context.Background(), `SELECT expires_at - created_at, deadline_at - expires_at FROM booking.bookings`).Scan(&hold, &grace)
	if err != nil || hold != time.Minute || grace != 0 {
		t.Errorf("held for %s, grace %s, %v", hold, grace, err)
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	ctx := context.Background()
	first := s.book()["id"].(string)
	if n, err := s.svc.ExpireDue(ctx); n != 0 || err != nil {
		t.Fatalf("%d are due, %v", n, err)
	}
	var grace time.Duration
	if err := s.db.QueryRow(ctx, `SELECT deadline_at - expires_at FROM booking.bookings`).Scan(&grace); err != nil || grace != booking.DefaultGrace {
		t.Errorf("the grace is %s, %v", grace, err)
	}
	s.pass(first)
	other := s.book()["id"].(string)
	s.pass(other)
	tx, err := s.pool.Begin(ctx) // somebody has one of them
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `SELECT FROM booking.bookings WHERE id = $1 FOR UPDATE`, other); err != nil {
		t.Fatal(err)
	}
	if n, err := s.svc.ExpireDue(ctx); n != 1 || err != nil {
		t.Errorf("%d expired, %v", n, err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := s.svc.ExpireDue(ctx); n != 1 || err != nil {
		t.Errorf("%d expired, %v", n, err)
	}
	if n, err := s.svc.ExpireDue(ctx); n != 0 || err != nil {
		t.Errorf("%d expired again, %v", n, err)
	}
}

// A booking that cannot be read is put off alone, each time for longer, and shows as overdue.
func TestABadBookingHoldsUpNoDeadline(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	bad, good := s.book()["id"].(string), s.book()["id"].(string)
	s.pass(bad)
	s.pass(good)
	if _, err := s.db.Exec(t.Context(), `UPDATE booking.bookings SET created_at = 'infinity' WHERE id = $1`, bad); err != nil {
		t.Fatal(err)
	}
	if n, err := s.svc.ExpireDue(t.Context()); n != 2 || err != nil {
		t.Errorf("%d were taken, %v", n, err)
	}
	change := func(what string) {
		t.Helper()
		if _, err := s.db.Exec(t.Context(), `UPDATE booking.bookings SET `+what+` WHERE id = $1`, bad); err != nil {
			t.Fatal(err)
		}
	}
	change(`deadline_next_at = deadline_next_at + interval '1 hour', deadline_at = now() - interval '1 hour'`)
	if n, err := s.svc.ExpireDue(t.Context()); n != 0 || err != nil {
		t.Errorf("%d were taken, %v", n, err)
	}
	if late := s.overdue(); late < 3600 || late > 3700 {
		t.Errorf("overdue for %v s", late)
	}
	change(`deadline_next_at = now(), deadline_failures = 30`)
	if n, err := s.svc.ExpireDue(t.Context()); n != 1 || err != nil {
		t.Errorf("%d were taken, %v", n, err)
	}
	var waits, over bool
	if err := s.db.QueryRow(t.Context(), `
		SELECT (SELECT deadline_failures = 31 AND deadline_next_at BETWEEN clock_timestamp() + interval '2 min' AND clock_timestamp() + interval '5 min'
		        FROM booking.bookings WHERE id = $1),
		       (SELECT status = 'expired' FROM booking.bookings WHERE id = $2)`, bad, good).Scan(&waits, &over); err != nil || !waits || !over {
		t.Errorf("the bad booking is put off: %t, the good one has expired: %t, %v", waits, over, err)
	}
	change(`created_at = now(), deadline_next_at = now()`)
	if n, err := s.svc.ExpireDue(t.Context()); n != 1 || err != nil {
		t.Errorf("%d were taken, %v", n, err)
	}
	if late := s.overdue(); late != 0 {
		t.Errorf("overdue for %v s, and nothing is left", late)
	}
	var fresh bool
	if err := s.db.QueryRow(t.Context(), `SELECT deadline_failures = 0 AND deadline_next_at IS NULL FROM booking.bookings WHERE id = $1`, bad).Scan(&fresh); err != nil || !fresh {
		t.Errorf("it is still put off: %t, %v", !fresh, err)
	}
}

// overdue is what Prometheus sees of the first deadline that was not kept.
func (s *shop) overdue() float64 {
	s.t.Helper()
	if err := s.svc.Measure(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.svc.Metrics()...)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "ticketwave_deadline_overdue_seconds" {
		s.t.Fatalf("%v, %v", families, err)
	}
	return families[0].GetMetric()[0].GetGauge().GetValue()
}

// What a deadline sends belongs to the flow of the request that made the booking; what the booking has heard last caused it, or
// that request. A row of the build before knows neither.
func TestADeadlineHasACause(t *testing.T) {
	t.Parallel()
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	s, answer := newShop(t), uuid.NewString()
	heard := outbox.WithCausality(t.Context(), outbox.Causality{CorrelationID: "flow-1", CausationID: answer})
	for _, c := range []struct {
		befalls         func(tx pgx.Tx, id string) error
		flow, by, trace string
	}{
		{func(pgx.Tx, string) error { return nil }, "flow-1", "the request", trace},
		{func(tx pgx.Tx, id string) error {
			return s.svc.OnInventoryUpdated(heard, tx, inbox.One(heard, answers{id}.reserved()))
		}, "flow-1", answer, trace},
		{func(tx pgx.Tx, id string) error {
			_, err := s.db.Exec(t.Context(), `UPDATE booking.bookings SET correlation_id = NULL, causation_id = NULL, trace_parent = NULL WHERE id = $1`, id)
			return err
		}, "the booking", "the booking", ""},
	} {
		w := s.request(http.MethodPost, bookings, order(documented, user, 2), web.CorrelationHeader, "flow-1", "traceparent", trace)
		id := decode[map[string]any](t, w.Body.Bytes())["id"].(string)
		if err := outbox.InTx(t.Context(), s.pool, func(tx pgx.Tx) error { return c.befalls(tx, id) }); err != nil {
			t.Fatal(err)
		}
		if err := s.hear(id, 't'); err != nil {
			t.Fatal(err)
		}
		sent := slices.DeleteFunc(s.outbox(), func(r row) bool { return r.Key != id })
		made, expired := sent[0].Metadata, sent[3:]
		known := map[string]string{"the booking": id, "the request": made[outbox.HeaderCausationID]}
		want := outbox.Causality{CorrelationID: cmp.Or(known[c.flow], c.flow), CausationID: cmp.Or(known[c.by], c.by), TraceParent: c.trace}
		for _, r := range expired {
			got := outbox.Causality{
				CorrelationID: r.Metadata[outbox.HeaderCorrelationID], CausationID: r.Metadata[outbox.HeaderCausationID],
				TraceParent: r.Metadata[outbox.HeaderTraceParent],
			}
			if got != want || len(expired) < 3 || made[outbox.HeaderCausationID] == "" {
				t.Errorf("%s has %+v, want %+v; the request has sent %v", r.Topic, got, want, made)
			}
		}
	}
}

// Payment's expiry moves the deadline.
func TestTheDeadlineFollowsThePayment(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := s.book()["id"].(string)
	if err := s.hear(id, 'p'); err != nil {
		t.Fatal(err)
	}
	var deadline time.Time
	err := s.db.QueryRow(context.Background(), `SELECT deadline_at FROM booking.bookings WHERE id = $1`, id).Scan(&deadline)
	if want := time.Date(2150, 1, 1, 0, 0, 0, 0, time.UTC).Add(booking.DefaultGrace); err != nil || !deadline.Equal(want) {
		t.Errorf("the deadline is %s, %v", deadline, err)
	}
}

// The loops of two processes expire everything that is due, once, and end with their context.
func TestTheLoopExpiresWhatIsDue(t *testing.T) {
	t.Parallel()
	s := newShopWith(t, booking.Config{Look: 10 * time.Millisecond})
	const many = 50 // more than one transaction takes
	for range many {
		s.pass(s.book()["id"].(string))
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- s.svc.Run(ctx) }()
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool {
		return s.count("booking.bookings WHERE status = 'expired'") == many
	}, "all expire")
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := s.count("outbox.messages WHERE topic = '" + contracts.TypeReleaseEventInventory + "'"); n != many {
		t.Errorf("%d releases", n)
	}
}

// The database's clock counts, not this process's.
func TestTimesAreTheDatabases(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := s.book()["id"].(string)
	var ok bool
	if err := s.db.QueryRow(context.Background(), `
		SELECT created_at BETWEEN now() - interval '1 min' AND now() AND expires_at = created_at + interval '15 min' FROM booking.bookings WHERE id = $1`, id).Scan(&ok); err != nil || !ok {
		t.Errorf("%v, %v", ok, err)
	}
}

// step is an entry of a timeline.
type step struct {
	At                    time.Time
	Step, Service, Status string
	Cause, Detail         *string
	CorrelationID         *string
	Sent                  []struct{ ID, Type string }
}

func (s *shop) timeline(id string) []step {
	s.t.Helper()
	w := s.request(http.MethodGet, bookings+"/"+id+"/timeline", "")
	if w.Code != http.StatusOK {
		s.t.Fatalf("%d %s", w.Code, w.Body)
	}
	return decode[struct{ Items []step }](s.t, w.Body.Bytes()).Items
}

func TestTimelineOverRabbitMQ(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := consume(t, s)
	made := s.request(http.MethodPost, bookings, order(documented, user, 2), web.CorrelationHeader, "flow-1")
	a := answers{decode[map[string]any](t, made.Body.Bytes())["id"].(string)}
	w.send(a.reserved())
	w.saw("handled inventory-updated", 1)
	w.send(a.reserved()) // says nothing new
	w.saw("handled inventory-updated", 2)
	w.send(a.payable())
	w.saw("handled payment-data-prepared", 1)
	w.send(contracts.PaymentFailed{BookingID: a.id, PaymentID: paymentID, Reason: contracts.PaymentDeclined, FailedAt: time.Now()})
	w.saw("handled payment-failed", 1)
	w.send(a.told(true))
	w.saw("handled notification-sent", 1)
	want := []string{
		"created booking pending <nil> 3", "tickets_held catalog pending <nil> 0", "payment_prepared payment awaiting_payment <nil> 0",
		"payment_failed payment payment_failed declined 3", "notified notification payment_failed booking_created 0",
	}
	steps := s.timeline(a.id)
	if len(steps) != len(want) {
		t.Fatalf("%d steps: %+v", len(steps), steps)
	}
	sent := map[string]string{}
	for _, r := range s.outbox() {
		sent[r.UUID.String()] = r.Topic
	}
	for i, got := range steps {
		detail := "<nil>"
		if got.Detail != nil {
			detail = *got.Detail
		}
		if text := fmt.Sprint(got.Step, " ", got.Service, " ", got.Status, " ", detail, " ", len(got.Sent)); text != want[i] {
			t.Errorf("step %d is %q, want %q", i, text, want[i])
		}
		if (got.Cause == nil) != (i == 0) || got.CorrelationID == nil || got.At.IsZero() || i > 0 && got.At.Before(steps[i-1].At) {
			t.Errorf("step %d is %+v", i, got)
		}
		for _, m := range got.Sent {
			if sent[m.ID] != m.Type {
				t.Errorf("step %d sent %v, the outbox has %q", i, m, sent[m.ID])
			}
		}
	}
	isProblem(t, s.request(http.MethodGet, bookings+"/"+unknown+"/timeline", ""), 404, "")
	isProblem(t, s.request(http.MethodGet, bookings+"/17/timeline", ""), 400, "id")
}

func TestTimelineOfACancelAndADeadline(t *testing.T) {
	t.Parallel()
	for _, led := range []bool{false, true} {
		s := newShopWith(t, booking.Config{Orchestration: led})
		for what, step := range map[rune]string{'C': "cancel_requested", 't': "deadline_passed"} {
			id := s.book()["id"].(string)
			for range 2 {
				if err := s.hear(id, what); err != nil {
					t.Fatal(err)
				}
			}
			steps := s.timeline(id)
			if len(steps) != 2 || steps[1].Step != step || steps[1].Service != "booking" || steps[1].Cause != nil || len(steps[1].Sent) == 0 {
				t.Errorf("led %v: %+v", led, steps)
			}
		}
	}
}

// The table holds the promises against any code.
func TestRowsThemselvesAreGuarded(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.book()
	for _, statement := range []string{
		`UPDATE booking.bookings SET status = 'confirmed', deadline_at = NULL, ended_at = now()`,
		`UPDATE booking.bookings SET status = 'awaiting_payment'`,
		`UPDATE booking.bookings SET deadline_at = NULL`,
		`UPDATE booking.bookings SET status = 'expired'`,
		`UPDATE booking.bookings SET reason = 'x'`,
	} {
		if _, err := s.db.Exec(context.Background(), statement); err == nil || !strings.Contains(err.Error(), "23514") {
			t.Errorf("%s: %v", statement, err)
		}
	}
}
