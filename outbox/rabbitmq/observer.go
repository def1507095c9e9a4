package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Depth is what a queue says about itself.
type Depth struct {
	// Missing: there is no such queue.
	Missing bool
	// Messages are the ready ones; those that a consumer has in hand are not counted.
	Messages int64
	// Consumers of the queue.
	Consumers int
}

// silent is what an empty queue says that nobody consumes, and a quorum queue whose leader does not answer its node
// in time.
func (d Depth) silent() bool { return !d.Missing && d.Messages == 0 && d.Consumers == 0 }

// Observer asks a broker about its queues, over one connection that is made when it is first needed and again when it
// has broken. It may be used by several goroutines.
type Observer struct {
	url, name string

	mu   sync.Mutex
	conn *amqp.Connection
}

// NewObserver connects to nothing yet. The broker shows name.
func NewObserver(url, name string) *Observer { return &Observer{url: url, name: name} }

// Close ends the connection.
func (o *Observer) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn != nil {
		_ = o.conn.CloseDeadline(time.Now().Add(time.Second)) // closed is what matters
		o.conn = nil
	}
}

// Channel opens a channel. It must be closed with the function that comes with it. When ctx ends before, the connection
// ends with it: there is no other way to give up a question that the broker does not answer.
func (o *Observer) Channel(ctx context.Context) (ch *amqp.Channel, done func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn == nil || o.conn.IsClosed() {
		if o.conn, err = o.dial(ctx); err != nil {
			o.conn = nil
			return nil, nil, err
		}
	}
	conn := o.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now().Add(100 * time.Millisecond)) })
	if ch, err = conn.Channel(); err != nil {
		stop()
		_ = conn.CloseDeadline(time.Now().Add(100 * time.Millisecond))
		o.conn = nil
		return nil, nil, fmt.Errorf("open a channel: %w", err)
	}
	return ch, func() { _ = ch.Close(); stop() }, nil
}

const observerTimeout = 5 * time.Second // to connect

func (o *Observer) dial(ctx context.Context) (*amqp.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, observerTimeout)
	defer cancel()
	return dial(ctx, o.url, o.name)
}

// Version is what the broker of the last connection said it is, or empty.
func (o *Observer) Version() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn == nil {
		return ""
	}
	version, _ := o.conn.Properties["version"].(string)
	return version
}

// Depths asks each queue for its depth. What it has found is returned beside an error. An answer of neither messages nor
// consumers may come from a quorum queue whose leader is slow: see [Observer.SureDepths].
func (o *Observer) Depths(ctx context.Context, queues []string) (map[string]Depth, error) {
	found := make(map[string]Depth, len(queues))
	for len(queues) > 0 {
		ch, done, err := o.Channel(ctx)
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

const (
	askAgain      = 3 // times
	askAgainAfter = 300 * time.Millisecond
)

// SureDepths is Depths that believes a queue that it is empty and without consumers only when it has said so four
// times, over most of a second.
func (o *Observer) SureDepths(ctx context.Context, queues []string) (map[string]Depth, error) {
	found, err := o.Depths(ctx, queues)
	for again := 0; err == nil && again < askAgain; again++ {
		var doubtful []string
		for name, d := range found {
			if d.silent() {
				doubtful = append(doubtful, name)
			}
		}
		if len(doubtful) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return found, ctx.Err()
		case <-time.After(askAgainAfter):
		}
		var said map[string]Depth
		said, err = o.Depths(ctx, doubtful)
		for name, d := range said {
			found[name] = d
		}
	}
	return found, err
}

// passive asks until a queue is missing, which closes the channel.
func passive(ch *amqp.Channel, queues []string, found map[string]Depth) (asked int, err error) {
	for i, name := range queues {
		q, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
		var closed *amqp.Error
		switch {
		case errors.As(err, &closed) && closed.Code == amqp.NotFound:
			found[name] = Depth{Missing: true}
			return i + 1, nil
		case err != nil:
			return i, fmt.Errorf("ask for queue %s: %w", name, err)
		}
		found[name] = Depth{Messages: int64(q.Messages), Consumers: q.Consumers}
	}
	return len(queues), nil
}
