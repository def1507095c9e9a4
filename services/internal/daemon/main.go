package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Build makes the service when the options are known. What also implements io.Closer is closed at the end.
type Build func(opts Options, pool *pgxpool.Pool, log *slog.Logger) (Service, error)

// gcPercent trades memory, of which a service holds little, for time.
const gcPercent = 300

// Main is the whole main of a service: it reads options, runs until SIGINT or SIGTERM, and ends the process with
// status 0 after an orderly end, 2 when an option is wrong, and 1 for any other error, which is one line on stderr.
// httpAddr is the default of TW_HTTP_ADDR; own are the service's further settings.
func Main(name, httpAddr string, build Build, own ...Setting) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var opts Options
	settings := append(opts.common(httpAddr), own...)
	err := parse(name, &opts, settings, os.Args[1:], os.Getenv, os.Stdout)
	status := 2
	if err == nil {
		status = 1
		if opts.health {
			err = health(ctx, opts.HTTPAddr)
		} else {
			err = run(ctx, name, opts, settings, build, os.Stdout)
		}
	}
	if err != nil && !errors.Is(err, errHelp) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(status)
	}
}

// run opens what the options name and serves until ctx ends.
func run(ctx context.Context, name string, opts Options, settings []Setting, build Build, out io.Writer) error {
	log := NewLogger(out, opts.LogLevel, name)
	pool, err := OpenPool(context.WithoutCancel(ctx), opts.DatabaseURL, nil)
	if err != nil {
		return err
	}
	defer pool.Close()
	svc, err := build(opts, pool, log)
	if err != nil {
		return err
	}
	if c, ok := svc.(io.Closer); ok {
		defer c.Close()
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", opts.HTTPAddr)
	if err != nil {
		return fmt.Errorf("%w (TW_HTTP_ADDR sets another address)", err)
	}
	log.Info(name+" started", "options", redacted(settings), "address", listener.Addr().String())
	defer log.Info(name + " stopped")
	return Run(ctx, Config{Name: name, Pool: pool, AMQPURL: opts.AMQPURL, Listener: listener, Logger: log}, svc)
}

// health asks the service that listens on addr whether it is ready.
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
