package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/services/internal/bus"
	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/internal/web"
	schema "github.com/jcp/ticketwave/sql"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(tidy{m})
}

// tidy closes what is open for all tests, before the look for leaks.
type tidy struct{ *testing.M }

func (t tidy) Run() int {
	defer outboxtest.Close()
	defer http.DefaultClient.CloseIdleConnections()
	return t.M.Run()
}

const patience = 20 * time.Second

// stub is a service whose route and handler wait until they are let go.
type stub struct {
	entered, release chan struct{}
}

func newStub() *stub { return &stub{entered: make(chan struct{}, 8), release: make(chan struct{})} }

// quick is a stub that waits for nothing.
func quick() *stub {
	s := newStub()
	close(s.release)
	return s
}

func (s *stub) Routes(r *web.Router) {
	r.Handle(http.MethodGet, "/work", func(w http.ResponseWriter, _ *http.Request) error {
		s.entered <- struct{}{}
		<-s.release
		return web.WriteJSON(w, http.StatusOK, "done")
	})
}

func (s *stub) Handlers(c *inbox.Consumer) {
	inbox.Handle(c, contracts.TypeCatalogEventPublished, func(context.Context, pgx.Tx, contracts.CatalogEventPublished) error {
		s.entered <- struct{}{}
		<-s.release
		return nil
	})
}

// process is one running daemon.
type process struct {
	t      *testing.T
	url    string
	cancel context.CancelFunc
	ended  chan error
	closer io.Closer // the listener

	mu       sync.Mutex
	outcomes []inbox.Outcome
}

func start(t *testing.T, pool *pgxpool.Pool, amqpURL string, svc daemon.Service) *process {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: t, url: "http://" + listener.Addr().String(), cancel: cancel, ended: make(chan error, 1), closer: listener}
	go func() {
		p.ended <- daemon.Run(ctx, daemon.Config{
			Name: "booking", Pool: pool, AMQPURL: amqpURL, Listener: listener, Logger: slog.New(slog.DiscardHandler), Observe: p.observe,
			Measure: 50 * time.Millisecond,
		}, svc)
	}()
	t.Cleanup(cancel)
	return p
}

func (p *process) observe(o inbox.Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outcomes = append(p.outcomes, o)
}

func (p *process) results() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, o := range p.outcomes {
		all = append(all, string(o.Result))
	}
	return strings.Join(all, " ")
}

