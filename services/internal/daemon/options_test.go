package daemon

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// given is a complete environment with some variables changed.
func given(changed map[string]string) func(string) string {
	env := map[string]string{"TW_DATABASE_URL": "postgres://booking:geheim@db:5432/booking", "TW_AMQP_URL": "amqp://guest:geheim@mq:5672/"}
	maps.Copy(env, changed)
	return func(name string) string { return env[name] }
}

func parsed(env map[string]string, args ...string) (opts Options, tickets int, settings []Setting, err error) {
	settings = append(opts.common(":5001"), Whole(&tickets, "max-tickets", "TW_MAX_TICKETS", 10, 1, 100))
	err = parse("booking", &opts, settings, args, given(env), &bytes.Buffer{})
	return opts, tickets, settings, err
}

func TestFlagOverEnvironmentOverDefault(t *testing.T) {
	t.Parallel()
	opts, tickets, _, err := parsed(nil)
	if err != nil || opts.HTTPAddr != ":5001" || opts.LogLevel.String() != "INFO" || tickets != 10 || opts.DatabaseURL != given(nil)("TW_DATABASE_URL") {
		t.Errorf("%+v %d %v", opts, tickets, err)
	}
	env := map[string]string{"TW_HTTP_ADDR": ":1", "TW_LOG_LEVEL": "debug", "TW_MAX_TICKETS": "7"}
	opts, tickets, _, err = parsed(env)
	if err != nil || opts.HTTPAddr != ":1" || opts.LogLevel.String() != "DEBUG" || tickets != 7 {
		t.Errorf("%+v %d %v", opts, tickets, err)
	}
	opts, tickets, _, err = parsed(env, "-http", ":2", "-log-level=warn", "-max-tickets", "8", "-amqp", "amqps://other")
	if err != nil || opts.HTTPAddr != ":2" || opts.LogLevel.String() != "WARN" || tickets != 8 || opts.AMQPURL != "amqps://other" {
		t.Errorf("%+v %d %v", opts, tickets, err)
	}
}

func TestABadValueIsOneLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ variable, value, wants string }{
		{"TW_DATABASE_URL", "mysql://booking:geheim@db/x", "postgres://"},
		{"TW_DATABASE_URL", "postgres://booking:geheim@db:port/x", "postgres://"},
		{"TW_AMQP_URL", "amqp:", "amqp://"},
		{"TW_HTTP_ADDR", "5001", "host:port"},
		{"TW_LOG_LEVEL", "loud", "debug, info, warn or error"},
		{"TW_MAX_TICKETS", "0", "from 1 to 100"},
		{"TW_MAX_TICKETS", "many", "from 1 to 100"},
	} {
		_, _, _, err := parsed(map[string]string{c.variable: c.value})
		if err == nil || !strings.HasPrefix(err.Error(), c.variable) || !strings.Contains(err.Error(), c.wants) ||
			strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s=%s: %v", c.variable, c.value, err)
		}
	}
	for _, args := range [][]string{{"-nonsense"}, {"now"}, {"-max-tickets"}} {
		if _, _, _, err := parsed(nil, args...); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", args, err)
		}
	}
	var opts Options
	err := parse("booking", &opts, opts.common(":5001"), nil, func(string) string { return "" }, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "TW_DATABASE_URL (-database) is not set") {
		t.Errorf("%v", err)
	}
}

func TestADurationWithinItsLimits(t *testing.T) {
	t.Parallel()
	var d time.Duration
	s := Duration(&d, "hold", "TW_BOOKING_HOLD", 15*time.Minute, time.Second, 24*time.Hour)
	if s.Default != "15m" || s.Wants != "a duration from 1s to 24h, such as 15m" {
		t.Errorf("default %s, wants %s", s.Default, s.Wants)
	}
	for value, want := range map[string]time.Duration{"1s": time.Second, "24h": 24 * time.Hour, "1m30s": 90 * time.Second} {
		if err := s.Set(value); err != nil || d != want {
			t.Errorf("%s is %s, %v", value, d, err)
		}
	}
	for _, value := range []string{"", "0", "999ms", "24h0m1s", "15", "-1m", "soon"} {
		if s.Set(value) == nil {
			t.Errorf("%q is taken as %s", value, d)
		}
	}
	for d, want := range map[time.Duration]string{0: "0s", time.Hour: "1h", 10 * time.Hour: "10h", 90 * time.Minute: "1h30m", 100 * time.Second: "1m40s", 30 * time.Second: "30s"} {
		if got := short(d); got != want {
			t.Errorf("%s is shown as %s", d, got)
		}
	}
}

func TestOptionsAreShownWithoutSecrets(t *testing.T) {
	t.Parallel()
	_, _, settings, err := parsed(map[string]string{"TW_DATABASE_URL": "postgres://booking:geheim@db/booking?password=geheim"})
	if err != nil {
		t.Fatal(err)
	}
	shown := redacted(settings)
	for name, value := range shown {
		if strings.Contains(value, "geheim") {
			t.Errorf("%s is shown as %s", name, value)
		}
	}
	if shown["TW_DATABASE_URL"] != "postgres://booking:xxxxx@db/booking" || shown["TW_MAX_TICKETS"] != "10" || len(shown) != len(settings) {
		t.Errorf("%v", shown)
	}
}

func TestHelpAndHealth(t *testing.T) {
	t.Parallel()
	var opts Options
	var out bytes.Buffer
	err := parse("booking", &opts, opts.common(":5001"), []string{"-help"}, given(nil), &out)
	if !errors.Is(err, errHelp) || !strings.Contains(out.String(), "TW_HTTP_ADDR") || strings.Contains(out.String(), "geheim") {
		t.Errorf("%v %s", err, out.String())
	}
	err = parse("booking", &opts, opts.common(":5001"), []string{"-health"}, func(string) string { return "" }, &out)
	if err != nil || !opts.health || opts.HTTPAddr != ":5001" {
		t.Errorf("asking for health needs an address alone: %v %+v", err, opts)
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(" sesame-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env  map[string]string
		want string
		bad  string
	}{
		{nil, "", ""},
		{map[string]string{"TW_KEY": "sesame"}, "sesame", ""},
		{map[string]string{"TW_KEY_FILE": file}, "sesame-file", ""},
		{map[string]string{"TW_KEY": "wrong"}, "", "TW_KEY (-key) is no such secret: want what begins with sesame"},
		{map[string]string{"TW_KEY_FILE": file + "-none"}, "", "TW_KEY_FILE"},
	} {
		var opts Options
		var key string
		secret := Secret(&key, "key", "TW_KEY", "what begins with sesame", func(v string) bool { return strings.HasPrefix(v, "sesame") })
		settings := append(opts.common(":5001"), secret, FromFile(secret))
		err := parse("booking", &opts, settings, nil, given(c.env), &bytes.Buffer{})
		if key != c.want || (err == nil) != (c.bad == "") || err != nil && (!strings.HasPrefix(err.Error(), c.bad) || strings.Contains(err.Error(), "wrong")) {
			t.Errorf("%v: %q %v", c.env, key, err)
		}
		if err == nil && strings.Contains(redacted(settings)["TW_KEY"], "sesame") {
			t.Errorf("shown: %v", redacted(settings))
		}
	}
}
