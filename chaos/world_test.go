package chaos_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	schema "github.com/jcp/ticketwave/sql"
)

const servicePassword = "chaos-services"

// world is a whole TicketWave on the stage's servers: databases, a vhost, programs, and what is known about them. Rows
// share one while it stays sound.
type world struct {
	*stage
	prefix, vhost, mail string
	proxies             proxies
	proxied             bool // the programs reach the servers through the proxies
	pools               map[string]*pgxpool.Pool
	ports               map[string]int
	procs               map[string]*program
	builds              map[string]string // where the programs of a name are, if not with the others
	runs                int               // of programs, for the names of their logs
	duplicates          float64

	known    map[uuid.UUID]*stored // every outbox row ever seen
	foreign  map[uuid.UUID]bool    // what the harness itself published, past the outboxes
	tapped   []uuid.UUID           // what came to the tap, in order
	clients  clients
	baseline baseline
}

// proxies are there for the rows that need them.
type proxies struct{ relayBroker, relayPostgres, servicesBroker, servicesPostgres *proxy }

func (p proxies) all() []*proxy {
	return []*proxy{p.relayBroker, p.relayPostgres, p.servicesBroker, p.servicesPostgres}
}

// house are the programs of a TicketWave.
var house = append([]string{"relay"}, schema.Services...)

