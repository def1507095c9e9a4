package booking_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/services/internal/bus"
)

// wire is the service's consumer on a vhost, and a publisher that plays the other services.
type wire struct {
	t         *testing.T
	publisher *rabbitmq.Publisher

	mu      sync.Mutex
	results []string // "handled inventory-updated"
}

func consume(t *testing.T, s *shop) *wire {
	t.Helper()
	address, w := outboxtest.NewVHost(t), &wire{t: t}
	if err := bus.Topology().Apply(context.Background(), address); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	b, err := bus.Open(bus.Config{Name: "booking", URL: address, Pool: s.pool, Logger: log, Observe: w.observe})
	if err != nil {
		t.Fatal(err)
	}
	s.svc.Handlers(b.Consumer)
	w.publisher, err = rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: address, Exchange: bus.Topology().Exchange}, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for _, err := range []error{<-ended, b.Close(), w.publisher.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return w
}

func (w *wire) observe(o inbox.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	parts := strings.Split(o.Meta.Type, ".")
	w.results = append(w.results, string(o.Result)+" "+parts[len(parts)-2])
}

// saw waits for a result.
func (w *wire) saw(want string, times int) {
	w.t.Helper()
	outboxtest.Eventually(w.t, 20*time.Second, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := 0
		for _, got := range w.results {
			if got == want {
				n++
			}
		}
		return n == times
	}, "%s, %d times", want, times)
}

func (w *wire) send(e contracts.Event) {
	w.t.Helper()
	body, err := json.Marshal(e)
	if err != nil {
		w.t.Fatal(err)
	}
	id := uuid.Must(uuid.NewV7()).String()
	msg := message.NewMessage(id, body)
	msg.Metadata = message.Metadata{
		outbox.HeaderID: id, outbox.HeaderType: e.EventType(), outbox.HeaderSubject: e.EventKey(),
		outbox.HeaderSource: strings.Split(e.EventType(), ".")[1],
		outbox.HeaderTime:   time.Now().UTC().Format(time.RFC3339Nano), outbox.HeaderSpecVersion: "1.0",
	}
	if err := w.publisher.Publish(bus.Topology().RoutingKey(e.EventType(), 0), msg); err != nil {
		w.t.Fatal(err)
	}
}

func TestHandlersOverRabbitMQ(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	w := consume(t, s)
	w.send(onSale(2, 2550))
	w.saw("handled catalog-event-published", 1)
	first, second := answers{s.book()["id"].(string)}, answers{s.book()["id"].(string)}
	w.send(first.payable())
	w.send(first.told(true))
	w.send(first.reserved())
	w.send(second.refused())
	w.send(first.reserved()) // under another message id
	w.send(answers{unknown}.reserved())
	w.saw("handled payment-data-prepared", 1)
	w.saw("handled notification-sent", 1)
	w.saw("handled inventory-updated", 2)
	w.saw("handled inventory-update-rejected", 1)
	w.saw("parked inventory-updated", 1) // nobody's booking: at once, not after retries
	if got := state(s.get(first.id)); got != "awaiting_payment <nil> true true true" {
		t.Error(got)
	}
	if got := state(s.get(second.id)); got != "rejected sold_out false false <nil>" {
		t.Error(got)
	}
}
