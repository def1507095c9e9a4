package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/jcp/ticketwave/outbox/internal/build"
	"github.com/jcp/ticketwave/outbox/internal/failpoint"
)

// Database is one outbox to relay from.
type Database struct {
	// Name stands in logs and in [Delivery].
	Name string
	// URL connects as a role that is a member of outbox_relay.
	URL string
}

// Config describes a relay. Zero values take the defaults.
type Config struct {
	// Databases are relayed side by side; trouble with one leaves the others alone.
	Databases []Database
	// Publisher must return nil only for a message that the broker has taken over for good. The relay does
	// not close it.
	Publisher message.Publisher
	// RoutingKey names the topic that a message is published under.
	RoutingKey func(typ string, partition int) string
	// Classify says whose fault an error of Publisher or a middleware is. Without it every error is the broker's.
	Classify func(err error) Class
	// Middlewares run around every publication, first one outermost.
	Middlewares []message.HandlerMiddleware
	// Label says who this relay is, for people. Default host and process id.
	Label string
	// Build is stored with failures. Default the revision this program was built from.
	Build string
	// Logger takes what people need to know. Default slog.Default.
	Logger *slog.Logger
	// InFlight bounds the unconfirmed messages of a partition. Default 250.
	InFlight int
	// PollMin and PollMax bound the pause between two looks at an empty outbox. Default 20 and 750 ms.
	PollMin, PollMax time.Duration
	// RetryMin and RetryMax bound the pause before a refused message is tried again. Default 50 ms and 5 s.
	RetryMin, RetryMax time.Duration
	// Grace is how long messages in flight are waited for when a lease ends. Default 15 s.
	Grace time.Duration
	// QueryTimeout bounds every statement on the database. Default 30 s.
	QueryTimeout time.Duration
	// LeaseInterval and LeaseTimeout are those of package lease.
	LeaseInterval, LeaseTimeout time.Duration

	stuckKeys int // that a partition's pump knows; a test may want few
}

func (c *Config) check() error {
	switch {
	case len(c.Databases) == 0:
		return errors.New("relay: config has no Databases")
	case c.Publisher == nil:
		return errors.New("relay: config has no Publisher")
	case c.RoutingKey == nil:
		return errors.New("relay: config has no RoutingKey")
	}
	return nil
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.PollMin, 20 * time.Millisecond}, {&c.PollMax, 750 * time.Millisecond},
		{&c.RetryMin, 50 * time.Millisecond}, {&c.RetryMax, 5 * time.Second},
		{&c.Grace, 15 * time.Second}, {&c.QueryTimeout, 30 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if c.InFlight <= 0 {
		c.InFlight = 250
	}
	if c.stuckKeys <= 0 {
		c.stuckKeys = maxStuckKeys
	}
	if c.Classify == nil {
		c.Classify = func(error) Class { return "" }
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Build == "" {
		c.Build = build.Revision()
	}
	if c.Label == "" {
		host, _ := os.Hostname()
		c.Label = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
}

// Relay forwards the outboxes of its databases.
type Relay struct {
	cfg     Config
	sources []*source
	router  *message.Router
}

// New checks the configuration and prepares a relay. It connects to nothing; Run does.
func New(cfg Config) (*Relay, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 2*cfg.Grace + recordWithin}, watermill.NopLogger{})
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	r := &Relay{cfg: cfg, router: router}
	router.AddMiddleware(r.record)
	router.AddMiddleware(cfg.Middlewares...)
	router.AddMiddleware(middleware.Recoverer)
	for _, db := range cfg.Databases {
		src, err := newSource(db, &r.cfg)
		if err != nil {
			r.close()
			return nil, fmt.Errorf("relay: %w", err)
		}
		r.sources = append(r.sources, src)
		router.AddConsumerHandler("relay "+db.Name, db.Name, src, r.forward)
	}
	return r, nil
}

// Run relays until ctx ends, then finishes what is in flight, records it, gives the leases back and returns
// nil. A database or broker that is away is waited for. It may be called once.
func (r *Relay) Run(ctx context.Context) error {
	defer r.close()
	if err := r.router.Run(ctx); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return nil
}

// Ping returns nil when every database answers.
func (r *Relay) Ping(ctx context.Context) error {
	var errs []error
	for _, s := range r.sources {
		if err := s.pool.Ping(ctx); err != nil {
			errs = append(errs, fmt.Errorf("database %s: %w", s.db.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (r *Relay) close() {
	for _, s := range r.sources {
		s.pool.Close()
	}
}

// forward publishes one message under its routing key.
func (r *Relay) forward(msg *message.Message) error {
	d, ok := DeliveryFrom(msg.Context())
	if !ok {
		return errors.New("message has lost its delivery: a middleware replaced its context")
	}
	failpoint.Hit("relay.before-publish")
	err := r.cfg.Publisher.Publish(r.cfg.RoutingKey(d.Type, d.Partition), msg)
	failpoint.Hit("relay.after-confirm")
	return err
}

// record tells the pump the outcome of an attempt. It is the outermost middleware, and sees a panic of the others too.
func (r *Relay) record(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		d, ok := DeliveryFrom(msg.Context())
		if !ok {
			return next(msg)
		}
		finished := false
		defer func() {
			if !finished {
				err = errPanicked
			}
			d.end(err)
		}()
		produced, err = next(msg)
		finished = true
		return produced, err
	}
}
