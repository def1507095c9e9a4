package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/relay"
	"github.com/jcp/ticketwave/outbox/retention"
)

// options are what the relay can be told: flag over environment over default.
type options struct {
	Databases []relay.Database
	AMQPURL   string
	HTTPAddr  string
	LogLevel  slog.Level
	Keep      time.Duration
	Health    bool
	Admin     admin.Options // off when its Addr is empty
}

var errHelp = errors.New("help was asked for")

const usage = `relay forwards outbox messages to RabbitMQ.

usage: relay [flags]

  -databases  TW_RELAY_DATABASES  name=postgres://...,name=postgres://...  (required)
  -amqp       TW_AMQP_URL         amqp://user:password@host:port/vhost    (required)
  -http       TW_HTTP_ADDR        address of /livez, /readyz and /metrics (default :5010)
  -keep       TW_RELAY_KEEP       how long relayed messages are kept, 1h or longer (default 168h)
  -log-level  TW_LOG_LEVEL        debug, info, warn or error              (default info)
  -admin      TW_ADMIN_ADDR       address of the administration API, 127.0.0.1:5011 for example (default: off)
  -health                         ask the relay that runs on the -http address whether it is ready, and exit

The administration API, for outboxctl, takes from the environment:

  TW_ADMIN_TOKENS             file of its tokens; "outboxctl token new" makes their lines           (required)
  TW_ADMIN_DATABASES          as TW_RELAY_DATABASES, for a role that may operate                    (required)
  TW_ADMIN_TLS_CERT, _KEY     PEM files; an address beyond 127.0.0.1 needs them                     ()
  TW_ADMIN_INSECURE           true allows such an address without TLS                               (false)
  TW_RABBITMQ_MANAGEMENT_URL  lets it compare queues and bindings with what they should be          ()

A flag wins over the environment. Stop it with SIGINT or SIGTERM: what is in flight is finished first.
`

func parse(args []string, getenv func(string) string, out io.Writer) (options, error) {
	env := func(name, fallback string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return fallback
	}
	flags := flag.NewFlagSet("relay", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	databases := flags.String("databases", env("TW_RELAY_DATABASES", ""), "")
	amqp := flags.String("amqp", env("TW_AMQP_URL", ""), "")
	addr := flags.String("http", env("TW_HTTP_ADDR", ":5010"), "")
	keep := flags.String("keep", env("TW_RELAY_KEEP", retention.KeepRelayed.String()), "")
	level := flags.String("log-level", env("TW_LOG_LEVEL", "info"), "")
	adminAddr := flags.String("admin", env("TW_ADMIN_ADDR", ""), "")
	health := flags.Bool("health", false, "")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, usage)
			return options{}, errHelp
		}
		return options{}, fmt.Errorf("%w (relay -help lists the flags)", err)
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected argument %q (relay -help lists the flags)", flags.Arg(0))
	}
	opts := options{AMQPURL: *amqp, HTTPAddr: *addr, Health: *health}
	opts.Admin.Addr = *adminAddr
	opts, err := opts.check(*databases, *level, *keep)
	if err == nil && !opts.Health && *adminAddr != "" {
		err = opts.administer(getenv)
	}
	return opts, err
}

// administer reads what the administration API needs.
func (o *options) administer(getenv func(string) string) error {
	o.Admin.TokenFile = getenv("TW_ADMIN_TOKENS")
	o.Admin.CertFile, o.Admin.KeyFile = getenv("TW_ADMIN_TLS_CERT"), getenv("TW_ADMIN_TLS_KEY")
	switch insecure := getenv("TW_ADMIN_INSECURE"); insecure {
	case "", "false":
	case "true":
		o.Admin.Insecure = true
	default:
		return fmt.Errorf("TW_ADMIN_INSECURE is %q: want true or false", insecure)
	}
	o.Admin.Operate.AMQPURL, o.Admin.Operate.ManagementURL = o.AMQPURL, getenv("TW_RABBITMQ_MANAGEMENT_URL")
	if u, err := url.Parse(o.Admin.Operate.ManagementURL); err != nil || o.Admin.Operate.ManagementURL != "" && (u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return errors.New("TW_RABBITMQ_MANAGEMENT_URL: want http://user:password@host:port")
	}
	databases, err := parseDatabases("TW_ADMIN_DATABASES", getenv("TW_ADMIN_DATABASES"))
	if err != nil {
		return err
	}
	for _, db := range databases {
		o.Admin.Operate.Databases = append(o.Admin.Operate.Databases, operate.Database{Name: db.Name, URL: db.URL})
	}
	return o.Admin.Check()
}

func (o options) check(databases, level, keep string) (options, error) {
	if _, _, err := net.SplitHostPort(o.HTTPAddr); err != nil {
		return o, fmt.Errorf("TW_HTTP_ADDR is %q: want host:port or :port", o.HTTPAddr)
	}
	if o.Health {
		return o, nil
	}
	if err := o.LogLevel.UnmarshalText([]byte(level)); err != nil {
		return o, fmt.Errorf("TW_LOG_LEVEL is %q: want debug, info, warn or error", level)
	}
	if u, err := url.Parse(o.AMQPURL); err != nil || u.Scheme != "amqp" && u.Scheme != "amqps" || u.Host == "" {
		return o, errors.New("TW_AMQP_URL: want amqp://user:password@host:port/vhost")
	}
	var err error
	if o.Keep, err = time.ParseDuration(keep); err != nil || o.Keep < retention.MinKeep {
		return o, fmt.Errorf("TW_RELAY_KEEP is %q: want a time of 1h or longer, 168h for example", keep)
	}
	o.Databases, err = parseDatabases("TW_RELAY_DATABASES", databases)
	return o, err
}

func parseDatabases(variable, list string) ([]relay.Database, error) {
	const want = "%s: want name=postgres://user:password@host:port/database, separated by commas"
	var databases []relay.Database
	seen := map[string]bool{}
	for _, item := range strings.Split(list, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(item), "=")
		u, err := url.Parse(address)
		if !ok || name == "" || err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || u.Host == "" {
			return nil, fmt.Errorf(want, variable)
		}
		if seen[name] {
			return nil, fmt.Errorf("%s: the name %q stands there twice", variable, name)
		}
		seen[name] = true
		databases = append(databases, relay.Database{Name: name, URL: address})
	}
	return databases, nil
}

// redacted is the options without their passwords.
func (o options) redacted() map[string]any {
	var databases []string
	for _, db := range o.Databases {
		databases = append(databases, db.Name+"="+redact(db.URL))
	}
	return map[string]any{"databases": databases, "amqp": redact(o.AMQPURL), "http": o.HTTPAddr, "logLevel": o.LogLevel.String(), "keep": o.Keep.String(), "admin": o.Admin.Addr}
}

func redact(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "?"
	}
	u.RawQuery = ""
	return u.Redacted()
}

// health asks the relay that listens on addr whether it is ready.
func health(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", resp.Status)
	}
	return nil
}
