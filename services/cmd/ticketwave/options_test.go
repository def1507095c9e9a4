package main

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/services/booking"
)

// given is a complete environment with some variables changed.
func given(changed map[string]string) func(string) string {
	env := map[string]string{"TW_POSTGRES_URL": "postgres://postgres:geheim@db/postgres", "TW_AMQP_URL": "amqp://guest:geheim@mq/", "TW_SERVICE_PASSWORD": "geheim"}
	maps.Copy(env, changed)
	return func(name string) string { return env[name] }
}

func TestOptions(t *testing.T) {
	t.Parallel()
	o, err := parse(given(nil))
	if err != nil || o.Style != booking.Choreography || o.Hold != booking.DefaultHold || o.Grace != booking.DefaultGrace || o.Payments.Lateness != 2*time.Second || o.MaxTickets != 10 {
		t.Errorf("%+v %v", o, err)
	}
	o, err = parse(given(map[string]string{
		"TW_SAGA": "orchestration", "TW_BOOKING_HOLD": "90s", "TW_BOOKING_GRACE": "0", "TW_SANDBOX_LATENESS": "1m", "TW_MAX_TICKETS": "3",
		"TW_PAYMENT_GATEWAY": "stripe", "TW_STRIPE_KEY": "sk_geheim", "TW_STRIPE_WEBHOOK_SECRETS": "whsec_geheim",
	}))
	if err != nil || o.Style != booking.Orchestration || o.Hold != 90*time.Second || o.Grace != 0 || o.Payments.Lateness != time.Minute || o.MaxTickets != 3 {
		t.Errorf("%+v %v", o, err)
	}
	if cfg, err := o.Payments.Config(); err != nil || cfg.Active != "stripe" || len(cfg.Gateways) != 1 {
		t.Errorf("%+v %v", cfg, err)
	}
	if demo := scenarios[0].in(o); demo.Payments.Active == "stripe" || demo.Payments.StripeKey != "" {
		t.Error("a demo takes real money")
	}
}

func TestABadOptionIsOneLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ variable, value, wants string }{
		{"TW_SAGA", "both", "choreography or orchestration"},
		{"TW_BOOKING_HOLD", "15", "a duration from 1s to 24h"},
		{"TW_BOOKING_HOLD", "500ms", "a duration from 1s to 24h"},
		{"TW_BOOKING_GRACE", "2h", "a duration from 0s to 1h"},
		{"TW_SANDBOX_LATENESS", "0s", "a duration from 1s to 24h"},
		{"TW_PAYMENT_GATEWAY", "stripe", "needs TW_STRIPE_KEY and TW_STRIPE_WEBHOOK_SECRETS"},
		{"TW_PAYMENT_GATEWAY", "paypal", "sandbox or stripe"},
		{"TW_STRIPE_KEY", "sk geheim", "secret API key"},
		{"TW_MAX_TICKETS", "1001", "from 1 to 1000"},
		{"TW_LOG_LEVEL", "loud", "debug, info, warn or error"},
		{"TW_HTTP_PORTS", "1,2", "want 5"},
		{"TW_POSTGRES_URL", "mysql://db", "postgres://"},
	} {
		_, err := parse(given(map[string]string{c.variable: c.value}))
		if err == nil || !strings.HasPrefix(err.Error(), c.variable) || !strings.Contains(err.Error(), c.wants) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s=%s: %v", c.variable, c.value, err)
		}
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"run", "migrate", "topology apply", "demo", "demo sold-out", "demo late-payment"} {
		if _, err := commandNamed(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, wants := range map[string]string{
		"": "help", "topology": "help", "run fast": "help", "demo nothing": "success, sold-out, declined, expired, cancelled, late-payment",
		"demo success declined": "want success", "demonstrate": "help",
	} {
		if _, err := commandNamed(name); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), wants) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
