package contracts_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/jcp/ticketwave/contracts"
)

// Whatever body is taken for an event is written as one that is taken for the same event.
func FuzzEvents(f *testing.F) {
	for i, event := range contracts.All() {
		golden, err := os.ReadFile(file("testdata", event.EventType()))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), golden)
	}
	for _, seed := range []string{`{}`, `null`, `[]`, `{"bookingId":null}`, `{"requestedAt":"9999-12-31T23:59:59-23:59"}`} {
		f.Add(uint8(1), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		all := contracts.All()
		event, err := decode(all[int(which)%len(all)], body)
		if err != nil {
			return
		}
		if err := event.Validate(); err != nil {
			if err.Error() == "" {
				t.Error("an error that says nothing")
			}
			return
		}
		written, err := json.Marshal(event)
		if err != nil {
			t.Fatalf("%q is taken as %+v, which cannot be written: %v", body, event, err)
		}
		again, err := decode(event, written)
		if err != nil || again.Validate() != nil || again.EventKey() != event.EventKey() || again.EventKey() == "" {
			t.Fatalf("%s is read as %+v, %v", written, again, err)
		}
		if twice := mustEncode(t, again); !bytes.Equal(twice, written) {
			t.Errorf("%s is written again as %s", written, twice)
		}
	})
}

func FuzzParseAmount(f *testing.F) {
	for _, seed := range []string{"", "0", "25", "25.5", "25.00", "00.1", "1.", ".5", "-1", "+1", "1e3", "999999999999.99", "1000000000000", "１"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := contracts.ParseAmount(text)
		if err != nil {
			return
		}
		again, err := contracts.ParseAmount(a.String())
		if err != nil || again != a || !a.Valid() {
			t.Errorf("%q is %d, which is written as %s and read as %d, %v", text, int64(a), a, int64(again), err)
		}
	})
}
