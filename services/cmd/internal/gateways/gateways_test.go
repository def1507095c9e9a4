package gateways

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
		o      Options
		stripe bool
		bad    string
	}{
		"nothing":              {Options{}, false, ""},
		"sandbox":              {Options{Active: "sandbox", BaseURL: "http://a"}, false, ""},
		"webhooks away":        {Options{Active: "sandbox", WebhookURL: "https://b/c", SandboxSecrets: secret + ", " + secret}, false, ""},
		"a bad secret":         {Options{Active: "sandbox", SandboxSecrets: "whsec_x"}, false, "webhook secret"},
		"stripe":               {Options{Active: "stripe", BaseURL: "http://a", StripeKey: "sk", StripeSecrets: "whsec_x"}, true, ""},
		"both":                 {Options{Active: "stripe", StripeKey: "sk", StripeSecrets: "whsec_x,whsec_y", SandboxSecrets: secret}, true, ""},
		"back in the sandbox":  {Options{Active: "sandbox", StripeKey: "sk", StripeSecrets: "whsec_x"}, true, ""},
		"stripe, no key":       {Options{Active: "stripe", StripeSecrets: "whsec_x"}, false, "TW_STRIPE_KEY"},
		"stripe, no hook":      {Options{Active: "stripe", StripeKey: "sk", SandboxSecrets: "whsec_x"}, false, "TW_STRIPE_WEBHOOK_SECRETS"},
		"sandbox, half stripe": {Options{Active: "sandbox", StripeKey: "sk"}, false, "TW_STRIPE_WEBHOOK_SECRETS"},
		"sandbox, hook alone":  {Options{Active: "sandbox", StripeSecrets: "whsec_x"}, false, "TW_STRIPE_KEY"},
	} {
		cfg, err := c.o.Config()
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || cfg.WebhookURL != c.o.WebhookURL || cfg.Active != c.o.Active || (len(cfg.Gateways) == 1) != c.stripe {
			t.Errorf("%s: %+v %v", name, cfg, err)
		}
	}
}

func TestTheSandboxsLateness(t *testing.T) {
	t.Parallel()
	var o Options
	for _, s := range o.Settings("") {
		if s.Env != "TW_SANDBOX_LATENESS" {
			continue
		}
		if s.Set("0s") == nil || s.Set("25h") == nil || s.Set("5s") != nil {
			t.Errorf("it takes %s", s.Wants)
		}
	}
	if cfg, err := o.Config(); err != nil || cfg.Lateness != 5*time.Second {
		t.Errorf("%+v %v", cfg, err)
	}
}

func TestEverySettingHasAName(t *testing.T) {
	t.Parallel()
	var o Options
	seen := map[string]bool{}
	for _, s := range o.Settings("") {
		if s.Flag == "" || !strings.HasPrefix(s.Env, "TW_") || seen[s.Env] || s.Wants == "" || s.Set == nil {
			t.Errorf("%+v", s)
		}
		seen[s.Env] = true
	}
	if !strings.HasPrefix(payment.ThanksPath, "/") {
		t.Error(payment.ThanksPath)
	}
}
