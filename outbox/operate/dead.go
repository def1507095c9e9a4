package operate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const (
	lookTimeout = 20 * time.Second // to look through one queue
	backTimeout = time.Second      // until what was looked at is in its queue again
)

// peek reads the first messages of a queue, without their payloads, and gives them back.
func (b *broker) peek(ctx context.Context, queue string, most int) (found []DeadMessage, err error) {
	_, err = b.look(ctx, queue, most, func(m DeadMessage) bool {
		m.Payload = nil // they may be large, and many
		found = append(found, m)
		return true
	})
	return found, err
}

// look shows the first messages of a queue, one after the other, until show returns false, and then gives all back, in
// order, by closing the channel. The connection is its own: what ends others does not end it, nor it others.
func (b *broker) look(ctx context.Context, queue string, most int, show func(m DeadMessage) bool) (read int, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	ch, done, err := b.alone(ctx)
	if err != nil {
		return 0, err
	}
	r := &reading{ch: ch, queue: queue, most: most}
	defer func() {
		done()
		if err == nil {
			b.back(ctx, queue, r.held)
		}
	}()
	for {
		d, ok, err := r.next(ctx)
		if err != nil || !ok {
			return read, err
		}
		m := deadMessage(queue, read, d)
		if read++; !show(m) {
			return read, nil
		}
	}
}

// reading takes the messages that are in a queue when it begins, from the oldest, and at most so many. Closing the channel
// gives them back in order. None is acknowledged.
//
// A quorum queue of RabbitMQ 3.10 takes back what several consumers of a channel had in the order of their tags while they
// are at most 32, and in none when they are more; each basic.get is one of them. So one of those finds out how many messages
// there are, and some 25 consumers, each with a prefetch, take the rest.
type reading struct {
	ch    *amqp.Channel
	queue string
	most  int

	begun     bool
	left      int // messages to take
	page      int // prefetch of a consumer
	consumers int
	from      <-chan amqp.Delivery // the last consumer's
	taken     int                  // of its messages
	largest   int                  // bytes of a message
	held      int                  // messages in all
}

const (
	readConsumers = 25
	readPage      = 20          // messages of a consumer, at least ...
	readBytes     = 32 << 20    // ... while they have no more bytes, which bounds what is in memory
	readQuiet     = time.Second // without a message: somebody else has taken the rest
)

// next takes a message; ok is false when there are no more.
func (r *reading) next(ctx context.Context) (d amqp.Delivery, ok bool, err error) {
	switch {
	case !r.begun:
		d, ok, err = r.first()
	case r.left == 0:
		return d, false, nil
	default:
		d, ok, err = r.consumed(ctx)
	}
	if ok {
		r.left--
		r.held++
		r.largest = max(r.largest, len(d.Body))
	}
	return d, ok, err
}

func (r *reading) first() (amqp.Delivery, bool, error) {
	r.begun = true
	d, ok, err := r.ch.Get(r.queue, false)
	if err != nil {
		return d, false, fmt.Errorf("read queue %s: %w", r.queue, err)
	}
	if ok {
		r.left = min(r.most, int(d.MessageCount)+1)
		r.page = max(readPage, r.left/readConsumers+1)
	}
	return d, ok && r.left > 0, nil
}

// consumed takes a message of the last consumer, or of another one when that has as many as it may.
func (r *reading) consumed(ctx context.Context) (d amqp.Delivery, ok bool, err error) {
	if r.from == nil || r.taken == r.page {
		if err := r.consume(); err != nil {
			return d, false, err
		}
	}
	quiet := time.NewTimer(readQuiet)
	defer quiet.Stop()
	select {
	case d, ok = <-r.from:
		if !ok {
			return d, false, fmt.Errorf("read queue %s: %w", r.queue, amqp.ErrClosed)
		}
		r.taken++
		return d, true, nil
	case <-quiet.C:
		return d, false, nil
	case <-ctx.Done():
		return d, false, ctx.Err()
	}
}

func (r *reading) consume() (err error) {
	if r.largest > 0 {
		r.page = max(1, min(r.page, readBytes/r.largest))
	}
	if err = r.ch.Qos(r.page, 0, false); err == nil {
		r.from, err = r.ch.Consume(r.queue, fmt.Sprintf("read-%06d", r.consumers), false, false, false, false, nil)
	}
	if err != nil {
		return fmt.Errorf("read queue %s: %w", r.queue, err)
	}
	r.consumers++
	r.taken = 0
	return nil
}

// back waits until so many messages are in a queue again, so that whoever looks next sees them; not for long, for
// somebody else may have taken them.
func (b *broker) back(ctx context.Context, queue string, n int) {
	until := time.Now().Add(backTimeout)
	for pause := time.Millisecond; time.Now().Before(until); pause = min(2*pause, 50*time.Millisecond) {
		found, err := b.depths(ctx, []string{queue})
		if err != nil || found[queue].missing || found[queue].messages >= int64(n) || sleep(ctx, pause) != nil {
			return
		}
	}
}

func deadMessage(queue string, position int, d amqp.Delivery) DeadMessage {
	m := DeadMessage{Queue: queue, Position: position, Fingerprint: fingerprint(d), Headers: map[string]string{}, Payload: d.Body, Size: len(d.Body)}
	msg, err := rabbitmq.Marshaler{}.Unmarshal(d)
	if err != nil {
		m.Reason = err.Error()
		return m
	}
	for name, value := range msg.Metadata {
		if name != rabbitmq.HeaderMalformed && name != "x-delivery-count" { // the reason, and what looking at it changes
			m.Headers[name] = value
		}
	}
	m.MessageID, m.Reason = msg.Metadata[outbox.HeaderID], msg.Metadata[rabbitmq.HeaderMalformed]
	if reason, ok := d.Headers[rabbitmq.HeaderMalformed].(string); ok { // what the consumer said, before what Unmarshal says
		m.Reason = reason
	}
	if m.Reason == "" {
		m.Reason = "dead-lettered by the broker"
		if why, ok := d.Headers["x-first-death-reason"].(string); ok {
			m.Reason += ": " + why
		}
	}
	return m
}

// fingerprint names a message by all that it is, but for what the broker changes when it is delivered again.
func fingerprint(d amqp.Delivery) string {
	headers := map[string]string{}
	for name, value := range d.Headers {
		if name != "x-delivery-count" {
			headers[name] = fmt.Sprintf("%T %v", value, value)
		}
	}
	whole, err := json.Marshal([]any{headers, d.Body, d.MessageId, d.CorrelationId, d.Type, d.AppId, d.ContentType, d.Timestamp.UTC().Format(time.RFC3339)})
	if err != nil { // strings and bytes can be encoded
		panic("operate: a message cannot be fingerprinted: " + err.Error())
	}
	sum := sha256.Sum256(whole)
	return hex.EncodeToString(sum[:8])
}
