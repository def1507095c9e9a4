package operate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// errNoBroker says that nobody told where the broker is.
var errNoBroker = fmt.Errorf("%w: no broker is configured", ErrRefused)

const (
	brokerTimeout = 5 * time.Second // of a conversation with the broker
	probeTimeout  = time.Second     // of a publication that shows whether the broker takes any
)

// broker asks RabbitMQ.
type broker struct {
	url      string
	observer *rabbitmq.Observer

	probing sync.Mutex
	probe   *rabbitmq.Publisher
}

func newBroker(url string) broker {
	return broker{url: url, observer: rabbitmq.NewObserver(url, "outbox operator")}
}

// depth is what a queue says about itself.
type depth struct {
	missing   bool
	messages  int64 // ready ones; those that a consumer has in hand are not counted
	consumers int
}

func (b *broker) close() {
	b.observer.Close()
	b.probing.Lock()
	defer b.probing.Unlock()
	if b.probe != nil {
		_ = b.probe.Close()
		b.probe = nil
	}
}

// channel opens a channel. It must be closed with the function that comes with it.
func (b *broker) channel(ctx context.Context) (ch *amqp.Channel, done func(), err error) {
	if b.url == "" {
		return nil, nil, errNoBroker
	}
	return b.observer.Channel(ctx)
}

// alone opens a channel on a connection of its own, which the function that comes with it closes. For work that is lost when
// somebody else's question, given up, ends the connection that they share.
func (b *broker) alone(ctx context.Context) (ch *amqp.Channel, done func(), err error) {
	if b.url == "" {
		return nil, nil, errNoBroker
	}
	own := rabbitmq.NewObserver(b.url, "outbox operator, dead letters")
	ch, end, err := own.Channel(ctx)
	if err != nil {
		own.Close()
		return nil, nil, err
	}
	return ch, func() { end(); own.Close() }, nil
}

// depths asks for each queue how many messages are in it. A quorum queue whose leader is slow counts as empty and without
// consumers.
func (b *broker) depths(ctx context.Context, queues []string) (map[string]depth, error) {
	return b.ask(ctx, queues, b.observer.Depths)
}

// sureDepths is depths that asks again, for most of a second, what says that it is empty and without consumers.
func (b *broker) sureDepths(ctx context.Context, queues []string) (map[string]depth, error) {
	return b.ask(ctx, queues, b.observer.SureDepths)
}

func (b *broker) ask(ctx context.Context, queues []string, ask func(context.Context, []string) (map[string]rabbitmq.Depth, error)) (map[string]depth, error) {
	found := make(map[string]depth, len(queues))
	if len(queues) == 0 {
		return found, nil
	}
	if b.url == "" {
		return found, errNoBroker
	}
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	said, err := ask(ctx, queues)
	for name, d := range said {
		found[name] = depth{missing: d.Missing, messages: d.Messages, consumers: d.Consumers}
	}
	return found, err
}

// takes reports whether the broker takes messages; if not, why. It publishes one that no queue is bound for, which the
// broker returns: only who publishes learns that it is blocked.
func (b *broker) takes(exchange string) error {
	b.probing.Lock()
	defer b.probing.Unlock()
	if b.url == "" {
		return errNoBroker
	}
	if b.probe == nil {
		var err error
		b.probe, err = rabbitmq.NewPublisher(rabbitmq.PublisherConfig{
			URL: b.url, Exchange: exchange, Name: "outbox operator, probe", Channels: 1, InFlight: 1, Timeout: probeTimeout, ReconnectMax: time.Second,
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
	}
	err := b.probe.Publish("operate.probe", message.NewMessage(watermill.NewUUID(), nil))
	if errors.Is(err, rabbitmq.ErrUnroutable) {
		return nil
	}
	if state := b.probe.State(); state.Blocked {
		return fmt.Errorf("%w: blocked: %s", rabbitmq.ErrUnavailable, state.Reason)
	}
	return err
}
