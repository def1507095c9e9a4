package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
	written    chan *amqp.DeferredConfirmation // gets one value when it is on the wire, nil when that failed
	outcome    chan error                      // gets exactly one value
}

func newPublication(msg *message.Message, key string, publishing amqp.Publishing) *publication {
	return &publication{msg: msg, key: key, publishing: publishing, written: make(chan *amqp.DeferredConfirmation, 1), outcome: make(chan error, 1)}
}

// pubChannel is one AMQP channel in confirm mode.
type pubChannel struct {
	ch       *amqp.Channel
	confirms chan amqp.Confirmation
	returns  chan amqp.Return
	closed   chan *amqp.Error
	slots    chan struct{} // one for each message that may be in flight
	queue    chan *publication
	retired  chan struct{} // closed when nothing may be published any more
	written  chan struct{} // closed when nothing will be written any more

	mu      sync.Mutex
	over    bool           // retired is closed
	pending []*publication // written, or about to be
	first   uint64         // the tag of pending[0]; what is settled is nil
}

func openPubChannel(conn *amqp.Connection, exchange string, inFlight int) (*pubChannel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open a channel: %w", err)
	}
	c := &pubChannel{
		ch: ch, slots: make(chan struct{}, inFlight), queue: make(chan *publication, inFlight),
		retired: make(chan struct{}), written: make(chan struct{}), first: 1,
		// Buffers for everything that can be in flight: the connection's reader never waits.
		confirms: ch.NotifyPublish(make(chan amqp.Confirmation, inFlight)),
		returns:  ch.NotifyReturn(make(chan amqp.Return, inFlight)),
		closed:   ch.NotifyClose(make(chan *amqp.Error, 1)),
	}
	if err := ch.Confirm(false); err != nil {
		_ = ch.Close()
		return nil, fmt.Errorf("switch confirms on: %w", err)
	}
	go c.write(exchange)
	return c, nil
}

// tryAcquire takes room if there is any.
func (c *pubChannel) tryAcquire() bool {
	select {
	case c.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// acquire waits for room; false when ctx ended or the channel was retired.
func (c *pubChannel) acquire(ctx context.Context) bool {
	select {
	case c.slots <- struct{}{}:
		return true
	case <-c.retired:
		return false
	case <-ctx.Done():
		return false
	}
}

// publish takes the message for writing; false when the channel can take no more. The slot is the publication's
// from now on.
func (c *pubChannel) publish(pub *publication) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	pub.lane = c
	c.queue <- pub // never waits: there is one place for each slot
	return true
}

// write puts queued messages on the wire until the channel is retired. One goroutine does it: its stack has grown,
// and nobody waits for a lock while a message is encoded.
func (c *pubChannel) write(exchange string) {
	defer close(c.written)
	for {
		select {
		case <-c.retired:
			return
		case pub := <-c.queue:
			c.mu.Lock()
			c.pending = append(c.pending, pub)
			c.mu.Unlock()
			// A failed write closes the connection, and how far it got is unknown: it ends with the channel.
			confirmation, err := c.ch.PublishWithDeferredConfirm(exchange, pub.key, true, false, pub.publishing)
			if err != nil {
				c.retire()
			}
			pub.written <- confirmation
		}
	}
}

// retire closes the channel in the background; if the broker does not answer, the heartbeat ends the connection. A
// message that followed the channel's close would make the broker close the whole connection (504), so none may.
func (c *pubChannel) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.over = true
	close(c.retired)
	go func() {
		<-c.written
		_ = c.ch.Close()
	}()
}

// read settles publications until the channel closes, and returns why it did. It runs in one goroutine.
func (c *pubChannel) read() *amqp.Error {
	for confirm := range c.confirms {
		c.takeReturns()
		c.settle(confirm)
	}
	c.retire()
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
			c.markReturned(r.MessageId, r.RoutingKey)
		default:
			return
		}
	}
}

// markReturned finds the oldest message that this return can belong to, which is near the head: its confirm is next.
func (c *pubChannel) markReturned(id, key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pub := range c.pending {
		if pub != nil && !pub.returned && pub.publishing.MessageId == id && pub.key == key {
			pub.returned = true
			return
		}
	}
}

func (c *pubChannel) settle(confirm amqp.Confirmation) {
	pub := c.take(confirm.DeliveryTag)
	if pub == nil {
		return
	}
	<-c.slots
	switch {
	case !pub.acked():
		pub.outcome <- ErrRefused
	case pub.returned:
		pub.outcome <- fmt.Errorf("%w %q", ErrUnroutable, pub.key)
	default:
		pub.outcome <- nil
	}
}

// acked is what the broker has said of this message alone. A confirm from the channel's listener may be wrong: where an
// acknowledgement of several tags reaches over one that was refused before, the library tells the listener that all of
// them are acknowledged. It settles the deferred confirmation first, and once.
func (pub *publication) acked() bool {
	confirmation := <-pub.written // it was confirmed, so it is on the wire
	return confirmation != nil && confirmation.Acked()
}

// take removes what the tag stands for, and what is settled at the head.
func (c *pubChannel) take(tag uint64) *publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	if tag < c.first || tag-c.first >= uint64(len(c.pending)) {
		return nil
	}
	pub := c.pending[tag-c.first]
	c.pending[tag-c.first] = nil
	settled := 0
	for settled < len(c.pending) && c.pending[settled] == nil {
		settled++
	}
	c.pending = c.pending[settled:]
	c.first += uint64(settled)
	return pub
}

