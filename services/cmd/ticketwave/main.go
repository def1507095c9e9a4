// Command ticketwave runs TicketWave in one process, shows it, and prepares its databases and its broker.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `ticketwave sells tickets with five services that talk through a transactional outbox.

usage: ticketwave COMMAND

  run             all services and the relay in the foreground, on ports 5001 to 5005, until Ctrl-C
  demo            book two tickets and watch them travel through everything; ends by itself
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
  TW_PAYMENT_URL              begins the payment pages' URLs                               (the payment service's)
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
	"demo":           demo,
	"migrate":        migrate,
	"topology apply": applyTopology,
}

func run(ctx context.Context, args []string) error {
	name := ""
	for i, arg := range args {
		if i > 0 {
			name += " "
		}
		name += arg
	}
	switch name {
	case "help", "-h", "-help", "--help":
		fmt.Print(usage)
		return nil
	}
	command, ok := commands[name]
	if !ok {
		return fmt.Errorf("%w: there is no command %q; \"ticketwave help\" lists them", errUsage, name)
	}
	opts, err := parse(os.Getenv)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return command(ctx, opts)
}
