package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

// handout hands out several messages of a queue before the first is acknowledged.
type handout struct {
	*Subscriber

	ch         *amqp.Channel
	deliveries <-chan amqp.Delivery
	closed     <-chan *amqp.Error
	out        chan<- *message.Message
	next       *handed  // waits to be handed out
	pending    []handed // handed out, oldest first
}

// handed is a message and what acknowledges it.
type handed struct {
	msg    *message.Message
	tag    uint64
	cancel context.CancelFunc
}

var errNacked = errors.New("a message was nacked")

// run hands out and acknowledges until ctx ends (nil) or the channel does. What is out then is waited for.
func (h *handout) run(ctx context.Context) error {
	defer h.cancelAll()
	for ctx.Err() == nil {
		deliveries, out, next, acked, nacked := h.waitFor()
		select {
		case <-ctx.Done():
		case d, ok := <-deliveries:
			if !ok {
				return ended(h.closed)
			}
			if err := h.take(ctx, d); err != nil {
				return err
			}
		case out <- next:
			h.pending, h.next = append(h.pending, *h.next), nil
		case <-acked:
			if err := h.acknowledge(); err != nil {
				return err
			}
		case <-nacked:
			return errNacked
		}
	}
	return h.finish()
}

// waitFor is what can happen next; what cannot is nil.
func (h *handout) waitFor() (deliveries <-chan amqp.Delivery, out chan<- *message.Message, next *message.Message, acked, nacked <-chan struct{}) {
	switch {
	case h.next != nil:
		out, next = h.out, h.next.msg
	case len(h.pending) < h.cfg.Outstanding:
		deliveries = h.deliveries
	}
	if len(h.pending) > 0 {
		acked, nacked = h.pending[0].msg.Acked(), h.pending[0].msg.Nacked()
	}
	return deliveries, out, next, acked, nacked
}

func (h *handout) take(ctx context.Context, d amqp.Delivery) error {
	msg, err := h.cfg.Marshaler.Unmarshal(d)
	if err != nil {
		return fmt.Errorf("the marshaler failed on a message, which blocks its queue: %w", err)
	}
	handling, cancel := context.WithCancel(context.WithoutCancel(ctx))
	msg.SetContext(handling)
	h.next = &handed{msg: msg, tag: d.DeliveryTag, cancel: cancel}
	return nil
}

// acknowledge tells the broker of all that are acknowledged at the head, at once.
func (h *handout) acknowledge() error {
	var last uint64
	for len(h.pending) > 0 && isClosed(h.pending[0].msg.Acked()) {
		last = h.pending[0].tag
		h.pending[0].cancel()
		h.pending = h.pending[1:]
	}
	if err := h.ch.Ack(last, true); err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	return nil
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// finish waits for what is handed out, up to the first nack. After the grace period the contexts are cancelled.
func (h *handout) finish() error {
	grace := time.AfterFunc(h.cfg.Grace, h.cancelAll)
	defer grace.Stop()
	limit := time.NewTimer(h.cfg.Grace + time.Second)
	defer limit.Stop()
	for len(h.pending) > 0 {
		select {
		case <-h.pending[0].msg.Acked():
			if err := h.acknowledge(); err != nil {
				return err
			}
		case <-h.pending[0].msg.Nacked():
			return nil
		case <-limit.C:
			return errAbandoned
		}
	}
	return nil
}

// cancelAll ends the contexts, the newest first: who sees that a message's has ended must not find a later one's alive.
func (h *handout) cancelAll() {
	if h.next != nil {
		h.next.cancel()
	}
	for _, p := range slices.Backward(h.pending) {
		p.cancel()
	}
}
