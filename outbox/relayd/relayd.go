package relayd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/outbox/relay"
	"github.com/jcp/ticketwave/outbox/retention"
)

// Config describes a daemon. Zero values take the defaults.
type Config struct {
	// Databases are relayed side by side.
	Databases []relay.Database
	// AMQPURL is the broker's.
	AMQPURL string
	// Middlewares run around every publication.
	Middlewares []message.HandlerMiddleware
	// Logger takes what people need to know. Default slog.Default.
	Logger *slog.Logger
	// Keep is how long messages are kept after they were relayed. Default [retention.KeepRelayed].
	Keep time.Duration
	// Redeclare is the time between two declarations of the topology. Default 1 min.
	Redeclare time.Duration
	// Measure is the time between two looks at the databases and queues for the metrics. Default 10 s.
	Measure time.Duration
}

// Daemon is one relay process.
type Daemon struct {
	cfg     Config
	metrics *metrics
	watch   watch
	running atomic.Pointer[parts]
}

// parts exist once the topology is known.
type parts struct {
	publisher *rabbitmq.Publisher
	relay     *relay.Relay
}

// New checks the configuration. Nothing is connected before Run.
func New(cfg Config) (*Daemon, error) {
	if len(cfg.Databases) == 0 {
		return nil, errors.New("relayd: config has no Databases")
	}
	if cfg.AMQPURL == "" {
		return nil, errors.New("relayd: config has no AMQPURL")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Redeclare <= 0 {
		cfg.Redeclare = time.Minute
	}
	if cfg.Measure <= 0 {
		cfg.Measure = 10 * time.Second
	}
	d := &Daemon{cfg: cfg}
	d.metrics = newMetrics(d)
	return d, nil
}

// Run relays until ctx ends, then finishes what is in flight and returns nil. Databases and the broker may be
// away at the start and at any time later.
func (d *Daemon) Run(ctx context.Context) error {
	topology, err := d.awaitTopology(ctx)
	if err != nil {
		return nil //nolint:nilerr // ctx ended before there was anything to do
	}
	publisher, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{
		URL: d.cfg.AMQPURL, Exchange: topology.Exchange,
		Prepare: func(ctx context.Context) error {
			if stored, err := d.loadTopology(ctx); err == nil {
				return stored.Apply(ctx, d.cfg.AMQPURL)
			}
			return topology.Apply(ctx, d.cfg.AMQPURL)
		},
	}, d.cfg.Logger)
	if err != nil {
		return fmt.Errorf("relayd: %w", err)
	}
	defer publisher.Close()
	r, err := relay.New(relay.Config{
		Databases: d.cfg.Databases, Publisher: publisher, RoutingKey: topology.RoutingKey, Classify: classify,
		Middlewares: append([]message.HandlerMiddleware{d.metrics.observe}, d.cfg.Middlewares...), Logger: d.cfg.Logger,
	})
	if err != nil {
		return fmt.Errorf("relayd: %w", err)
	}
	var loops sync.WaitGroup
	defer loops.Wait()
	looping, stop := context.WithCancel(ctx)
	defer stop()
	loops.Go(func() { d.keepDeclared(looping, topology) })
	loops.Go(func() { d.watchQueues(looping, topology) })
	for _, db := range d.cfg.Databases {
		loops.Go(func() { d.keepPartitions(looping, db) })
		loops.Go(func() { d.watchDatabase(looping, r, db.Name) })
	}
	d.running.Store(&parts{publisher: publisher, relay: r})
	return r.Run(ctx)
}

// keepPartitions makes a database's partitions ahead and drops old ones, until ctx ends.
func (d *Daemon) keepPartitions(ctx context.Context, db relay.Database) {
	log := d.cfg.Logger.With("database", db.Name)
	conn, err := pgx.ParseConfig(db.URL)
	if err == nil {
		err = retention.Run(ctx, retention.Config{Connect: conn, Schema: "outbox", Keep: d.cfg.Keep, Logger: log})
	}
	if err != nil {
		log.Error("partitions are not kept", "error", err)
	}
}

// awaitTopology asks the databases in turn until one has a topology. It fails only when ctx ends.
func (d *Daemon) awaitTopology(ctx context.Context) (rabbitmq.Topology, error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		topology, err := d.loadTopology(ctx)
		if err == nil {
			return topology, nil
		}
		if ctx.Err() == nil {
			d.cfg.Logger.Warn("waiting for a topology", "error", err)
		}
		select {
		case <-ctx.Done():
			return topology, ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

func (d *Daemon) loadTopology(ctx context.Context) (rabbitmq.Topology, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var errs []error
	for _, db := range d.cfg.Databases {
		topology, err := LoadTopology(ctx, db.URL)
		if err == nil {
			return topology, nil
		}
		errs = append(errs, fmt.Errorf("database %s: %w", db.Name, err))
	}
	return rabbitmq.Topology{}, errors.Join(errs...)
}

// keepDeclared declares the topology as soon as the broker answers, and then what is stored, again and again.
func (d *Daemon) keepDeclared(ctx context.Context, topology rabbitmq.Topology) {
	for pause := 100 * time.Millisecond; !d.declare(ctx, topology); pause = min(2*pause, 2*time.Second) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
	ticker := time.NewTicker(d.cfg.Redeclare)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if topology, err := d.loadTopology(ctx); err == nil {
			d.declare(ctx, topology)
		}
	}
}

func (d *Daemon) declare(ctx context.Context, t rabbitmq.Topology) (done bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := t.Apply(ctx, d.cfg.AMQPURL)
	if err != nil && ctx.Err() == nil {
		d.cfg.Logger.Warn("topology not declared, trying again", "error", err)
	}
	return err == nil
}

// classify tells a message's and a route's faults from the broker's.
func classify(err error) relay.Class {
	switch {
	case errors.Is(err, rabbitmq.ErrUnroutable):
		return relay.Unroutable
	case errors.Is(err, rabbitmq.ErrRefused):
		return relay.Refused
	case errors.Is(err, rabbitmq.ErrUnencodable):
		return relay.Unencodable
	case errors.Is(err, rabbitmq.ErrTooLarge):
		return relay.TooLarge
	}
	return ""
}
