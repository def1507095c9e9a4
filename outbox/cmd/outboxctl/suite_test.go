package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/outbox/relayd"
)

var update = flag.Bool("update", false, "write the golden files")

// built compiles outboxctl and the relay once, without the race detector.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "outboxctl-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "./cmd/outboxctl", "./cmd/relay")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if dir, err := built(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func program(t *testing.T, name string) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// result is what one run of outboxctl left.
type result struct {
	code     int
	out, err string
}

// console runs outboxctl with an environment of its own and nothing to read.
type console struct {
	t   *testing.T
	env []string
}

func (c console) with(env ...string) console {
	return console{c.t, append(append([]string{}, c.env...), env...)}
}

func (c console) command(ctx context.Context, args ...string) *exec.Cmd {
	c.t.Helper()
	cmd := exec.CommandContext(ctx, program(c.t, "outboxctl"), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.t.TempDir()}, c.env...)
	return cmd
}

func (c console) run(args ...string) result { return c.feed("", args...) }

// feed runs outboxctl with something to read.
func (c console) feed(input string, args ...string) result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := c.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("outboxctl %v: %v", args, err)
	}
	if ctx.Err() != nil {
		c.t.Fatalf("outboxctl %v does not end: %s %s", args, out.String(), errs.String())
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// want runs outboxctl and checks the exit code, and that the output or the error says each of the texts.
func (c console) want(code int, args []string, texts ...string) result {
	c.t.Helper()
	r := c.run(args...)
	r.check(c.t, code, args, texts...)
	return r
}

func (r result) check(t *testing.T, code int, args []string, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("outboxctl %v: exit code %d, want %d\n%s%s", args, r.code, code, r.out, r.err)
		return
	}
	for _, text := range texts {
		if !strings.Contains(r.out+r.err, text) {
			t.Errorf("outboxctl %v does not say %q:\n%s%s", args, text, r.out, r.err)
		}
	}
}

// words splits a command line at its spaces.
func words(line string) []string { return strings.Fields(line) }

// asJSON runs a command with -o json, and checks that what it prints is one document of the type T and nothing else.
func asJSON[T any](c console, code int, line string) (value T) {
	c.t.Helper()
	r := c.run(append(words(line), "-o", "json")...)
	r.check(c.t, code, words(line))
	decoder := json.NewDecoder(strings.NewReader(r.out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&value); err != nil {
		c.t.Errorf("outboxctl %s -o json: %v\n%s%s", line, err, r.out, r.err)
		return value
	}
	if decoder.More() {
		c.t.Errorf("outboxctl %s -o json prints more than one document: %s", line, r.out)
	}
	return value
}

// golden compares with a file in testdata, which -update writes.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s is not as it was (-update writes it):\n--- got\n%s--- want\n%s", name, got, want)
	}
}

// variable parts of a table, each replaced by what is as wide, so that the columns stay where they are.
var variable = []struct {
	is *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z`), "2030-01-02 15:04:05.000Z"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ`), "2030-01-02 15:04:05Z"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "2030-01-02T15:04:05Z"},
	{regexp.MustCompile(`at \d\d:\d\d:\d\dZ`), "at 15:04:05Z"},
	{regexp.MustCompile(`1h[34]\dm`), "1h30m"},
	{regexp.MustCompile(`\b(\d+m)?\d+s ago`), "1s ago"},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), strings.Repeat("f", 16)},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), strings.Repeat("e", 64)},
}

var uuids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// normal replaces what differs from run to run: times, and ids by the names that the test has for them.
func normal(text string, names map[string]string) string {
	for _, v := range variable {
		text = v.is.ReplaceAllString(text, v.by)
	}
	text = uuids.ReplaceAllStringFunc(text, func(id string) string {
		if name, ok := names[id]; ok {
			return fmt.Sprintf("%.36s", "<"+name+">"+strings.Repeat("-", 36))
		}
		return "00000000-0000-0000-0000-000000000000"
	})
	for from, to := range names {
		text = strings.ReplaceAll(text, from, to)
	}
	return text
}

var runs = regexp.MustCompile(` {2,}`)

