package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/google/uuid"
)

// scanned is a row as the driver gives it.
type scanned struct{ metadata []byte }

func (s scanned) Scan(into ...any) error {
	*into[0].(*int64) = 1
	*into[1].(*int64) = 2
	*into[2].(*[]byte) = []byte(uuid.NewString())
	*into[3].(*string) = "k"
	*into[5].(*[]byte) = s.metadata
	return nil
}

// A row's metadata is a message's, with its key, or an error that names the row.
func FuzzRowMetadata(f *testing.F) {
	for _, seed := range []string{``, `{}`, `{"a":"b"}`, `null`, `{"a":null}`, `{"a":1}`, `[]`, `{"a":"\u0000\ud800"}`, `{"a":"b","a":"c"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, metadata []byte) {
		row, err := Schema{}.UnmarshalMessage(scanned{metadata})
		var want map[string]string
		if bad := json.Unmarshal(metadata, &want); (bad != nil) != (err != nil) {
			t.Fatalf("%q: %v", metadata, err)
		}
		if err != nil {
			return
		}
		if row.Msg.Metadata[HeaderSubject] != "k" {
			t.Errorf("%q gives %q", metadata, row.Msg.Metadata)
		}
		for name, value := range want {
			if name != HeaderSubject && row.Msg.Metadata[name] != value {
				t.Errorf("%q gives %q", metadata, row.Msg.Metadata)
			}
		}
	})
}

// What is written is read back, or refused with the limit that it breaks.
func FuzzMessage(f *testing.F) {
	f.Add("shop.orders.placed.v1", "k", "name", "value", []byte(`{}`))
	f.Add("", "\x00", "\xff", "\x00", []byte(nil))
	f.Fuzz(func(t *testing.T, topic, key, name, value string, payload []byte) {
		m := Message{ID: uuid.New(), Topic: topic, Key: key, Payload: payload, Metadata: map[string]string{name: value}}
		rows, err := newRows([]Message{m})
		if err != nil {
			if !errors.Is(err, ErrInvalid) || !text(fmt.Sprint(err)) {
				t.Errorf("%q", err)
			}
			return
		}
		row, err := Schema{}.UnmarshalMessage(scanned{[]byte(rows[0].metadata)})
		if err != nil {
			t.Fatal(err)
		}
		delete(row.Msg.Metadata, HeaderSubject)
		delete(m.Metadata, HeaderSubject)
		if !maps.Equal(map[string]string(row.Msg.Metadata), m.Metadata) {
			t.Errorf("%q is read as %q", m.Metadata, row.Msg.Metadata)
		}
	})
}
