package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	maxConns       = 16
	connectTimeout = 2 * time.Second
	// statementTimeout is the longest a statement may take or wait for a lock.
	statementTimeout = "15s"
	// idleTimeout frees what a process holds that stopped in the middle of a transaction.
	idleTimeout = "60s"
)

// OpenPool opens a pool with bounds on everything: connections, connecting, statements, and idle transactions. The
// server may be away. tracer may be nil. Parameters in the URL win over the defaults.
func OpenPool(ctx context.Context, url string, tracer pgx.QueryTracer) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("bad PostgreSQL URL: want postgres://user:password@host:port/database")
	}
	config.MaxConns = maxConns
	config.MaxConnLifetime = 30 * time.Minute
	config.MaxConnLifetimeJitter = 5 * time.Minute
	config.MaxConnIdleTime = 5 * time.Minute
	config.HealthCheckPeriod = 15 * time.Second
	config.PingTimeout = connectTimeout
	config.ConnConfig.ConnectTimeout = connectTimeout
	config.ConnConfig.Tracer = tracer
	for name, value := range map[string]string{
		"application_name":                    config.ConnConfig.User,
		"statement_timeout":                   statementTimeout,
		"idle_in_transaction_session_timeout": idleTimeout,
	} {
		if _, given := config.ConnConfig.RuntimeParams[name]; !given {
			config.ConnConfig.RuntimeParams[name] = value
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open the database pool: %w", err)
	}
	return pool, nil
}
