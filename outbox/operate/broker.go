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
var errNoBroker = errors.New("no broker is configured")

const (
	brokerTimeout = 5 * time.Second // of a conversation with the broker
	probeTimeout  = time.Second     // of a publication that shows whether the broker takes any
)

// broker asks RabbitMQ over one connection, which is made when it is first needed and again when it has broken.
type broker struct {
	url string

	mu   sync.Mutex
	conn *amqp.Connection

	probing sync.Mutex
	probe   *rabbitmq.Publisher
}

// depth is what a queue says about itself.
type depth struct {
	missing   bool
	messages  int64 // ready ones; those that a consumer has in hand are not counted
	consumers int
}

func (b *broker) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		_ = b.conn.CloseDeadline(time.Now().Add(time.Second)) // closed is what matters
		b.conn = nil
	}
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
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn == nil || b.conn.IsClosed() {
		if b.conn, err = rabbitmq.Dial(ctx, b.url, "outbox operator"); err != nil {
			b.conn = nil
			return nil, nil, err
		}
	}
	conn := b.conn
	// A broker that does not answer is noticed by the heartbeat at the latest; a caller that gives up ends it at once.
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now().Add(100 * time.Millisecond)) })
	if ch, err = conn.Channel(); err != nil {
		stop()
		_ = conn.CloseDeadline(time.Now().Add(100 * time.Millisecond))
		b.conn = nil
		return nil, nil, fmt.Errorf("open a channel: %w", err)
	}
	return ch, func() { _ = ch.Close(); stop() }, nil
}

// depths asks for each queue how many messages are in it.
func (b *broker) depths(ctx context.Context, queues []string) (map[string]depth, error) {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	found := make(map[string]depth, len(queues))
	for len(queues) > 0 {
		ch, done, err := b.channel(ctx)
		if err != nil {
			return found, err
		}
		asked, err := passive(ch, queues, found)
		done()
		if err != nil {
			return found, err
		}
		queues = queues[asked:]
	}
	return found, nil
}

// passive asks until a queue is missing, which closes the channel.
func passive(ch *amqp.Channel, queues []string, found map[string]depth) (asked int, err error) {
	for i, name := range queues {
		q, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
		var closed *amqp.Error
		switch {
		case errors.As(err, &closed) && closed.Code == amqp.NotFound:
			found[name] = depth{missing: true}
			return i + 1, nil
		case err != nil:
			return i, fmt.Errorf("ask for queue %s: %w", name, err)
		}
		found[name] = depth{messages: int64(q.Messages), consumers: q.Consumers}
	}
	return len(queues), nil
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
