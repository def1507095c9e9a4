package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/internal/daemon"
	schema "github.com/jcp/ticketwave/sql"
)

// demoTimeout is more than any scenario takes, preparing and tidying up included.
const demoTimeout = 3 * time.Minute

// demo plays a scenario in a house of its own and shows it. It leaves nothing behind but the mail.
func demo(ctx context.Context, opts options, s scenario, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	fmt.Fprintf(out, "%s\n\n", s.title(opts.Style))
	logs, where := demoLog()
	defer logs.Close()
	opts, leave, err := ownPlace(ctx, s.in(opts))
	if err != nil {
		return err
	}
	summary, err := demoIn(ctx, opts, s, out, logs, where)
	if err := errors.Join(err, leave()); err != nil {
		return err
	}
	fmt.Fprintf(out, "\ndemo: ok, %s\n", summary)
	return nil
}

// demoIn plays the scenario in a place that is ready to be migrated.
func demoIn(ctx context.Context, opts options, s scenario, out, logs io.Writer, where string) (summary string, err error) {
	log := daemon.NewLogger(logs, opts.LogLevel, "demo")
	start := time.Now()
	if err := errors.Join(migrateWith(ctx, opts, log), applyWith(ctx, opts, log)); err != nil {
		return "", err
	}
	opts.Ports = slices.Repeat([]string{"0"}, len(schema.Services))
	listeners, err := listen(opts)
	if err != nil {
		return "", err
	}
	watch := newWatcher(out)
	if opts.Style != booking.Orchestration {
		watch.unheard = "saga" // it hears every answer, and leads no booking
	}
	h := &house{
		opts: opts, logs: logs, listeners: listeners,
		hooks: hooks{tracer: watch.tracer, relayed: watch.relayed, handled: watch.outcome},
	}
	watch.say("  ready after %.1f s: %d databases %s*, queues in %s%s\n", time.Since(start).Seconds(), len(schema.Services), opts.Prefix, brokerName(opts), where)
	err = h.during(ctx, func(ctx context.Context) error {
		summary, err = (&journey{house: h, scenario: s, watch: watch}).run(ctx)
		return err
	})
	return summary, err
}

// during runs the house while fn runs, and returns the errors of both.
func (h *house) during(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- h.run(ctx)
	}()
	err := fn(ctx)
	cancel()
	return errors.Join(err, <-ended)
}

// demoLog is the file that the services' logs go to, in .run if there is one.
func demoLog() (io.WriteCloser, string) {
	path := filepath.Join(".run", "demo.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nopCloser{io.Discard}, ""
	}
	return f, ", logs in " + path
}

type nopCloser struct{ io.Writer }

// Close does nothing.
func (nopCloser) Close() error { return nil }

// ownPlace gives the demo databases and, where the management API lets it, a virtual host of its own, so that it
// neither sees nor disturbs a TicketWave that runs on the same servers. leave removes them.
func ownPlace(ctx context.Context, opts options) (options, func() error, error) {
	if opts.ManagementURL == "" {
		return opts, func() error { return nil }, nil
	}
	name := fmt.Sprintf("%sdemo%d", opts.Prefix, os.Getpid())
	m := management{url: opts.ManagementURL}
	amqp, err := m.makeVHost(ctx, name, opts.AMQPURL)
	if err != nil {
		return opts, nil, err
	}
	opts.AMQPURL, opts.Prefix = amqp, name+"_"
	leave := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return errors.Join(m.dropVHost(ctx, name), schema.Drop(ctx, opts.PostgresURL, opts.plan()))
	}
	return opts, leave, nil
}
