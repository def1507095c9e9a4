package main

import (
	"strings"
	"testing"

	"github.com/jcp/ticketwave/services/payment"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for name, c := range map[string]struct {
		o    options
		addr string
		want string
		bad  string
	}{
		"sandbox":         {options{gateway: "sandbox", baseURL: "http://a"}, ":5003", "http://127.0.0.1:5003/api/payments/webhooks/sandbox", ""},
		"sandbox on v6":   {options{gateway: "sandbox", baseURL: "http://a"}, "[::1]:80", "http://[::1]:80/api/payments/webhooks/sandbox", ""},
		"webhooks away":   {options{gateway: "sandbox", webhookURL: "https://b/c", secrets: secret + ", " + secret}, ":5003", "https://b/c", ""},
		"a bad secret":    {options{gateway: "sandbox", secrets: "whsec_x"}, ":5003", "", "webhook secret"},
		"stripe":          {options{gateway: "stripe", baseURL: "http://a", stripeKey: "sk", secrets: "whsec_x"}, ":5003", "http://127.0.0.1:5003/api/payments/webhooks/sandbox", ""},
		"stripe, no key":  {options{gateway: "stripe", secrets: secret}, ":5003", "", "TW_STRIPE_KEY"},
		"stripe, no hook": {options{gateway: "stripe", stripeKey: "sk"}, ":5003", "", "TW_PAYMENT_WEBHOOK_SECRETS"},
	} {
		cfg, err := c.o.config(c.addr)
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || cfg.WebhookURL != c.want || (cfg.Gateway != nil) != (c.o.gateway == "stripe") {
			t.Errorf("%s: %+v %v", name, cfg, err)
		}
	}
}

func TestEverySettingHasAName(t *testing.T) {
	t.Parallel()
	var o options
	seen := map[string]bool{}
	for _, s := range o.settings() {
		if s.Flag == "" || !strings.HasPrefix(s.Env, "TW_") || seen[s.Env] || s.Wants == "" || s.Set == nil {
			t.Errorf("%+v", s)
		}
		seen[s.Env] = true
	}
	if !strings.HasPrefix(payment.ThanksPath, "/") {
		t.Error(payment.ThanksPath)
	}
}
