package inbox

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox"
)

// Meta is what a message says about itself.
type Meta struct {
	// ID is the same at every delivery of the message.
	ID uuid.UUID
	// Type is the event's type with its major version.
	Type string
	// Source is the service that wrote it.
	Source string
	// Key is what order is kept by.
	Key string
	// Time is when it was written; zero when the message does not say.
	Time time.Time
	// CorrelationID is the flow's; the message's own id when it has none of 1 to 255 bytes.
	CorrelationID string
	// CausationID is the message that caused this one, or empty.
	CausationID string
	// TraceParent is W3C Trace Context, or empty where it is none.
	TraceParent string
}

type metaKey struct{}

// MetaFrom returns the message being handled under ctx.
func MetaFrom(ctx context.Context) (Meta, bool) {
	m, ok := ctx.Value(metaKey{}).(Meta)
	return m, ok
}

// withMeta makes the context of a handler: what it appends is caused by the message and part of its flow.
func withMeta(ctx context.Context, m Meta) context.Context {
	ctx = outbox.WithCausality(ctx, outbox.Causality{
		CorrelationID: m.CorrelationID, CausationID: m.ID.String(), TraceParent: m.TraceParent,
	})
	return context.WithValue(ctx, metaKey{}, m)
}

// delivery is one message in hand, from the queue or from inbox.stuck.
type delivery struct {
	meta    Meta
	payload []byte
	headers map[string]string
}

// parse reads a message's id and key; without both it can be neither remembered nor ordered. A mark that the message
// came with says nothing: it may have been sent back from the dead-letter queue to a program that can read it.
func parse(msg *message.Message) (delivery, error) {
	id := msg.Metadata.Get(outbox.HeaderID)
	if id == "" {
		id = msg.UUID
	}
	return newDelivery(id, msg.Metadata.Get(outbox.HeaderType), msg.Metadata.Get(outbox.HeaderSubject),
		msg.Payload, msg.Metadata)
}

// maxCausality is the longest id of a flow or cause that is passed on, in bytes: an AMQP property takes no more.
const maxCausality = 255

var traceParent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

func newDelivery(id, typ, key string, payload []byte, headers map[string]string) (delivery, error) {
	parsed, err := uuid.Parse(id)
	switch {
	case err != nil || parsed == uuid.Nil:
		return delivery{}, fmt.Errorf("its id %.40q is no UUID", id)
	case key == "":
		return delivery{}, errors.New("it has no key (" + outbox.HeaderSubject + ")")
	case len(key) > outbox.MaxKey || key != clip(key, outbox.MaxKey):
		return delivery{}, fmt.Errorf("its key is no text of 1 to %d bytes", outbox.MaxKey)
	}
	headers, typ = storable(headers), clip(typ, 255)
	m := Meta{
		ID: parsed, Type: typ, Key: key, Source: headers[outbox.HeaderSource],
		CorrelationID: headers[outbox.HeaderCorrelationID], CausationID: headers[outbox.HeaderCausationID],
		TraceParent: headers[outbox.HeaderTraceParent],
	}
	// What the handler appends carries these: nothing a stranger sent may keep it from being written or relayed.
	if m.CorrelationID == "" || len(m.CorrelationID) > maxCausality {
		m.CorrelationID = m.ID.String()
	}
	if len(m.CausationID) > maxCausality {
		m.CausationID = ""
	}
	if !traceParent.MatchString(m.TraceParent) {
		m.TraceParent = ""
	}
	if at, err := time.Parse(time.RFC3339Nano, headers[outbox.HeaderTime]); err == nil {
		m.Time = at
	}
	return delivery{meta: m, payload: payload, headers: headers}, nil
}

// storable is a copy of the headers that PostgreSQL takes as text.
func storable(headers map[string]string) map[string]string {
	clean := make(map[string]string, len(headers))
	for name, value := range headers {
		clean[clip(name, 255)] = clip(value, 1<<20)
	}
	return clean
}
