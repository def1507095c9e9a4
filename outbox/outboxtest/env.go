package outboxtest

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Servers are where the tests' servers listen; the URLs are those of administrators.
type Servers struct {
	PostgresURL, AMQPURL, ManagementURL string
}

// Env finds the servers, or fails the test with what to run.
func Env(tb testing.TB) Servers {
	tb.Helper()
	s, err := lookup()
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func lookup() (Servers, error) {
	file := envFile()
	value := func(name string) string {
		if v := os.Getenv(name); v != "" {
			return v
		}
		return file[name]
	}
	s := Servers{PostgresURL: value("TW_POSTGRES_URL"), AMQPURL: value("TW_AMQP_URL"), ManagementURL: value("TW_RABBITMQ_MANAGEMENT_URL")}
	if s.PostgresURL == "" || s.AMQPURL == "" || s.ManagementURL == "" {
		return s, errors.New("no servers to test on: run \"make up\", or set TW_POSTGRES_URL, TW_AMQP_URL and TW_RABBITMQ_MANAGEMENT_URL")
	}
	return s, nil
}

// envFile reads the nearest .run/env at or above the working directory.
func envFile() map[string]string {
	values := map[string]string{}
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if f, openErr := os.Open(filepath.Join(dir, ".run", "env")); openErr == nil {
			defer f.Close()
			for lines := bufio.NewScanner(f); lines.Scan(); {
				name, value, _ := strings.Cut(lines.Text(), "=")
				values[name] = strings.Trim(value, "'")
			}
			return values
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return values
}

// busy is how much longer everything may take on a machine that has other things to do.
const busy = 4

// Eventually waits until cond is true, looking every few milliseconds, and fails the test when it is not within four times
// the deadline, which is that of a machine with nothing else to do.
func Eventually(tb testing.TB, deadline time.Duration, cond func() bool, format string, args ...any) {
	tb.Helper()
	limit := time.After(busy * deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-limit:
			tb.Fatalf("not within "+(busy*deadline).String()+": "+format, args...)
		case <-tick.C:
		}
	}
}
