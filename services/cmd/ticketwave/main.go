// Command ticketwave runs TicketWave in one process, shows it, and prepares its databases and its broker.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `ticketwave sells tickets with five services that talk through a transactional outbox.

usage: ticketwave COMMAND

  run             all services and the relay in the foreground, on ports 5001 to 5005, until Ctrl-C
  demo [SCENARIO] a booking that travels through everything, step by step; ends by itself. It is
                  success, sold-out, declined, expired, cancelled or late-payment               (success)
  migrate         create and migrate the databases and their roles
  topology apply  declare exchange, queues and bindings, and store them for the relay
  help            this text

Environment:

  TW_POSTGRES_URL             administrator of the PostgreSQL cluster                      (required)
  TW_AMQP_URL                 RabbitMQ user who may configure                              (required)
  TW_RABBITMQ_MANAGEMENT_URL  lets demo make a virtual host of its own
  TW_SERVICE_PASSWORD         password of the services' database roles                     (required)
  TW_DATABASE_PREFIX          begins the names of databases and roles                      (ticketwave_)
  TW_LOG_LEVEL                debug, info, warn or error                                   (info)
  TW_SMTP_ADDR                host:port of a mail server; without one mails become files   ()
  TW_MAIL_DIR                 where those files go                                         (.run/mail)
  TW_MAIL_FROM                sender of the mails                                          (the service's)
  TW_MAX_TICKETS              most tickets in one booking                                  (10)
  TW_SAGA                     who leads bookings: choreography (booking itself) or
                              orchestration (a coordinator)                                (choreography)
  TW_BOOKING_HOLD             how long tickets are held for payment, 1s to 24h             (15m)
  TW_BOOKING_GRACE            how much later than its payment a booking expires, 0 to 1h   (30s)
  TW_PAYMENT_URL              begins the payment pages' URLs                               (the payment service's)
  TW_PAYMENT_GATEWAY          where new payments are made: sandbox or stripe               (sandbox)
  TW_STRIPE_KEY, TW_STRIPE_WEBHOOK_SECRETS
                              Stripe's secret API key, and the secrets of its webhooks;
                              with them Stripe's payments go on under either gateway       ()
  TW_PAYMENT_RETURN_URL       where people go from Stripe's page                           (/pay/thanks here)
  TW_SANDBOX_LATENESS         how late the sandbox's late payments are, 1s to 24h          (2s)
  TW_HTTP_PORTS               ports of booking, catalog, payment, notification and saga    (5001,5002,5003,5004,5005)
  TW_RELAY_HTTP_ADDR          where run shows the relay's probes and metrics, or off       (127.0.0.1:5010)
  TW_ADMIN_ADDR               where run offers the administration API, or off              (127.0.0.1:5011)
  TW_ADMIN_TOKENS             its token file; without one a token is made in .run          ()
`

// errUsage asks for exit status 2.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "ticketwave:", err)
		stop()
		os.Exit(2) //nolint:gocritic // stop has been called
	default:
		fmt.Fprintln(os.Stderr, "ticketwave:", err)
		stop()
		os.Exit(1)
	}
}

// commands are what ticketwave can be told to do.
var commands = map[string]func(ctx context.Context, opts options) error{
	"run":            runAll,
	"migrate":        migrate,
	"topology apply": applyTopology,
}

// commandNamed is what the arguments say, or an error of usage.
func commandNamed(name string) (func(ctx context.Context, opts options) error, error) {
	if command, ok := commands[name]; ok {
		return command, nil
	}
	word, rest, given := strings.Cut(name, " ")
	if word != "demo" {
		return nil, fmt.Errorf("%w: there is no command %q; \"ticketwave help\" lists them", errUsage, name)
	}
	if !given {
		rest = scenarios[0].name
	}
	s, err := scenarioNamed(rest)
	return func(ctx context.Context, opts options) error { return demo(ctx, opts, s, os.Stdout) }, err
}

func run(ctx context.Context, args []string) error {
	name := strings.Join(args, " ")
	switch name {
	case "help", "-h", "-help", "--help":
		fmt.Print(usage)
		return nil
	}
	command, err := commandNamed(name)
	if err != nil {
		return err
	}
	opts, err := parse(os.Getenv)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return command(ctx, opts)
}
