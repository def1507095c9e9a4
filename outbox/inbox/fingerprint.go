package inbox

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// fingerprint is the error's type, and its text without what differs from message to message, so that a thousand
// failures of one cause are one line.
func fingerprint(err error) string {
	text := clip(err.Error(), 4096)
	for _, v := range varying {
		text = v.pattern.ReplaceAllString(text, v.by)
	}
	return clip(strings.Join(strings.Fields(kind(err)+": "+text), " "), 200)
}

// varying are what is taken out of a text, in this order.
var varying = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`"(?:[^"\\]|\\.)*"`), `<text>`},
	{regexp.MustCompile("`[^`]*`"), `<text>`},
	{regexp.MustCompile(`(^|[\s(\[{=:,])'(?:[^'\\]|\\.)*'`), `$1<text>`}, // an apostrophe in a word opens nothing
	{regexp.MustCompile(`(?i)\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`), `<id>`},
	{regexp.MustCompile(`(?i)\b(?:0x[0-9a-f]+|[0-9a-f]*[0-9][0-9a-f]*|[0-9a-f]{8,})\b`), `<n>`}, // a hex number may have digits only
	{regexp.MustCompile(`[0-9]+`), `<n>`},
	{regexp.MustCompile(`<n>(?:[.:,+-]+<n>)+`), `<n>`},             // decimals, addresses, dates
	{regexp.MustCompile(`(?:<n>(?:ns|µs|us|ms|[smh])\b)+`), `<n>`}, // durations
}

// kind is the type of the error's cause: what it wraps, followed to the end. The server's errors have their codes
// and the constraint that was violated.
func kind(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return strings.TrimRight("postgres "+pg.Code+" "+pg.ConstraintName, " ")
	}
	for {
		switch e := err.(type) { //nolint:errorlint // each link of the chain is looked at by itself
		case interface{ Unwrap() error }:
			if next := e.Unwrap(); next != nil {
				err = next
				continue
			}
		case interface{ Unwrap() []error }:
			if all := e.Unwrap(); len(all) > 0 && all[len(all)-1] != nil {
				err = all[len(all)-1]
				continue
			}
		}
		return strings.TrimPrefix(fmt.Sprintf("%T", err), "*")
	}
}
