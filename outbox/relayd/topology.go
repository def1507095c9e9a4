package relayd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// ErrNoTopology says that no topology has been stored in a database.
var ErrNoTopology = errors.New("no topology is stored in outbox.config: apply it (\"ticketwave topology apply\")")

// StoreTopology writes the topology to the outbox.config of a database. url connects as its administrator.
func StoreTopology(ctx context.Context, url string, t rabbitmq.Topology) error {
	if err := t.Validate(); err != nil {
		return err
	}
	document, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode the topology: %w", err)
	}
	return withConn(ctx, url, func(conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `UPDATE outbox.config SET topology = $1::jsonb`, string(document))
		if err == nil && tag.RowsAffected() != 1 {
			err = errors.New("outbox.config has no row: run the migrations")
		}
		return err
	})
}

// LoadTopology reads the topology of a database, or returns ErrNoTopology.
func LoadTopology(ctx context.Context, url string) (rabbitmq.Topology, error) {
	var t rabbitmq.Topology
	err := withConn(ctx, url, func(conn *pgx.Conn) error {
		var document []byte
		err := conn.QueryRow(ctx, `SELECT topology FROM outbox.config`).Scan(&document)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && document == nil {
			return ErrNoTopology
		}
		if err != nil {
			return fmt.Errorf("read outbox.config: %w", err)
		}
		if err := json.Unmarshal(document, &t); err != nil {
			return fmt.Errorf("decode the stored topology: %w", err)
		}
		return t.Validate()
	})
	return t, err
}

func withConn(ctx context.Context, url string, fn func(conn *pgx.Conn) error) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return errors.New("bad PostgreSQL URL")
	}
	config.ConnectTimeout = 5 * time.Second
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	return fn(conn)
}
