// Command notification sends e-mails about bookings and shows over HTTP what was sent.
package main

import (
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/notification"
)

func main() {
	var cfg notification.Config
	build := func(_ daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		cfg.Pool, cfg.Logger = pool, log
		return notification.New(cfg)
	}
	daemon.Main("notification", ":5004", build,
		daemon.Text(&cfg.SMTPAddr, "smtp", "TW_SMTP_ADDR", "", "host:port of a mail server; without one mails become files"),
		daemon.Text(&cfg.MailDir, "mail-dir", "TW_MAIL_DIR", notification.DefaultMailDir, "the directory for those files"),
		daemon.Text(&cfg.From, "mail-from", "TW_MAIL_FROM", notification.DefaultFrom, "the sender, an e-mail address"))
}
