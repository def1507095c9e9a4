package web_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/services/internal/web"
)

// told fails the test when an error is not the client's with a field or a detail.
func told(t *testing.T, err error, input string) {
	t.Helper()
	var e *web.Error
	if !errors.As(err, &e) || e.Status != http.StatusBadRequest || e.Detail == "" {
		t.Errorf("%q: %v", input, err)
	}
}

// A page is refused by name, or is within its bounds and written again as the same one.
func FuzzPage(f *testing.F) {
	for _, seed := range []string{"", "after=123e4567-e89b-12d3-a456-426614174000&limit=7", "limit=0", "limit=1e2", "limit=+5", "after=x", "%zz", "a;b", "limit=1&limit=2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.URL.RawQuery = raw
		query, err := web.Query(r, "after", "limit")
		if err != nil {
			told(t, err, raw)
			return
		}
		page, err := web.ParsePage(query)
		if err != nil {
			told(t, err, raw)
			return
		}
		if page.Limit < 1 || page.Limit > web.MaxLimit {
			t.Errorf("%q has the limit %d", raw, page.Limit)
		}
		again, err := web.ParsePage(url.Values{"after": {page.After.String()}})
		if err != nil || again.After != page.After {
			t.Errorf("%q ends after %s, which is read as %s, %v", raw, page.After, again.After, err)
		}
	})
}

func FuzzParseID(f *testing.F) {
	for _, seed := range []string{"", "123e4567-e89b-12d3-a456-426614174000", "{123e4567-e89b-12d3-a456-426614174000}", "123E4567E89B12D3A456426614174000", "\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := web.ParseID("field", text)
		if err != nil {
			var e *web.Error
			if told(t, err, text); errors.As(err, &e) && e.Field != "field" {
				t.Errorf("%q: the error names %q", text, e.Field)
			}
			return
		}
		if again, err := uuid.Parse(id.String()); err != nil || again != id {
			t.Errorf("%q is %s", text, id)
		}
	})
}