// get answers status 0 when nobody listens.
func (p *process) get(path string) (int, http.Header, string) {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return 0, nil, ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Error(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func (p *process) becomes(path string, want int) {
	p.t.Helper()
	outboxtest.Eventually(p.t, patience, func() bool {
		status, _, _ := p.get(path)
		return status == want
	}, "%s answers %d", path, want)
}

func (p *process) wait() error {
	p.t.Helper()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(patience):
		p.t.Fatal("the daemon does not end")
		return nil
	}
}

func (p *process) stop() {
	p.t.Helper()
	p.cancel()
	if err := p.wait(); err != nil {
		p.t.Error(err)
	}
	if status, _, _ := p.get("/livez"); status != 0 {
		p.t.Errorf("after its end it answers %d", status)
	}
}

func openPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := daemon.OpenPool(context.Background(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// broker is a vhost with the topology, and a publisher to it.
func broker(t *testing.T) (string, *rabbitmq.Publisher) {
	t.Helper()
	address := outboxtest.NewVHost(t)
	if err := bus.Topology().Apply(context.Background(), address); err != nil {
		t.Fatal(err)
	}
	p, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: address, Exchange: bus.Topology().Exchange}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return address, p
}

func send(t *testing.T, p *rabbitmq.Publisher, id string) {
	t.Helper()
	event := contracts.CatalogEventPublished{
		EventID: "123e4567-e89b-12d3-a456-426614174000", Name: "Symphony No. 9", StartsAt: time.Now(), Price: 2550, Currency: "EUR",
		Capacity: 100, Version: 1, PublishedAt: time.Now(),
	}
	body, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	msg := message.NewMessage(id, body)
	msg.Metadata = message.Metadata{
		outbox.HeaderID: id, outbox.HeaderType: event.EventType(), outbox.HeaderSubject: event.EventKey(), outbox.HeaderSource: "catalog",
		outbox.HeaderTime: time.Now().UTC().Format(time.RFC3339Nano), outbox.HeaderSpecVersion: "1.0",
	}
	if err := p.Publish(bus.Topology().RoutingKey(event.EventType(), 2), msg); err != nil {
		t.Fatal(err)
	}
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

func TestProbesAndMetrics(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	address, publisher := broker(t)
	p := start(t, openPool(t, db.ServiceURL), address, quick())
	p.becomes("/readyz", http.StatusOK)
	p.becomes("/livez", http.StatusOK)
	if status, _, body := p.get("/work"); status != http.StatusOK || body != `"done"` {
		t.Errorf("the service's route: %d %s", status, body)
	}
	id := newID()
	send(t, publisher, id)
	send(t, publisher, id)
	outboxtest.Eventually(t, patience, func() bool { return p.results() == "handled duplicate" }, "a message and its duplicate are seen")
	status, _, body := p.get("/readyz?verbose")
	answer := decode[struct {
		Status string
		Broker bus.State
	}](t, body)
	if status != http.StatusOK || answer.Status != "ready" || !answer.Broker.Consuming.Connected || !answer.Broker.DeadLetters.Connected {
		t.Errorf("%d %s", status, body)
	}
	_, _, exposition := p.get("/metrics")
	for _, line := range []string{
		`ticketwave_http_request_seconds_count{method="GET",route="/work",status="200"} 1`,
		`ticketwave_inbox_outcomes_total{result="handled",type="` + contracts.TypeCatalogEventPublished + `"} 1`,
		`ticketwave_inbox_outcomes_total{result="duplicate",type="` + contracts.TypeCatalogEventPublished + `"} 1`,
		`ticketwave_broker_connected 1`, `ticketwave_pool_max_connections 16`, `ticketwave_pool_wait_seconds_total `,
	} {
		if !strings.Contains(exposition, "\n"+line) {
			t.Errorf("no %s in the metrics", line)
		}
	}
	p.stop()
}

func decode[T any](t *testing.T, document string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(document), &v); err != nil {
		t.Fatalf("%v in %s", err, document)
	}
	return v
}

func TestAnOldSchemaIsRefused(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking") // without the service's schema
	address, _ := broker(t)
	err := start(t, openPool(t, db.ServiceURL), address, quick()).wait()
	if !errors.Is(err, schema.ErrOld) || !strings.Contains(err.Error(), "ticketwave migrate") {
		t.Errorf("%v", err)
	}
}

func TestTheDatabaseComesAndGoes(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	address, _ := broker(t)
	server, err := url.Parse(db.ServiceURL)
	if err != nil {
		t.Fatal(err)
	}
	gate := newGate(t, server.Host)
	server.Host = gate.addr
	p := start(t, openPool(t, server.String()), address, quick())
	away := func() {
		t.Helper()
		p.becomes("/readyz", http.StatusServiceUnavailable)
		p.becomes("/livez", http.StatusOK)
		_, header, body := p.get("/readyz")
		if header.Get("Retry-After") == "" || header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%v %s", header, body)
		}
		if status, _, body := p.get("/readyz?verbose"); status != http.StatusServiceUnavailable || !strings.Contains(body, `"connected":`) {
			t.Errorf("verbose: %d %s", status, body)
		}
	}
	away()
	if status, header, _ := p.get("/work"); status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
		t.Errorf("before the schema is checked the service's route answers %d", status)
	}
	gate.open()
	p.becomes("/readyz", http.StatusOK)
	p.becomes("/work", http.StatusOK)
	gate.shut()
	away()
	gate.open()
	p.becomes("/readyz", http.StatusOK)
	p.stop()
}

func TestEndsWhileItWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	p := start(t, openPool(t, "postgres://booking:secret@127.0.0.1:1/booking"), "amqp://guest:guest@127.0.0.1:1/", quick())
	p.becomes("/readyz", http.StatusServiceUnavailable)
	p.stop()
}

func TestReadyWithoutABroker(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	p := start(t, openPool(t, db.ServiceURL), "amqp://guest:guest@127.0.0.1:1/", quick())
	p.becomes("/readyz", http.StatusOK)
	p.becomes("/work", http.StatusOK)
	if _, _, body := p.get("/readyz?verbose"); strings.Contains(body, `"connected":true`) || !strings.Contains(body, `"connected":false`) {
		t.Errorf("%s", body)
	}
	if _, _, exposition := p.get("/metrics"); !strings.Contains(exposition, "\nticketwave_broker_connected 0") {
		t.Error("the metric says that the broker is there")
	}
	p.stop()
}

func TestWhatIsInHandIsFinished(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	address, publisher := broker(t)
	svc := newStub()
	p := start(t, openPool(t, db.ServiceURL), address, svc)
	p.becomes("/readyz", http.StatusOK)
	send(t, publisher, newID())
	answered := make(chan int, 1)
	go func() {
		status, _, _ := p.get("/work")
		answered <- status
	}()
	<-svc.entered // the handler and the route, in any order
	<-svc.entered
	p.cancel()
	outboxtest.Eventually(t, patience, func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, "it stops listening")
	select {
	case err := <-p.ended:
		t.Fatalf("it ended with work in hand: %v", err)
	default:
	}
	close(svc.release)
	p.stop()
	if status := <-answered; status != http.StatusOK {
		t.Errorf("the request in hand got %d", status)
	}
	if got := p.results(); got != "handled" {
		t.Errorf("the message in hand was %q", got)
	}
}

