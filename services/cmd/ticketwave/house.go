package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/relay"
	"github.com/jcp/ticketwave/outbox/relayd"
	"github.com/jcp/ticketwave/services/internal/daemon"
	schema "github.com/jcp/ticketwave/sql"
)

// hooks let the demo watch. Any of them may be nil.
type hooks struct {
	tracer  func(service string) pgx.QueryTracer
	relayed message.HandlerMiddleware
	handled func(inbox.Outcome)
}

// house is all services and the relay in one process.
type house struct {
	opts      options
	admin     *admin.Daemon // or nil
	logs      io.Writer
	hooks     hooks
	listeners map[string]net.Listener
	metrics   net.Listener // of the relay, or nil
}

// listen takes the ports, all or none.
func listen(opts options) (map[string]net.Listener, error) {
	listeners := map[string]net.Listener{}
	for i, service := range schema.Services {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:"+opts.Ports[i])
		if err != nil {
			for _, other := range listeners {
				err = errors.Join(err, other.Close())
			}
			return nil, taken(service, opts.Ports[i], err)
		}
		listeners[service] = l
	}
	return listeners, nil
}

// url is where a service answers.
func (h *house) url(service string) string { return "http://" + h.listeners[service].Addr().String() }

// run runs everything until ctx ends or one part fails, and then waits for every other part to end in order.
func (h *house) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := []func(context.Context) error{h.relay}
	if h.admin != nil {
		parts = append(parts, h.admin.Run)
	}
	for _, service := range schema.Services {
		parts = append(parts, func(ctx context.Context) error { return h.serve(ctx, service) })
	}
	ended := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			defer cancel()
			ended <- part(ctx)
		}()
	}
	var errs []error
	for range parts {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

// relay forwards all outboxes.
func (h *house) relay(ctx context.Context) error {
	cfg := relayd.Config{AMQPURL: h.opts.AMQPURL, Logger: daemon.NewLogger(h.logs, h.opts.LogLevel, "relay")}
	for _, service := range schema.Services {
		url, err := h.opts.databaseURL(service, "relay")
		if err != nil {
			return err
		}
		cfg.Databases = append(cfg.Databases, relay.Database{Name: service, URL: url})
	}
	if h.hooks.relayed != nil {
		cfg.Middlewares = append(cfg.Middlewares, h.hooks.relayed)
	}
	d, err := relayd.New(cfg)
	if err != nil {
		return err
	}
	if h.metrics == nil {
		return d.Run(ctx)
	}
	return d.Serve(ctx, h.metrics, d.Run)
}

// serve runs one service.
func (h *house) serve(ctx context.Context, service string) error {
	log := daemon.NewLogger(h.logs, h.opts.LogLevel, service)
	pool, err := h.pool(ctx, service)
	if err != nil {
		return err
	}
	defer pool.Close()
	svc, err := build(service, h.opts, pool, log, h.url(service))
	if err != nil {
		return err
	}
	err = daemon.Run(ctx, daemon.Config{
		Name: service, Pool: pool, AMQPURL: h.opts.AMQPURL, Listener: h.listeners[service], Logger: log, Observe: h.hooks.handled,
	}, svc)
	if err != nil {
		return fmt.Errorf("%s: %w", service, err)
	}
	return nil
}

func (h *house) pool(ctx context.Context, service string) (*pgxpool.Pool, error) {
	url, err := h.opts.databaseURL(service, service)
	if err != nil {
		return nil, err
	}
	var tracer pgx.QueryTracer
	if h.hooks.tracer != nil {
		tracer = h.hooks.tracer(service)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return daemon.OpenPool(ctx, url, tracer)
}
