// Command payment prepares payments for bookings, takes them in the sandbox or at Stripe, and gives money back.
package main

import (
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/payment"
	"github.com/jcp/ticketwave/services/payment/gateway"
	"github.com/jcp/ticketwave/services/payment/gateway/stripe"
)

// options are what this service can be told beside what every service can.
type options struct {
	baseURL, webhookURL, returnURL string
	gateway, secrets               string
	stripeKey, stripeURL           string
	lateness                       time.Duration
}

func main() {
	var o options
	build := func(_ daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		cfg, err := o.config()
		if err != nil {
			return nil, err
		}
		cfg.Pool, cfg.Logger = pool, log
		return payment.New(cfg)
	}
	daemon.Main("payment", ":5003", build, o.settings()...)
}

func (o *options) settings() []daemon.Setting {
	secrets := daemon.Secret(&o.secrets, "payment-webhook-secrets", "TW_PAYMENT_WEBHOOK_SECRETS",
		"the signing secrets of webhooks, separated by commas; the sandbox draws its own",
		func(value string) bool { return strings.HasPrefix(value, "whsec_") })
	key := daemon.Secret(&o.stripeKey, "stripe-key", "TW_STRIPE_KEY", "Stripe's secret API key",
		func(value string) bool { return !strings.ContainsAny(value, " \t\r\n") })
	return []daemon.Setting{
		daemon.Checked(&o.baseURL, "payment-url", "TW_PAYMENT_URL", payment.DefaultBaseURL, "the http or https URL that payment pages begin with", isURL),
		daemon.Checked(&o.gateway, "payment-gateway", "TW_PAYMENT_GATEWAY", gateway.SandboxName, "sandbox or stripe",
			func(value string) bool { return value == gateway.SandboxName || value == stripe.Name }),
		daemon.Checked(&o.webhookURL, "payment-webhook-url", "TW_PAYMENT_WEBHOOK_URL", "",
			"where the sandbox sends its webhooks, or nothing: then to this process", isURLOrNothing),
		daemon.Checked(&o.returnURL, "payment-return-url", "TW_PAYMENT_RETURN_URL", "",
			"where people go from Stripe's page, or nothing: then to "+payment.ThanksPath+" here", isURLOrNothing),
		daemon.Duration(&o.lateness, "sandbox-lateness", "TW_SANDBOX_LATENESS", gateway.DefaultLateness, gateway.MinLateness, gateway.MaxLateness),
		secrets, daemon.FromFile(secrets),
		key, daemon.FromFile(key),
		daemon.Checked(&o.stripeURL, "stripe-url", "TW_STRIPE_URL", "", "Stripe's API, or nothing: then https://api.stripe.com", isURLOrNothing),
	}
}

func isURL(value string) bool { return daemon.IsURL(value, "http", "https") }

func isURLOrNothing(value string) bool { return value == "" || isURL(value) }

// config makes the service's configuration.
func (o *options) config() (payment.Config, error) {
	cfg := payment.Config{BaseURL: o.baseURL, WebhookURL: o.webhookURL, Lateness: o.lateness}
	if o.gateway == stripe.Name {
		g, err := o.stripe()
		if err == nil {
			cfg.Gateway = g
		}
		return cfg, err
	}
	secrets, err := gateway.ParseSecrets(o.secrets)
	cfg.SandboxSecrets = secrets
	return cfg, err
}

func (o *options) stripe() (*stripe.Gateway, error) {
	if o.stripeKey == "" || o.secrets == "" {
		return nil, errors.New("TW_PAYMENT_GATEWAY is stripe: it needs TW_STRIPE_KEY and TW_PAYMENT_WEBHOOK_SECRETS, or the variables with _FILE")
	}
	returnURL := o.returnURL
	if returnURL == "" {
		returnURL = strings.TrimRight(o.baseURL, "/") + payment.ThanksPath
	}
	secrets := strings.FieldsFunc(o.secrets, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) })
	return stripe.New(stripe.Config{Key: o.stripeKey, URL: o.stripeURL, ReturnURL: returnURL, WebhookSecrets: secrets})
}
