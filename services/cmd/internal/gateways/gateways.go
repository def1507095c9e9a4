// Package gateways is what the programs that take payments can be told about the gateways.
package gateways

import (
	"errors"
	"strings"
	"time"

	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/payment"
	"github.com/jcp/ticketwave/services/payment/gateway"
	"github.com/jcp/ticketwave/services/payment/gateway/stripe"
)

// Options say where payments are made, and what the gateways need. The zero value is the sandbox with its defaults.
type Options struct {
	// BaseURL begins the URLs of payment pages.
	BaseURL string
	// Active is the gateway of new payments.
	Active string
	// WebhookURL, SandboxSecrets and Lateness are the sandbox's.
	WebhookURL, SandboxSecrets string
	Lateness                   time.Duration
	// StripeKey and StripeSecrets let Stripe's payments go on, whichever gateway is active.
	StripeKey, StripeSecrets, StripeURL, ReturnURL string
}

// Settings are those that set the options. baseURL is the default of BaseURL.
func (o *Options) Settings(baseURL string) []daemon.Setting {
	sandboxSecrets := daemon.Secret(&o.SandboxSecrets, "payment-webhook-secrets", "TW_PAYMENT_WEBHOOK_SECRETS",
		"the signing secrets of the sandbox's webhooks, separated by commas; it draws its own", isSecret)
	key := daemon.Secret(&o.StripeKey, "stripe-key", "TW_STRIPE_KEY", "Stripe's secret API key",
		func(value string) bool { return !strings.ContainsAny(value, " \t\r\n") })
	stripeSecrets := daemon.Secret(&o.StripeSecrets, "stripe-webhook-secrets", "TW_STRIPE_WEBHOOK_SECRETS",
		"the signing secrets of Stripe's webhooks, separated by commas", isSecret)
	return []daemon.Setting{
		daemon.Checked(&o.BaseURL, "payment-url", "TW_PAYMENT_URL", baseURL,
			"the http or https URL that payment pages begin with, or nothing: then this process", isURLOrNothing),
		daemon.Checked(&o.Active, "payment-gateway", "TW_PAYMENT_GATEWAY", gateway.SandboxName, "where new payments are made: sandbox or stripe",
			func(value string) bool { return value == gateway.SandboxName || value == stripe.Name }),
		daemon.Checked(&o.WebhookURL, "payment-webhook-url", "TW_PAYMENT_WEBHOOK_URL", "",
			"where the sandbox sends its webhooks, or nothing: then to this process", isURLOrNothing),
		daemon.Checked(&o.ReturnURL, "payment-return-url", "TW_PAYMENT_RETURN_URL", "",
			"where people go from Stripe's page, or nothing: then to "+payment.ThanksPath+" here", isURLOrNothing),
		daemon.Duration(&o.Lateness, "sandbox-lateness", "TW_SANDBOX_LATENESS", gateway.DefaultLateness, gateway.MinLateness, gateway.MaxLateness),
		sandboxSecrets, daemon.FromFile(sandboxSecrets),
		key, daemon.FromFile(key),
		stripeSecrets, daemon.FromFile(stripeSecrets),
		daemon.Checked(&o.StripeURL, "stripe-url", "TW_STRIPE_URL", "", "Stripe's API, or nothing: then https://api.stripe.com", isURLOrNothing),
	}
}

func isSecret(value string) bool { return strings.HasPrefix(value, "whsec_") }

func isURLOrNothing(value string) bool { return value == "" || daemon.IsURL(value, "http", "https") }

// Config is the part of payment's configuration that the options say.
func (o Options) Config() (payment.Config, error) {
	cfg := payment.Config{BaseURL: o.BaseURL, WebhookURL: o.WebhookURL, Lateness: o.Lateness, Active: o.Active}
	switch {
	case o.StripeKey != "" && o.StripeSecrets != "":
		g, err := o.stripe()
		if err != nil {
			return cfg, err
		}
		cfg.Gateways = append(cfg.Gateways, g)
	case o.Active == stripe.Name:
		return cfg, errors.New("TW_PAYMENT_GATEWAY is stripe: it needs TW_STRIPE_KEY and TW_STRIPE_WEBHOOK_SECRETS, or the variables with _FILE")
	case o.StripeKey != "" || o.StripeSecrets != "":
		return cfg, errors.New("TW_STRIPE_KEY and TW_STRIPE_WEBHOOK_SECRETS go together: one of them is not set")
	}
	secrets, err := gateway.ParseSecrets(o.SandboxSecrets)
	cfg.SandboxSecrets = secrets
	return cfg, err
}

func (o Options) stripe() (*stripe.Gateway, error) {
	returnURL := o.ReturnURL
	if returnURL == "" {
		returnURL = strings.TrimRight(o.BaseURL, "/") + payment.ThanksPath
	}
	secrets := strings.FieldsFunc(o.StripeSecrets, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) })
	return stripe.New(stripe.Config{Key: o.StripeKey, URL: o.StripeURL, ReturnURL: returnURL, WebhookSecrets: secrets})
}
