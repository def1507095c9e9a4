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
// PaymentDataPrepared with what there is then.
func (s *Service) Prepare(ctx context.Context, tx pgx.Tx, request contracts.PreparePaymentData) error {
	log := s.log.With("booking_id", request.BookingID)
	log.InfoContext(ctx, logProcessing, "amount", request.Amount.String(), "currency", request.Currency)
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("draw a payment id: %w", err)
	}
	p, err := insertPayment(ctx, tx, id, s.base+"/pay/"+id.String(), request)
	isFirst := err == nil
	if errors.Is(err, pgx.ErrNoRows) {
		p, err = paymentOf(ctx, tx, request.BookingID)
	}
	if err != nil {
		return fmt.Errorf("store the payment of booking %s: %w", request.BookingID, err)
	}
	if isFirst {
		log.InfoContext(ctx, logPrepared, "payment_id", p.ID.String())
	} else {
		log.InfoContext(ctx, logRepeated, "payment_id", p.ID.String())
	}
	if err := outbox.Append(ctx, tx, p.prepared()); err != nil {
		return fmt.Errorf("answer booking %s: %w", request.BookingID, err)
	}
	log.InfoContext(ctx, logPublished)
	return nil
}
