package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

var (
	errNacked         = errors.New("the subscriber's handler nacked the message")
	errNoSubscription = errors.New("nobody subscribes to the message's topic")
	errClosed         = errors.New("the subscription was closed before the message was acknowledged")
	errSubscriber     = errors.New("the subscriber is closed")
)

// Subscriber is the outbox of one database as a Watermill subscriber, for a program that handles the messages itself
// instead of relaying them. It is a relay of its database: it shares the partitions with the other relays of the
// database, and moves the same cursor. A message is out once for each acknowledgement; until it is acknowledged no
// other of its key is given out. A nacked message comes again after a pause. One that nobody here subscribes to waits
// in outbox.stuck, and its key with it, until somebody does.
type Subscriber struct {
	cfg     Config
	src     *source
	closing context.Context
	stop    context.CancelFunc
	start   func() error
	running sync.WaitGroup

	mu   sync.Mutex
	hubs map[string]*hub
}

var _ message.Subscriber = (*Subscriber)(nil)

// hub is what the subscriptions to one topic share.
type hub struct {
	in   chan *Delivery
	gone chan struct{} // closed when the last subscription has ended
	subs int
}

// NewSubscriber checks the configuration, which names one database. Publisher, RoutingKey, Classify and Middlewares are not used.
// It connects to nothing; the first Subscribe does.
func NewSubscriber(cfg Config) (*Subscriber, error) {
	if len(cfg.Databases) != 1 {
		return nil, fmt.Errorf("relay: config has %d Databases: a subscriber has one", len(cfg.Databases))
	}
	cfg.Classify = func(err error) Class {
		if errors.Is(err, errNoSubscription) {
			return Unroutable
		}
		return ""
	}
	cfg.setDefaults()
	s := &Subscriber{cfg: cfg, hubs: map[string]*hub{}}
	src, err := newSource(cfg.Databases[0], &s.cfg)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	s.src = src
	s.closing, s.stop = context.WithCancel(context.Background())
	s.start = sync.OnceValue(func() error {
		messages, err := src.Subscribe(s.closing, "")
		if err == nil {
			s.running.Go(func() { s.dispatch(messages) })
		}
		return err
	})
	return s, nil
}

// Subscribe gives out the messages whose topic it is, or of every topic that nobody else here subscribes to when it is
// empty, until ctx ends or the subscriber is closed; then the channel is closed. Several subscriptions to a topic share
// its messages. What is out then may still be acknowledged for as long as Config.Grace, and comes again otherwise.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Err() != nil {
		return nil, errSubscriber
	}
	h := s.hubs[topic]
	if h == nil {
		h = &hub{in: make(chan *Delivery), gone: make(chan struct{})}
		s.hubs[topic] = h
	}
	h.subs++
	if err := s.start(); err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	s.running.Go(func() {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.closing, cancel)()
		defer close(out)
		defer s.leave(topic, h)
		s.feed(ctx, h, out)
	})
	return out, nil
}

// leave ends a subscription.
func (s *Subscriber) leave(topic string, h *hub) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.subs--; h.subs == 0 {
		delete(s.hubs, topic)
		close(h.gone)
	}
}

// Close ends all subscriptions, gives the partitions back, and waits for both.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.stop()
	s.mu.Unlock()
	s.running.Wait()
	s.src.pool.Close()
	return nil
}

// dispatch gives each message to its topic. Messages wait for each other only where their keys are the same.
func (s *Subscriber) dispatch(messages <-chan *message.Message) {
	for msg := range messages {
		d, _ := DeliveryFrom(msg.Context())
		h := s.find(d.Type)
		if h == nil {
			d.end(errNoSubscription)
			continue
		}
		s.running.Go(func() {
			select {
			case h.in <- d:
			case <-h.gone:
				d.end(errNoSubscription)
			case <-s.closing.Done():
				d.end(errClosed)
			}
		})
	}
}

func (s *Subscriber) find(topic string) *hub {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.hubs[topic]; h != nil {
		return h
	}
	return s.hubs[""]
}

// feed is one subscription.
func (s *Subscriber) feed(ctx context.Context, h *hub, out chan<- *message.Message) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-h.in:
			own, cancel := context.WithCancel(d.msg.Context())
			d.msg.SetContext(own)
			select {
			case <-ctx.Done():
				cancel()
				d.end(errClosed)
				return
			case out <- d.msg:
				s.running.Go(func() {
					defer cancel()
					d.end(s.settled(ctx, d.msg, cancel))
				})
			}
		}
	}
}

// settled waits for the handler's word. When the subscription ends the message's context does, and the handler has the
// grace period to finish.
func (s *Subscriber) settled(ctx context.Context, msg *message.Message, cancel context.CancelFunc) error {
	select {
	case <-msg.Acked():
		return nil
	case <-msg.Nacked():
		return errNacked
	case <-ctx.Done():
	}
	cancel()
	grace := time.NewTimer(s.cfg.Grace)
	defer grace.Stop()
	select {
	case <-msg.Acked():
		return nil
	case <-msg.Nacked():
		return errNacked
	case <-grace.C:
		return errClosed
	}
}