func TestAnEndOfHTTPEndsAll(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	address, _ := broker(t)
	p := start(t, openPool(t, db.ServiceURL), address, quick())
	p.becomes("/readyz", http.StatusOK)
	if err := p.closer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.wait(); err == nil || !strings.Contains(err.Error(), "serve HTTP") {
		t.Errorf("%v", err)
	}
}

func TestABadBrokerURL(t *testing.T) {
	t.Parallel()
	p := start(t, openPool(t, "postgres://booking:secret@127.0.0.1:1/booking"), "http://127.0.0.1", quick())
	err := p.wait()
	if err == nil || !strings.Contains(err.Error(), "amqp://") {
		t.Errorf("%v", err)
	}
	if status, _, _ := p.get("/livez"); status != 0 {
		t.Error("it still listens")
	}
}

func TestPoolBounds(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	pool := openPool(t, db.ServiceURL)
	var got [3]string
	err := pool.QueryRow(context.Background(), `SELECT current_setting('statement_timeout'),
		current_setting('idle_in_transaction_session_timeout'), current_setting('application_name')`).Scan(&got[0], &got[1], &got[2])
	if want := [3]string{"15s", "1min", pool.Config().ConnConfig.User}; err != nil || got != want {
		t.Errorf("%v %v, want %v", got, err, want)
	}
	own := openPool(t, outboxtest.WithParameter(t, outboxtest.WithParameter(t, db.ServiceURL, "statement_timeout", "1000"), "application_name", "mine"))
	err = own.QueryRow(context.Background(), `SELECT current_setting('statement_timeout'), current_setting('application_name')`).Scan(&got[0], &got[1])
	if err != nil || got[0] != "1s" || got[1] != "mine" {
		t.Errorf("%v %v", got, err)
	}
	_, err = daemon.OpenPool(context.Background(), "postgres://booking:secret@host:port/x", nil)
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

func TestLoggerKnowsTheFlow(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := daemon.NewLogger(&out, slog.LevelInfo, "booking").With("a", 1)
	ctx := outbox.WithCausality(context.Background(), outbox.Causality{CorrelationID: "flow-1"})
	log.DebugContext(ctx, "hidden")
	log.InfoContext(ctx, "shown", "event_type", "own")
	log.Info("plain")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatal(out.String())
	}
	shown, plain := decode[map[string]any](t, lines[0]), decode[map[string]any](t, lines[1])
	if shown["correlation_id"] != "flow-1" || shown["event_type"] != "own" || shown["service"] != "booking" || shown["a"] != 1.0 || shown["message_id"] != nil {
		t.Error(lines[0])
	}
	if _, has := plain["correlation_id"]; has {
		t.Error(lines[1])
	}
}

// gate is a way to a server that can be shut; it begins shut.
type gate struct {
	t            *testing.T
	addr, target string

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	copies   sync.WaitGroup
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t, addr: listener.Addr().String(), target: target}
	_ = listener.Close()
	t.Cleanup(g.shut)
	return g
}

func (g *gate) open() {
	g.t.Helper()
	listener, err := net.Listen("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listener = listener
	g.copies.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			g.join(in)
		}
	})
}

func (g *gate) join(in net.Conn) {
	out, err := net.Dial("tcp", g.target)
	if err != nil {
		_ = in.Close()
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns = append(g.conns, in, out)
	for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
		g.copies.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_, _ = pair[0].Close(), pair[1].Close()
		})
	}
}

func (g *gate) shut() {
	g.mu.Lock()
	if g.listener != nil {
		_ = g.listener.Close()
	}
	for _, c := range g.conns {
		_ = c.Close()
	}
	g.listener, g.conns = nil, nil
	g.mu.Unlock()
	g.copies.Wait()
}

// worker is a service with work of its own.
type worker struct {
	*stub
	url     string
	running chan struct{}
}

func (w *worker) AnswersAt(url string) { w.url = url }

func (w *worker) Run(ctx context.Context) error {
	close(w.running)
	<-ctx.Done()
	return nil
}

func TestAServiceWorksByItself(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "booking", "booking")
	address, _ := broker(t)
	w := &worker{stub: quick(), running: make(chan struct{})}
	p := start(t, openPool(t, db.ServiceURL), address, w)
	select {
	case <-w.running:
	case <-time.After(patience):
		t.Fatal("it does not work")
	}
	if w.url != p.url {
		t.Errorf("it answers at %s and thinks that it is %s", p.url, w.url)
	}
	p.stop()
}
