// Command booking takes bookings over HTTP and follows them through the answers of the other services.
package main

import (
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/internal/daemon"
)

func main() {
	var cfg booking.Config
	build := func(_ daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		cfg.Pool, cfg.Logger = pool, log
		return booking.New(cfg)
	}
	daemon.Main("booking", ":5001", build,
		daemon.Whole(&cfg.MaxTickets, "max-tickets", "TW_MAX_TICKETS", booking.DefaultMaxTickets, 1, contracts.MaxTickets))
}
