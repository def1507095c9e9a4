package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/outboxtest"
	schema "github.com/jcp/ticketwave/sql"
)

const password = "e2e-password"

// built compiles the programs once, without the race detector.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ticketwave-e2e-")
	if err != nil {
		return "", err
	}
	for _, b := range []struct{ module, pattern string }{{"..", "./cmd/..."}, {"../../outbox", "./cmd/relay"}} {
		cmd := exec.Command("go", "build", "-o", dir+"/", b.pattern)
		cmd.Dir = b.module
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s in %s: %w: %s", b.pattern, b.module, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := built(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// city is a whole TicketWave: databases, a vhost, and processes.
type city struct {
	t       *testing.T
	bin     string
	prefix  string
	amqp    string
	mailDir string
	admin   string
	// told is the environment of a process beside what all have, by its name.
	told map[string][]string

	mu    sync.Mutex
	procs map[string]*process
	pools map[string]*pgxpool.Pool
}

func newCity(t *testing.T) *city {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	c := &city{
		t: t, bin: bin, prefix: "tw_e2e_" + uuid.NewString()[:8] + "_", amqp: outboxtest.NewVHost(t),
		mailDir: t.TempDir(), admin: outboxtest.Env(t).PostgresURL, told: map[string][]string{},
		procs: map[string]*process{}, pools: map[string]*pgxpool.Pool{},
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := schema.Drop(ctx, c.admin, schema.TicketWave(c.prefix, password)); err != nil {
			t.Error(err)
		}
	})
	c.ticketwave("migrate")
	c.ticketwave("topology", "apply")
	return c
}

// ticketwave runs a preparing command to its end.
func (c *city) ticketwave(args ...string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "ticketwave"), args...)
	cmd.Env = append(os.Environ(), "TW_POSTGRES_URL="+c.admin, "TW_AMQP_URL="+c.amqp, "TW_SERVICE_PASSWORD="+password, "TW_DATABASE_PREFIX="+c.prefix)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("ticketwave %v: %v: %s", args, err, out)
	}
}

// process is one of TicketWave's programs, our child.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	addr  string
	lines []map[string]any
}

// start runs a program until the test ends; a second start of a name replaces the one that was killed. A second process of
// a program is called program-something.
func (c *city) start(names ...string) {
	c.t.Helper()
	for _, name := range names {
		program, _, _ := strings.Cut(name, "-")
		env := []string{"TW_AMQP_URL=" + c.amqp, "TW_HTTP_ADDR=127.0.0.1:0", "TW_MAIL_DIR=" + c.mailDir}
		if name == "relay" {
			env = append(env, "TW_RELAY_DATABASES="+c.outboxes())
		} else {
			env = append(env, "TW_DATABASE_URL="+c.database(program, program))
		}
		env = append(env, c.told[name]...)
		c.mu.Lock()
		if old := c.procs[name]; old != nil && old.addr != "" {
			env[1] = "TW_HTTP_ADDR=" + old.addr // its clients know it
		}
		p := &process{t: c.t, cmd: exec.Command(filepath.Join(c.bin, program)), done: make(chan struct{})}
		c.procs[name] = p
		c.mu.Unlock()
		p.run(append(os.Environ(), env...))
	}
	for _, name := range names {
		p := c.proc(name)
		outboxtest.Eventually(c.t, 2*time.Minute, func() bool { return p.ready() }, "%s is not ready", name)
	}
}

func (c *city) proc(name string) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.procs[name]
}

func (c *city) database(service, login string) string {
	url, err := schema.URL(c.admin, c.prefix+service, c.prefix+login, password)
	if err != nil {
		c.t.Fatal(err)
	}
	return url
}

func (c *city) outboxes() string {
	var list []string
	for _, service := range schema.Services {
		list = append(list, service+"="+c.database(service, "relay"))
	}
	return strings.Join(list, ",")
}

// pool is connected to a service's database as administrator.
func (c *city) pool(service string) *pgxpool.Pool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pool, ok := c.pools[service]; ok {
		return pool
	}
	url, err := schema.URL(c.admin, c.prefix+service, "", "")
	if err != nil {
		c.t.Fatal(err)
	}
	c.pools[service] = outboxtest.NewPool(c.t, url)
	return c.pools[service]
}