// end fails what is still in flight, and returns what may have been written. Nothing can be published after it.
func (c *pubChannel) end(err error) (inFlight []*publication) {
	c.retire()
	<-c.written
	c.mu.Lock()
	defer c.mu.Unlock()
	inFlight = slices.DeleteFunc(c.pending, func(pub *publication) bool { return pub == nil })
	c.pending = nil
	for _, pub := range inFlight {
		pub.outcome <- err
	}
	for {
		select {
		case pub := <-c.queue:
			pub.outcome <- err
		default:
			return inFlight
		}
	}
}

// keepChannel keeps one channel open, and reads it, until ctx ends.
func (p *Publisher) keepChannel(ctx context.Context) {
	first := min(reconnectMin, p.cfg.ReconnectMax)
	pause := first
	for {
		conn, err := p.line.get(ctx)
		if err != nil {
			return
		}
		if p.prepared(ctx) {
			c, err := openPubChannel(conn, p.cfg.Exchange, p.cfg.InFlight)
			if err == nil {
				pause = first
				p.serveChannel(ctx, c)
			} else {
				p.log.Debug("no channel for publishing", "error", err)
			}
		}
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, p.cfg.ReconnectMax)
	}
}

// serveChannel offers the channel to Publish until it dies, and tells those who wait on it.
func (p *Publisher) serveChannel(ctx context.Context, c *pubChannel) {
	stop := context.AfterFunc(ctx, c.retire)
	defer stop()
	p.lanes.add(c)
	if p.prepare.wanted.Load() { // since it was opened
		c.retire()
	}
	cause := c.read()
	p.lanes.remove(c)
	if ctx.Err() != nil {
		c.end(ErrClosed)
		return
	}
	failed := c.end(lost(cause))
	if cause != nil && cause.Code == amqp.NotFound {
		p.exchangeMissing()
	}
	if cause != nil && isException(cause) {
		p.log.Warn("the broker closed a channel", "error", cause, "messages", len(failed))
		p.suspects.add(failed)
	}
}

// preparation is asked for while wanted is set.
type preparation struct {
	turn    chan struct{} // holds a value while it goes on
	wanted  atomic.Bool
	refused time.Time // when only an operator could mend why it failed; who has the turn may look
}

// exchangeMissing keeps every channel from publishing until the exchange is there with all its bindings.
func (p *Publisher) exchangeMissing() {
	if p.cfg.Prepare == nil {
		return
	}
	p.prepare.wanted.Store(true)
	p.lanes.retire()
}

// prepared reports whether there is nothing to be prepared, any more. When the broker refuses what is declared, waiting would
// not help, and what can be published is.
func (p *Publisher) prepared(ctx context.Context) bool {
	if !p.prepare.wanted.Load() {
		return true
	}
	select {
	case p.prepare.turn <- struct{}{}:
		defer func() { <-p.prepare.turn }()
	case <-ctx.Done():
		return false
	}
	if !p.prepare.wanted.Load() {
		return true
	}
	if time.Since(p.prepare.refused) > p.cfg.ReconnectMax {
		ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
		defer cancel()
		err := p.cfg.Prepare(ctx)
		var refusal *amqp.Error
		switch {
		case err == nil:
			p.log.Warn("the exchange was missing and is prepared again", "exchange", p.cfg.Exchange)
		case errors.As(err, &refusal) && (refusal.Code == amqp.PreconditionFailed || refusal.Code == amqp.AccessRefused):
			p.log.Error("the exchange was missing and the broker refuses what is declared", "exchange", p.cfg.Exchange, "error", err)
			p.prepare.refused = time.Now()
		default:
			p.log.Warn("the exchange was missing and is not prepared yet", "exchange", p.cfg.Exchange, "error", err)
			return false
		}
	}
	p.prepare.wanted.Store(false)
	return true
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

// remove comes before any publication on the channel fails: who tries again finds another.
func (l *lanes) remove(c *pubChannel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = slices.DeleteFunc(l.live, func(other *pubChannel) bool { return other == c })
}

// retire lets nothing more be published on any of them.
func (l *lanes) retire() {
	l.mu.Lock()
	live := slices.Clone(l.live)
	l.mu.Unlock()
	for _, c := range live {
		c.retire()
	}
}

// next is the channel whose turn it is, or nil and what to wait for.
func (l *lanes) next() (*pubChannel, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range l.live {
		l.turn++
		c := l.live[l.turn%len(l.live)]
		select {
		case <-c.retired:
		default:
			return c, nil
		}
	}
	return nil, l.more
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
func (p *Publisher) sendAlone(deadline time.Time, pub *publication) error {
	ctx, cancel := context.WithDeadline(p.stopping, deadline)
	defer cancel()
	p.suspects.alone.Lock()
	defer p.suspects.alone.Unlock()
	conn, err := p.line.get(ctx)
	if err != nil {
		return p.gaveUp(err.Error())
	}
	if !p.prepared(ctx) {
		return p.gaveUp("the exchange is missing")
	}
	c, err := openPubChannel(conn, p.cfg.Exchange, 1)
	if err != nil {
		return p.gaveUp(err.Error())
	}
	stop := context.AfterFunc(ctx, c.retire)
	defer stop()
	died := make(chan *amqp.Error, 1)
	c.slots <- struct{}{}
	if !c.publish(pub) {
		return p.gaveUp("there was no time to publish it alone")
	}
	go func() {
		cause := c.read()
		c.end(lost(cause))
		died <- cause
	}()
	err = <-pub.outcome
	if !errors.Is(err, ErrUnavailable) {
		c.retire()
		p.suspects.clear(pub)
		return err
	}
	cause := <-died
	if cause != nil && cause.Code == amqp.NotFound {
		p.exchangeMissing()
	}
	if cause != nil && isException(cause) && !conn.IsClosed() { // else it may be another's fault
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
