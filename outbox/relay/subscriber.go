package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// nacksInPlace is after how many attempts a nacked message makes way for the others of its window.
const nacksInPlace = 3

var (
	errNacked         = errors.New("the handler nacked the message")
	errRefused        = errors.New("the handler nacked the message again")
	errNoSubscription = errors.New("nobody subscribes to the message's topic")
	errUnanswered     = errors.New("the subscription ended, and the handler has not answered in time")
	errNotTaken       = errors.New("the subscriptions ended before the message was given out")
	errClosed         = errors.New("relay: subscriber closed")
)

// Subscriber is the outbox of one database as a Watermill subscriber, for programs that handle the messages themselves
// instead of relaying them to a broker. It is a member of the database's relays: it shares the partitions with them,
// and moves the same cursor. So there is one consumer group, and all its members must subscribe to the same topics.
//
// Every committed message is given out until it is acknowledged. Until then, while its context lasts, no other of its key
// is; messages of different keys are out together, up to Config.InFlight for each partition. What was acknowledged
// comes again only where the cursor could not record it: after a crash or a lost connection, and when an earlier message
// of the partition was not acknowledged before the end.
//
// A nacked message comes again after a pause; one that is nacked again and again waits in outbox.stuck between its
// attempts, and its key alone with it. So does a message whose topic nobody here subscribes to, until somebody does. A
// message that is neither acknowledged nor nacked, or not taken from the channel, holds up its partition: handlers need
// a deadline.
type Subscriber struct {
	cfg     Config
	src     *source
	closing context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	subs    map[*subscription]struct{}
	waiting []*Delivery        // wanted by a subscription, oldest first
	stop    context.CancelFunc // ends the source, which runs while there are subscriptions
}

var _ message.Subscriber = (*Subscriber)(nil)

// subscription takes what it wants from the waiting messages, one after the other.
type subscription struct {
	topic string
	out   chan *message.Message
	wake  chan struct{} // there may be something to take
}

func (sub *subscription) wants(d *Delivery) bool { return sub.topic == "" || sub.topic == d.Type }

// NewSubscriber checks the configuration: one database, and none of Publisher, RoutingKey, Classify and Middlewares,
// which are for relaying. It connects to nothing; Subscribe does.
func NewSubscriber(cfg Config) (*Subscriber, error) {
	switch {
	case len(cfg.Databases) != 1:
		return nil, fmt.Errorf("relay: config has %d Databases, a subscriber needs one", len(cfg.Databases))
	case cfg.Publisher != nil || cfg.RoutingKey != nil || cfg.Classify != nil || cfg.Middlewares != nil:
		return nil, errors.New("relay: config has a Publisher, RoutingKey, Classify or Middlewares, a subscriber uses none")
	}
	cfg.Classify = classifyAnswer
	cfg.setDefaults()
	s := &Subscriber{cfg: cfg, subs: map[*subscription]struct{}{}}
	src, err := newSource(cfg.Databases[0], &s.cfg)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	s.src = src
	s.closing, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func classifyAnswer(err error) Class {
	switch {
	case errors.Is(err, errRefused):
		return Failed
	case errors.Is(err, errNoSubscription):
		return Unroutable
	}
	return ""
}

// Subscribe gives out the messages of a topic, or of all when it is empty, until ctx ends or the subscriber is closed;
// then it closes the channel. Each message goes to one of the subscriptions that want it. A database that is away is
// waited for.
//
// A message carries its [Delivery], and the values of ctx. One that is out at the end may still be acknowledged for as
// long as Config.Grace. Its context ends after that, at its acknowledgement or nack, and when the database or the lease
// is lost and it will be given out again.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Err() != nil {
		return nil, errClosed
	}
	if len(s.subs) == 0 {
		if err := s.start(); err != nil {
			return nil, err
		}
	}
	sub := &subscription{topic: topic, out: make(chan *message.Message), wake: make(chan struct{}, 1)}
	s.subs[sub] = struct{}{}
	s.running.Go(func() {
		ctx, cancel := context.WithCancel(ctx)
		defer context.AfterFunc(s.closing, cancel)()
		defer cancel()
		defer close(sub.out)
		defer s.leave(sub)
		s.feed(ctx, sub)
	})
	return sub.out, nil
}

// Close ends all subscriptions, waits for the messages that are out as Subscribe says, records what is acknowledged,
// and gives the partitions back. What is not acknowledged stays for the next subscriber or relay. It may be called again.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
	s.src.pool.Close()
	return nil
}

// start takes part in the relaying of the database.
func (s *Subscriber) start() error {
	ctx, stop := context.WithCancel(context.Background())
	messages, err := s.src.Subscribe(ctx, "")
	if err != nil {
		stop()
		return err
	}
	s.stop = stop
	s.running.Go(func() {
		for msg := range messages {
			if d, ok := DeliveryFrom(msg.Context()); ok {
				s.offer(d)
			}
		}
	})
	return nil
}

// leave ends a subscription, and with the last one the work on the database.
func (s *Subscriber) leave(sub *subscription) {
	s.mu.Lock()
	delete(s.subs, sub)
	if len(s.subs) == 0 {
		s.stop()
	}
	left := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for _, d := range left {
		s.offer(d)
	}
}

// offer lets a message wait for the subscriptions that want it.
func (s *Subscriber) offer(d *Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := false
	for sub := range s.subs {
		if sub.wants(d) {
			wanted = true
			sub.poke()
		}
	}
	switch {
	case wanted:
		s.waiting = append(slices.DeleteFunc(s.waiting, (*Delivery).isLost), d)
	case len(s.subs) > 0:
		d.end(errNoSubscription)
	default:
		d.end(errNotTaken)
	}
}

func (sub *subscription) poke() {
	select {
	case sub.wake <- struct{}{}:
	default:
	}
}

// take removes the oldest waiting message that the subscription wants.
func (s *Subscriber) take(sub *subscription) *Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.waiting, sub.wants)
	if i < 0 {
		return nil
	}
	d := s.waiting[i]
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return d
}

// feed is one subscription.
func (s *Subscriber) feed(ctx context.Context, sub *subscription) {
	for ctx.Err() == nil {
		if d := s.take(sub); d != nil {
			s.hand(ctx, sub, d)
			continue
		}
		select {
		case <-sub.wake:
		case <-ctx.Done():
		}
	}
}

// hand gives out a message, unless the subscription ends or the pump is gone before somebody takes it.
func (s *Subscriber) hand(ctx context.Context, sub *subscription, d *Delivery) {
	if d.isLost() {
		return
	}
	handling, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), deliveryKey{}, d))
	d.msg.SetContext(handling)
	select {
	case sub.out <- d.msg:
		s.running.Go(func() {
			defer cancel()
			d.end(s.answer(ctx, d))
		})
		return
	case <-ctx.Done():
		s.putBack(d)
	case <-d.lost:
	}
	cancel()
}

// putBack lets a message wait in front of those behind it.
func (s *Subscriber) putBack(d *Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = slices.Insert(s.waiting, 0, d)
}

// answer waits for the handler's word.
func (s *Subscriber) answer(ctx context.Context, d *Delivery) error {
	ended := ctx.Done()
	var grace <-chan time.Time
	for {
		select {
		case <-d.msg.Acked():
			return nil
		case <-d.msg.Nacked():
			if d.stuck || d.Attempt >= nacksInPlace {
				return errRefused
			}
			return errNacked
		case <-ended:
			ended, grace = nil, time.After(s.cfg.Grace)
		case <-grace:
			return errUnanswered
		case <-d.lost:
			return errUnanswered
		}
	}
}
