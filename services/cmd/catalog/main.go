// Command catalog offers events over HTTP and takes tickets for bookings.
package main

import (
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/services/catalog"
	"github.com/jcp/ticketwave/services/internal/daemon"
)

func main() {
	build := func(_ daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		return catalog.New(catalog.Config{Pool: pool, Logger: log})
	}
	daemon.Main("catalog", ":5002", build)
}