// loose is text without the widths of its columns, for tables with parts whose width differs from run to run.
func loose(text string) string { return runs.ReplaceAllString(text, "  ") }

// order is the event of these tests.
type order struct {
	Kind string `json:"-"`
	Key  string `json:"key"`
	N    int    `json:"n"`
}

const (
	placed = "shop.orders.placed.v1" // for billing and mail
	paid   = "shop.orders.paid.v1"   // for mail
	lost   = "shop.orders.lost.v1"   // for nobody
)

func (o order) EventType() string {
	if o.Kind == "" {
		return placed
	}
	return o.Kind
}
func (o order) EventKey() string { return o.Key }

// topology binds types to consumers; lost to mail if that is asked for.
func topology(bindLost bool) rabbitmq.Topology {
	mail := []string{placed, paid}
	if bindLost {
		mail = append(mail, lost)
	}
	return rabbitmq.Topology{
		Exchange: "shop.events", TypePrefix: "shop.", Partitions: outbox.Partitions,
		Queues: []rabbitmq.Queue{{Name: "billing", Types: []string{placed}}, {Name: "mail", Types: mail}},
	}
}

var silent = slog.New(slog.DiscardHandler)

// town is a shop that writes, two consumers with databases of their own, a broker, and a relay daemon with its API.
type town struct {
	console          // as operator olaf
	viewer   console // as viewer vera
	t        *testing.T
	shop     *outboxtest.Database
	inboxes  map[string]*outboxtest.Database
	amqp     string
	topology rabbitmq.Topology
	tokens   string
	failing  sync.Map // "consumer key" to the error of its handler
	names    map[string]string
	relay    *daemon
}

func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{
		t: t, amqp: outboxtest.NewVHost(t), topology: topology(false), shop: outboxtest.NewDatabase(t, "shop"), names: map[string]string{},
		inboxes: map[string]*outboxtest.Database{"billing": outboxtest.NewDatabase(t, "billing"), "mail": outboxtest.NewDatabase(t, "mail")},
	}
	w.apply(w.topology)
	vera, viewerLine, err := admin.NewToken("vera", api.Viewer)
	if err != nil {
		t.Fatal(err)
	}
	olaf, operatorLine, err := admin.NewToken("olaf", api.Operator)
	if err != nil {
		t.Fatal(err)
	}
	w.tokens = filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(w.tokens, []byte(viewerLine+"\n"+operatorLine+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.console.t, w.viewer.t = t, t
	w.env, w.viewer.env = []string{"TW_ADMIN_TOKEN=" + olaf}, []string{"TW_ADMIN_TOKEN=" + vera}
	w.relay = w.start()
	w.console, w.viewer = w.at(w.relay, w.console), w.at(w.relay, w.viewer)
	return w
}

func (w *town) at(d *daemon, c console) console { return c.with("TW_ADMIN_URL=http://" + d.addr) }

func (w *town) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

// apply declares a topology and stores it.
func (w *town) apply(t rabbitmq.Topology) {
	w.t.Helper()
	if err := t.Apply(w.context(), w.amqp); err != nil {
		w.t.Fatal(err)
	}
	if err := relayd.StoreTopology(w.context(), w.shop.AdminURL, t); err != nil {
		w.t.Fatal(err)
	}
}

// daemon is a relay process.
type daemon struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}
	addr string // of its API

	mu    sync.Mutex
	lines []string
}

// start runs a relay daemon until the test ends.
func (w *town) start(env ...string) *daemon {
	w.t.Helper()
	list := func(url func(*outboxtest.Database) string) string {
		return "shop=" + url(w.shop) + ",billing=" + url(w.inboxes["billing"]) + ",mail=" + url(w.inboxes["mail"])
	}
	d := &daemon{t: w.t, cmd: exec.Command(program(w.t, "relay")), done: make(chan struct{})}
	d.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "TW_AMQP_URL=" + w.amqp, "TW_HTTP_ADDR=127.0.0.1:0", "TW_ADMIN_ADDR=127.0.0.1:0", "TW_ADMIN_TOKENS=" + w.tokens,
		"TW_RELAY_DATABASES=" + list(func(d *outboxtest.Database) string { return d.RelayURL }),
		"TW_ADMIN_DATABASES=" + list(func(d *outboxtest.Database) string { return d.OperatorURL }),
		"TW_RABBITMQ_MANAGEMENT_URL=" + outboxtest.Env(w.t).ManagementURL,
	}, env...)
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	d.cmd.Stderr = d.cmd.Stdout
	if err := d.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	addr := make(chan string, 1)
	go d.follow(bufio.NewScanner(out), addr)
	w.t.Cleanup(d.stop)
	select {
	case d.addr = <-addr:
	case <-d.done:
	case <-time.After(time.Minute):
	}
	if d.addr == "" {
		w.t.Fatalf("the relay offers no API: %s", d.log())
	}
	return d
}

