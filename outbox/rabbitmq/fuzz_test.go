package rabbitmq

import (
	"bytes"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
)

// fields makes a table with values of every type that AMQP has: a byte for the type, a byte for the length of what
// follows, then the bytes that the name and the value are made of.
func fields(spec []byte, depth int) amqp.Table {
	table := amqp.Table{}
	for len(spec) >= 2 {
		kind, n := spec[0], min(int(spec[1]), len(spec)-2)
		raw := spec[2 : 2+n]
		spec = spec[2+n:]
		name := string(raw[:min(3, n)])
		if names := []string{outbox.HeaderID, outbox.HeaderType, outbox.HeaderSubject, HeaderMalformed}; kind >= 128 {
			name = names[int(kind)%len(names)]
		}
		table[name] = field(kind, raw, depth)
	}
	return table
}

func field(kind byte, raw []byte, depth int) any {
	var n int64
	for _, b := range raw {
		n = n<<8 | int64(b)
	}
	if kind %= 16; kind >= 14 && depth > 3 {
		kind = 0
	}
	switch kind {
	case 1:
		return n%2 == 0
	case 2:
		return byte(n)
	case 3:
		return int8(n)
	case 4:
		return int16(n)
	case 5:
		return int32(n)
	case 6:
		return n
	case 7:
		return float32(n) / 3
	case 8:
		return float64(n) / 3
	case 9:
		return amqp.Decimal{Scale: byte(n), Value: int32(n)}
	case 10:
		return raw
	case 11:
		return time.Unix(n, 0)
	case 12, 13:
		return string(raw)
	case 14:
		return fields(raw, depth+1)
	case 15:
		var list []any
		for _, v := range fields(raw, depth+1) {
			list = append(list, v)
		}
		return list
	}
	return nil
}

// Whatever comes over the wire becomes a message, marked with what is missing when it cannot be remembered or ordered;
// and what became of it goes over the wire again and comes back as it was.
func FuzzUnmarshal(f *testing.F) {
	id := uuid.NewString()
	f.Add([]byte{}, "", "", "", "", []byte(nil))
	f.Add([]byte("\x82\x01k"), id, "shop.orders.placed.v1", "c", "orders", []byte(`{"n":1}`))
	every := []byte{}
	for kind := range byte(16) {
		every = append(every, kind, 4, 'a'+kind, 200, 7, 1)
	}
	f.Add(every, id, "", "", "", []byte{0})
	f.Add(append([]byte{14, byte(len(every))}, every...), id, "", "", "", []byte{0})
	f.Add([]byte("\x8c\x24"+id+"\x8e\x01k"), "", strings.Repeat("t", 300), "\xff", "\x00", []byte{0})
	f.Add([]byte("\x8f\x03bad\x8e\x01k"), id, "", "", "", []byte{0})
	f.Fuzz(func(t *testing.T, spec []byte, id, typ, correlation, app string, body []byte) {
		d := amqp.Delivery{Headers: fields(spec, 0), MessageId: id, Type: typ, CorrelationId: correlation, AppId: app, Body: body}
		msg, err := Marshaler{}.Unmarshal(d)
		if err != nil {
			t.Fatal(err)
		}
		for name := range d.Headers {
			if _, ok := msg.Metadata[name]; !ok {
				t.Errorf("header %q is gone", name)
			}
		}
		parsed, err := uuid.Parse(msg.UUID)
		readable := err == nil && parsed != uuid.Nil
		mark := msg.Metadata[HeaderMalformed]
		switch {
		case msg.UUID != msg.Metadata[outbox.HeaderID] || !bytes.Equal(msg.Payload, body):
			t.Errorf("id %q, header %q, payload %q", msg.UUID, msg.Metadata[outbox.HeaderID], msg.Payload)
		case !readable && !strings.Contains(mark, "no UUID"):
			t.Errorf("id %q is marked %q", msg.UUID, mark)
		case readable && msg.Metadata[outbox.HeaderSubject] == "" && !strings.Contains(mark, "no key"):
			t.Errorf("a message without a key is marked %q", mark)
		}
		p, err := Marshaler{}.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		if err := check("key", &p, 4<<20); err != nil {
			if !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrUnencodable) {
				t.Errorf("not sent for %v", err)
			}
			return
		}
		if err := p.Headers.Validate(); err != nil {
			t.Error(err)
		}
		back, err := Marshaler{}.Unmarshal(amqp.Delivery{
			Headers: p.Headers, MessageId: p.MessageId, Type: p.Type, CorrelationId: p.CorrelationId, AppId: p.AppId, Body: p.Body,
		})
		if err != nil || back.UUID != msg.UUID || !maps.Equal(back.Metadata, msg.Metadata) || !bytes.Equal(back.Payload, msg.Payload) {
			t.Errorf("%s %q comes back as %s %q, %v", msg.UUID, msg.Metadata, back.UUID, back.Metadata, err)
		}
	})
}