// newWorld makes databases and a vhost on the servers given. Nothing runs yet.
func newWorld(t *testing.T, s *stage, migrants int) *world {
	t.Helper()
	name := "tw" + uuid.NewString()[:8]
	w := &world{
		stage: s, prefix: name + "_", vhost: name, mail: filepath.Join(s.dir, name, "mail"),
		pools: map[string]*pgxpool.Pool{}, ports: map[string]int{}, procs: map[string]*program{}, builds: map[string]string{},
		known: map[uuid.UUID]*stored{}, foreign: map[uuid.UUID]bool{},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := s.mq.newVHost(ctx, w.vhost); err != nil {
		t.Fatal(err)
	}
	w.migrateTogether(t, migrants)
	w.ticketwave(t, "topology", "apply")
	for _, service := range schema.Services {
		url, err := schema.URL(s.pg.url(""), w.prefix+service, "", "")
		if err != nil {
			t.Fatal(err)
		}
		config, err := pgxpool.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		config.MaxConns = 4
		config.ConnConfig.ConnectTimeout = 5 * time.Second
		if w.pools[service], err = pgxpool.NewWithConfig(context.WithoutCancel(ctx), config); err != nil {
			t.Fatal(err)
		}
	}
	w.keepJournal(t)
	w.openTap(t)
	for _, p := range []struct {
		into     **proxy
		name     string
		upstream int
	}{
		{&w.proxies.relayBroker, "relay-broker", s.mq.port}, {&w.proxies.relayPostgres, "relay-postgres", s.pg.port},
		{&w.proxies.servicesBroker, "services-broker", s.mq.port}, {&w.proxies.servicesPostgres, "services-postgres", s.pg.port},
	} {
		var err error
		if *p.into, err = newProxy(p.name, p.upstream); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// leave stops the world's programs and forgets its data.
func (w *world) leave(t *testing.T) {
	t.Helper()
	for _, p := range w.procs {
		p.kill()
	}
	for _, p := range w.proxies.all() {
		p.Stop()
	}
	for _, pool := range w.pools {
		pool.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if w.pg.proc.alive() {
		if err := schema.Drop(ctx, w.pg.url(""), schema.TicketWave(w.prefix, servicePassword)); err != nil {
			t.Logf("drop the databases: %v", err)
		}
	}
	if w.mq.proc.alive() {
		if err := w.mq.manage(ctx, http.MethodDelete, "/api/vhosts/"+w.vhost, nil, nil); err != nil {
			t.Logf("drop the vhost: %v", err)
		}
	}
}

// ticketwave runs a preparing command to its end.
func (w *world) ticketwave(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if text, err := output(ctx, w.ticketwaveCommand(args...)); err != nil {
		t.Fatalf("ticketwave %v: %v: %s", args, err, text)
	}
}

func (w *world) ticketwaveCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(w.bin, "ticketwave"), args...)
	cmd.Env = append(os.Environ(), "TW_POSTGRES_URL="+w.pg.url(""), "TW_AMQP_URL="+w.mq.url(w.vhost),
		"TW_SERVICE_PASSWORD="+servicePassword, "TW_DATABASE_PREFIX="+w.prefix)
	return cmd
}

// program is one of the house's programs, or a further relay ("relay2").
type program struct {
	*child
	name, kind string
	port       int
	log        *logFile
}

// logFile keeps a program's log: in a file for people, and its end in memory for the harness.
type logFile struct {
	mu   sync.Mutex
	file *os.File
	text bytes.Buffer
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() < 8<<20 {
		l.text.Write(p)
	}
	return l.file.Write(p)
}

// tail is the end of the log, for a message.
func (l *logFile) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.text.Bytes()
	return string(text[max(0, len(text)-1000):])
}

// says reports whether the log has a match.
func (l *logFile) says(pattern string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return regexp.MustCompile(pattern).Match(l.text.Bytes())
}

// launch starts a program without waiting for it. A second launch of a name follows the end of the first, on its port.
func (w *world) launch(t *testing.T, name string, env ...string) *program {
	t.Helper()
	p := &program{name: name, kind: strings.TrimRight(name, "0123456789")}
	if w.ports[name] == 0 {
		w.ports[name] = port(t)
	}
	p.port = w.ports[name]
	cmd := exec.Command(filepath.Join(cmp.Or(w.builds[name], w.bin), p.kind))
	cmd.Env = append(os.Environ(), "TW_HTTP_ADDR="+local(p.port), "TW_LOG_LEVEL=warn", "TW_MAIL_DIR="+w.mail)
	cmd.Env = append(cmd.Env, w.servers(t, p.kind)...)
	cmd.Env = append(cmd.Env, w.lives()...)
	cmd.Env = append(cmd.Env, env...)
	w.runs++
	file, err := os.Create(filepath.Join(logs, fmt.Sprintf("%s-%03d-%s.log", w.vhost, w.runs, name)))
	if err != nil {
		t.Fatal(err)
	}
	p.log = &logFile{file: file}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = p.log, p.log, time.Second
	if p.child, err = start(name, cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.procs[name] = p
	return p
}

// A booking that nobody pays for ends within a row.
const (
	payWithin = 10 * time.Second
	endsAfter = 2 * time.Second // behind that
	lateMoney = time.Second
)

// lives are the settings that say how bookings live: who leads them, and for how long they wait.
func (w *world) lives() []string {
	style := *saga
	if style == both {
		style = choreography
		if (w.runs%2 == 0) == (*seed%2 == 0) {
			style = orchestration
		}
	}
	return []string{
		"TW_SAGA=" + style, "TW_BOOKING_HOLD=" + payWithin.String(), "TW_BOOKING_GRACE=" + endsAfter.String(), "TW_SANDBOX_LATENESS=" + lateMoney.String(),
	}
}

// servers are the settings that say where PostgreSQL and RabbitMQ are.
func (w *world) servers(t *testing.T, kind string) []string {
	t.Helper()
	pg, mq := local(w.pg.port), local(w.mq.port)
	switch {
	case w.proxied && kind == "relay":
		pg, mq = w.proxies.relayPostgres.address, w.proxies.relayBroker.address
	case w.proxied:
		pg, mq = w.proxies.servicesPostgres.address, w.proxies.servicesBroker.address
	}
	env := []string{"TW_AMQP_URL=" + amqpURL(mq, w.vhost)}
	if kind != "relay" {
		return append(env, "TW_DATABASE_URL="+w.databaseURL(t, pg, kind, kind))
	}
	var list []string
	for _, service := range schema.Services {
		list = append(list, service+"="+w.databaseURL(t, pg, service, "relay"))
	}
	return append(env, "TW_RELAY_DATABASES="+strings.Join(list, ","))
}

func (w *world) databaseURL(t *testing.T, address, service, login string) string {
	t.Helper()
	url, err := schema.URL("postgres://"+address+"/?sslmode=disable", w.prefix+service, w.prefix+login, servicePassword)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// start launches programs and waits until they are ready.
func (w *world) start(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		w.launch(t, name)
	}
	for _, name := range names {
		w.awaitReady(t, name)
	}
}

func (w *world) awaitReady(t *testing.T, name string) {
	t.Helper()
	p := w.procs[name]
	eventually(t, time.Minute, func() bool { return p.ready() || !p.alive() }, "%s is not ready", name)
	if !p.alive() {
		t.Fatalf("%s has ended: %s", name, p.log.tail())
	}
}

var quickClient = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (p *program) get(path string) (int, string) {
	resp, err := quickClient.Get("http://" + local(p.port) + path)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, ""
	}
	return resp.StatusCode, string(body)
}

func (p *program) ready() bool {
	status, _ := p.get("/readyz")
	return status == http.StatusOK
}

// metric sums a metric's samples whose labels contain the text.
func (p *program) metric(name, labels string) (sum float64, ok bool) {
	status, body := p.get("/metrics")
	if status != http.StatusOK {
		return 0, false
	}
	for _, line := range strings.Split(body, "\n") {
		head, value, found := strings.Cut(line, " ")
		if !found || head != name && !strings.HasPrefix(head, name+"{") || !strings.Contains(head, labels) {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			sum += v
		}
	}
	return sum, true
}

// absorbed is how many deliveries the program has found to be duplicates.
func (p *program) absorbed() float64 {
	sum, _ := p.metric("ticketwave_inbox_outcomes_total", `result="duplicate"`)
	return sum
}

// killed kills a program, after a look at its counters.
func (w *world) killed(name string) {
	p := w.procs[name]
	if p.alive() && p.kind != "relay" {
		w.duplicates += p.absorbed()
	}
	p.kill()
}

// stop asks a program to end, and wants status 0 within the limit.
func (w *world) stop(t *testing.T, name string) {
	t.Helper()
	p := w.procs[name]
	if p.kind != "relay" {
		w.duplicates += p.absorbed()
	}
	p.signal(syscall.SIGTERM)
	if !p.await(time.Minute) {
		p.signal(syscall.SIGQUIT) // what it is at goes to its log
		p.await(5 * time.Second)
		p.kill()
		t.Errorf("%s does not end within a minute of SIGTERM", name)
		return
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%s ended with status %d after SIGTERM: %s", name, code, p.log.tail())
	}
}

// mode restarts all programs if they do not reach the servers as wanted, or are not all there.
func (w *world) mode(t *testing.T, proxied bool) {
	t.Helper()
	sound := w.proxied == proxied
	for _, name := range house {
		sound = sound && w.procs[name] != nil && w.procs[name].alive()
	}
	if sound {
		return
	}
	for _, p := range w.procs {
		if p.alive() {
			w.killed(p.name)
		}
	}
	w.procs = map[string]*program{}
	w.proxied = proxied
	w.start(t, house...)
	w.baseline = baseline{}
}

// admin asks a service's database, as administrator, until it answers.
func (w *world) admin(t *testing.T, service, query string, args []any, into ...any) {
	t.Helper()
	var last error
	eventually(t, 20*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		last = w.pools[service].QueryRow(ctx, query, args...).Scan(into...)
		return last == nil || errors.Is(last, pgx.ErrNoRows)
	}, "%s: %s: %v", service, query, &last)
	if last != nil {
		t.Fatalf("%s: %s: %v", service, query, last)
	}
}

