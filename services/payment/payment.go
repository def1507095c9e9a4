package payment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// DefaultBaseURL begins payment URLs when Config names nothing else.
const DefaultBaseURL = "http://localhost:5003"

// Payment is what a user is asked to pay for a booking.
type Payment struct {
	ID         uuid.UUID        `db:"id" json:"id"`
	BookingID  uuid.UUID        `db:"booking_id" json:"bookingId"`
	UserID     uuid.UUID        `db:"user_id" json:"userId"`
	Amount     contracts.Amount `db:"amount_minor" json:"amount"`
	Currency   string           `db:"currency" json:"currency"`
	Status     string           `db:"status" json:"status"`
	URL        string           `db:"url" json:"url"`
	ExpiresAt  time.Time        `db:"expires_at" json:"expiresAt"`
	PreparedAt time.Time        `db:"prepared_at" json:"preparedAt"`
}

// Config of a Service.
type Config struct {
	// Pool connects as a role that is a member of payment_service, outbox_writer and inbox_consumer. Required.
	Pool *pgxpool.Pool
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// BaseURL begins the URLs at which payments are made. Default DefaultBaseURL.
	BaseURL string
}

// Service is payment.
type Service struct {
	pool *pgxpool.Pool
	log  *slog.Logger
	base string
}

// New makes a Service. It does not touch the database.
func New(cfg Config) (*Service, error) {
	if cfg.Pool == nil {
		return nil, errors.New("payment: config has no Pool")
	}
	if cfg.BaseURL == "" {
		cfg.BaseURL = DefaultBaseURL
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	base, err := checkBase(cfg.BaseURL)
	if err != nil {
		return nil, err
	}
	return &Service{pool: cfg.Pool, log: cfg.Logger, base: base}, nil
}

// checkBase takes http and https URLs that a path can be added to.
func checkBase(base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || len(base) > 1000 {
		return "", fmt.Errorf("payment: base URL %q: want http://host or https://host, with or without a path", base)
	}
	return strings.TrimRight(base, "/"), nil
}

// Prepare handles PreparePaymentData: it makes the booking's payment, if there is none yet, and publishes
// PaymentDataPrepared with what there is then. The requests must be of different bookings.
func (s *Service) Prepare(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.PreparePaymentData]) error {
	for _, r := range requests {
		s.log.InfoContext(r.Context(), logProcessing, "booking_id", r.Event.BookingID, "amount", r.Event.Amount.String(), "currency", r.Event.Currency)
	}
	made, err := insertPayments(ctx, tx, s.base+"/pay/", requests)
	if err != nil {
		return fmt.Errorf("store the payments of %d bookings: %w", len(requests), err)
	}
	for i, r := range requests {
		if err := s.prepared(r.Context(), tx, r.Event.BookingID, made[i]); err != nil {
			return fmt.Errorf("prepare the payment of booking %s: %w", r.Event.BookingID, err)
		}
	}
	return nil
}

// prepared answers a request with the payment that was made, or else with that which the booking has.
func (s *Service) prepared(ctx context.Context, tx pgx.Tx, booking string, made *Payment) error {
	log, done := s.log.With("booking_id", booking), logPrepared
	if made == nil {
		known, err := paymentOf(ctx, tx, booking)
		if err != nil {
			return err
		}
		made, done = &known, logRepeated
	}
	log.InfoContext(ctx, done, "payment_id", made.ID.String())
	if err := outbox.Append(ctx, tx, made.prepared()); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	log.InfoContext(ctx, logPublished)
	return nil
}
