// Package stripe is the gateway to Stripe: hosted Checkout Sessions, their webhooks, and refunds.
//
// A payment is one Checkout Session in payment mode, found again by its client_reference_id and metadata; the charge is its
// PaymentIntent. The idempotency key of every call is the task's that asks for it. Stripe keeps the answer to a key for a
// day at least, failures of its own included, so that such a key is spent.
package stripe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	api "github.com/stripe/stripe-go/v84"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// Name is the gateway's name.
const Name = "stripe"

// metadataKey marks what is ours: an account may serve other applications too.
const metadataKey = "ticketwave_payment"

// Limits that Stripe sets for a session's end, with room for retries: it must lie 30 minutes to 24 hours ahead.
const (
	shortest = time.Hour
	longest  = 23 * time.Hour
)

const requestTimeout = 15 * time.Second

// Config describes a Gateway. Key, WebhookSecrets and ReturnURL are required.
type Config struct {
	// Key is the secret or restricted API key.
	Key string
	// WebhookSecrets are those of the webhook endpoint; any of them verifies, so that they can be rolled.
	WebhookSecrets []string
	// ReturnURL is where people go when they have paid or turned back.
	ReturnURL string
	// URL is the API's. Default https://api.stripe.com.
	URL string
	// Client makes the requests. Default one with a deadline.
	Client *http.Client
}

// Gateway is gateway.Gateway.
type Gateway struct {
	cfg    Config
	client *api.Client
}

var _ gateway.Gateway = (*Gateway)(nil)

// New makes a Gateway. It does not touch the network.
func New(cfg Config) (*Gateway, error) {
	switch {
	case cfg.Key == "" || strings.TrimSpace(cfg.Key) != cfg.Key:
		return nil, errors.New("stripe: config has no Key")
	case len(cfg.WebhookSecrets) == 0 || slices.Contains(cfg.WebhookSecrets, ""):
		return nil, errors.New("stripe: config has no WebhookSecrets")
	case cfg.ReturnURL == "":
		return nil, errors.New("stripe: config has no ReturnURL")
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: requestTimeout}
	}
	backend := &api.BackendConfig{
		HTTPClient: cfg.Client, EnableTelemetry: api.Bool(false),
		LeveledLogger:     &api.LeveledLogger{Level: api.LevelNull},
		MaxNetworkRetries: api.Int64(0), // the task is tried again
	}
	if cfg.URL != "" {
		backend.URL = api.String(strings.TrimRight(cfg.URL, "/"))
	}
	return &Gateway{cfg: cfg, client: api.NewClient(cfg.Key, api.WithBackends(api.NewBackendsWithConfig(backend)))}, nil
}

// Name is Name.
func (g *Gateway) Name() string { return Name }

// otherUnits are currencies that Stripe does not count in hundredths, https://docs.stripe.com/currencies, and codes for none.
var otherUnits = strings.Fields(`BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF UGX VND VUV XAF XOF XPF
	BHD IQD JOD KWD LYD OMR TND ISK XXX XTS`)

// Takes reports whether Stripe counts the currency in hundredths, as TicketWave does. Whether the account takes it Stripe says.
func (g *Gateway) Takes(currency string) bool {
	return contracts.ValidCurrency(currency) && !slices.Contains(otherUnits, currency)
}

// Open creates a Checkout Session. Its parameters are the same at every repetition.
func (g *Gateway) Open(ctx context.Context, c gateway.Checkout) (gateway.Session, error) {
	ends := c.ExpiresAt
	if least := c.AskedAt.Add(shortest); ends.Before(least) {
		ends = least
	}
	if most := c.AskedAt.Add(longest); ends.After(most) {
		ends = most
	}
	id := c.PaymentID.String()
	marks := map[string]string{metadataKey: id, "ticketwave_booking": c.BookingID.String()}
	params := &api.CheckoutSessionCreateParams{
		Mode: api.String(string(api.CheckoutSessionModePayment)), ClientReferenceID: api.String(id), Metadata: marks,
		SuccessURL: api.String(g.cfg.ReturnURL), CancelURL: api.String(g.cfg.ReturnURL), ExpiresAt: api.Int64(ends.Unix()),
		PaymentIntentData: &api.CheckoutSessionCreatePaymentIntentDataParams{Metadata: marks},
		LineItems: []*api.CheckoutSessionCreateLineItemParams{{
			Quantity: api.Int64(1),
			PriceData: &api.CheckoutSessionCreateLineItemPriceDataParams{
				Currency: api.String(strings.ToLower(c.Currency)), UnitAmount: api.Int64(int64(c.Amount)),
				ProductData: &api.CheckoutSessionCreateLineItemPriceDataProductDataParams{Name: api.String("TicketWave booking " + c.BookingID.String())},
			},
		}},
	}
	params.SetIdempotencyKey(c.Key)
	session, err := g.client.V1CheckoutSessions.Create(ctx, params)
	if err != nil {
		return gateway.Session{}, explain("create a checkout session", err)
	}
	return gateway.Session{Ref: session.ID, URL: session.URL}, nil
}

