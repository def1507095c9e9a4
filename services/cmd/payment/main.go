// Command payment prepares payments for bookings, takes them in the sandbox or at Stripe, and gives money back.
package main

import (
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/services/cmd/internal/gateways"
	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/payment"
)

func main() {
	var o gateways.Options
	build := func(_ daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		cfg, err := o.Config()
		if err != nil {
			return nil, err
		}
		cfg.Pool, cfg.Logger = pool, log
		return payment.New(cfg)
	}
	daemon.Main("payment", ":5003", build, o.Settings(payment.DefaultBaseURL)...)
}
