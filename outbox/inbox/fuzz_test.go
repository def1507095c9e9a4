package inbox

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox"
)

// A message is either refused for its id or its key, or can be stored, and then says the same about itself when it is
// read back; what is passed on to what its handler appends can always be written and relayed.
func FuzzParse(f *testing.F) {
	id := uuid.NewString()
	f.Add("", "", "", "", "", "", "", "", "")
	f.Add(id, "booking-1", "shop.orders.placed.v1", "2026-05-04T18:30:00.123456Z", "c", "d", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "h", "v")
	f.Add(strings.ToUpper(id), "k", "", "yesterday", "", "", "00-x", "", "\xff")
	f.Add("urn:uuid:"+id, "k\x00", "\xfe", "9999-12-31T23:59:59+23:59", "\x00", "\x00", "", "\x00", "\u2028")
	f.Add("{"+id+"}", strings.Repeat("é", 128), strings.Repeat("t", 300), "0001-01-01T00:00:00Z", strings.Repeat("c", 300), strings.Repeat("d", 300), "", "h", "v")
	f.Fuzz(func(t *testing.T, id, key, typ, at, correlation, causation, trace, name, value string) {
		msg := message.NewMessage(id, nil)
		msg.Metadata = message.Metadata{name: value}
		maps.Copy(msg.Metadata, message.Metadata{
			outbox.HeaderID: id, outbox.HeaderType: typ, outbox.HeaderSubject: key, outbox.HeaderTime: at,
			outbox.HeaderCorrelationID: correlation, outbox.HeaderCausationID: causation, outbox.HeaderTraceParent: trace,
		})
		d, err := parse(msg)
		parsed, idErr := uuid.Parse(id)
		switch {
		case err != nil && (idErr != nil || parsed == uuid.Nil) && strings.Contains(err.Error(), "its id"):
			return
		case err != nil && (key == "" || len(key) > outbox.MaxKey || key != clip(key, outbox.MaxKey)) && strings.Contains(err.Error(), "key"):
			return
		case err != nil:
			t.Fatalf("id %q, key %q: %v", id, key, err)
		}
		m := d.meta
		if m.ID != parsed || m.Key != key {
			t.Errorf("id %q, key %q are read as %s, %q", id, key, m.ID, m.Key)
		}
		for _, text := range []string{m.Type, m.Source, m.CorrelationID, m.CausationID, m.TraceParent} {
			if text != clip(text, maxCausality) {
				t.Errorf("PostgreSQL or AMQP does not take %q", text)
			}
		}
		stored, err := json.Marshal(d.headers)
		if err != nil {
			t.Fatal(err)
		}
		var headers map[string]string
		if err := json.Unmarshal(stored, &headers); err != nil || !maps.Equal(headers, d.headers) || strings.Contains(string(stored), `\u0000`) {
			t.Errorf("headers %q are stored as %s", d.headers, stored)
		}
		again, err := newDelivery(m.ID.String(), m.Type, m.Key, d.payload, headers)
		if err != nil || !again.meta.Time.Equal(m.Time) {
			t.Fatalf("read back as %+v, %v", again.meta, err)
		}
		again.meta.Time = m.Time
		if again.meta != m {
			t.Errorf("%+v is read back as %+v", m, again.meta)
		}
		// As Append writes it.
		metadata := map[string]string{outbox.HeaderCorrelationID: m.CorrelationID, outbox.HeaderCausationID: m.ID.String(), outbox.HeaderTraceParent: m.TraceParent}
		if text, err := json.Marshal(metadata); err != nil || len(text) > outbox.MaxMetadata {
			t.Errorf("what is passed on has %d bytes, %v", len(text), err)
		}
	})
}
