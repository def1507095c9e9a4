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
	"github.com/google/uuid"
)

// Why a message was not published.
var (
	// ErrUnroutable: no queue is bound to the routing key.
	ErrUnroutable = errors.New("unroutable: no queue is bound to the routing key")
	// ErrRefused: the broker answered with basic.nack, as a full queue makes it do.
	ErrRefused = errors.New("refused by the broker")
	// ErrTooLarge: the message is larger than can be sent.
	ErrTooLarge = errors.New("message too large")
	// ErrUnencodable: the message cannot be put on the wire, or breaks the channel each time it is.
	ErrUnencodable = errors.New("message not encodable")
	// ErrUnavailable: the broker is away, blocked or silent. Nothing is known about the message; it may have arrived.
	ErrUnavailable = errors.New("broker unavailable")
	// ErrClosed: the publisher was closed. Nothing is known about the message; it may have arrived.
	ErrClosed = errors.New("publisher closed")
)

// PublisherConfig describes a publisher. Zero values take the defaults.
type PublisherConfig struct {
	// URL is amqp://user:password@host:port/vhost.
	URL string
	// Exchange is published to; Publish's topic is the routing key.
	Exchange string
	// ToQueues publishes past all exchanges: Publish's topic is a queue's name, and Exchange stays empty.
	ToQueues bool
	// Name begins the connection's name at the broker. Default "publisher".
	Name string
	// Channels share the connection. Default 2.
	Channels int
	// InFlight bounds the unconfirmed messages of one channel. Default 1000.
	InFlight int
	// Timeout bounds one call of Publish. Default 10 s.
	Timeout time.Duration
	// ReconnectMax bounds the pause between two attempts to connect. Default 5 s.
	ReconnectMax time.Duration
	// MaxBody is the largest payload in bytes. Default 4 MiB.
	MaxBody int
	// Marshaler makes the AMQP message. Default [Marshaler].
	Marshaler watermillamqp.Marshaler
	// Prepare, if set, is called when the exchange turns out to be missing, and nothing is published until it returns: somebody
	// may be declaring the exchange anew, binding by binding, and a message that comes meanwhile would miss the queues that are
	// not bound yet. It is called again until it succeeds, or the broker refuses what it declares: then publishing goes on.
	Prepare func(ctx context.Context) error
}

func (c *PublisherConfig) setDefaults() error {
	if (c.Exchange == "") != c.ToQueues {
		return errors.New("rabbitmq: publisher config needs either an Exchange or ToQueues")
	}
	c.Channels = orDefault(c.Channels, 2)
	c.InFlight = orDefault(c.InFlight, 1000)
	c.MaxBody = orDefault(c.MaxBody, 4<<20)
	c.Timeout = orDefault(c.Timeout, 10*time.Second)
	c.ReconnectMax = orDefault(c.ReconnectMax, reconnectMax)
	if c.Name == "" {
		c.Name = "publisher"
	}
	if c.Marshaler == nil {
		c.Marshaler = Marshaler{}
	}
	return nil
}

func orDefault[T int | time.Duration](value, fallback T) T {
	if value <= 0 {
		return fallback
	}
	return value
}

