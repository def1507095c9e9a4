package booking

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/booking/life"
	"github.com/jcp/ticketwave/services/internal/loop"
	"github.com/jcp/ticketwave/services/internal/web"
)

// Defaults of Config.
const (
	DefaultMaxTickets = 10
	DefaultHold       = 15 * time.Minute
	DefaultGrace      = 30 * time.Second
	DefaultLook       = time.Second
)

// What a deployment may choose.
const (
	MinHold  = time.Second
	MaxHold  = 24 * time.Hour
	MaxGrace = time.Hour
	// NoGrace, as Config.Grace, lets a booking expire with its payment.
	NoGrace time.Duration = -1
)

// Who leads bookings: their own service, by what it hears, or the coordinator.
const (
	Choreography  = "choreography"
	Orchestration = "orchestration"
)

// IsStyle reports whether the text names one of them.
func IsStyle(style string) bool { return style == Choreography || style == Orchestration }

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
	// Grace is how much later than its payment a booking expires, so that payment's own word normally comes first. Default 30 s.
	Grace time.Duration
	// Look is the mean time between two looks for bookings whose deadline has passed. Default 1 s.
	Look time.Duration
	// Orchestration lets a coordinator lead the bookings made from now on. Those that are there go on as they began.
	Orchestration bool
}

// Service is booking.
type Service struct {
	cfg  Config
	pool *pgxpool.Pool
	log  *slog.Logger
	// heard is whether anybody listens to what bookings say of themselves.
	heard   bool
	overdue *prometheus.GaugeVec
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
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	cfg.Grace = max(cfg.Grace, 0)
	if cfg.Look <= 0 {
		cfg.Look = DefaultLook
	}
	return &Service{cfg: cfg, pool: cfg.Pool, log: cfg.Logger, heard: isHeard(contracts.TypeBookingConfirmed), overdue: loop.NewOverdue()}, nil
}

// isHeard reports whether a queue takes the type: what nobody is bound to waits at its sender.
func isHeard(typ string) bool {
	return slices.ContainsFunc(contracts.Topology().Queues, func(q contracts.Queue) bool { return slices.Contains(q.Types, typ) })
}

// announces reports whether what the booking says of itself (BookingCreated, BookingConfirmed and the other ends) is
// published: where a coordinator leads, and where anybody else listens.
func (s *Service) announces(b *Booking) bool { return b.Led || s.heard }

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
	Status      life.Status      `db:"status"`
	// Reason is why the booking was rejected, or its payment failed.
	Reason *string `db:"reason"`
	// Inventory and Payment are what the other services have said of them.
	Inventory life.Inventory `db:"inventory"`
	Payment   life.Payment   `db:"payment"`
	// Led is whether a coordinator leads the booking, Settling whether its word that the booking is confirmed waits.
	Led      bool `db:"led"`
	Settling bool `db:"settling"`
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
	// DeadlineAt is when a booking that still waits expires, EndedAt when it has ended.
	DeadlineAt *time.Time `db:"deadline_at"`
	EndedAt    *time.Time `db:"ended_at"`
	// CorrelationID and TraceParent are the flow of the request that made the booking, CausationID what changed it last.
	CorrelationID string `db:"correlation_id"`
	CausationID   string `db:"causation_id"`
	TraceParent   string `db:"trace_parent"`

	raised []Created
}

// Created (BookingCreatedDomainEvent) is raised by a new booking and heard inside this service alone.
type Created struct {
	BookingID, EventID, UserID uuid.UUID
	Quantity                   int
	TotalAmount                contracts.Amount
	Currency                   string
	ExpiresAt, At              time.Time
	Led                        bool
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
	// Now is the database's time.
	Now time.Time `db:"now"`
}

// create makes a pending booking that has raised Created.
func (c Config) create(ctx context.Context, o order, of onSale) (*Booking, error) {
	now := of.Now.UTC()
	total, err := of.Price.Times(o.tickets)
	if err != nil {
		return nil, web.Refused("ticketCount", "the total would be more than %s %s", contracts.MaxAmount, of.Currency)
	}
	begin := life.Begin(c.Orchestration)
	b := &Booking{
		ID: o.bookingID, EventID: of.ID, UserID: o.userID, TicketCount: o.tickets, UnitPrice: of.Price, TotalAmount: total,
		Currency: of.Currency, CreatedAt: now, Status: begin.Status, Inventory: begin.Inventory, Payment: begin.Payment, Led: begin.Led,
		ExpiresAt: now.Add(c.Hold), UpdatedAt: now,
	}
	b.waitUntil(b.ExpiresAt, c.Grace)
	flow := outbox.CausalityFrom(ctx)
	b.CorrelationID, b.CausationID, b.TraceParent = flow.CorrelationID, flow.CausationID, flow.TraceParent
	b.raised = append(b.raised, Created{
		BookingID: b.ID, EventID: of.ID, UserID: o.userID, Quantity: o.tickets, TotalAmount: total, Currency: of.Currency,
		ExpiresAt: b.ExpiresAt, At: now, Led: b.Led,
	})
	return b, nil
}

// waitUntil sets until when the booking can be paid, and with it its deadline.
func (b *Booking) waitUntil(expires time.Time, grace time.Duration) {
	deadline := expires.Add(grace)
	b.ExpiresAt, b.DeadlineAt = expires.UTC(), &deadline
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
	b, err := s.cfg.create(ctx, o, of)
	if err != nil {
		return nil, nil, err
	}
	var sent []outbox.Message
	for _, raised := range b.takeRaised() {
		messages, err := s.onCreated(ctx, tx, raised)
		if err != nil {
			return nil, nil, fmt.Errorf("publish booking %s: %w", b.ID, err)
		}
		sent = append(sent, messages...)
	}
	if err := insertBooking(ctx, tx, b, newEntry(ctx, b, of.Now, stepCreated, nil, sent)); err != nil {
		return nil, nil, fmt.Errorf("insert booking %s: %w", b.ID, err)
	}
	return b, sent, nil
}
