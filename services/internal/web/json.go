package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxBody is the largest request body in bytes.
const MaxBody = 64 << 10

// Decode reads the request's body, one JSON object, into a struct. What it cannot take is an *Error that names
// the field: 415 for another media type, 413 over MaxBody, 400 for everything else, such as unknown or repeated
// fields (names count as written, case included), wrong types, invalid UTF-8, or more than one value.
func Decode(r *http.Request, into any) error {
	if err := checkMediaType(r.Header); err != nil {
		return err
	}
	body, err := readBody(r)
	if err != nil {
		return err
	}
	if !utf8.Valid(body) {
		return Malformed("", "the body is not valid UTF-8")
	}
	if err := checkFields(body, fieldNames(into)); err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return badJSON(err)
	}
	return nil
}

func checkMediaType(h http.Header) error {
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset, given := params["charset"]
	encoding := h.Get("Content-Encoding")
	if err == nil && kind == "application/json" && (!given || strings.EqualFold(charset, "utf-8")) && (encoding == "" || encoding == "identity") {
		return nil
	}
	return &Error{Status: http.StatusUnsupportedMediaType, Field: "Content-Type", Detail: "send the body as application/json in UTF-8, not compressed"}
}

func readBody(r *http.Request) ([]byte, error) {
	if r.ContentLength > MaxBody {
		return nil, tooLarge()
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &Error{Status: http.StatusRequestTimeout, Detail: "the body did not arrive in time"}
	case err != nil:
		return nil, Malformed("", "the body could not be read to its end")
	case len(body) > MaxBody:
		return nil, tooLarge()
	}
	return body, nil
}

func tooLarge() error {
	return &Error{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", MaxBody)}
}

// checkFields walks the top-level object: its names are known, exact and not repeated, and nothing follows it.
func checkFields(body []byte, known []string) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	open, err := decoder.Token()
	if err != nil {
		return badJSON(err)
	}
	if open != json.Delim('{') {
		return Malformed("", "the body must be one JSON object")
	}
	seen := map[string]bool{}
	for decoder.More() {
		name, err := nextField(decoder)
		if err != nil {
			return badJSON(err)
		}
		if !slices.Contains(known, name) {
			return Malformed(quoted(name), "unknown field; the fields are %s", strings.Join(known, ", "))
		}
		if seen[name] {
			return Malformed(name, "the field stands there twice")
		}
		seen[name] = true
	}
	if _, err := decoder.Token(); err != nil {
		return badJSON(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Malformed("", "something follows the JSON object")
	}
	return nil
}

// nextField reads a name and skips its value.
func nextField(decoder *json.Decoder) (string, error) {
	token, err := decoder.Token()
	if err != nil {
		return "", err
	}
	name, _ := token.(string)
	var value json.RawMessage
	return name, decoder.Decode(&value)
}

// fieldNames are the JSON names of a pointer to a struct.
func fieldNames(into any) []string {
	var names []string
	for _, field := range reflect.VisibleFields(reflect.TypeOf(into).Elem()) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" {
			name = field.Name
		}
		if name != "-" && field.IsExported() && !field.Anonymous {
			names = append(names, name)
		}
	}
	return names
}

// quoted is a client's name made fit to be shown: short and printable.
func quoted(name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "..."
	}
	q := strconv.Quote(name)
	return q[1 : len(q)-1]
}

func badJSON(err error) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &kind):
		return Malformed(kind.Field, "must be %s, not %s", wants(kind.Type), quoted(kind.Value))
	case errors.As(err, &syntax):
		return Malformed("", "the body is not valid JSON: %s at byte %d", syntax.Error(), syntax.Offset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Malformed("", "the body is not valid JSON: it ends too early")
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return Malformed(strings.Trim(name, `"`), "unknown field")
	}
	return Malformed("", "the body does not fit: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// wants names a Go type in JSON's words.
func wants(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number of at most " + strconv.Itoa(t.Bits()) + " bits"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	}
	return "an object"
}

// WriteJSON answers with v. An error means that nothing has been written yet.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	WriteBody(w, status, body)
	return nil
}

// WriteBody answers with a JSON document that is already encoded.
func WriteBody(w http.ResponseWriter, status int, body []byte) {
	send(w, status, "application/json", body)
}

func send(w http.ResponseWriter, status int, mediaType string, body []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has gone
}
