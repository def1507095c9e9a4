package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/retention"
	"github.com/jcp/ticketwave/services/internal/bus"
	"github.com/jcp/ticketwave/services/internal/web"
	schema "github.com/jcp/ticketwave/sql"
)

// Service is what a daemon runs.
type Service interface {
	// Routes adds the service's HTTP routes, once.
	Routes(r *web.Router)
	// Handlers adds the service's message handlers, once.
	Handlers(c *inbox.Consumer)
}

// OneByOner is a service that may ask for a transaction for each message; others have up to batch of them in one.
type OneByOner interface {
	// OneByOne is true where handlers have effects outside their transaction.
	OneByOne() bool
}

// Runner is a service with work of its own beside messages and requests, such as deadlines.
type Runner interface {
	// Run works until ctx ends, and then returns nil. It begins when the schema is known to be new enough, and may then find the
	// database away at any time.
	Run(ctx context.Context) error
}

// Measured is a service with metrics of its own that are read from its database.
type Measured interface {
	// Metrics are asked for once. To collect them asks nobody.
	Metrics() []prometheus.Collector
	// Measure brings them up to date at each look at the inbox, within a deadline of its own. When it cannot, they show nothing
	// and it returns why.
	Measure(ctx context.Context) error
}

// Addressed is a service that wants to know where it answers, such as one that is called back.
type Addressed interface {
	// AnswersAt is told the URL, as seen from this process, before anything runs.
	AnswersAt(url string)
}

// batch was as fast as 50 with one and with four partitions, and leaves less to repeat.
const batch = 20

// Config describes a daemon. All fields but Logger, Observe and Measure are required.
type Config struct {
	// Name is the service's, of its consumer, its queues and its database schema.
	Name string
	// Pool is the service's database. Run does not close it.
	Pool *pgxpool.Pool
	// AMQPURL is the broker's.
	AMQPURL string
	// Listener takes the HTTP connections. Run closes it.
	Listener net.Listener
	// Logger takes what people need to know. Default slog.Default.
	Logger *slog.Logger
	// Observe, if set, is told what became of every message. It must not block.
	Observe func(inbox.Outcome)
	// Measure is the time between two looks at the database for the metrics. Default 10 s.
	Measure time.Duration
}

const (
	checkTimeout = 5 * time.Second
	pauseMin     = 100 * time.Millisecond
	pauseMax     = 2 * time.Second
	// drain is how long requests may go on after the end of ctx; more than the router's timeout.
	drain = 15 * time.Second
)

type daemon struct {
	cfg     Config
	bus     *bus.Bus
	metrics *metrics
	own     Measured    // or nil
	checked atomic.Bool // the schema is new enough
}

// Run serves until ctx ends, then lets requests and handlers finish and returns nil. It returns an error at once
// when the configuration is wrong, the database's schema is older than this program ([schema.ErrOld]), or the HTTP
// server or the consumer breaks; the other one is then ended in order.
func Run(ctx context.Context, cfg Config, svc Service) error {
	most := batch
	if s, ok := svc.(OneByOner); ok && s.OneByOne() {
		most = 1
	}
	d, err := open(cfg, most)
	if err != nil {
		return errors.Join(err, cfg.Listener.Close())
	}
	defer d.bus.Close()
	svc.Handlers(d.bus.Consumer)
	router := web.NewRouter(web.Config{Logger: d.cfg.Logger, Observe: d.metrics.request, Admit: d.admit})
	d.probes(router)
	svc.Routes(router)
	if m, ok := svc.(Measured); ok {
		d.own = m
		d.metrics.registry.MustRegister(m.Metrics()...)
	}
	if a, ok := svc.(Addressed); ok {
		a.AnswersAt(ownURL(cfg.Listener.Addr()))
	}
	return together(ctx,
		func(ctx context.Context) error { return d.serve(ctx, router) },
		func(ctx context.Context) error { return d.work(ctx, svc) },
	)
}

// ownURL is the address that this process reaches itself at.
func ownURL(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); err != nil || ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

