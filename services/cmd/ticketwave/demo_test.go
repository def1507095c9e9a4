package main

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/services/booking"
)

// play runs a demo on the tests' servers and returns what it shows.
func play(t *testing.T, name, style string) string {
	t.Helper()
	opts, err := parse(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	s, err := scenarioNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	if s.hold > 0 {
		s.hold = 40 * time.Second // the services share two cores with everything else that is tested
	}
	opts.Style, opts.MailDir, opts.Prefix = style, t.TempDir(), "d"+strings.ReplaceAll(uuid.NewString(), "-", "")[:10]+"_"
	var out bytes.Buffer
	if err := demo(context.WithoutCancel(t.Context()), opts, s, &out); err != nil {
		t.Fatalf("%v, after:\n%s", err, out.String())
	}
	last := regexp.MustCompile(`\ndemo: ok, booking [0-9a-f-]{36} ` + words(s.status) + `, [1-9][0-9]* events, [1-9][0-9]* ms\n$`)
	if !last.MatchString(out.String()) {
		t.Errorf("the last line is another:\n%s", out.String())
	}
	return out.String()
}

func shows(t *testing.T, out string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !regexp.MustCompile(`(?m)^ *[0-9.]* *(ms)? +` + line + `$`).MatchString(out) {
			t.Errorf("%s is missing from:\n%s", line, out)
		}
	}
}

func TestTheDemoPays(t *testing.T) {
	t.Parallel()
	out := play(t, "success", booking.Choreography)
	shows(t, out, "booking +committed +UpdateEventInventory", "payment +answered +303 See Other", "booking +handled +PaymentCompleted",
		"catalog +handled +CommitEventInventory", "tickets +98 available, 0 held, 2 sold, of 100", "payment .*: completed, 50.00 of 50.00 EUR captured, 0.00 given back")
	if strings.Contains(out, "  saga  ") {
		t.Errorf("a coordinator is shown:\n%s", out)
	}
}

func TestTheDemoOfLateMoney(t *testing.T) {
	t.Parallel()
	out := play(t, "late-payment", booking.Orchestration)
	shows(t, out, "saga +committed +SettleBooking", "booking +committed +BookingExpired", "catalog +handled +ReleaseEventInventory",
		"tickets +100 available, 0 held, 0 sold, of 100", "payment .*: expired, 50.00 of 50.00 EUR captured, 50.00 given back", "saga +compensated, .*")
}
