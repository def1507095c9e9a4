package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/booking"
)

// TestMain lets the test binary be the program.
func TestMain(m *testing.M) {
	if os.Getenv("TW_TEST_BE_BOOKING") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// output is what a process writes, read while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func program(t *testing.T, env []string, args ...string) (*exec.Cmd, *output) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd, out := exec.CommandContext(t.Context(), self, args...), &output{}
	cmd.Env = append([]string{"TW_TEST_BE_BOOKING=1"}, env...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

func status(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestAProcessFromStartToEnd(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	addr := freeAddr(t)
	env := []string{"TW_DATABASE_URL=" + db.ServiceURL, "TW_AMQP_URL=" + outboxtest.NewVHost(t), "TW_HTTP_ADDR=" + addr, "TW_MAX_TICKETS=3"}
	cmd, out := program(t, env)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool {
		probe, _ := program(t, []string{"TW_HTTP_ADDR=" + addr}, "-health")
		return probe.Run() == nil
	}, "the process is ready: %s", out.text())
	order := `{"eventId":"123e4567-e89b-12d3-a456-426614174000","userId":"123e4567-e89b-12d3-a456-426614174001","ticketCount":4}`
	resp, err := http.Post("http://"+addr+"/api/bookings", "application/json", strings.NewReader(order))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(string(body), "from 1 to 3") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	second, message := program(t, env)
	if got := status(t, second.Run()); got != 1 || !strings.Contains(message.text(), "TW_HTTP_ADDR") {
		t.Errorf("on a port that is taken: status %d, %s", got, message.text())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := status(t, cmd.Wait()); got != 0 {
		t.Errorf("status %d after SIGTERM: %s", got, out.text())
	}
	log := out.text()
	if !strings.Contains(log, `"booking started"`) || !strings.Contains(log, `"booking stopped"`) || strings.Contains(log, "outboxtest@") {
		t.Error(log)
	}
	probe, _ := program(t, []string{"TW_HTTP_ADDR=" + addr}, "-health")
	if got := status(t, probe.Run()); got != 1 {
		t.Errorf("health of nobody has status %d", got)
	}
}

func TestABadOptionIsStatusTwo(t *testing.T) {
	t.Parallel()
	for assignment, wants := range map[string]string{
		"TW_MAX_TICKETS=none": "a whole number from 1 to", "TW_SAGA=both": "choreography or orchestration",
		"TW_BOOKING_HOLD=25h": "a duration from 1s to 24h", "TW_BOOKING_GRACE=61m": "a duration from 0s to 1h", "TW_BOOKING_GRACE=-1s": "from 0s",
	} {
		name, _, _ := strings.Cut(assignment, "=")
		cmd, out := program(t, []string{"TW_DATABASE_URL=postgres://a:geheim@b/c", "TW_AMQP_URL=amqp://a:geheim@b/", assignment})
		text := out.text
		if got := status(t, cmd.Run()); got != 2 || !strings.HasPrefix(text(), "booking: "+name) || !strings.Contains(text(), wants) || strings.Count(text(), "\n") != 1 {
			t.Errorf("%s: status %d: %s", assignment, got, text())
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	given := func(values map[string]string) booking.Config {
		var o options
		for _, s := range o.settings() {
			value := s.Default
			if v, ok := values[s.Env]; ok {
				value = v
			}
			if err := s.Set(value); err != nil {
				t.Errorf("%s=%s: %v", s.Env, value, err)
			}
		}
		return o.config()
	}
	want := booking.Config{MaxTickets: booking.DefaultMaxTickets, Hold: booking.DefaultHold, Grace: booking.DefaultGrace}
	if got := given(nil); got != want {
		t.Errorf("by default %+v", got)
	}
	want = booking.Config{MaxTickets: 3, Hold: 90 * time.Second, Grace: booking.NoGrace, Orchestration: true}
	if got := given(map[string]string{"TW_MAX_TICKETS": "3", "TW_SAGA": "orchestration", "TW_BOOKING_HOLD": "90s", "TW_BOOKING_GRACE": "0"}); got != want {
		t.Errorf("got %+v", got)
	}
}
