// Command booking takes bookings over HTTP and follows them through the answers of the other services.
package main

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/internal/daemon"
)

// options are what this service can be told beside what every service can.
type options struct {
	maxTickets  int
	style       string
	hold, grace time.Duration
}

func main() {
	var o options
	build := func(_ daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		cfg := o.config()
		cfg.Pool, cfg.Logger = pool, log
		return booking.New(cfg)
	}
	daemon.Main("booking", ":5001", build, o.settings()...)
}

func (o *options) settings() []daemon.Setting {
	return []daemon.Setting{
		daemon.Whole(&o.maxTickets, "max-tickets", "TW_MAX_TICKETS", booking.DefaultMaxTickets, 1, contracts.MaxTickets),
		daemon.Checked(&o.style, "saga", "TW_SAGA", booking.Choreography, "choreography or orchestration", booking.IsStyle),
		daemon.Duration(&o.hold, "hold", "TW_BOOKING_HOLD", booking.DefaultHold, booking.MinHold, booking.MaxHold),
		daemon.Duration(&o.grace, "grace", "TW_BOOKING_GRACE", booking.DefaultGrace, 0, booking.MaxGrace),
	}
}

// config makes the service's configuration.
func (o *options) config() booking.Config {
	return booking.Config{
		MaxTickets: o.maxTickets, Orchestration: o.style == booking.Orchestration, Hold: o.hold, Grace: cmp.Or(o.grace, booking.NoGrace),
	}
}
