package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/services/internal/bus"
)

// documented are the nine log lines of one booking, in order.
var documented = []string{
	"🚀 Starting integration events example flow",
	"📅 Processing BookingCreatedDomainEvent for BookingId",
	"🎫 Publishing UpdateEventInventoryIntegrationEvent",
	"📧 Publishing SendBookingNotificationIntegrationEvent",
	"💰 Publishing PreparePaymentDataIntegrationEvent",
	"✅ Successfully processed BookingCreatedDomainEvent for BookingId",
	"🎫 Processing UpdateEventInventoryIntegrationEvent",
	"✅ Inventory updated successfully",
	"📊 Published InventoryUpdatedIntegrationEvent",
}

func TestABookingTravelsThroughEverything(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	c.start("relay", "booking", "catalog", "payment", "notification", "saga")
	event := c.sell(100)
	var made struct {
		Booking booking
		Events  []struct{ ID, Type string }
	}
	request := map[string]any{"eventId": event, "userId": "test-user-123", "ticketCount": 2}
	status := c.ask(http.MethodPost, c.proc("booking").url()+"/api/example/create-booking-with-flow", uuid.NewString(), request, &made)
	if status != http.StatusCreated {
		t.Fatalf("status %d", status)
	}
	if len(made.Events) != 3 {
		t.Fatalf("%d events published, want 3", len(made.Events))
	}
	var b booking
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		status := call(http.MethodGet, c.proc("booking").url()+"/api/bookings/"+made.Booking.ID, "", nil, &b)
		return status == http.StatusOK && b.Status == "awaiting_payment" && b.Notified != nil && *b.Notified
	}, "the booking does not come to its payment")
	if left := c.available(event); left != 98 {
		t.Errorf("%d tickets left, want 98", left)
	}
	var payments struct{ Items []struct{ ID, Amount string } }
	call(http.MethodGet, c.proc("payment").url()+"/api/payments?bookingId="+b.ID, "", nil, &payments)
	if len(payments.Items) != 1 || payments.Items[0].ID != b.PaymentID || payments.Items[0].Amount != "50.00" {
		t.Errorf("payments are %+v", payments)
	}
	for _, e := range made.Events {
		_, err := os.Stat(filepath.Join(c.mailDir, e.ID+".eml"))
		if is := e.Type == contracts.TypeSendBookingNotification; is != (err == nil) {
			t.Errorf("mail of %s: %v", e.Type, err)
		}
	}
	c.checkLog(b.ID)
	for _, name := range []string{"booking", "catalog", "payment", "notification", "saga", "relay"} {
		c.proc(name).stop()
	}
}

// checkLog wants the documented lines of the booking in order, all of one flow.
func (c *city) checkLog(id string) {
	c.t.Helper()
	var lines []map[string]any
	for _, name := range []string{"booking", "catalog"} {
		p := c.proc(name)
		p.mu.Lock()
		lines = append(lines, p.lines...)
		p.mu.Unlock()
	}
	slices.SortStableFunc(lines, func(a, b map[string]any) int { return strings.Compare(text(a, "time"), text(b, "time")) })
	flow := ""
	for _, line := range lines {
		if text(line, "booking_id") == id {
			flow = text(line, "correlation_id")
		}
	}
	var got []string
	for _, line := range lines {
		if flow != "" && text(line, "correlation_id") == flow && slices.Contains(documented, text(line, "msg")) {
			got = append(got, text(line, "msg"))
		}
		if text(line, "booking_id") == id && text(line, "correlation_id") != flow {
			c.t.Errorf("a line of the booking is of another flow: %v", line)
		}
	}
	if !slices.Equal(got, documented) {
		c.t.Errorf("the flow's log is\n%s", strings.Join(got, "\n"))
	}
}

func text(line map[string]any, key string) string {
	s, _ := line[key].(string)
	return s
}

func TestAMessageDeliveredTwiceHasOneEffect(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	c.start("relay", "booking", "catalog", "payment", "notification")
	event := c.sell(10)
	b := c.book(event, 3)
	topology := bus.Topology()
	p, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: c.amqp, Exchange: topology.Exchange}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var (
		id, topic string
		partition int
		payload   []byte
	)
	err = c.pool("booking").QueryRow(t.Context(), `
		SELECT uuid::text, topic, partition, payload FROM outbox.messages WHERE key = $1 AND topic = $2`, b.ID, contracts.TypeUpdateEventInventory,
	).Scan(&id, &topic, &partition, &payload)
	if err != nil {
		t.Fatal(err)
	}
	again := message.NewMessage(id, payload)
	again.Metadata = message.Metadata{outbox.HeaderID: id, outbox.HeaderType: topic, outbox.HeaderSubject: b.ID}
	for range 3 {
		if err := p.Publish(topology.RoutingKey(topic, partition), again.Copy()); err != nil {
			t.Fatal(err)
		}
	}
	other := c.book(event, 1) // and life goes on
	c.settled(2)
	if left := c.available(event); left != 6 {
		t.Errorf("%d tickets left, want 6", left)
	}
	catalog := c.pool("catalog")
	if n := count(t, catalog, `SELECT count(*) FROM outbox.messages WHERE key = ANY ($1)`, []string{b.ID, other.ID}); n != 2 {
		t.Errorf("%d answers, want one for each booking", n)
	}
}

// settled waits until that many bookings have ended their way, with every answer there.
func (c *city) settled(bookings int) {
	c.t.Helper()
	db := c.pool("booking")
	outboxtest.Eventually(c.t, 3*time.Minute, func() bool {
		return count(c.t, db, `
			SELECT count(*) FROM booking.bookings
			WHERE status <> 'pending' AND payment_id IS NOT NULL AND notified IS NOT NULL`) == bookings
	}, "not all of %d bookings have settled", bookings)
}