func (p *process) run(env []string) {
	p.t.Helper()
	p.cmd.Env = env
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	var stderr bytes.Buffer
	p.cmd.Stderr = &stderr
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.note(lines.Bytes())
		}
		_ = p.cmd.Wait() // how it ended is looked at by stop
		if stderr.Len() > 0 {
			p.t.Logf("%s: %s", filepath.Base(p.cmd.Path), stderr.String())
		}
	}()
	p.t.Cleanup(func() {
		p.kill()
		if p.t.Failed() {
			p.t.Logf("%s said last: %s", filepath.Base(p.cmd.Path), p.last(20))
		}
	})
}

// last is the end of the program's log.
func (p *process) last(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text, err := json.MarshalIndent(p.lines[max(0, len(p.lines)-n):], "", " ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (p *process) note(text []byte) {
	var line map[string]any
	if json.Unmarshal(text, &line) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if addr, ok := line["address"].(string); ok {
		p.addr = addr
	}
	p.lines = append(p.lines, line)
}

func (p *process) url() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return "http://" + p.addr
}

func (p *process) ready() bool {
	resp, err := http.Get(p.url() + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// kill ends the process as a power cut would, and reaps it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// stop asks the process to end and wants status 0.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Error(err)
	}
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Errorf("%s does not end", p.cmd.Path)
		p.kill()
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("%s ended with status %d", p.cmd.Path, code)
	}
}

// call sends JSON and decodes the answer. Trouble on the way is status 0.
func call(method, url, key string, body, answer any) int {
	document, err := json.Marshal(body)
	if err != nil {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(document))
	if err != nil {
		return 0
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	answered, err := io.ReadAll(resp.Body)
	if err != nil || answer != nil && json.Unmarshal(answered, answer) != nil {
		return 0
	}
	return resp.StatusCode
}

// booking is what booking's API shows. Reason and PaymentID are empty where it shows null.
type booking struct {
	ID, Status, Reason, PaymentID string
	Notified                      *bool
}

// ask is call of a service that runs: a busy machine may answer 503, and wants to be asked again.
func (c *city) ask(method, url, key string, body, answer any) (status int) {
	c.t.Helper()
	outboxtest.Eventually(c.t, time.Minute, func() bool {
		status = call(method, url, key, body, answer)
		return status != http.StatusServiceUnavailable
	}, "%s %s is answered by nothing but 503", method, url)
	return status
}

// sell puts an event on sale and waits until booking can price it.
func (c *city) sell(capacity int) (event string) {
	c.t.Helper()
	event = uuid.NewString()
	status := c.ask(http.MethodPost, c.proc("catalog").url()+"/api/events", "", map[string]any{
		"eventId": event, "name": "Night of the relay", "startsAt": "2099-06-01T19:00:00Z", "price": "25.00", "currency": "EUR", "capacity": capacity,
	}, nil)
	if status != http.StatusCreated {
		c.t.Fatalf("the event was answered with status %d", status)
	}
	db := c.pool("booking")
	outboxtest.Eventually(c.t, 30*time.Second, func() (known bool) {
		err := db.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM booking.events WHERE id = $1)`, event).Scan(&known)
		return err == nil && known
	}, "booking has not heard of the event")
	return event
}

// book books until it is answered, as a client does that knows its key.
func (c *city) book(event string, tickets int) booking { return c.bookAt("booking", event, tickets) }

// bookAt books with one of booking's processes.
func (c *city) bookAt(process, event string, tickets int) (b booking) {
	key, body := uuid.NewString(), map[string]any{"eventId": event, "userId": uuid.NewString(), "ticketCount": tickets}
	status := persist(func() int { return call(http.MethodPost, c.proc(process).url()+"/api/bookings", key, body, &b) })
	if status != http.StatusCreated {
		c.t.Errorf("a booking was answered with status %d", status)
	}
	return b
}

// persist asks until there is an answer other than that a service is away, for two minutes, and returns its status.
func persist(ask func() int) (status int) {
	limit, tick := time.Now().Add(2*time.Minute), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		status = ask()
		if status != 0 && status != http.StatusServiceUnavailable || time.Now().After(limit) {
			return status
		}
		<-tick.C
	}
}

// available is how many tickets the catalog has left.
func (c *city) available(event string) int {
	c.t.Helper()
	var e struct{ Available int }
	if status := c.ask(http.MethodGet, c.proc("catalog").url()+"/api/events/"+event, "", nil, &e); status != http.StatusOK {
		c.t.Fatalf("the event was answered with status %d", status)
	}
	return e.Available
}

// count asks one database for one number.
func count(t *testing.T, db *pgxpool.Pool, query string, args ...any) (n int) {
	t.Helper()
	if err := db.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}
