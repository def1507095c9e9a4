package catalog_test

import (
	"context"
	"encoding/json"
	"log/slog"
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

// listen lets the service consume from a vhost of its own and returns what publishes to it.
func (s *shop) listen(t *testing.T) *rabbitmq.Publisher {
	t.Helper()
	amqp, quiet := outboxtest.NewVHost(t), slog.New(slog.DiscardHandler)
	if err := bus.Topology().Apply(t.Context(), amqp); err != nil {
		t.Fatal(err)
	}
	b, err := bus.Open(bus.Config{Name: "catalog", URL: amqp, Pool: s.pool, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	s.service.Handlers(b.Consumer)
	publisher, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: amqp, Exchange: bus.Topology().Exchange}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_, _ = publisher.Close(), b.Close()
	})
	return publisher
}

// toCatalog is the request as the relay sends it.
func toCatalog(t *testing.T, request contracts.UpdateEventInventory) *message.Message {
	t.Helper()
	payload, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	msg := message.NewMessage(uuid.Must(uuid.NewV7()).String(), payload)
	msg.Metadata = message.Metadata{
		outbox.HeaderID: msg.UUID, outbox.HeaderType: request.EventType(), outbox.HeaderSubject: request.EventKey(),
		outbox.HeaderSource: "booking", outbox.HeaderCorrelationID: "flow-3",
	}
	return msg
}

func TestHandlers(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	publisher := s.listen(t)
	e, booking, bad := s.create(t, 10), uuid.New(), uuid.New()
	request := toCatalog(t, asks(e.ID, booking, 2))
	key := bus.Topology().RoutingKey(contracts.TypeUpdateEventInventory, 1)
	// The same message twice, and behind them one that nobody can fulfil.
	if err := publisher.Publish(key, request, request.Copy(), toCatalog(t, asks(e.ID, bad, -2))); err != nil {
		t.Fatal(err)
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		var stuck int
		err := s.db.QueryRow(t.Context(), `SELECT count(*) FROM inbox.stuck WHERE key = $1 AND error LIKE '%quantityReduced%'`, bad.String()).Scan(&stuck)
		return err == nil && stuck == 1
	}, "the impossible request is not stuck")
	messages := s.published(t, booking)
	only[contracts.InventoryUpdated](t, messages)
	if m := messages[0].Metadata; m[outbox.HeaderCorrelationID] != "flow-3" || m[outbox.HeaderCausationID] != request.UUID {
		t.Errorf("the answer's metadata is %v", m)
	}
	if left := s.event(t, e.ID).Available; left != 8 || len(s.published(t, bad)) != 0 {
		t.Errorf("%d are left", left)
	}
	s.addsUp(t)
}
