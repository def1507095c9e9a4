package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/loop"
)

// SandboxName is the sandbox's name.
const SandboxName = "sandbox"

// Defaults of SandboxConfig.
const (
	DefaultGiveUpAfter = 24 * time.Hour
	DefaultLateness    = 2 * time.Second
)

// How late a deployment may let late money arrive.
const (
	MinLateness = time.Second
	MaxLateness = 24 * time.Hour
)

// SandboxConfig describes a Sandbox. Pool, BaseURL and WebhookURL are required.
type SandboxConfig struct {
	// Pool is the payment service's.
	Pool *pgxpool.Pool
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// BaseURL begins the URLs of checkout pages. It has no slash at its end.
	BaseURL string
	// WebhookURL is where webhooks go.
	WebhookURL string
	// Secrets sign webhooks, and verify them. Default: the one in the database, the same for all processes on it.
	Secrets Secrets
	// Client delivers webhooks. Default one with a deadline that follows no redirect.
	Client *http.Client
	// GiveUpAfter is how long a webhook is tried. Default DefaultGiveUpAfter.
	GiveUpAfter time.Duration
	// Lateness is how long after the end of a session late money arrives. Default DefaultLateness.
	Lateness time.Duration
	// Now is the clock that webhooks are dated and judged by. Default time.Now.
	Now func() time.Time
}

// Sandbox is a gateway that moves no money: a page where a person pays or declines, and a signed webhook back. Its sessions and
// webhooks are rows in the payment service's database; it knows of nothing else in there, and is told of nothing.
//
//	open --- pay ---> paid          payment.captured
//	 |  '--- late --> paying        payment.captured, after the session's end
//	 |  '--- decline -> declined    payment.declined
//	 '---- Close ---> closed
type Sandbox struct {
	cfg     SandboxConfig
	deliver loop.Bell

	mu      sync.Mutex
	secrets Secrets // once they are known
	hook    string
}

// NewSandbox makes a Sandbox. It touches neither the database nor the network.
func NewSandbox(cfg SandboxConfig) (*Sandbox, error) {
	if cfg.Pool == nil {
		return nil, errors.New("sandbox: config has no Pool")
	}
	for _, address := range []string{cfg.BaseURL, cfg.WebhookURL} {
		if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("sandbox: URL %q: want http://host or https://host, with or without a path", address)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: deliveryTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	if cfg.GiveUpAfter <= 0 {
		cfg.GiveUpAfter = DefaultGiveUpAfter
	}
	if cfg.Lateness <= 0 {
		cfg.Lateness = DefaultLateness
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Sandbox{cfg: cfg, deliver: loop.NewBell(), secrets: cfg.Secrets, hook: cfg.WebhookURL}, nil
}

// DeliverTo changes where webhooks go.
func (s *Sandbox) DeliverTo(webhookURL string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = webhookURL
}

func (s *Sandbox) webhookURL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hook
}

// Name is SandboxName.
func (s *Sandbox) Name() string { return SandboxName }

// Takes every currency but the codes for no currency and for tests, so that a refusal can be tried too.
func (s *Sandbox) Takes(currency string) bool {
	return contracts.ValidCurrency(currency) && currency != "XXX" && currency != "XTS"
}

// Plan is the session of a payment: the payment's id names both.
func (s *Sandbox) Plan(c Checkout) Session {
	id := c.PaymentID.String()
	return Session{Ref: id, URL: s.cfg.BaseURL + "/pay/" + id}
}

// OpenIn opens sessions in the payments' own transaction.
func (s *Sandbox) OpenIn(ctx context.Context, tx pgx.Tx, checkouts []Checkout) error {
	if err := insertSessions(ctx, tx, checkouts); err != nil {
		return fmt.Errorf("open %d sessions: %w", len(checkouts), err)
	}
	return nil
}

// Open opens one session in a transaction of its own.
func (s *Sandbox) Open(ctx context.Context, c Checkout) (Session, error) {
	err := pgx.BeginFunc(ctx, s.cfg.Pool, func(tx pgx.Tx) error { return s.OpenIn(ctx, tx, []Checkout{c}) })
	return s.Plan(c), err
}

// Close ends an open session.
func (s *Sandbox) Close(ctx context.Context, session string) error {
	id, err := uuid.Parse(session)
	if err != nil {
		return fmt.Errorf("%w: there is no session %q", ErrRefused, session)
	}
	_, err = changeSession(ctx, s.cfg.Pool, id, "closed")
	return err
}

const (
	chargePrefix = "ch_"
	refundPrefix = "re_"
)

// Refund gives a charge back.
func (s *Sandbox) Refund(ctx context.Context, r Refund) (string, error) {
	encoded, ok := strings.CutPrefix(r.Charge, chargePrefix)
	id, err := uuid.Parse(encoded)
	if !ok || err != nil {
		return "", fmt.Errorf("%w: there is no charge %q", ErrRefused, r.Charge)
	}
	reference, err := refundSession(ctx, s.cfg.Pool, id, refundPrefix+r.Key)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("%w: nothing was captured under %q", ErrRefused, r.Charge)
	}
	return reference, err
}

// Types of the sandbox's webhooks.
const (
	typeCaptured = "payment.captured"
	typeDeclined = "payment.declined"
)

// notice is the body of a webhook.
type notice struct {
	Type      string     `json:"type"`
	Timestamp time.Time  `json:"timestamp"`
	Data      noticeData `json:"data"`
}

type noticeData struct {
	PaymentID uuid.UUID        `json:"paymentId"`
	Charge    string           `json:"charge,omitempty"`
	Amount    contracts.Amount `json:"amount"`
	Currency  string           `json:"currency"`
}

// Receive verifies a webhook of a sandbox with the same secrets.
func (s *Sandbox) Receive(ctx context.Context, header http.Header, body []byte) (Event, error) {
	secrets, err := s.signers(ctx)
	if err != nil {
		return Event{}, err
	}
	id, err := secrets.Verify(header, body, s.cfg.Now())
	if err != nil {
		return Event{}, err
	}
	return readNotice(id, body)
}

// readNotice takes a type that it does not know as one of no interest.
func readNotice(id string, body []byte) (Event, error) {
	e := Event{ID: id, Kind: Ignored}
	var n notice
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&n); err != nil {
		return e, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch n.Type {
	case typeCaptured:
		e.Kind = Captured
	case typeDeclined:
		e.Kind = Declined
	default:
		return e, nil
	}
	e.PaymentID, e.Charge, e.Amount, e.Currency = n.Data.PaymentID, n.Data.Charge, n.Data.Amount, n.Data.Currency
	return e, e.Check()
}

// signers are the configured secrets, or that of the database.
func (s *Sandbox) signers(ctx context.Context) (Secrets, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.secrets) == 0 {
		secret, err := storedSecret(ctx, s.cfg.Pool)
		if err != nil {
			return nil, fmt.Errorf("read the sandbox's secret: %w", err)
		}
		s.secrets = Secrets{secret}
	}
	return s.secrets, nil
}
