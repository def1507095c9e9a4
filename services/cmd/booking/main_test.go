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
	cmd, out := program(t, []string{"TW_DATABASE_URL=postgres://a:geheim@b/c", "TW_AMQP_URL=amqp://a:geheim@b/", "TW_MAX_TICKETS=none"})
	if got := status(t, cmd.Run()); got != 2 || !strings.HasPrefix(out.text(), "booking: TW_MAX_TICKETS") || strings.Count(out.text(), "\n") != 1 {
		t.Errorf("status %d: %s", got, out.text())
	}
}
