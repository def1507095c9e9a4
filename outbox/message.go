package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Partitions is how many partitions an outbox has. The migration fixes it and outbox.config repeats it.
const Partitions = 4

// Limits of one message. The table's trigger holds them too: more than this kills an AMQP channel.
const (
	MaxTopic    = 250      // bytes
	MaxKey      = 255      // bytes
	MaxHeader   = 255      // bytes of a metadata name
	MaxMetadata = 32 << 10 // bytes of all metadata as JSON
	MaxPayload  = 1 << 20  // bytes
)

// ErrInvalid says that a message cannot be written as it is; the text says which limit it breaks.
var ErrInvalid = errors.New("invalid message")

// Event is what a service publishes: any struct that marshals to JSON and knows its type and its key.
type Event interface {
	// EventType is the CloudEvents type with its major version, "ticketwave.catalog.inventory-updated.v1".
	EventType() string
	// EventKey is what the event is about: order is kept among messages of one key.
	EventKey() string
}

// Message is one outbox row before it is written.
type Message struct {
	// ID is a UUIDv7, the message's identity from here to the consumer's inbox.
	ID uuid.UUID
	// Topic is the event's type.
	Topic string
	// Key decides partition and order.
	Key string
	// Payload is the body, JSON.
	Payload []byte
	// Metadata holds what no column holds: correlation, causation, trace, and the user's own headers.
	Metadata map[string]string
}

// Encode makes messages of events: fresh ids in the order given, JSON payloads, and the causality of ctx.
func Encode(ctx context.Context, events ...Event) ([]Message, error) {
	messages := make([]Message, len(events))
	metadata := CausalityFrom(ctx).metadata()
	for i, event := range events {
		payload, err := json.Marshal(event)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", event.EventType(), err)
		}
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("draw a message id: %w", err)
		}
		messages[i] = Message{ID: id, Topic: event.EventType(), Key: event.EventKey(), Payload: payload, Metadata: metadata}
	}
	return messages, nil
}

func (m Message) validate() error {
	switch {
	case m.ID == uuid.Nil:
		return m.invalid("it has no id")
	case m.Topic == "" || len(m.Topic) > MaxTopic || !text(m.Topic):
		return m.invalid("its topic must be valid text of 1 to %d bytes, it has %d", MaxTopic, len(m.Topic))
	case m.Key == "" || len(m.Key) > MaxKey || !text(m.Key):
		return m.invalid("its key must be valid text of 1 to %d bytes, it has %d", MaxKey, len(m.Key))
	case len(m.Payload) > MaxPayload:
		return m.invalid("its payload has %d bytes, the limit is %d", len(m.Payload), MaxPayload)
	}
	for name, value := range m.Metadata {
		if name == "" || len(name) > MaxHeader || !text(name) || !text(value) {
			return m.invalid("header %.40q must be valid text with a name of 1 to %d bytes", name, MaxHeader)
		}
	}
	return nil
}

func (m Message) invalid(format string, args ...any) error {
	return fmt.Errorf("%w %s of type %.80q: %s", ErrInvalid, m.ID, m.Topic, fmt.Sprintf(format, args...))
}

// text reports what PostgreSQL takes as text: UTF-8 without NUL.
func text(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for i := range len(s) {
		if s[i] == 0 {
			return false
		}
	}
	return true
}

// encodeMetadata is the row's metadata; the empty object for none.
func (m Message) encodeMetadata() (string, error) {
	if len(m.Metadata) == 0 {
		return "{}", nil
	}
	encoded, err := json.Marshal(m.Metadata)
	if err != nil {
		return "", err
	}
	// The database counts its own text form, which has a space after each colon and comma.
	if size := len(encoded) + 2*len(m.Metadata); size > MaxMetadata {
		return "", m.invalid("its metadata has %d bytes, the limit is %d", size, MaxMetadata)
	}
	return string(encoded), nil
}