// Publisher is a Watermill publisher. It is safe for concurrent use, and fastest with many calls at a time.
type Publisher struct {
	cfg      PublisherConfig
	log      *slog.Logger
	line     *line
	cancel   context.CancelFunc
	stopping context.Context // ends when Close begins
	lanes    *lanes
	workers  sync.WaitGroup
	active   sync.WaitGroup // calls of Publish
	closing  sync.RWMutex   // held for writing while closed is set
	closed   bool
	suspects suspects
	prepare  preparation
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher checks the configuration and begins to connect; the broker may be away.
func NewPublisher(cfg PublisherConfig, log *slog.Logger) (*Publisher, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.Default()
	}
	l, err := newLine(cfg.URL, cfg.Name, cfg.ReconnectMax, log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Publisher{cfg: cfg, log: log, line: l, cancel: cancel, stopping: ctx, lanes: newLanes(), suspects: newSuspects(),
		prepare: preparation{turn: make(chan struct{}, 1)},
	}
	for range cfg.Channels {
		p.workers.Go(func() { p.keepChannel(ctx) })
	}
	return p, nil
}

// State is that of the connection.
func (p *Publisher) State() State {
	_, state, _ := p.line.look()
	return state
}

// Publish sends the messages under the routing key and returns nil when the broker has taken over all of them. Any
// other outcome is an error that joins one for each message that failed.
func (p *Publisher) Publish(routingKey string, messages ...*message.Message) error {
	if !p.enter() {
		return ErrClosed
	}
	defer p.active.Done()
	deadline := time.Now().Add(p.cfg.Timeout)
	if len(messages) == 1 { // the common case, without the lists
		pub, err := p.send(deadline, routingKey, messages[0])
		if err == nil {
			err = p.await(deadline, pub)
		}
		return p.named(messages[0], err)
	}
	sent := make([]*publication, 0, len(messages))
	var errs []error
	for _, msg := range messages {
		pub, err := p.send(deadline, routingKey, msg)
		if err != nil {
			errs = append(errs, p.named(msg, err))
			continue
		}
		sent = append(sent, pub)
	}
	for _, pub := range sent {
		errs = append(errs, p.named(pub.msg, p.await(deadline, pub)))
	}
	return errors.Join(errs...)
}

func (p *Publisher) enter() bool {
	p.closing.RLock()
	defer p.closing.RUnlock()
	if p.closed {
		return false
	}
	p.active.Add(1)
	return true
}

func (p *Publisher) named(msg *message.Message, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("message %.64s: %w", msg.UUID, err)
}

// send puts one message on a channel. Its outcome comes later.
func (p *Publisher) send(deadline time.Time, routingKey string, msg *message.Message) (*publication, error) {
	publishing, err := p.cfg.Marshaler.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnencodable, err)
	}
	if publishing.MessageId == "" {
		publishing.MessageId = uuid.NewString() // a return is told apart by it
	}
	if err := check(routingKey, &publishing, p.cfg.MaxBody); err != nil {
		return nil, err
	}
	pub := newPublication(msg, routingKey, publishing)
	if p.suspects.twice(publishing.MessageId) {
		pub.outcome <- p.sendAlone(deadline, pub)
		return pub, nil
	}
	for {
		lane, err := p.lane(deadline)
		if err != nil {
			return nil, err
		}
		if lane.publish(pub) {
			return pub, nil
		}
	}
}

// lane finds a channel with room, on a connection that is not blocked, or waits for one.
func (p *Publisher) lane(deadline time.Time) (*pubChannel, error) {
	if lane, _ := p.lanes.next(); lane != nil && !p.line.blocked.Load() && lane.tryAcquire() {
		return lane, nil
	}
	ctx, cancel := context.WithDeadline(p.stopping, deadline)
	defer cancel()
	for {
		_, state, changed := p.line.look()
		if state.Blocked {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, p.gaveUp("blocked: " + state.Reason)
			}
		}
		lane, more := p.lanes.next()
		if lane == nil {
			select {
			case <-more:
				continue
			case <-ctx.Done():
				return nil, p.gaveUp("no channel: " + p.State().Reason)
			}
		}
		if lane.acquire(ctx) {
			return lane, nil
		}
		if ctx.Err() != nil {
			return nil, p.gaveUp("too many messages wait for their confirms")
		}
	}
}

func (p *Publisher) gaveUp(why string) error {
	if p.stopping.Err() != nil {
		return ErrClosed
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, why)
}

// await waits for the outcome. A confirm that does not come is the channel's fault: it is given up.
func (p *Publisher) await(deadline time.Time, pub *publication) error {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case err := <-pub.outcome:
		return err
	case <-p.stopping.Done():
	case <-timer.C:
	}
	select {
	case err := <-pub.outcome:
		return err
	default:
	}
	if _, state, _ := p.line.look(); state.Blocked {
		return p.gaveUp("blocked: " + state.Reason)
	}
	if p.stopping.Err() == nil {
		pub.lane.retire()
	}
	return p.gaveUp("no confirm in time")
}

// Close lets calls of Publish finish for two seconds, ends the others with ErrClosed, and hangs up.
func (p *Publisher) Close() error {
	p.closing.Lock()
	again := p.closed
	p.closed = true
	p.closing.Unlock()
	if again {
		return nil
	}
	finished := make(chan struct{})
	go func() {
		p.active.Wait()
		close(finished)
	}()
	select {
	case <-finished:
	case <-time.After(min(2*time.Second, p.cfg.Timeout)):
	}
	p.cancel()
	<-finished
	p.line.close()
	p.workers.Wait()
	return nil
}