func open(cfg Config, batch int) (*daemon, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Measure <= 0 {
		cfg.Measure = 10 * time.Second
	}
	d := &daemon{cfg: cfg}
	d.metrics = newMetrics(cfg.Name, cfg.Pool, d.connected)
	var err error
	d.bus, err = bus.Open(bus.Config{Name: cfg.Name, URL: cfg.AMQPURL, Pool: cfg.Pool, Batch: batch, Logger: cfg.Logger, Observe: d.observe})
	return d, err
}

func (d *daemon) observe(o inbox.Outcome) {
	d.metrics.outcome(o)
	if d.cfg.Observe != nil {
		d.cfg.Observe(o)
	}
}

func (d *daemon) connected() bool { return d.bus != nil && d.bus.State().Consuming.Connected }

// together runs the loops side by side, ends all when one ends, and returns their errors when all have ended.
func together(ctx context.Context, loops ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(loops))
	for _, loop := range loops {
		go func() {
			defer cancel()
			ended <- loop(ctx)
		}()
	}
	var errs []error
	for range loops {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

// serve answers HTTP until ctx ends and the requests in hand are answered.
func (d *daemon) serve(ctx context.Context, handler http.Handler) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(d.cfg.Logger.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(d.cfg.Listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := server.Shutdown(closing); err != nil {
		return errors.Join(fmt.Errorf("requests did not end in %s: %w", drain, err), server.Close())
	}
	return nil
}

// work waits for the database, and then handles messages and lets the service do work of its own until ctx ends.
func (d *daemon) work(ctx context.Context, svc Service) error {
	if err := d.awaitSchema(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	loops := []func(context.Context) error{d.consume}
	if r, ok := svc.(Runner); ok {
		loops = append(loops, r.Run)
	}
	return together(ctx, loops...)
}

// consume handles messages until ctx ends.
func (d *daemon) consume(ctx context.Context) error {
	var keeping sync.WaitGroup
	defer keeping.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	keeping.Go(func() { d.keepPartitions(ctx) })
	keeping.Go(func() { d.measure(ctx) })
	if err := d.bus.Run(ctx); err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	return nil
}

// keepPartitions makes the inbox's partitions ahead and drops old ones, until ctx ends.
func (d *daemon) keepPartitions(ctx context.Context) {
	conn := d.cfg.Pool.Config().ConnConfig
	conn.Tracer = nil
	if err := retention.Run(ctx, retention.Config{Connect: conn, Schema: "inbox", Logger: d.cfg.Logger}); err != nil {
		d.cfg.Logger.ErrorContext(ctx, "partitions are not kept", "error", err)
	}
}

// measure looks at what waits in the inbox, and at what the service measures, again and again until ctx ends.
func (d *daemon) measure(ctx context.Context) {
	for failed := false; ; {
		backlog, err := d.bus.Consumer.Backlog(ctx)
		var own error
		if d.own != nil {
			own = d.own.Measure(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		trouble := errors.Join(err, own)
		if trouble != nil && !failed {
			d.cfg.Logger.Warn("backlog not measured", "error", trouble)
		}
		failed = trouble != nil
		d.metrics.backlog.set(backlog, err == nil, own == nil)
		select {
		case <-ctx.Done():
			return
		case <-time.After(d.cfg.Measure*9/10 + rand.N(d.cfg.Measure/5+1)):
		}
	}
}

// awaitSchema returns nil when the schema is new enough or ctx has ended, and ErrOld. A database that is away is
// waited for.
func (d *daemon) awaitSchema(ctx context.Context) error {
	pause := pauseMin
	for {
		err := d.checkSchema(ctx)
		switch {
		case err == nil:
			d.checked.Store(true)
			return nil
		case errors.Is(err, schema.ErrOld):
			return err
		case ctx.Err() != nil:
			return nil
		case pause == pauseMin:
			d.cfg.Logger.Warn("waiting for the database", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, pauseMax)
	}
}

func (d *daemon) checkSchema(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return schema.Check(ctx, d.cfg.Pool, "outbox", "inbox", d.cfg.Name)
}
