package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	watermillamqp "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

// SubscriberConfig describes a subscriber. Zero values take the defaults.
type SubscriberConfig struct {
	// URL is amqp://user:password@host:port/vhost.
	URL string
	// Name begins the connection's name at the broker. Default "subscriber".
	Name string
	// Prefetch is how many messages the broker sends ahead per queue. Default 16.
	Prefetch int
	// Outstanding is how many messages of a queue are handed out before the first is acknowledged. With more than one,
	// they must be acknowledged in order, and a nack ends the broker's consumer for a pause: it takes everything back
	// that is not acknowledged and gives it again, in order. Default 1.
	Outstanding int
	// Grace is how long a handler that runs is waited for when its subscription ends; then its message's context is
	// cancelled, and a second later it is left alone. Default 30 s.
	Grace time.Duration
	// ReconnectMax bounds the pause between two attempts to connect. Default 5 s.
	ReconnectMax time.Duration
	// RedeliverMin and RedeliverMax bound the pause before a nacked message is given again. Default 50 ms and 5 s.
	RedeliverMin, RedeliverMax time.Duration
	// Marshaler reads the AMQP message. Default [Marshaler].
	Marshaler watermillamqp.Marshaler
}

func (c *SubscriberConfig) setDefaults() {
	c.Outstanding = orDefault(c.Outstanding, 1)
	c.Prefetch = orDefault(c.Prefetch, max(16, 2*c.Outstanding))
	c.ReconnectMax = orDefault(c.ReconnectMax, reconnectMax)
	c.Grace = orDefault(c.Grace, 30*time.Second)
	c.RedeliverMin = orDefault(c.RedeliverMin, 50*time.Millisecond)
	c.RedeliverMax = orDefault(c.RedeliverMax, 5*time.Second)
	if c.Name == "" {
		c.Name = "subscriber"
	}
	if c.Marshaler == nil {
		c.Marshaler = Marshaler{}
	}
}

// Subscriber is a Watermill subscriber. Its subscriptions share one connection.
type Subscriber struct {
	cfg      SubscriberConfig
	log      *slog.Logger
	line     *line
	stopping context.Context
	cancel   context.CancelFunc

	mu     sync.Mutex
	closed bool
	subs   sync.WaitGroup
}

var _ message.Subscriber = (*Subscriber)(nil)

// NewSubscriber checks the configuration and begins to connect; the broker may be away.
func NewSubscriber(cfg SubscriberConfig, log *slog.Logger) (*Subscriber, error) {
	cfg.setDefaults()
	if log == nil {
		log = slog.Default()
	}
	l, err := newLine(cfg.URL, cfg.Name, cfg.ReconnectMax, log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Subscriber{cfg: cfg, log: log, line: l, stopping: ctx, cancel: cancel}, nil
}

// State is that of the connection.
func (s *Subscriber) State() State {
	_, state, _ := s.line.look()
	return state
}

// Subscribe gives the messages of a queue, one at a time or as many as Outstanding, until ctx ends or Close; then it closes the channel, after
// the handler that runs has finished. The queue may be missing and the broker away; both are waited for.
func (s *Subscriber) Subscribe(ctx context.Context, queue string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("subscriber closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.stopping, cancel)
	out := make(chan *message.Message, s.cfg.Outstanding-1)
	s.subs.Go(func() {
		defer close(out)
		defer cancel()
		defer stop()
		s.keepConsuming(ctx, queue, out)
	})
	return out, nil
}

// Close ends all subscriptions as if their contexts had ended, and hangs up.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.subs.Wait()
	s.line.close()
	return nil
}

func (s *Subscriber) keepConsuming(ctx context.Context, queue string, out chan<- *message.Message) {
	pause := min(reconnectMin, s.cfg.ReconnectMax)
	for {
		conn, err := s.line.get(ctx)
		if err != nil {
			return
		}
		began := time.Now()
		err = s.consume(ctx, conn, queue, out)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > s.cfg.ReconnectMax {
			pause = min(reconnectMin, s.cfg.ReconnectMax)
		}
		s.log.Warn("consuming interrupted, starting again", "queue", queue, "error", err)
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, s.cfg.ReconnectMax)
	}
}

// consume hands out messages on a channel of its own until ctx ends (nil) or the channel does.
func (s *Subscriber) consume(ctx context.Context, conn *amqp.Connection, queue string, out chan<- *message.Message) error {
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	// Closing returns what was prefetched, in order; basic.nack and basic.cancel do not.
	defer func() { _ = ch.Close() }()
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.Qos(s.cfg.Prefetch, 0, false); err != nil {
		return fmt.Errorf("set the prefetch: %w", err)
	}
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	if s.cfg.Outstanding > 1 {
		several := handout{Subscriber: s, ch: ch, deliveries: deliveries, closed: closed, out: out}
		return several.run(ctx)
	}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case d, ok := <-deliveries:
			if !ok {
				return ended(closed)
			}
			if ctx.Err() != nil {
				return nil
			}
			if err := s.hand(ctx, d, out); err != nil {
				return err
			}
		}
	}
	return nil
}

// ended says why deliveries stopped: the channel closed, or the queue was deleted.
func ended(closed <-chan *amqp.Error) error {
	select {
	case err := <-closed:
		if err != nil {
			return err
		}
	default:
	}
	return errors.New("the broker ended the consumer: was the queue deleted?")
}

// hand gives one delivery to the handler, again after every nack, until it is acknowledged or ctx ends. Without an
// acknowledgement it stays the broker's.
func (s *Subscriber) hand(ctx context.Context, d amqp.Delivery, out chan<- *message.Message) error {
	pause := s.cfg.RedeliverMin
	for {
		msg, err := s.cfg.Marshaler.Unmarshal(d)
		if err != nil {
			return fmt.Errorf("the marshaler failed on a message, which blocks its queue: %w", err)
		}
		handling, cancel := context.WithCancel(context.WithoutCancel(ctx))
		msg.SetContext(handling)
		acked, err := s.offer(ctx, msg, cancel, out)
		cancel()
		switch {
		case err != nil || ctx.Err() != nil && !acked:
			return err
		case acked:
			return d.Ack(false)
		}
		if !wait(ctx, pause) {
			return nil
		}
		pause = min(2*pause, s.cfg.RedeliverMax)
	}
}

var errAbandoned = errors.New("the handler did not finish in time after its subscription ended")

// offer hands the message out and waits for its answer. When ctx ends meanwhile the handler has the grace period.
func (s *Subscriber) offer(ctx context.Context, msg *message.Message, cancel func(), out chan<- *message.Message) (acked bool, err error) {
	select {
	case out <- msg:
	case <-ctx.Done():
		return false, nil
	}
	select {
	case <-msg.Acked():
		return true, nil
	case <-msg.Nacked():
		return false, nil
	case <-ctx.Done():
	}
	grace := time.AfterFunc(s.cfg.Grace, cancel)
	defer grace.Stop()
	limit := time.NewTimer(s.cfg.Grace + time.Second)
	defer limit.Stop()
	select {
	case <-msg.Acked():
		return true, nil
	case <-msg.Nacked():
		return false, nil
	case <-limit.C:
		return false, errAbandoned
	}
}
