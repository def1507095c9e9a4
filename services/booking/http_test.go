package booking_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/internal/web"
)

func TestBook(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := s.request(http.MethodPost, bookings, order(strings.ToUpper(documented), user, 3))
	got := decode[map[string]any](t, w.Body.Bytes())
	id, _ := got["id"].(string)
	if w.Code != http.StatusCreated || w.Header().Get("Location") != bookings+"/"+id {
		t.Fatalf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if uuid.MustParse(id).Version() != 7 {
		t.Errorf("the id %s is no UUIDv7", id)
	}
	want := map[string]any{
		"id": id, "eventId": documented, "userId": user, "ticketCount": 3.0, "unitPrice": "25.50", "totalAmount": "76.50", "currency": "EUR",
		"status": "pending", "reason": nil, "ticketsReserved": false, "inventory": "asked", "payment": "asked", "paymentId": nil, "paymentUrl": nil,
		"notified": nil, "notificationError": nil, "createdAt": got["createdAt"], "updatedAt": got["createdAt"], "expiresAt": got["expiresAt"],
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %v, want %v", name, got[name], value)
		}
	}
	if len(got) != len(want) {
		t.Errorf("the answer is %v", got)
	}
	made, expires := at(t, got["createdAt"]), at(t, got["expiresAt"])
	if expires.Sub(made) != booking.DefaultHold {
		t.Errorf("made at %s, held until %s", made, expires)
	}
	if again := s.request(http.MethodGet, bookings+"/"+id, ""); again.Body.String() != w.Body.String() {
		t.Errorf("GET answers %s, POST answered %s", again.Body, w.Body)
	}
}

