// Command notification sends e-mails about bookings and shows over HTTP what was sent.
package main

import (
	"log/slog"
	"net"
	"net/mail"

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
		daemon.Checked(&cfg.SMTPAddr, "smtp", "TW_SMTP_ADDR", "", "host:port of a mail server, or nothing: then mails become files", isSMTPAddr),
		daemon.Text(&cfg.MailDir, "mail-dir", "TW_MAIL_DIR", notification.DefaultMailDir, "the directory for those files"),
		daemon.Checked(&cfg.From, "mail-from", "TW_MAIL_FROM", notification.DefaultFrom, "the sender, an e-mail address", isAddress))
}

func isSMTPAddr(value string) bool {
	host, port, err := net.SplitHostPort(value)
	return value == "" || err == nil && host != "" && port != ""
}

func isAddress(value string) bool {
	_, err := mail.ParseAddress(value)
	return err == nil
}
