// Command payment prepares payments for bookings and shows them over HTTP.
package main

import (
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/payment"
)

func main() {
	var cfg payment.Config
	build := func(_ daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		cfg.Pool, cfg.Logger = pool, log
		return payment.New(cfg)
	}
	daemon.Main("payment", ":5003", build,
		daemon.Checked(&cfg.BaseURL, "payment-url", "TW_PAYMENT_URL", payment.DefaultBaseURL,
			"the http or https URL that payment pages begin with",
			func(value string) bool { return daemon.IsURL(value, "http", "https") }))
}
