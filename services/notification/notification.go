package notification

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/mail"
	"regexp"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// Defaults of Config.
const (
	DefaultFrom            = "TicketWave <tickets@ticketwave.example>"
	DefaultMailDir         = ".run/mail"
	DefaultRecipientDomain = "users.ticketwave.example"
	DefaultGiveUpAfter     = time.Minute
)

// Config of a Service. Zero values take the defaults.
type Config struct {
	// Pool connects as a role that is a member of notification_service, outbox_writer and inbox_consumer. Required.
	Pool *pgxpool.Pool
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// SMTPAddr is host:port of the mail server, spoken to with TLS where it offers that. Empty: mails become files.
	SMTPAddr string
	// MailDir is where the files go. Default DefaultMailDir.
	MailDir string
	// From is the sender. Its domain ends every Message-ID. Default DefaultFrom.
	From string
	// RecipientDomain ends the users' addresses: events carry no address, so user u is written to as user-u@domain.
	// Default DefaultRecipientDomain.
	RecipientDomain string
	// GiveUpAfter is how old a request may become before trouble with the mail server is reported as a failure.
	// Default one minute.
	GiveUpAfter time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Service is notification.
type Service struct {
	pool   *pgxpool.Pool
	log    *slog.Logger
	mailer mailer
	writer writer
	giveUp time.Duration
	now    func() time.Time
}

var domain = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?$`)

// New makes a Service. It touches neither the database nor the mail server.
func New(cfg Config) (*Service, error) {
	if cfg.Pool == nil {
		return nil, errors.New("notification: config has no Pool")
	}
	cfg.setDefaults()
	from, err := mail.ParseAddress(cfg.From)
	if err != nil {
		return nil, fmt.Errorf("notification: sender %q: want an address such as %q", cfg.From, DefaultFrom)
	}
	if !domain.MatchString(cfg.RecipientDomain) {
		return nil, fmt.Errorf("notification: recipient domain %q is no domain", cfg.RecipientDomain)
	}
	m, err := newMailer(cfg)
	if err != nil {
		return nil, err
	}
	return &Service{
		pool: cfg.Pool, log: cfg.Logger, mailer: m, writer: newWriter(from, cfg.RecipientDomain), giveUp: cfg.GiveUpAfter, now: cfg.Now,
	}, nil
}

func (c *Config) setDefaults() {
	for _, text := range []struct {
		value    *string
		fallback string
	}{{&c.From, DefaultFrom}, {&c.MailDir, DefaultMailDir}, {&c.RecipientDomain, DefaultRecipientDomain}} {
		if *text.value == "" {
			*text.value = text.fallback
		}
	}
	if c.GiveUpAfter <= 0 {
		c.GiveUpAfter = DefaultGiveUpAfter
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Notification is what a user was told, and how it went.
type Notification struct {
	ID        uuid.UUID                  `db:"id" json:"id"`
	MessageID uuid.UUID                  `db:"message_id" json:"messageId"`
	BookingID uuid.UUID                  `db:"booking_id" json:"bookingId"`
	UserID    uuid.UUID                  `db:"user_id" json:"userId"`
	EventID   uuid.UUID                  `db:"event_id" json:"eventId"`
	Type      contracts.NotificationType `db:"type" json:"type"`
	Channel   contracts.Channel          `db:"channel" json:"channel"`
	Recipient string                     `db:"recipient" json:"recipient"`
	Success   bool                       `db:"success" json:"success"`
	Error     *string                    `db:"error" json:"error"`
	SentAt    time.Time                  `db:"sent_at" json:"sentAt"`
}

// Notify handles SendBookingNotification: it sends the mails and publishes NotificationSent. An error means trouble
// that may pass; mails may have been sent all the same.
func (s *Service) Notify(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.SendBookingNotification]) error {
	told := make([]Notification, len(requests))
	for i, r := range requests {
		var err error
		if told[i], err = s.tell(r.Context(), r.Event); err != nil {
			return err
		}
	}
	if err := insertNotifications(ctx, tx, told); err != nil {
		return fmt.Errorf("store %d notifications: %w", len(told), err)
	}
	for i, r := range requests {
		if err := outbox.Append(r.Context(), tx, told[i].sent()); err != nil {
			return fmt.Errorf("answer booking %s: %w", r.Event.BookingID, err)
		}
		s.log.InfoContext(r.Context(), logPublished, "booking_id", r.Event.BookingID, "success", told[i].Success)
	}
	return nil
}

// tell sends one mail.
func (s *Service) tell(ctx context.Context, request contracts.SendBookingNotification) (Notification, error) {
	meta, ok := inbox.MetaFrom(ctx)
	if !ok {
		return Notification{}, errors.New("notify: the context carries no message")
	}
	log := s.log.With("booking_id", request.BookingID)
	log.InfoContext(ctx, logProcessing, "notification_type", string(request.NotificationType))
	letter, err := s.writer.write(meta, request)
	if err != nil {
		return Notification{}, inbox.Permanent(fmt.Errorf("write the mail: %w", err))
	}
	failure := s.mailer.send(ctx, letter)
	switch {
	case failure == nil:
		log.InfoContext(ctx, logSent, "mail_id", letter.messageID)
	case isFinal(failure) || s.late(meta):
		log.WarnContext(ctx, logFailed, "error", failure)
	default:
		return Notification{}, failure
	}
	return newNotification(meta, request, letter, failure, s.now())
}

// late reports whether the request has waited long enough. One that does not say its age has.
func (s *Service) late(m inbox.Meta) bool {
	return m.Time.IsZero() || s.now().Sub(m.Time) >= s.giveUp
}

func newNotification(meta inbox.Meta, r contracts.SendBookingNotification, l letter, failure error, at time.Time) (Notification, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Notification{}, fmt.Errorf("draw a notification id: %w", err)
	}
	n := Notification{
		ID: id, MessageID: meta.ID, Type: r.NotificationType, Channel: contracts.ChannelEmail, Recipient: l.recipient,
		Success: failure == nil, SentAt: at.UTC().Truncate(time.Microsecond),
	}
	if failure != nil {
		text := clip(failure.Error(), contracts.MaxErrorMessage)
		n.Error = &text
	}
	for _, field := range []struct {
		into *uuid.UUID
		text string
	}{{&n.BookingID, r.BookingID}, {&n.UserID, r.UserID}, {&n.EventID, r.EventID}} {
		if *field.into, err = uuid.Parse(field.text); err != nil {
			return n, inbox.Permanent(err)
		}
	}
	return n, nil
}

// clip bounds a text in characters, and keeps what PostgreSQL takes as text.
func clip(s string, most int) string {
	var kept []rune
	for _, r := range s {
		if r != 0 && len(kept) < most {
			kept = append(kept, r)
		}
	}
	return string(kept)
}
