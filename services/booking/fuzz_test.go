package booking

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/services/internal/web"
)

// refused fails the test when an error is not the client's, with a status and a detail.
func refused(t *testing.T, err error, input []byte) {
	t.Helper()
	var e *web.Error
	if !errors.As(err, &e) || e.Status < 400 || e.Status > 499 || e.Detail == "" {
		t.Errorf("%q: %v", input, err)
	}
}

func request(body []byte) (bookingRequest, error) {
	r := httptest.NewRequest(http.MethodPost, bookingsPath, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return readRequest(r)
}

// The body of a booking is refused with its reason, or asks for the same, and has the same hash, however it is written.
func FuzzBookingRequest(f *testing.F) {
	const id = "123e4567-e89b-12d3-a456-426614174000"
	for _, seed := range []string{
		`{"eventId":"` + id + `","userId":"` + id + `","ticketCount":2}`, `{"eventId":"` + strings.ToUpper(id) + `","userId":"test-user-123","ticketCount":-1}`,
		`{"eventId":"` + id + `","userId":"00000000-0000-0000-0000-000000000000","ticketCount":1e3}`, `{}`, `null`, `[]`, `{"eventId":1}`, "\xff", `{"userId":"\ud800"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := request(body)
		if err != nil {
			refused(t, err, body)
			return
		}
		written, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := request(written)
		if err != nil || again != r || !bytes.Equal(again.hash(bookingsPath), r.hash(bookingsPath)) {
			t.Errorf("%q is read as %+v and then as %+v, %v", body, r, again, err)
		}
		o, err := r.order()
		if err != nil {
			refused(t, err, body)
		} else if o.eventID.String() != strings.ToLower(r.EventID) || o.userID.String() != strings.ToLower(r.UserID) || o.tickets != r.TicketCount {
			t.Errorf("%q orders %+v", body, o)
		}
		example, _, err := r.exampleOrder()
		if err != nil {
			refused(t, err, body)
			return
		}
		if same, _, err := r.exampleOrder(); err != nil || same.userID != example.userID {
			t.Errorf("%q orders for %s and %s, %v", body, example.userID, same.userID, err)
		}
	})
}

func FuzzIdempotencyKey(f *testing.F) {
	for _, seed := range []string{"", "a key", strings.Repeat("x", 255), strings.Repeat("x", 256), "\x7f", "é", "\x00"} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, value string, twice bool) {
		h := http.Header{"Idempotency-Key": {value}}
		if twice {
			h.Add("Idempotency-Key", value)
		}
		key, err := idempotencyKey(h)
		if err != nil {
			var e *web.Error
			if refused(t, err, []byte(value)); errors.As(err, &e) && e.Field != "Idempotency-Key" {
				t.Errorf("%q: the error names %q", value, e.Field)
			}
			return
		}
		if key != value || key == "" || len(key) > 255 || twice {
			t.Errorf("%q, twice %v, is taken as %q", value, twice, key)
		}
	})
}
