package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxBody     = 64 << 10
	maxEditBody = 1<<20 + 128<<10 // a payload of 1 MiB, headers, and what surrounds them
)

// decode reads a request's body, one JSON object of known members. What it cannot take is a problem: 415, 413 or 400.
func decode(w http.ResponseWriter, r *http.Request, most int64, into any) error {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" || r.Header.Get("Content-Encoding") != "" {
		return &problem{status: http.StatusUnsupportedMediaType, slug: "media-type", field: "Content-Type", detail: "send the body as application/json, not compressed"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return &problem{status: http.StatusRequestEntityTooLarge, slug: "too-large", detail: "the body is larger than " + strconv.FormatInt(most, 10) + " bytes"}
	case err != nil:
		return malformed("", "the body could not be read to its end")
	case !utf8.Valid(body):
		return malformed("", "the body is not valid UTF-8")
	}
	return parse(body, into)
}

func parse(body []byte, into any) error {
	if !bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) {
		return malformed("", "the body must be one JSON object")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return badJSON(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return malformed("", "something follows the JSON object")
	}
	return nil
}

// badJSON says what is wrong without repeating a value.
func badJSON(err error) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &kind):
		return malformed(kind.Field, "must be a "+kind.Type.String())
	case errors.As(err, &syntax):
		return malformed("", "the body is not valid JSON at byte "+strconv.FormatInt(syntax.Offset, 10))
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return malformed(strings.ToValidUTF8(strings.Trim(name[:min(len(name), 66)], `"`), ""), "there is no such member")
	}
	return malformed("", "the body does not fit the specification")
}

// reason checks what goes into the audit log.
func reason(text string) error {
	if text = strings.TrimSpace(text); text == "" || utf8.RuneCountInString(text) > 500 || strings.ContainsRune(text, 0) {
		return malformed("reason", "say why, in at most 500 characters without a zero byte; it goes into the audit log")
	}
	return nil
}
