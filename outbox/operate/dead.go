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
	lookTimeout = 20 * time.Second // to look through one queue, a round trip for each message
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
// order as far as some thirty, by closing the channel: a quorum queue takes each basic.get for a consumer of its own, and
// returns what more of them had in no order. The connection is its own: what ends others does not end it, nor it others.
func (b *broker) look(ctx context.Context, queue string, most int, show func(m DeadMessage) bool) (read int, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	ch, done, err := b.alone(ctx)
	if err != nil {
		return 0, err
	}
	defer func() {
		done()
		if err == nil {
			b.back(ctx, queue, read)
		}
	}()
	for read < most {
		d, ok, err := ch.Get(queue, false)
		if err != nil {
			return read, fmt.Errorf("read queue %s: %w", queue, err)
		}
		if !ok {
			return read, nil
		}
		m := deadMessage(queue, read, d)
		if read++; !show(m) {
			return read, nil
		}
	}
	return read, nil
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
