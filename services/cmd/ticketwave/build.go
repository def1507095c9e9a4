package main

import (
	"cmp"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/catalog"
	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/notification"
	"github.com/jcp/ticketwave/services/payment"
	"github.com/jcp/ticketwave/services/saga"
)

// build makes one of the services. url is where it answers.
func build(service string, opts options, pool *pgxpool.Pool, log *slog.Logger, url string) (daemon.Service, error) {
	switch service {
	case "booking":
		return booking.New(booking.Config{
			Pool: pool, Logger: log, MaxTickets: opts.MaxTickets, Hold: opts.Hold, Grace: cmp.Or(opts.Grace, booking.NoGrace),
			Orchestration: opts.Style == booking.Orchestration,
		})
	case "catalog":
		return catalog.New(catalog.Config{Pool: pool, Logger: log})
	case "payment":
		payments := opts.Payments
		payments.BaseURL = cmp.Or(payments.BaseURL, url)
		cfg, err := payments.Config()
		if err != nil {
			return nil, err
		}
		cfg.Pool, cfg.Logger = pool, log
		return payment.New(cfg)
	case "notification":
		return notification.New(notification.Config{
			Pool: pool, Logger: log, SMTPAddr: opts.SMTPAddr, MailDir: opts.MailDir, From: opts.MailFrom,
		})
	case "saga":
		cfg := saga.Config{Pool: pool, Logger: log}
		if opts.AdminTokens != "" {
			var err error
			if cfg.Tokens, err = admin.OpenTokens(opts.AdminTokens); err != nil {
				return nil, err
			}
		}
		return saga.New(cfg)
	}
	return nil, fmt.Errorf("there is no service %q", service)
}