func at(t *testing.T, value any) time.Time {
	t.Helper()
	parsed, err := time.Parse(time.RFC3339Nano, fmt.Sprint(value))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestABookingIsPublishedAsThreeRequests(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := s.request(http.MethodPost, bookings, order(documented, user, 2), web.CorrelationHeader, "flow-1")
	b := decode[map[string]any](t, w.Body.Bytes())
	id, made := b["id"].(string), at(t, b["createdAt"])
	rows := s.outbox()
	if len(rows) != 3 {
		t.Fatalf("%d rows in the outbox", len(rows))
	}
	for _, r := range rows {
		if r.Key != id || r.Metadata[outbox.HeaderCorrelationID] != "flow-1" || r.Metadata[outbox.HeaderCausationID] == "" {
			t.Errorf("%s has key %s and metadata %v", r.Topic, r.Key, r.Metadata)
		}
	}
	inventory := contracts.UpdateEventInventory{EventID: documented, BookingID: id, QuantityReduced: 2, RequestedAt: made}
	notification := contracts.SendBookingNotification{
		BookingID: id, UserID: user, EventID: documented, Quantity: 2, TotalAmount: 5100,
		NotificationType: contracts.NotificationBookingCreated, RequestedAt: made,
	}
	payment := contracts.PreparePaymentData{
		BookingID: id, Amount: 5100, Currency: "EUR", UserID: user, ExpiresAt: made.Add(15 * time.Minute), RequestedAt: made,
	}
	same(t, rows[0], inventory)
	same(t, rows[1], notification)
	same(t, rows[2], payment)
}

func same[E interface {
	contracts.Event
	comparable
}](t *testing.T, r row, want E) {
	t.Helper()
	got := decode[E](t, r.Payload)
	if r.Topic != want.EventType() || got != want {
		t.Errorf("%s: %+v, want %+v", r.Topic, got, want)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, path := range []string{bookings, example} {
		for name, c := range map[string]struct {
			body    string
			headers []string
			status  int
			field   string
		}{
			"unknown event":      {body: order(unknown, user, 2), status: 404, field: "eventId"},
			"no tickets":         {body: order(documented, user, 0), status: 422, field: "ticketCount"},
			"negative tickets":   {body: order(documented, user, -1), status: 422, field: "ticketCount"},
			"too many tickets":   {body: order(documented, user, 11), status: 422, field: "ticketCount"},
			"missing tickets":    {body: `{"eventId":"` + documented + `","userId":"` + user + `"}`, status: 422, field: "ticketCount"},
			"nil user":           {body: order(documented, uuid.Nil.String(), 1), status: 422, field: "userId"},
			"missing user":       {body: `{"eventId":"` + documented + `","ticketCount":1}`, status: 400, field: "userId"},
			"event is no id":     {body: order("17", user, 1), status: 400, field: "eventId"},
			"half a ticket":      {body: `{"eventId":"` + documented + `","userId":"` + user + `","ticketCount":1.5}`, status: 400, field: "ticketCount"},
			"unknown field":      {body: `{"eventID":"` + documented + `"}`, status: 400, field: "eventID"},
			"malformed":          {body: `{"eventId":`, status: 400},
			"too large":          {body: `{"userId":"` + strings.Repeat("x", web.MaxBody) + `"}`, status: 413},
			"other media type":   {body: order(documented, user, 1), headers: []string{"Content-Type", "text/plain"}, status: 415, field: "Content-Type"},
			"long key":           {body: order(documented, user, 1), headers: []string{"Idempotency-Key", strings.Repeat("k", 256)}, status: 400, field: "Idempotency-Key"},
			"unprintable key":    {body: order(documented, user, 1), headers: []string{"Idempotency-Key", "ä"}, status: 400, field: "Idempotency-Key"},
			"empty key":          {body: order(documented, user, 1), headers: []string{"Idempotency-Key", ""}, status: 400, field: "Idempotency-Key"},
			"unknown with a key": {body: order(unknown, user, 2), headers: []string{"Idempotency-Key", "k"}, status: 404, field: "eventId"},
			"none with a key":    {body: order(documented, user, 0), headers: []string{"Idempotency-Key", "k"}, status: 422, field: "ticketCount"},
		} {
			t.Run(path[5:8]+" "+name, func(t *testing.T) {
				isProblem(t, s.request(http.MethodPost, path, c.body, c.headers...), c.status, c.field)
			})
		}
	}
	if s.count("booking.bookings") != 0 || s.count("outbox.messages") != 0 || s.count("booking.idempotency_keys") != 0 {
		t.Error("a refused request left something behind")
	}
}

func isProblem(t *testing.T, w *httptest.ResponseRecorder, status int, field string) map[string]any {
	t.Helper()
	problem := decode[map[string]any](t, w.Body.Bytes())
	named, _ := problem["field"].(string)
	if w.Code != status || problem["status"] != float64(status) || named != field || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("want %d for %q, got %d %v %v", status, field, w.Code, w.Header(), problem)
	}
	return problem
}

func TestUnknownEventIsNamed(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	problem := isProblem(t, s.request(http.MethodPost, bookings, order(unknown, user, 1)), 404, "eventId")
	if !strings.Contains(fmt.Sprint(problem["detail"]), unknown) {
		t.Errorf("%v", problem)
	}
}

func TestOnlyTheExampleMapsUserIDs(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const given = "test-user-123"
	isProblem(t, s.request(http.MethodPost, bookings, order(documented, given, 2)), 400, "userId")
	isProblem(t, s.request(http.MethodPost, example, order(documented, strings.Repeat("x", 256), 2)), 400, "userId")
	var users []any
	for range 2 {
		answer := s.example(t, given)
		user := answer["booking"].(map[string]any)["userId"].(string)
		if uuid.MustParse(user).Version() != 5 || answer["givenUserId"] != given || !strings.Contains(fmt.Sprint(answer["userIdNote"]), user) {
			t.Errorf("%v", answer)
		}
		users = append(users, user)
	}
	if users[0] != users[1] || s.example(t, "test-user-124")["booking"].(map[string]any)["userId"] == users[0] {
		t.Errorf("a name must map to one user: %v", users)
	}
	plain := s.example(t, user)
	if _, noted := plain["userIdNote"]; noted || plain["booking"].(map[string]any)["userId"] != user {
		t.Errorf("%v", plain)
	}
}

func (s *shop) example(t *testing.T, user string) map[string]any {
	t.Helper()
	w := s.request(http.MethodPost, example, order(documented, user, 2))
	if w.Code != http.StatusCreated {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return decode[map[string]any](t, w.Body.Bytes())
}

func TestExampleAnswersWithWhatItPublished(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := s.request(http.MethodPost, example, order(documented, "test-user-123", 2))
	answer := decode[struct {
		Booking struct{ ID string }
		Events  []struct {
			ID   uuid.UUID
			Type string
		}
	}](t, w.Body.Bytes())
	if w.Header().Get("Location") != bookings+"/"+answer.Booking.ID {
		t.Errorf("Location is %s", w.Header().Get("Location"))
	}
	rows := s.outbox()
	if len(answer.Events) != 3 || len(rows) != 3 {
		t.Fatalf("%v, %d rows", answer, len(rows))
	}
	for i, e := range answer.Events {
		if e.ID != rows[i].UUID || e.Type != rows[i].Topic {
			t.Errorf("answered %v, wrote %s %s", e, rows[i].UUID, rows[i].Topic)
		}
	}
}

func TestLogOfOneBooking(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := s.request(http.MethodPost, example, order(documented, "test-user-123", 2), web.CorrelationHeader, "flow-1")
	b := decode[struct {
		Booking struct{ ID, UserID string }
	}](t, w.Body.Bytes()).Booking
	want := []map[string]any{
		{"msg": "🚀 Starting integration events example flow", "event_id": documented, "user_id": b.UserID},
		{"msg": "📅 Processing BookingCreatedDomainEvent for BookingId"},
		{"msg": "🎫 Publishing UpdateEventInventoryIntegrationEvent", "event_type": contracts.TypeUpdateEventInventory, "event_id": documented, "quantity": 2.0},
		{"msg": "📧 Publishing SendBookingNotificationIntegrationEvent", "event_type": contracts.TypeSendBookingNotification, "user_id": b.UserID},
		{"msg": "💰 Publishing PreparePaymentDataIntegrationEvent", "event_type": contracts.TypePreparePaymentData, "amount": "51.00"},
		{"msg": "✅ Successfully processed BookingCreatedDomainEvent for BookingId"},
	}
	lines := s.log.lines(t, "flow-1")
	if len(lines) != len(want)+1 { // and the access log
		t.Fatalf("%d lines: %v", len(lines), lines)
	}
	for i, attrs := range want {
		attrs["booking_id"], attrs["service"], attrs["level"] = b.ID, "booking", "INFO"
		for name, value := range attrs {
			if lines[i][name] != value {
				t.Errorf("line %d: %s is %v, want %v", i, name, lines[i][name], value)
			}
		}
		if lines[i]["event_type"] == nil {
			t.Errorf("line %d has no event_type", i)
		}
	}
}

func TestGetRefusals(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	isProblem(t, s.request(http.MethodGet, bookings+"/"+unknown, ""), 404, "")
	isProblem(t, s.request(http.MethodGet, bookings+"/17", ""), 400, "id")
	isProblem(t, s.request(http.MethodGet, bookings, ""), 400, "userId")
	isProblem(t, s.request(http.MethodGet, bookings+"?userId="+user+"&limit=0", ""), 400, "limit")
	isProblem(t, s.request(http.MethodGet, bookings+"?userId="+user+"&after=x", ""), 400, "after")
	isProblem(t, s.request(http.MethodGet, bookings+"?user="+user, ""), 400, "user")
	isProblem(t, s.request(http.MethodDelete, bookings+"/"+unknown, ""), 405, "")
}

func TestPages(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var made []string
	for range 5 {
		made = append(made, s.book()["id"].(string))
	}
	s.request(http.MethodPost, bookings, order(documented, unknown, 1)) // somebody else's
	type page struct {
		Items []struct{ ID string }
		Next  string
	}
	var listed []string
	var sizes []int
	for next := ""; ; {
		w := s.request(http.MethodGet, bookings+"?limit=2&userId="+user+next, "")
		p := decode[page](t, w.Body.Bytes())
		sizes = append(sizes, len(p.Items))
		for _, b := range p.Items {
			listed = append(listed, b.ID)
		}
		if p.Next == "" {
			break
		}
		next = "&after=" + p.Next
	}
	if !slices.Equal(listed, made) || !slices.Equal(sizes, []int{2, 2, 1}) {
		t.Errorf("made %v, listed %v in pages of %v", made, listed, sizes)
	}
	if none := s.request(http.MethodGet, bookings+"?userId="+uuid.NewString(), ""); none.Body.String() != `{"items":[]}` {
		t.Errorf("nobody's bookings: %s", none.Body)
	}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	key := []string{"Idempotency-Key", strings.Repeat("k~", 127) + "!"}
	first := s.request(http.MethodPost, bookings, order(documented, user, 2), key...)
	other := fmt.Sprintf("{\n \"ticketCount\": 2, \"userId\": %q, \"eventId\": %q }", strings.ToUpper(user), documented)
	again := s.request(http.MethodPost, bookings, other, key...)
	if first.Code != http.StatusCreated || again.Code != first.Code || again.Body.String() != first.Body.String() ||
		again.Header().Get("Location") != first.Header().Get("Location") || first.Header().Get("Location") == "" {
		t.Errorf("first %d %s, again %d %s", first.Code, first.Body, again.Code, again.Body)
	}
	isProblem(t, s.request(http.MethodPost, bookings, order(documented, user, 3), key...), 422, "Idempotency-Key")
	isProblem(t, s.request(http.MethodPost, bookings, order(documented, unknown, 2), key...), 422, "Idempotency-Key")
	isProblem(t, s.request(http.MethodPost, example, order(documented, user, 2), key...), 422, "Idempotency-Key")
	if s.count("booking.bookings") != 1 || s.count("outbox.messages") != 3 {
		t.Error("one key, one booking")
	}
	flow := []string{"Idempotency-Key", "flow"}
	first = s.request(http.MethodPost, example, order(documented, "test-user-123", 2), flow...)
	again = s.request(http.MethodPost, example, order(documented, "test-user-123", 2), flow...)
	if first.Code != http.StatusCreated || again.Body.String() != first.Body.String() {
		t.Errorf("first %s, again %s", first.Body, again.Body)
	}
	isProblem(t, s.request(http.MethodPost, example, order(documented, "Test-User-123", 2), flow...), 422, "Idempotency-Key")
}

func TestTheSameKeyAtTheSameMoment(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const pairs = 20
	for n := range pairs {
		var answers [2]*httptest.ResponseRecorder
		var both sync.WaitGroup
		for i := range answers {
			both.Go(func() {
				answers[i] = s.request(http.MethodPost, bookings, order(documented, user, 1), "Idempotency-Key", fmt.Sprint("pair ", n))
			})
		}
		both.Wait()
		if answers[0].Code != http.StatusCreated || answers[1].Code != http.StatusCreated || answers[0].Body.String() != answers[1].Body.String() {
			t.Errorf("%d %s, %d %s", answers[0].Code, answers[0].Body, answers[1].Code, answers[1].Body)
		}
	}
	if n := s.count("booking.bookings"); n != pairs {
		t.Errorf("%d bookings of %d keys", n, pairs)
	}
}

// A request waits for one of the same key that has not ended, and does the work itself when that one fails.
func TestAKeyWhoseFirstRequestFails(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	ctx := context.Background()
	first, err := s.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Rollback(ctx) }()
	if _, err := first.Exec(ctx, `INSERT INTO booking.idempotency_keys (key, request) VALUES ('k', decode(repeat('00', 32), 'hex'))`); err != nil {
		t.Fatal(err)
	}
	answered := make(chan *httptest.ResponseRecorder, 1)
	go func() {
		answered <- s.request(http.MethodPost, bookings, order(documented, user, 1), "Idempotency-Key", "k")
	}()
	outboxtest.Eventually(t, 10*time.Second, func() bool {
		var waiting int
		err := s.db.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' AND
			pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())`).Scan(&waiting)
		return err == nil && waiting == 1
	}, "the second request waits")
	if err := first.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if w := <-answered; w.Code != http.StatusCreated {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestNothingIsPublishedWithoutABooking(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	if _, err := s.db.Exec(context.Background(), `
		CREATE FUNCTION booking.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
		CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON booking.bookings DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION booking.refuse()`); err != nil {
		t.Fatal(err)
	}
	isProblem(t, s.request(http.MethodPost, bookings, order(documented, user, 2), "Idempotency-Key", "k"), 500, "")
	if s.count("booking.bookings") != 0 || s.count("outbox.messages") != 0 || s.count("booking.idempotency_keys") != 0 {
		t.Error("a transaction that failed at its commit left something behind")
	}
}

func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	nowhere := outboxtest.NewPool(t, "postgres://booking:secret@127.0.0.1:1/booking")
	svc, err := booking.New(booking.Config{Pool: nowhere})
	if err != nil {
		t.Fatal(err)
	}
	s.isUnavailable(t)
	s.router = web.NewRouter(web.Config{Logger: slog.New(slog.DiscardHandler)})
	svc.Routes(s.router)
	s.isUnavailable(t)
}

func (s *shop) isUnavailable(t *testing.T) {
	t.Helper()
	s.pool.Close()
	for _, w := range []*httptest.ResponseRecorder{
		s.request(http.MethodPost, bookings, order(documented, user, 2)),
		s.request(http.MethodPost, example, order(documented, user, 2)),
		s.request(http.MethodGet, bookings+"/"+unknown, ""),
		s.request(http.MethodGet, bookings+"?userId="+user, ""),
	} {
		isProblem(t, w, http.StatusServiceUnavailable, "")
		if w.Header().Get("Retry-After") == "" {
			t.Errorf("no Retry-After: %v", w.Header())
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if _, err := booking.New(booking.Config{}); err == nil {
		t.Error("a service without a pool")
	}
	s := newShop(t)
	if _, err := booking.New(booking.Config{Pool: s.pool, MaxTickets: -1}); err == nil {
		t.Error("a limit of -1 tickets")
	}
	few, err := booking.New(booking.Config{Pool: s.pool, MaxTickets: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.router = web.NewRouter(web.Config{})
	few.Routes(s.router)
	isProblem(t, s.request(http.MethodPost, bookings, order(documented, user, 2)), 422, "ticketCount")
}
