package booking

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/internal/web"
)

// Defaults of Config.
const (
	DefaultMaxTickets = 10
	DefaultHold       = 15 * time.Minute
)

// Config of a Service. Zero values take the defaults.
type Config struct {
	// Pool connects as a role that is a member of booking_service, outbox_writer and inbox_consumer. Required.
	Pool *pgxpool.Pool
	// Logger takes the log lines of the flow. Default slog.Default.
	Logger *slog.Logger
	// MaxTickets is the most tickets of one booking. Default 10.
	MaxTickets int
	// Hold is how long tickets are held for payment. Default 15 min.
	Hold time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Service is booking.
type Service struct {
	cfg  Config
	pool *pgxpool.Pool
	log  *slog.Logger
}

// New makes a Service. It does not touch the database.
func New(cfg Config) (*Service, error) {
	if cfg.Pool == nil {
		return nil, errors.New("booking: config has no Pool")
	}
	if cfg.MaxTickets < 0 || cfg.MaxTickets > contracts.MaxTickets {
		return nil, fmt.Errorf("booking: MaxTickets is %d: want 1 to %d", cfg.MaxTickets, contracts.MaxTickets)
	}
	if cfg.MaxTickets == 0 {
		cfg.MaxTickets = DefaultMaxTickets
	}
	if cfg.Hold <= 0 {
		cfg.Hold = DefaultHold
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, pool: cfg.Pool, log: cfg.Logger}, nil
}

// now is in UTC and whole microseconds, as it is stored.
func (s *Service) now() time.Time { return s.cfg.Now().UTC().Truncate(time.Microsecond) }

// Status is how far a booking has come.
type Status string

// The statuses of a booking; doc.go has the transitions.
const (
	Pending         Status = "pending"
	AwaitingPayment Status = "awaiting_payment"
	Rejected        Status = "rejected"
)

// Booking is the aggregate: tickets of one event for one user.
type Booking struct {
	ID          uuid.UUID        `db:"id"`
	EventID     uuid.UUID        `db:"event_id"`
	UserID      uuid.UUID        `db:"user_id"`
	TicketCount int              `db:"ticket_count"`
	UnitPrice   contracts.Amount `db:"price_minor"`
	TotalAmount contracts.Amount `db:"amount_minor"`
	Currency    string           `db:"currency"`
	CreatedAt   time.Time        `db:"created_at"`
	Status      Status           `db:"status"`
	// Reason is why the booking was rejected.
	Reason *string `db:"reason"`
	// ExpiresAt is until when the tickets are held for payment.
	ExpiresAt time.Time `db:"expires_at"`
	// ReservedAt is when the catalog took the tickets.
	ReservedAt *time.Time `db:"reserved_at"`
	PaymentID  *uuid.UUID `db:"payment_id"`
	PaymentURL *string    `db:"payment_url"`
	// Notified is whether the user was told; nil while nobody has tried.
	Notified          *bool     `db:"notified"`
	NotificationError *string   `db:"notification_error"`
	UpdatedAt         time.Time `db:"updated_at"`

	raised []Created
}

// Created (BookingCreatedDomainEvent) is raised by a new booking and heard inside this service alone.
type Created struct {
	BookingID, EventID, UserID uuid.UUID
	Quantity                   int
	TotalAmount                contracts.Amount
	Currency                   string
	ExpiresAt, At              time.Time
}

// order is what a client asks for.
type order struct {
	// bookingID is that of the booking to be, drawn before so that the whole flow can be logged under it.
	bookingID, eventID, userID uuid.UUID
	tickets                    int
}

// onSale is an event as the read model has it.
type onSale struct {
	ID       uuid.UUID        `db:"id"`
	Price    contracts.Amount `db:"price_minor"`
	Currency string           `db:"currency"`
}

// create makes a pending booking that has raised Created.
func create(o order, of onSale, now time.Time, hold time.Duration) (*Booking, error) {
	total, err := of.Price.Times(o.tickets)
	if err != nil {
		return nil, web.Refused("ticketCount", "the total would be more than %s %s", contracts.MaxAmount, of.Currency)
	}
	b := &Booking{
		ID: o.bookingID, EventID: of.ID, UserID: o.userID, TicketCount: o.tickets, UnitPrice: of.Price, TotalAmount: total,
		Currency: of.Currency, CreatedAt: now, Status: Pending, ExpiresAt: now.Add(hold), UpdatedAt: now,
	}
	b.raised = append(b.raised, Created{
		BookingID: b.ID, EventID: of.ID, UserID: o.userID, Quantity: o.tickets, TotalAmount: total, Currency: of.Currency,
		ExpiresAt: b.ExpiresAt, At: now,
	})
	return b, nil
}

// takeRaised gives the domain events raised since the last call.
func (b *Booking) takeRaised() []Created {
	raised := b.raised
	b.raised = nil
	return raised
}

// book stores a new booking and appends what it sets off, in tx. It returns the messages that are relayed once tx
// is committed.
func (s *Service) book(ctx context.Context, tx pgx.Tx, o order) (*Booking, []outbox.Message, error) {
	if o.tickets < 1 || o.tickets > s.cfg.MaxTickets {
		return nil, nil, web.Refused("ticketCount", "must be from 1 to %d", s.cfg.MaxTickets)
	}
	of, err := eventOnSale(ctx, tx, o.eventID)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil, &web.Error{Status: http.StatusNotFound, Field: "eventId", Detail: fmt.Sprintf("there is no event %s", o.eventID)}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read event %s: %w", o.eventID, err)
	}
	b, err := create(o, of, s.now(), s.cfg.Hold)
	if err != nil {
		return nil, nil, err
	}
	if err := insertBooking(ctx, tx, b); err != nil {
		return nil, nil, fmt.Errorf("insert booking %s: %w", b.ID, err)
	}
	var sent []outbox.Message
	for _, raised := range b.takeRaised() {
		messages, err := s.onCreated(ctx, tx, raised)
		if err != nil {
			return nil, nil, fmt.Errorf("publish booking %s: %w", b.ID, err)
		}
		sent = append(sent, messages...)
	}
	return b, sent, nil
}
