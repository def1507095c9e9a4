package main

import (
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/services/payment"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for name, c := range map[string]struct {
		o   options
		bad string
	}{
		"sandbox":         {options{gateway: "sandbox", baseURL: "http://a"}, ""},
		"webhooks away":   {options{gateway: "sandbox", webhookURL: "https://b/c", secrets: secret + ", " + secret}, ""},
		"a bad secret":    {options{gateway: "sandbox", secrets: "whsec_x"}, "webhook secret"},
		"stripe":          {options{gateway: "stripe", baseURL: "http://a", stripeKey: "sk", secrets: "whsec_x"}, ""},
		"stripe, no key":  {options{gateway: "stripe", secrets: secret}, "TW_STRIPE_KEY"},
		"stripe, no hook": {options{gateway: "stripe", stripeKey: "sk"}, "TW_PAYMENT_WEBHOOK_SECRETS"},
	} {
		cfg, err := c.o.config()
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || cfg.WebhookURL != c.o.webhookURL || (cfg.Gateway != nil) != (c.o.gateway == "stripe") {
			t.Errorf("%s: %+v %v", name, cfg, err)
		}
	}
}

func TestTheSandboxsLateness(t *testing.T) {
	t.Parallel()
	var o options
	for _, s := range o.settings() {
		if s.Env != "TW_SANDBOX_LATENESS" {
			continue
		}
		if s.Set("0s") == nil || s.Set("25h") == nil || s.Set("5s") != nil {
			t.Errorf("it takes %s", s.Wants)
		}
	}
	if cfg, err := o.config(); err != nil || cfg.Lateness != 5*time.Second {
		t.Errorf("%+v %v", cfg, err)
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
