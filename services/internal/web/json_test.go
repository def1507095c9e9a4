package web_test

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

type body struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
	Deep  struct {
		On bool `json:"on"`
	} `json:"deep"`
	Hidden string `json:"-"`
}

func decoded(document []byte, headers ...string) (body, error) {
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(document))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	var b body
	err := web.Decode(r, &b)
	return b, err
}

func TestDecode(t *testing.T) {
	t.Parallel()
	want := body{Name: "ä", Count: 2}
	want.Deep.On = true
	for _, contentType := range []string{"application/json", "Application/JSON; charset=UTF-8"} {
		b, err := decoded([]byte("\n {\"count\": 2, \"name\": \"\\u00e4\", \"deep\": {\"on\": true}} "), "Content-Type", contentType)
		if err != nil || b != want {
			t.Errorf("%+v %v", b, err)
		}
	}
	if b, err := decoded([]byte(`{"name":null}`)); err != nil || b != (body{}) {
		t.Errorf("%+v %v", b, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body    string
		headers []string
		status  int
		field   string
	}{
		"nothing":               {body: "", status: 400},
		"half":                  {body: `{"name":"x"`, status: 400},
		"half a value":          {body: `{"name":"x`, status: 400},
		"no JSON":               {body: `{name:1}`, status: 400},
		"a list":                {body: `[]`, status: 400},
		"null":                  {body: `null`, status: 400},
		"a text":                {body: `"x"`, status: 400},
		"two objects":           {body: `{} {}`, status: 400},
		"trailing text":         {body: `{}x`, status: 400},
		"unknown field":         {body: `{"nam":"x"}`, status: 400, field: "nam"},
		"unknown field inside":  {body: `{"deep":{"off":true}}`, status: 400, field: "off"},
		"other case":            {body: `{"Name":"x"}`, status: 400, field: "Name"},
		"hidden field":          {body: `{"-":"x"}`, status: 400, field: "-"},
		"field twice":           {body: `{"name":"x","name":"x"}`, status: 400, field: "name"},
		"number for text":       {body: `{"name":1}`, status: 400, field: "name"},
		"text for number":       {body: `{"count":"1"}`, status: 400, field: "count"},
		"fraction":              {body: `{"count":1.5}`, status: 400, field: "count"},
		"number too large":      {body: `{"count":9223372036854775808}`, status: 400, field: "count"},
		"text for object":       {body: `{"deep":"x"}`, status: 400, field: "deep"},
		"number for truth":      {body: `{"deep":{"on":1}}`, status: 400, field: "deep.on"},
		"invalid UTF-8":         {body: "{\"name\":\"\xff\"}", status: 400},
		"too large":             {body: `{"name":"` + strings.Repeat("x", web.MaxBody) + `"}`, status: 413},
		"no media type":         {body: `{}`, headers: []string{"Content-Type", ""}, status: 415, field: "Content-Type"},
		"other media type":      {body: `{}`, headers: []string{"Content-Type", "text/json"}, status: 415, field: "Content-Type"},
		"malformed media type":  {body: `{}`, headers: []string{"Content-Type", "application/json; x"}, status: 415, field: "Content-Type"},
		"other character set":   {body: `{}`, headers: []string{"Content-Type", "application/json; charset=latin1"}, status: 415, field: "Content-Type"},
		"compressed":            {body: `{}`, headers: []string{"Content-Encoding", "gzip"}, status: 415, field: "Content-Type"},
		"unprintable and long":  {body: `{"\u0007` + strings.Repeat("ä", 40) + `":1}`, status: 400, field: `\a` + strings.Repeat("ä", 31) + "..."},
		"type before the field": {body: `{"nam":1}`, headers: []string{"Content-Type", "x"}, status: 415, field: "Content-Type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := decoded([]byte(c.body), c.headers...)
			var told *web.Error
			if !errors.As(err, &told) || told.Status != c.status || told.Field != c.field || told.Detail == "" {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestDecodeTakesTheLargestBody(t *testing.T) {
	t.Parallel()
	frame := `{"name":""}`
	document := `{"name":"` + strings.Repeat("x", web.MaxBody-len(frame)) + `"}`
	if _, err := decoded([]byte(document)); err != nil || len(document) != web.MaxBody {
		t.Errorf("%d bytes: %v", len(document), err)
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(document+" "))
	r.ContentLength = -1 // chunked
	r.Header.Set("Content-Type", "application/json")
	var told *web.Error
	if err := web.Decode(r, &body{}); !errors.As(err, &told) || told.Status != 413 {
		t.Errorf("one byte more, length unknown: %v", err)
	}
}

// Whatever arrives, the answer is a value that survives a round trip or an error that a client may read.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"name":"x","count":1}`, `{"deep":{"on":true}}`, `{"name":"x"`, `{"a":1}`, `{"\ud800":1}`, "\xff", `[[[`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		b, err := decoded(document)
		if err != nil {
			var told *web.Error
			if !errors.As(err, &told) || told.Status < 400 || told.Status >= 500 {
				t.Fatalf("%v for %q", err, document)
			}
			return
		}
		again, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := decoded(again); err != nil || c != b {
			t.Fatalf("%+v became %+v, %v", b, c, err)
		}
	})
}

func TestWriteJSONFailsBeforeItWrites(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	if err := web.WriteJSON(w, 200, func() {}); err == nil || w.Body.Len() != 0 || len(w.Header()) != 0 {
		t.Errorf("%v %v %s", err, w.Header(), w.Body)
	}
}
