package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

// publication is one message on its way.
type publication struct {
	msg        *message.Message
	key        string
	publishing amqp.Publishing
	lane       *pubChannel
	returned   bool
	outcome    chan error // gets exactly one value
}

// route is what a return is matched by.
type route struct{ id, key string }

// pubChannel is one AMQP channel in confirm mode.
type pubChannel struct {
	ch       *amqp.Channel
	confirms chan amqp.Confirmation
	returns  chan amqp.Return
	closed   chan *amqp.Error
	slots    chan struct{} // one for each message that may be in flight
	dead     chan struct{} // closed when nothing can be published any more

	mu      sync.Mutex // publishing holds it, so that tags follow the order of writing
	ended   bool
	next    uint64
	pending map[uint64]*publication
	routes  map[route][]*publication // the pending ones, oldest first
}

func openPubChannel(conn *amqp.Connection, inFlight int) (*pubChannel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open a channel: %w", err)
	}
	c := &pubChannel{
		ch: ch, slots: make(chan struct{}, inFlight), dead: make(chan struct{}),
		pending: map[uint64]*publication{}, routes: map[route][]*publication{},
		// Buffers for everything that can be in flight: the connection's reader never waits.
		confirms: ch.NotifyPublish(make(chan amqp.Confirmation, inFlight)),
		returns:  ch.NotifyReturn(make(chan amqp.Return, inFlight)),
		closed:   ch.NotifyClose(make(chan *amqp.Error, 1)),
	}
	if err := ch.Confirm(false); err != nil {
		_ = ch.Close()
		return nil, fmt.Errorf("switch confirms on: %w", err)
	}
	return c, nil
}

// acquire waits for room; false when ctx ended or the channel died.
func (c *pubChannel) acquire(ctx context.Context) bool {
	select {
	case <-c.dead:
		return false
	default:
	}
	select {
	case c.slots <- struct{}{}:
		return true
	case <-c.dead:
		return false
	case <-ctx.Done():
		return false
	}
}

// publish writes the message; false when the channel can take no more. The slot is the publication's from now on.
func (c *pubChannel) publish(exchange string, pub *publication) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.next++
	tag := c.next
	r := route{pub.publishing.MessageId, pub.key}
	pub.lane = c
	c.pending[tag] = pub
	c.routes[r] = append(c.routes[r], pub)
	// The confirm may be read before this returns; it waits for the lock. A failed write closes the connection,
	// and how far it got is unknown: the publication ends with the channel.
	if err := c.ch.Publish(exchange, pub.key, true, false, pub.publishing); err != nil {
		go c.abandon()
	}
	return true
}

// abandon closes the channel, and if it cannot be closed the connection's heartbeat ends it.
func (c *pubChannel) abandon() { go func() { _ = c.ch.Close() }() }

// read settles publications until the channel closes, and returns why it did. It runs in one goroutine.
func (c *pubChannel) read() *amqp.Error {
	for confirm := range c.confirms {
		c.takeReturns()
		c.settle(confirm)
	}
	close(c.dead)
	return <-c.closed
}

// takeReturns marks what has come back. A return is written before its confirm, so it is here already.
func (c *pubChannel) takeReturns() {
	for {
		select {
		case r, ok := <-c.returns:
			if !ok {
				return
			}
			c.markReturned(route{r.MessageId, r.RoutingKey})
		default:
			return
		}
	}
}

func (c *pubChannel) markReturned(r route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pub := range c.routes[r] {
		if !pub.returned {
			pub.returned = true
			return
		}
	}
}

func (c *pubChannel) settle(confirm amqp.Confirmation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pub, ok := c.pending[confirm.DeliveryTag]
	if !ok {
		return
	}
	delete(c.pending, confirm.DeliveryTag)
	c.forget(pub)
	<-c.slots
	switch {
	case !confirm.Ack:
		pub.outcome <- ErrRefused
	case pub.returned:
		pub.outcome <- fmt.Errorf("%w %q", ErrUnroutable, pub.key)
	default:
		pub.outcome <- nil
	}
}

func (c *pubChannel) forget(pub *publication) {
	r := route{pub.publishing.MessageId, pub.key}
	rest := c.routes[r]
	for i, other := range rest {
		if other == pub {
			rest = append(rest[:i:i], rest[i+1:]...)
			break
		}
	}
	if len(rest) == 0 {
		delete(c.routes, r)
		return
	}
	c.routes[r] = rest
}

