package rabbitmq

import (
	"encoding/base64"
	"fmt"
	"time"

	watermillamqp "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
)

// HeaderMalformed marks a received message that has no readable id or key; its value is the reason.
const HeaderMalformed = "_malformed"

// Marshaler is CloudEvents 1.0 in binary mode over AMQP 0.9.1: every metadata entry is a string header, the body is
// the payload, and the AMQP properties repeat what broker tools show, as far as they can hold it. Unmarshal never fails: a header of another
// type becomes text, and a message without a UUID as id or without a key is marked with [HeaderMalformed].
//
// watermill-amqp's stock subscriber reads these messages when its DefaultMarshaler has [outbox.HeaderID] as
// MessageUUIDHeaderKey; messages of its stock publisher are read here.
type Marshaler struct{}

var _ watermillamqp.Marshaler = Marshaler{}

// Marshal makes a persistent message.
func (Marshaler) Marshal(msg *message.Message) (amqp.Publishing, error) {
	headers := make(amqp.Table, len(msg.Metadata)+1)
	for name, value := range msg.Metadata {
		headers[name] = value
	}
	if _, ok := headers[outbox.HeaderID]; !ok {
		headers[outbox.HeaderID] = msg.UUID
	}
	p := amqp.Publishing{
		Headers: headers, Body: msg.Payload, DeliveryMode: amqp.Persistent, ContentType: "application/json",
		MessageId: property(msg.UUID), CorrelationId: property(msg.Metadata[outbox.HeaderCorrelationID]),
		Type: property(msg.Metadata[outbox.HeaderType]), AppId: property(msg.Metadata[outbox.HeaderSource]),
	}
	if at, err := time.Parse(time.RFC3339Nano, msg.Metadata[outbox.HeaderTime]); err == nil {
		p.Timestamp = at
	}
	return p, nil
}

// property is empty for what no property can hold; the header still does.
func property(value string) string {
	if len(value) > shortString {
		return ""
	}
	return value
}

// Unmarshal reads what Marshal made, and what others made as far as it goes.
func (Marshaler) Unmarshal(d amqp.Delivery) (*message.Message, error) {
	metadata := make(message.Metadata, len(d.Headers)+2)
	for name, value := range d.Headers {
		metadata[name] = text(value)
	}
	id := first(metadata[outbox.HeaderID], d.MessageId, metadata[watermillamqp.DefaultMessageUUIDHeaderKey])
	setDefault(metadata, outbox.HeaderType, d.Type)
	setDefault(metadata, outbox.HeaderSource, d.AppId)
	setDefault(metadata, outbox.HeaderCorrelationID, d.CorrelationId)
	if parsed, err := uuid.Parse(id); err != nil || parsed == uuid.Nil {
		metadata[HeaderMalformed] = fmt.Sprintf("its id %.64q is no UUID", id)
	} else if metadata[outbox.HeaderSubject] == "" {
		metadata[HeaderMalformed] = "it has no key (" + outbox.HeaderSubject + ")"
	}
	metadata[outbox.HeaderID] = id
	msg := message.NewMessage(id, d.Body)
	msg.Metadata = metadata
	return msg, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func setDefault(metadata message.Metadata, name, value string) {
	if metadata[name] == "" && value != "" {
		metadata[name] = value
	}
}

// text is a header's value of any AMQP type, as text.
func text(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		return v
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprint(value)
}
