package inbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestWhatTookItsTimeIsNotTriedAgainAtOnce(t *testing.T) {
	t.Parallel()
	for want, failures := range map[bool][]error{
		true:  {errors.New("no such account"), &pgconn.PgError{Code: "23505"}, errPanic},
		false: {context.DeadlineExceeded, fmt.Errorf("charge: %w", &pgconn.PgError{Code: "57014"}), Permanent(errors.New("never"))},
	} {
		for _, err := range failures {
			if quick(err) != want {
				t.Errorf("%v is tried again at once: want %t", err, want)
			}
		}
	}
}

func TestAThousandFailuresOfOneCauseAreOneLine(t *testing.T) {
	t.Parallel()
	for want, failure := range map[string]func(n int) error{
		"errors.errorString: no such account <n>": func(n int) error { return errors.New("no such account " + strconv.Itoa(n)) },
		"errors.errorString: hold seat <id>: gone": func(int) error {
			return fmt.Errorf("hold seat %s: %w", uuid.NewString(), errors.New("gone"))
		},
		"errors.errorString: hold <id>": func(int) error { return errors.New("hold " + strings.ToUpper(uuid.NewString())) },
		"errors.errorString: object <n> at <n> is gone": func(n int) error {
			return fmt.Errorf("%w", fmt.Errorf("object %x at %p is gone", 11400714819323198485*uint64(n+1), &n))
		},
		"errors.errorString: name <text> is taken":        func(n int) error { return fmt.Errorf("name %q is taken", fmt.Sprint("a \"b\" ", n, "\n")) },
		"errors.errorString: name <text> isn't one's own": func(n int) error { return fmt.Errorf("%w", fmt.Errorf("name '%d' isn't one's own", n)) },
		"errors.errorString: cannot read <text> (<text>)": func(n int) error { return fmt.Errorf("cannot read `f%d` ('x%d')", n, n) },
		"inbox.errTimeout: after <n>: timeout": func(n int) error {
			return fmt.Errorf("after %s: %w", time.Duration(n*n)*1234567, errTimeout{})
		},
		"errors.errorString: <n> is away": func(n int) error { return fmt.Errorf("10.0.%d.%d:5432 is away", n%256, n/256) },
		"postgres 23505 seats_pkey: insert seat <n>: ERROR: duplicate key value violates unique constraint <text> (SQLSTATE <n>)": func(n int) error {
			return fmt.Errorf("insert seat %d: %w", n, &pgconn.PgError{
				Severity: "ERROR", Code: "23505", ConstraintName: "seats_pkey", Message: `duplicate key value violates unique constraint "seats_pkey"`,
			})
		},
	} {
		for n := range 1000 {
			if got := fingerprint(failure(n)); got != want {
				t.Errorf("%q has the fingerprint %q, want %q", failure(n), got, want)
				break
			}
		}
	}
}

// errTimeout stands for an error with a type of its own.
type errTimeout struct{}

func (errTimeout) Error() string { return "timeout" }

func TestFailuresOfDifferentCausesAreDifferentLines(t *testing.T) {
	t.Parallel()
	seen := map[string]error{}
	for _, err := range []error{
		errors.New("no such account 1"), errors.New("no such event 1"), errTimeout{}, errors.New("timeout"),
		&pgconn.PgError{Severity: "ERROR", Code: "23505", ConstraintName: "a_pkey", Message: `duplicate key "1"`},
		&pgconn.PgError{Severity: "ERROR", Code: "23505", ConstraintName: "b_pkey", Message: `duplicate key "1"`},
		&pgconn.PgError{Severity: "ERROR", Code: "23503", ConstraintName: "b_pkey", Message: `duplicate key "1"`},
		errors.New("a word as faced or decade is no number"), errors.New("a word as added or decade is no number"),
	} {
		print := fingerprint(err)
		if other, ok := seen[print]; ok {
			t.Errorf("%q and %q have one fingerprint, %q", err, other, print)
		}
		seen[print] = err
	}
}

// A fingerprint is short and of one line, whatever the error says, and PostgreSQL takes it.
func FuzzFingerprint(f *testing.F) {
	for _, seed := range []string{"", "no such account 4711", "\x00\xff", `"open`, strings.Repeat("a1 ", 5000), "it's 'x' and `y`", "\u2028\n\r"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := fingerprint(errors.New(text))
		if len(got) > 200 || got != clip(got, 200) || strings.ContainsAny(got, "\n\r\x00") || strings.ContainsAny(strings.TrimPrefix(got, "errors.errorString"), "0123456789") {
			t.Errorf("the fingerprint of %q is %q", text, got)
		}
	})
}
