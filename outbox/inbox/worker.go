package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/jcp/ticketwave/outbox/internal/failpoint"
	"github.com/jcp/ticketwave/outbox/lease"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// worker handles one partition while its lease lasts. One goroutine owns it: a message and the retry of a stuck
// one are never handled side by side.
type worker struct {
	*Consumer
	lease     context.Context
	partition int
	queue     string
	log       *slog.Logger
	batch     int       // how many messages the next transaction may handle
	began     time.Time // the transaction before
	revived   time.Time // when what another build could not read was looked for
	blind     bool      // the last look at what is stuck failed
}

func (c *Consumer) work(ctx context.Context, held lease.Held) error {
	w := c.worker(ctx, held.Partition)
	messages, err := c.cfg.Subscriber.Subscribe(ctx, w.queue)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", w.queue, err)
	}
	return w.run(ctx, messages)
}

func (c *Consumer) worker(lease context.Context, partition int) *worker {
	queue := c.cfg.Topology.QueueName(c.cfg.Name, partition)
	return &worker{
		Consumer: c, lease: lease, partition: partition, queue: queue, log: c.cfg.Logger.With("queue", queue), batch: c.cfg.Batch,
	}
}

// limited is the context of one transaction. A clean stop lets it finish, but when the lease is lost, which may be
// because the connection no longer answers, it has a moment only.
func (w *worker) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	stop := context.AfterFunc(w.lease, func() {
		if errors.Is(context.Cause(w.lease), lease.ErrLost) {
			time.AfterFunc(w.cfg.LeaseTimeout, cancel)
		}
	})
	return ctx, func() { stop(); cancel() }
}

var errSubscriptionEnded = errors.New("the subscription ended")

// run takes messages, and looks at what is stuck, until the subscription has ended.
func (w *worker) run(ctx context.Context, messages <-chan *message.Message) error {
	look := time.NewTicker(w.cfg.Look)
	defer look.Stop()
	var more chan struct{} // closed while there is more to retry
	for {
		again := false
		select {
		case msg, ok := <-messages:
			if !ok && ctx.Err() == nil {
				return errSubscriptionEnded
			}
			if !ok {
				return nil
			}
			if !w.receiveAll(ctx, w.gather(ctx, msg, messages)) {
				giveBack(messages)
				return nil
			}
			continue
		case <-look.C:
			again = w.retryDue(ctx)
		case <-more:
			again = w.retryDue(ctx)
		}
		if more = nil; again {
			more = make(chan struct{})
			close(more)
		}
	}
}

// giveBack nacks what is still on its way after a nack: what came later must not be handled before it.
func giveBack(messages <-chan *message.Message) {
	for msg := range messages {
		msg.Nack()
	}
}

// receive handles one message and acknowledges it, or gives it back, and returns false, when the lease ends before
// anything could be decided about it. A message whose context has ended is let go: the connection that it came over is
// lost, so the broker gives it again, and everything after it.
func (w *worker) receive(ctx context.Context, msg *message.Message) bool {
	var pause backoff
	for {
		err := w.settle(msg)
		if err == nil {
			failpoint.Hit("inbox.after-commit")
			msg.Ack()
			return true
		}
		if ctx.Err() == nil && msg.Context().Err() != nil {
			msg.Nack()
			return true
		}
		if pause.first() {
			w.log.Warn("message held until it can be handled", "message_id", clip(msg.UUID, 64), "error", err)
			w.cfg.Observe(Outcome{Consumer: w.cfg.Name, Partition: w.partition, Result: Held, Err: err})
		}
		if !pause.wait(ctx) {
			msg.Nack()
			return false
		}
	}
}

// settle decides what becomes of the message. An error means that nothing was decided: the database or the
// broker is away.
func (w *worker) settle(msg *message.Message) error {
	d, err := parse(msg)
	if err != nil {
		return w.bury(msg, err)
	}
	return w.handle(msg.Context(), d)
}

// bury sends a message that can be neither remembered nor ordered to the dead-letter queue.
func (w *worker) bury(msg *message.Message, reason error) error {
	dead := msg.Copy()
	dead.Metadata.Set(rabbitmq.HeaderMalformed, clip(reason.Error(), 250))
	err := w.cfg.Dead.Publish(w.queue, dead)
	if errors.Is(err, rabbitmq.ErrUnencodable) || errors.Is(err, rabbitmq.ErrTooLarge) {
		bare := message.NewMessage(watermill.NewUUID(), msg.Payload)
		bare.Metadata.Set(rabbitmq.HeaderMalformed, clip(reason.Error(), 250)+"; its headers could not be kept")
		err = w.cfg.Dead.Publish(w.queue, bare)
	}
	if err != nil {
		return fmt.Errorf("publish to the dead-letter queue: %w", err)
	}
	w.log.Error("message sent to the dead-letter queue", "message_id", clip(msg.UUID, 64), "error", reason)
	w.cfg.Observe(Outcome{Consumer: w.cfg.Name, Partition: w.partition, Result: Dead, Err: reason})
	return nil
}

// backoff is the pause while something is away: from 50 ms, doubling, to 2 s.
type backoff struct{ pause time.Duration }

func (b *backoff) first() bool { return b.pause == 0 }

// wait returns false when ctx ended instead.
func (b *backoff) wait(ctx context.Context) bool {
	b.pause = min(max(2*b.pause, 50*time.Millisecond), 2*time.Second)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(b.pause/2 + rand.N(b.pause/2)):
		return true
	}
}