func (d *daemon) follow(lines *bufio.Scanner, addr chan<- string) {
	defer close(d.done)
	for lines.Scan() {
		var line struct{ Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "admin API started" {
			addr <- line.Address
		}
		d.mu.Lock()
		d.lines = append(d.lines, lines.Text())
		d.mu.Unlock()
	}
	_ = d.cmd.Wait() // stopped, or killed, by the test
}

func (d *daemon) log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines[max(0, len(d.lines)-30):], "\n")
}

// stop ends the relay, and waits for its end.
func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.done:
	case <-time.After(30 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
		d.t.Error("the relay did not stop")
	}
	if d.t.Failed() {
		d.t.Logf("the relay said last:\n%s", d.log())
	}
}

// consume runs a consumer. Its handler fails for keys that fail named.
func (w *town) consume(name string) (stop func()) {
	w.t.Helper()
	sub, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: w.amqp, ReconnectMax: 200 * time.Millisecond}, silent)
	if err != nil {
		w.t.Fatal(err)
	}
	dead, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: w.amqp, Exchange: w.topology.DeadExchange()}, silent)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := inbox.New(inbox.Config{
		Name: name, Pool: outboxtest.NewPool(w.t, w.inboxes[name].ServiceURL), Subscriber: sub, Dead: dead, Topology: topology(true), Logger: silent, Tries: 1,
		Build: "test", Look: 20 * time.Millisecond, RetryMin: time.Hour, RetryMax: time.Hour, LeaseInterval: 50 * time.Millisecond, LeaseTimeout: 500 * time.Millisecond,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, typ := range []string{placed, paid, lost} {
		inbox.Handle(c, typ, func(_ context.Context, _ pgx.Tx, e order) error {
			if err, ok := w.failing.Load(name + " " + e.Key); ok {
				return err.(error)
			}
			return nil
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("consumer %s: %v", name, err)
		}
		_, _ = sub.Close(), dead.Close()
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *town) fail(consumer, key string, err error) { w.failing.Store(consumer+" "+key, err) }
func (w *town) mend(consumer, key string)            { w.failing.Delete(consumer + " " + key) }

// write commits the events in one transaction each and returns their ids. The golden files name them.
func (w *town) write(name string, events ...order) (ids []string) {
	w.t.Helper()
	for _, e := range events {
		if err := outbox.InTx(w.context(), w.shop, func(tx pgx.Tx) error { return outbox.Append(w.context(), tx, e) }); err != nil {
			w.t.Fatal(err)
		}
		ids = append(ids, w.newest(name))
	}
	return ids
}

func (w *town) newest(name string) string {
	w.t.Helper()
	id := get[uuid.UUID](w, w.shop, `SELECT uuid FROM outbox.messages ORDER BY id DESC LIMIT 1`).String()
	w.names[id] = fmt.Sprintf("%s %d", name, len(w.names))
	return id
}

// odd commits a message that waits for an operator in the outbox. It is parked as operators do: under the partition's lock,
// while no relay has it in hand.
func (w *town) odd(name, key string) string {
	w.t.Helper()
	id := w.write(name, order{Kind: lost, Key: key})[0]
	outboxtest.Eventually(w.t, 30*time.Second, func() bool {
		var parked int64
		err := pgx.BeginFunc(w.context(), w.shop, func(tx pgx.Tx) error {
			if _, err := tx.Exec(w.context(), `SELECT outbox.lock_stuck(partition) FROM outbox.stuck WHERE uuid = $1`, id); err != nil {
				return err
			}
			tag, err := tx.Exec(w.context(), `
				UPDATE outbox.stuck SET parked = true, next_attempt = NULL, class = 'too_large',
					error = 'its headers have 200000 bytes, the limit is 122880', attempts = 1
				WHERE uuid = $1 AND claim IS NULL`, id)
			parked = tag.RowsAffected()
			return err
		})
		return err == nil && parked == 1
	}, "%s is parked", id)
	return id
}

func get[T any](w *town, db *outboxtest.Database, text string, args ...any) (value T) {
	w.t.Helper()
	if err := db.QueryRow(w.context(), text, args...).Scan(&value); err != nil {
		w.t.Fatalf("%s: %v", text, err)
	}
	return value
}

func (w *town) exec(db *outboxtest.Database, text string, args ...any) {
	w.t.Helper()
	if _, err := db.Exec(w.context(), text, args...); err != nil {
		w.t.Fatalf("%s: %v", text, err)
	}
}

// until waits until a query says so.
func (w *town) until(db *outboxtest.Database, text string, args ...any) {
	w.t.Helper()
	outboxtest.Eventually(w.t, 30*time.Second, func() bool {
		var is bool
		err := db.QueryRow(context.Background(), text, args...).Scan(&is)
		return err == nil && is
	}, "%s %v", text, args)
}

// handled waits until a consumer has handled the message.
func (w *town) handled(consumer, id string) {
	w.t.Helper()
	w.until(w.inboxes[consumer], `SELECT EXISTS (SELECT FROM inbox.messages WHERE message_id = $1 AND consumer = $2 AND state = 'done')`, id, consumer)
}

// stuckAt waits until the message is stuck there: "outbox", or a consumer.
func (w *town) stuckAt(where, id string) {
	w.t.Helper()
	if where == "outbox" {
		w.until(w.shop, `SELECT EXISTS (SELECT FROM outbox.stuck WHERE uuid = $1)`, id)
		return
	}
	w.until(w.inboxes[where], `SELECT EXISTS (SELECT FROM inbox.stuck WHERE message_id = $1)`, id)
}

// age makes everything that is stuck an hour and a half old, so that tables show the same age for some minutes.
func (w *town) age() {
	w.t.Helper()
	w.exec(w.shop, `UPDATE outbox.stuck SET stuck_at = clock_timestamp() - interval '90 minutes'`)
	for _, db := range w.inboxes {
		w.exec(db, `UPDATE inbox.stuck SET stuck_at = clock_timestamp() - interval '90 minutes'`)
	}
}

// publish sends what is no message to a consumer's first queue.
func (w *town) publish(queue, body string) {
	w.t.Helper()
	conn, err := amqp.Dial(w.amqp)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		w.t.Fatal(err)
	}
	sent, err := ch.PublishWithDeferredConfirmWithContext(w.context(), "", queue, true, false, amqp.Publishing{Body: []byte(body), ContentType: "text/plain"})
	if err != nil {
		w.t.Fatal(err)
	}
	if ok, err := sent.WaitContext(w.context()); err != nil || !ok {
		w.t.Fatalf("not confirmed: %v", err)
	}
}

// audited counts the entries of all audit logs.
func (w *town) audited() (n int) {
	w.t.Helper()
	for _, db := range []*outboxtest.Database{w.shop, w.inboxes["billing"], w.inboxes["mail"]} {
		n += get[int](w, db, `SELECT count(*) FROM ops.audit`)
	}
	return n
}

// take empties a queue: the message with that id is lost, the others are rejected.
func (w *town) take(consumer string, partition int, lose string) {
	w.t.Helper()
	conn, err := amqp.Dial(w.amqp)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		w.t.Fatal(err)
	}
	deliveries, err := ch.Consume(w.topology.QueueName(consumer, partition), "", false, false, false, false, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for range 2 {
		var d amqp.Delivery
		select {
		case d = <-deliveries:
		case <-time.After(20 * time.Second):
			w.t.Fatal("no message comes")
		}
		if d.MessageId == lose {
			err = d.Ack(false)
		} else {
			err = d.Nack(false, false)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if err := ch.Close(); err != nil {
		w.t.Fatal(err)
	}
}
