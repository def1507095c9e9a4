package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jcp/ticketwave/outbox/relayd"
	"github.com/jcp/ticketwave/services/internal/bus"
	"github.com/jcp/ticketwave/services/internal/daemon"
	schema "github.com/jcp/ticketwave/sql"
)

const prepareTimeout = 3 * time.Minute

// migrate creates what is missing and says how long it took.
func migrate(ctx context.Context, opts options) error {
	return migrateWith(ctx, opts, daemon.NewLogger(os.Stderr, opts.LogLevel, "migrate"))
}

func migrateWith(ctx context.Context, opts options, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	start := time.Now()
	if err := schema.Migrate(ctx, opts.PostgresURL, opts.plan(), log); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	log.Info("databases are up to date", "prefix", opts.Prefix, "ms", time.Since(start).Milliseconds())
	return nil
}

// applyTopology declares the topology and stores it in every database.
func applyTopology(ctx context.Context, opts options) error {
	return applyWith(ctx, opts, daemon.NewLogger(os.Stderr, opts.LogLevel, "topology"))
}

func applyWith(ctx context.Context, opts options, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	topology := bus.Topology()
	if err := topology.Apply(ctx, opts.AMQPURL); err != nil {
		return fmt.Errorf("topology: %w", err)
	}
	for _, db := range opts.plan().Databases {
		url, err := schema.URL(opts.PostgresURL, db.Name, "", "")
		if err != nil {
			return err
		}
		if err := relayd.StoreTopology(ctx, url, topology); err != nil {
			return fmt.Errorf("store the topology in database %s: %w", db.Name, err)
		}
	}
	log.Info("topology applied", "exchange", topology.Exchange, "queues", len(topology.Queues)*topology.Partitions)
	return nil
}