// end fails what is still in flight and returns it. Nothing can be published after it.
func (c *pubChannel) end(err error) []*publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	var failed []*publication
	for _, pub := range c.pending {
		failed = append(failed, pub)
		pub.outcome <- err
	}
	c.pending, c.routes = nil, nil
	return failed
}

// keepChannel keeps one channel open, and reads it, until ctx ends.
func (p *Publisher) keepChannel(ctx context.Context) {
	pause := reconnectMin
	for {
		conn, err := p.line.get(ctx)
		if err != nil {
			return
		}
		c, err := openPubChannel(conn, p.cfg.InFlight)
		if err == nil {
			pause = reconnectMin
			p.serveChannel(ctx, c)
		} else {
			p.log.Debug("no channel for publishing", "error", err)
		}
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, reconnectMax)
	}
}

// serveChannel offers the channel to Publish until it dies, and tells those who wait on it.
func (p *Publisher) serveChannel(ctx context.Context, c *pubChannel) {
	stop := context.AfterFunc(ctx, func() { c.abandon() })
	defer stop()
	p.lanes.add(c)
	cause := c.read()
	p.lanes.remove(c)
	if ctx.Err() != nil {
		c.end(ErrClosed)
		return
	}
	failed := c.end(lost(cause))
	if cause != nil && isException(cause) {
		p.log.Warn("the broker closed a channel", "error", cause, "messages", len(failed))
		p.suspects.add(failed)
	}
}

// lanes are the channels that can be published on, used in turn.
type lanes struct {
	mu   sync.Mutex
	live []*pubChannel
	turn int
	more chan struct{} // closed when a channel is added
}

func newLanes() *lanes { return &lanes{more: make(chan struct{})} }

func (l *lanes) add(c *pubChannel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = append(l.live, c)
	close(l.more)
	l.more = make(chan struct{})
}

// remove comes after c.dead is closed and before any publication on it fails: who tries again finds another.
func (l *lanes) remove(c *pubChannel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = slices.DeleteFunc(l.live, func(other *pubChannel) bool { return other == c })
}

// next is the channel whose turn it is, or nil and what to wait for.
func (l *lanes) next() (*pubChannel, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.live) == 0 {
		return nil, l.more
	}
	l.turn++
	return l.live[l.turn%len(l.live)], nil
}

func lost(cause *amqp.Error) error {
	if cause == nil {
		return fmt.Errorf("%w: the channel was closed", ErrUnavailable)
	}
	return fmt.Errorf("%w: the channel was closed: %w", ErrUnavailable, cause)
}

// isException reports a channel that the broker closed for something that was sent on it. A missing exchange or
// permission is nobody's message.
func isException(err *amqp.Error) bool {
	return err.Server && err.Code != amqp.NotFound && err.Code != amqp.AccessRefused && err.Code != amqp.ConnectionForced
}

// sendAlone publishes a message that was in flight when two channels died, on a channel of its own: if that one dies
// too, it is the message.
func (p *Publisher) sendAlone(ctx context.Context, pub *publication) error {
	p.suspects.alone.Lock()
	defer p.suspects.alone.Unlock()
	conn, err := p.line.get(ctx)
	if err != nil {
		return p.gaveUp(err.Error())
	}
	c, err := openPubChannel(conn, 1)
	if err != nil {
		return p.gaveUp(err.Error())
	}
	stop := context.AfterFunc(ctx, func() { c.abandon() })
	defer stop()
	died := make(chan *amqp.Error, 1)
	c.slots <- struct{}{}
	c.publish(p.cfg.Exchange, pub)
	go func() {
		cause := c.read()
		c.end(lost(cause))
		died <- cause
	}()
	err = <-pub.outcome
	if !errors.Is(err, ErrUnavailable) {
		c.abandon()
		p.suspects.clear(pub)
		return err
	}
	if cause := <-died; cause != nil && isException(cause) {
		return fmt.Errorf("%w: it breaks the channel each time: %w", ErrUnencodable, cause)
	}
	return err
}

// suspects remembers messages that were in flight when the broker closed a channel.
type suspects struct {
	alone sync.Mutex // one suspect at a time
	mu    sync.Mutex
	count map[string]int
}

// maxSuspects bounds the memory; beyond it the oldest knowledge goes.
const maxSuspects = 10_000

func newSuspects() suspects { return suspects{count: map[string]int{}} }

func (s *suspects) add(failed []*publication) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.count)+len(failed) > maxSuspects {
		clear(s.count)
	}
	for _, pub := range failed {
		s.count[pub.publishing.MessageId]++
	}
}

func (s *suspects) twice(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count[id] >= 2
}

func (s *suspects) clear(pub *publication) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.count, pub.publishing.MessageId)
}
