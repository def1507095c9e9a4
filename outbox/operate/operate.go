package operate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Database is one database with an outbox, an inbox, or both.
type Database struct {
	// Name is what people call it.
	Name string
	// URL connects as a role that is a member of outbox_operator.
	URL string
	// Pool may be given instead of URL. Its deadlines are its owner's, and so is its end.
	Pool *pgxpool.Pool
}

// Config describes what is operated on. Zero values take the defaults.
type Config struct {
	// Databases are all that belong together: an outbox message is edited only when no inbox of theirs holds it.
	Databases []Database
	// Patience is how long a verb waits for messages that somebody has in hand. Default 2 s, and no less than the relays'
	// lease timeout: a message is taken out of the hand of a relay whose lease has not been renewed for so long.
	Patience time.Duration
	// AMQPURL is the broker's. Without it nothing is known of queues, and nothing is published.
	AMQPURL string
	// ManagementURL is that of RabbitMQ's management API, with user and password. The doctor needs it to see bindings.
	ManagementURL string
}

const (
	statementTimeout = "5000" // ms, of every statement of ours, and of a transaction that stands idle
	poolConns        = 4
)

// Operator sees and moves what is stuck. It may be used by several goroutines.
type Operator struct {
	cfg       Config
	databases []*database
	broker    broker

	reconciling chan struct{} // room for one
	now         func() time.Time
	long        time.Duration // from when on an open transaction is worth a word
}

// database is one of Config with what is known of it.
type database struct {
	name  string
	pool  *pgxpool.Pool
	owned bool

	mu    sync.Mutex
	sides []Side // that it has; nil until it was asked
}

// New checks the configuration. It connects to nothing: a database that is away is an error of the calls that need it.
func New(cfg Config) (*Operator, error) {
	if len(cfg.Databases) == 0 {
		return nil, errors.New("operate: config has no Databases")
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 2 * time.Second
	}
	o := &Operator{cfg: cfg, broker: newBroker(cfg.AMQPURL), reconciling: make(chan struct{}, 1), now: time.Now, long: longTransaction}
	names := map[string]bool{}
	for _, d := range cfg.Databases {
		if d.Name == "" || names[d.Name] {
			o.Close()
			return nil, fmt.Errorf("operate: database %q has no name of its own", d.Name)
		}
		names[d.Name] = true
		pool, err := d.open()
		if err != nil {
			o.Close()
			return nil, fmt.Errorf("operate: database %s: %w", d.Name, err)
		}
		o.databases = append(o.databases, &database{name: d.Name, pool: pool, owned: d.Pool == nil})
	}
	return o, nil
}

func (d Database) open() (*pgxpool.Pool, error) {
	if d.Pool != nil {
		return d.Pool, nil
	}
	conf, err := pgxpool.ParseConfig(d.URL)
	if err != nil {
		return nil, errors.New("bad PostgreSQL URL")
	}
	conf.MaxConns = poolConns
	conf.ConnConfig.ConnectTimeout = 5 * time.Second
	for name, value := range map[string]string{
		"application_name": "outbox operator", "statement_timeout": statementTimeout,
		"idle_in_transaction_session_timeout": statementTimeout, "default_transaction_isolation": "read committed",
	} {
		conf.ConnConfig.RuntimeParams[name] = value
	}
	return pgxpool.NewWithConfig(context.Background(), conf)
}

// Close ends the connections that New's URLs led to.
func (o *Operator) Close() {
	o.broker.close()
	for _, d := range o.databases {
		if d.owned {
			d.pool.Close()
		}
	}
}

// Databases are the configured names, in order.
func (o *Operator) Databases() []string {
	names := make([]string, len(o.databases))
	for i, d := range o.databases {
		names[i] = d.name
	}
	return names
}

func (o *Operator) named(name string) (*database, error) {
	for _, d := range o.databases {
		if d.name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%w: there is no database %q among %q", ErrNotFound, name, o.Databases())
}

// chosen is the database of that name, or all for none.
func (o *Operator) chosen(name string) ([]*database, error) {
	if name == "" {
		return o.databases, nil
	}
	d, err := o.named(name)
	if err != nil {
		return nil, err
	}
	return []*database{d}, nil
}

// has are the sides that the database has.
func (d *database) has(ctx context.Context) ([]Side, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sides != nil {
		return d.sides, nil
	}
	var outbox, inbox bool
	err := d.pool.QueryRow(ctx, `SELECT to_regclass('outbox.stuck') IS NOT NULL, to_regclass('inbox.stuck') IS NOT NULL`).Scan(&outbox, &inbox)
	if err != nil {
		return nil, d.failed("look for outbox and inbox", err)
	}
	if outbox {
		d.sides = append(d.sides, Outbox)
	}
	if inbox {
		d.sides = append(d.sides, Inbox)
	}
	return d.sides, nil
}

// place is one side of one database.
type place struct {
	*database
	side Side
}

// places are the sides that a filter reaches. Databases that do not answer are an error beside the rest.
func (o *Operator) places(ctx context.Context, f Filter) (found []place, err error) {
	databases, err := o.chosen(f.Database)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, d := range databases {
		sides, err := d.has(ctx)
		errs = append(errs, err)
		for _, s := range sides {
			if (f.Side == "" || f.Side == s) && (f.Consumer == "" || s == Inbox) {
				found = append(found, place{d, s})
			}
		}
	}
	return found, errors.Join(errs...)
}

// failed names the database in an error, and says ErrInvalid of what the database's functions refuse as such.
func (d *database) failed(what string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "22023" { // invalid_parameter_value
		return fmt.Errorf("%w: %s", ErrInvalid, pg.Message)
	}
	return fmt.Errorf("database %s: %s: %w", d.name, what, err)
}

// collect runs a query and scans its rows by name.
func collect[T any](ctx context.Context, d *database, what, text string, args ...any) ([]T, error) {
	return read(ctx, d, what, pgx.RowToStructByName[T], text, args...)
}

// column reads one value of each row.
func column[T any](ctx context.Context, d *database, what, text string, args ...any) ([]T, error) {
	return read(ctx, d, what, pgx.RowTo[T], text, args...)
}

func read[T any](ctx context.Context, d *database, what string, scan pgx.RowToFunc[T], text string, args ...any) ([]T, error) {
	rows, err := d.pool.Query(ctx, text, args...)
	if err != nil {
		return nil, d.failed(what, err)
	}
	found, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, d.failed(what, err)
	}
	return found, nil
}
