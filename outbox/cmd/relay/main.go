// Command relay forwards the outboxes of one or more databases to RabbitMQ until it is told to stop.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/relayd"
)

// gcPercent trades memory, of which the relay holds little, for the time that collecting its many small messages takes.
const gcPercent = 300

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	opts, err := parse(os.Args[1:], os.Getenv, os.Stderr)
	switch {
	case errors.Is(err, errHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if opts.Health {
		err = health(ctx, opts.HTTPAddr)
	} else {
		err = run(ctx, opts, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
}

// run opens what the options name and relays until ctx ends.
func run(ctx context.Context, opts options, out io.Writer) error {
	log := slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: opts.LogLevel})).With("service", "relay")
	daemon, err := relayd.New(relayd.Config{Databases: opts.Databases, AMQPURL: opts.AMQPURL, Keep: opts.Keep, Logger: log})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", opts.HTTPAddr)
	if err != nil {
		return fmt.Errorf("listen: %w (TW_HTTP_ADDR sets another address)", err)
	}
	log.Info("relay started", "options", opts.redacted(), "address", listener.Addr().String())
	err = daemon.Serve(ctx, listener, func(ctx context.Context) error { return withAdmin(ctx, opts, log, daemon.Run) })
	log.Info("relay stopped")
	return err
}

// withAdmin relays, and offers the administration API beside it if it is asked for. When one ends, so does the other.
func withAdmin(ctx context.Context, opts options, log *slog.Logger, relay func(context.Context) error) error {
	if opts.Admin.Addr == "" {
		return relay(ctx)
	}
	opts.Admin.Logger = log
	api, err := admin.Open(ctx, opts.Admin)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- api.Run(ctx)
	}()
	err = relay(ctx)
	cancel()
	return errors.Join(err, <-ended)
}