// do runs statements in a service's database as administrator.
func (w *world) do(t *testing.T, service, statements string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := w.pools[service].Exec(ctx, statements); err != nil {
		t.Fatalf("%s: %s: %v", service, statements, err)
	}
}

// eventually waits until cond is true, looking every few milliseconds, and ends the row when it is not in time.
func eventually(tb testing.TB, deadline time.Duration, cond func() bool, format string, args ...any) {
	tb.Helper()
	if !within(deadline, cond) {
		for i, arg := range args {
			if err, ok := arg.(*error); ok {
				args[i] = *err
			}
		}
		tb.Fatalf("not within "+deadline.String()+": "+format, args...)
	}
}

func within(deadline time.Duration, cond func() bool) bool {
	limit := time.After(deadline)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-limit:
			return cond()
		case <-tick.C:
		}
	}
	return true
}

// call sends JSON and decodes the answer. Trouble on the way is status 0.
func call(ctx context.Context, client *http.Client, method, url, key string, body, answer any) (status int, header http.Header) {
	var document []byte
	if body != nil {
		var err error
		if document, err = json.Marshal(body); err != nil {
			return 0, nil
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(document))
	if err != nil {
		return 0, nil
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	answered, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode < 300 && answer != nil && json.Unmarshal(answered, answer) != nil {
		return 0, nil
	}
	return resp.StatusCode, resp.Header
}
