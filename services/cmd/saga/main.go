// Command saga leads bookings through their steps where booking leaves that to a coordinator.
package main

import (
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/saga"
)

func main() {
	var tokens string
	build := func(_ daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		cfg := saga.Config{Pool: pool, Logger: log}
		if tokens != "" {
			var err error
			if cfg.Tokens, err = admin.OpenTokens(tokens); err != nil {
				return nil, err
			}
		}
		return saga.New(cfg)
	}
	daemon.Main("saga", ":5005", build,
		daemon.Text(&tokens, "tokens", "TW_ADMIN_TOKENS", "", "the operators' token file, or nothing: then nobody may resume or compensate"))
}