// Close expires a session that is open. One that is complete or expired stays as it is.
func (g *Gateway) Close(ctx context.Context, session string) error {
	_, err := g.client.V1CheckoutSessions.Expire(ctx, session, nil)
	if !badRequest(err) {
		return explain("expire session "+session, err)
	}
	found, lookErr := g.client.V1CheckoutSessions.Retrieve(ctx, session, nil)
	switch {
	case lookErr != nil:
		return explain("look at session "+session, lookErr)
	case found.Status != api.CheckoutSessionStatusOpen:
		return nil
	}
	return explain("expire session "+session, err)
}

// Refund gives a whole PaymentIntent back. One that was given back before, under whatever key, is found.
func (g *Gateway) Refund(ctx context.Context, r gateway.Refund) (string, error) {
	params := &api.RefundCreateParams{PaymentIntent: api.String(r.Charge), Amount: api.Int64(int64(r.Amount))}
	params.SetIdempotencyKey(r.Key)
	refund, err := g.client.V1Refunds.Create(ctx, params)
	if coded(err, api.ErrorCodeChargeAlreadyRefunded) {
		refund, err = g.refundOf(ctx, r.Charge)
	}
	if err != nil {
		return "", explain("refund "+r.Charge, err)
	}
	if refund.Status != api.RefundStatusSucceeded { // what is said again under a key may be old
		if refund, err = g.client.V1Refunds.Retrieve(ctx, refund.ID, nil); err != nil {
			return "", explain("look at the refund of "+r.Charge, err)
		}
	}
	switch refund.Status {
	case api.RefundStatusSucceeded:
		return refund.ID, nil
	case api.RefundStatusFailed, api.RefundStatusCanceled: // the money is still there
		return "", fmt.Errorf("%w: refund %s is %s: %s", gateway.ErrKeySpent, refund.ID, refund.Status, refund.FailureReason)
	case api.RefundStatusPending, api.RefundStatusRequiresAction:
	}
	return "", fmt.Errorf("refund %s is %s", refund.ID, refund.Status)
}

// refundOf is the refund of a PaymentIntent that has one.
func (g *Gateway) refundOf(ctx context.Context, intent string) (*api.Refund, error) {
	params := &api.RefundListParams{PaymentIntent: api.String(intent)}
	params.Limit = api.Int64(1)
	for refund, err := range g.client.V1Refunds.List(ctx, params) {
		return refund, err
	}
	return nil, fmt.Errorf("%w: %s was refunded, and Stripe knows no refund of it", gateway.ErrRefused, intent)
}

// explain says in the gateway's terms whether a failure may pass. It keeps Stripe's request id.
func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	var e *api.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", what, err)
	}
	said := fmt.Sprintf("status %d %s %s: %s (request %s)", e.HTTPStatusCode, e.Type, e.Code, e.Msg, e.RequestID)
	switch {
	case e.HTTPStatusCode >= 500, e.Type == api.ErrorTypeIdempotency && e.HTTPStatusCode != http.StatusConflict:
		return fmt.Errorf("%s: %w: %s", what, gateway.ErrKeySpent, said)
	case slices.Contains(passing, e.HTTPStatusCode):
		return fmt.Errorf("%s: %s", what, said)
	}
	return fmt.Errorf("%s: %w: %s", what, gateway.ErrRefused, said)
}

// passing are statuses that say nothing about the request: a wrong key of ours, a request under way, too many requests.
var passing = []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusTooManyRequests, 0}

func badRequest(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.HTTPStatusCode == http.StatusBadRequest
}

func coded(err error, code api.ErrorCode) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Code == code
}
