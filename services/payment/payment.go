package payment

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/loop"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// DefaultBaseURL begins payment URLs when Config names nothing else.
const DefaultBaseURL = "http://localhost:5003"

// Status is how far a payment has come.
type Status string

// The states of a payment; doc.go has their diagram.
const (
	Preparing   Status = "preparing"
	Prepared    Status = "prepared"
	Completed   Status = "completed"
	Failed      Status = "failed"
	Expired     Status = "expired"
	Cancelled   Status = "cancelled"
	Refunded    Status = "refunded"
	Unavailable Status = "unavailable"
)

// Payment is what a user is asked to pay for a booking, and what became of it.
type Payment struct {
	ID        uuid.UUID        `db:"id" json:"id"`
	BookingID uuid.UUID        `db:"booking_id" json:"bookingId"`
	UserID    uuid.UUID        `db:"user_id" json:"userId"`
	Amount    contracts.Amount `db:"amount_minor" json:"amount"`
	Currency  string           `db:"currency" json:"currency"`
	Status    Status           `db:"status" json:"status"`
	// Reason is why a payment failed or could not be prepared.
	Reason *string `db:"reason" json:"reason"`
	// URL is where to pay; null until the gateway has opened a session.
	URL        *string   `db:"url" json:"url"`
	Gateway    string    `db:"gateway" json:"gateway"`
	ExpiresAt  time.Time `db:"expires_at" json:"expiresAt"`
	PreparedAt time.Time `db:"prepared_at" json:"preparedAt"`
	// SettledAt is when the payment ended, or was completed.
	SettledAt *time.Time `db:"settled_at" json:"settledAt"`

	Session       *string `db:"session" json:"-"`
	CorrelationID string  `db:"correlation_id" json:"-"`
	CausationID   string  `db:"causation_id" json:"-"`
	TraceParent   string  `db:"trace_parent" json:"-"`
}

// WebhookPath is where the webhooks of a gateway arrive.
func WebhookPath(gatewayName string) string { return "/api/payments/webhooks/" + gatewayName }

// Config of a Service.
type Config struct {
	// Pool connects as a role that is a member of payment_service, outbox_writer and inbox_consumer. Required.
	Pool *pgxpool.Pool
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// BaseURL begins the URLs at which payments are made in the sandbox. Default DefaultBaseURL.
	BaseURL string
	// WebhookURL is where the sandbox sends its webhooks. Default WebhookPath where this process answers, once that is known
	// (AnswersAt), and until then behind BaseURL.
	WebhookURL string
	// SandboxSecrets sign the sandbox's webhooks. Default: a secret in the database.
	SandboxSecrets gateway.Secrets
	// Lateness is how long after the end of a payment the sandbox's late money arrives. Default gateway.DefaultLateness.
	Lateness time.Duration
	// Gateways are those beside the sandbox. Payments that were opened at one go on while it is here, whichever is active.
	Gateways []gateway.Gateway
	// Active is the name of the gateway where new payments are opened. Default the sandbox.
	Active string
}

// Service is payment.
type Service struct {
	pool    *pgxpool.Pool
	log     *slog.Logger
	sandbox *gateway.Sandbox
	// active opens new payments; gateways are all that old ones may belong to, by name.
	active   gateway.Gateway
	gateways map[string]gateway.Gateway
	tasks    loop.Bell
	room     chan struct{} // what is in it are tasks under way
	gauges   gauges
	calledAt bool // somebody said where webhooks go
}

// New makes a Service. It touches neither the database nor a gateway.
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
	calledAt := cfg.WebhookURL != ""
	if !calledAt {
		cfg.WebhookURL = base + WebhookPath(gateway.SandboxName)
	}
	sandbox, err := gateway.NewSandbox(gateway.SandboxConfig{
		Pool: cfg.Pool, Logger: cfg.Logger, BaseURL: base, WebhookURL: cfg.WebhookURL, Secrets: cfg.SandboxSecrets, Lateness: cfg.Lateness,
	})
	if err != nil {
		return nil, fmt.Errorf("payment: %w", err)
	}
	s := &Service{
		pool: cfg.Pool, log: cfg.Logger, sandbox: sandbox, gateways: map[string]gateway.Gateway{gateway.SandboxName: sandbox},
		tasks: loop.NewBell(), room: make(chan struct{}, tasksAtOnce), gauges: newGauges(), calledAt: calledAt,
	}
	for _, g := range cfg.Gateways {
		s.gateways[g.Name()] = g
	}
	var known bool
	if s.active, known = s.gateways[cmp.Or(cfg.Active, gateway.SandboxName)]; !known {
		return nil, fmt.Errorf("payment: the active gateway %s is none of Gateways", cfg.Active)
	}
	return s, nil
}

// AnswersAt lets the sandbox call this process back, where no other address is configured.
func (s *Service) AnswersAt(url string) {
	if !s.calledAt {
		s.sandbox.DeliverTo(url + WebhookPath(gateway.SandboxName))
	}
}

// checkBase takes http and https URLs that a path can be added to.
func checkBase(base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || len(base) > 1000 {
		return "", fmt.Errorf("payment: base URL %q: want http://host or https://host, with or without a path", base)
	}
	return strings.TrimRight(base, "/"), nil
}
