package gateway_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/services/payment/gateway"
)

const (
	// The example of the specification's reference libraries.
	exampleSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	exampleID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	exampleBody      = `{"test": 2432232314}`
	exampleSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

var exampleTime = time.Unix(1614265330, 0)

func secrets(t testing.TB, text string) gateway.Secrets {
	t.Helper()
	s, err := gateway.ParseSecrets(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newSecret(fill byte) string {
	return "whsec_" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune(fill)), 32)))
}

func signed(s gateway.Secrets, id string, at time.Time, body string) http.Header {
	h := http.Header{}
	s.Sign(h, id, at, []byte(body))
	return h
}

func TestTheExampleOfTheSpecification(t *testing.T) {
	t.Parallel()
	s := secrets(t, exampleSecret)
	h := signed(s, exampleID, exampleTime, exampleBody)
	if got := h.Get(gateway.HeaderSignature); got != exampleSignature {
		t.Errorf("signature %s, want %s", got, exampleSignature)
	}
	for header, want := range map[string]string{"webhook-id": exampleID, "webhook-timestamp": "1614265330"} {
		if h.Get(header) != want {
			t.Errorf("%s: %s", header, h.Get(header))
		}
	}
	if id, err := s.Verify(h, []byte(exampleBody), exampleTime); err != nil || id != exampleID {
		t.Errorf("%s %v", id, err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	s := secrets(t, exampleSecret)
	for name, spoil := range map[string]func(h http.Header, body *string, now *time.Time){
		"no id":              func(h http.Header, _ *string, _ *time.Time) { h.Del(gateway.HeaderID) },
		"no time":            func(h http.Header, _ *string, _ *time.Time) { h.Del(gateway.HeaderTimestamp) },
		"no signature":       func(h http.Header, _ *string, _ *time.Time) { h.Del(gateway.HeaderSignature) },
		"two ids":            func(h http.Header, _ *string, _ *time.Time) { h.Add(gateway.HeaderID, "another") },
		"two signatures":     func(h http.Header, _ *string, _ *time.Time) { h.Add(gateway.HeaderSignature, exampleSignature) },
		"another id":         func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderID, "msg_x") },
		"an id with a dot":   func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderID, "msg.x") },
		"an endless id":      func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderID, strings.Repeat("x", 256)) },
		"another time":       func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderTimestamp, "1614265331") },
		"a padded time":      func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderTimestamp, "01614265330") },
		"a time in words":    func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderTimestamp, "now") },
		"a negative time":    func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderTimestamp, "-1") },
		"another body":       func(_ http.Header, b *string, _ *time.Time) { *b += " " },
		"too old":            func(_ http.Header, _ *string, n *time.Time) { *n = n.Add(gateway.ReplayWindow + time.Second) },
		"from the future":    func(_ http.Header, _ *string, n *time.Time) { *n = n.Add(-gateway.ReplayWindow - time.Second) },
		"a short signature":  func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderSignature, exampleSignature[:20]) },
		"an empty signature": func(h http.Header, _ *string, _ *time.Time) { h.Set(gateway.HeaderSignature, "v1,") },
		"another version": func(h http.Header, _ *string, _ *time.Time) {
			h.Set(gateway.HeaderSignature, strings.Replace(exampleSignature, "v1", "v2", 1))
		},
		"another secret": func(h http.Header, _ *string, _ *time.Time) {
			h.Set(gateway.HeaderSignature, signed(secrets(t, newSecret('a')), exampleID, exampleTime, exampleBody).Get(gateway.HeaderSignature))
		},
		"after too many others": func(h http.Header, _ *string, _ *time.Time) {
			h.Set(gateway.HeaderSignature, strings.Repeat("v1,AAAA ", 1000)+exampleSignature)
		},
	} {
		h, body, now := signed(s, exampleID, exampleTime, exampleBody), exampleBody, exampleTime
		spoil(h, &body, &now)
		if _, err := s.Verify(h, []byte(body), now); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestTheEdgesOfTheReplayWindow(t *testing.T) {
	t.Parallel()
	s := secrets(t, exampleSecret)
	h := signed(s, exampleID, exampleTime, exampleBody)
	for _, away := range []time.Duration{-gateway.ReplayWindow, 0, gateway.ReplayWindow} {
		if _, err := s.Verify(h, []byte(exampleBody), exampleTime.Add(away)); err != nil {
			t.Errorf("%s away: %v", away, err)
		}
	}
}

func TestSecretsAreRotated(t *testing.T) {
	t.Parallel()
	before, during, after := secrets(t, newSecret('a')), secrets(t, newSecret('a')+", "+newSecret('b')), secrets(t, newSecret('b'))
	for _, c := range []struct {
		from, to gateway.Secrets
		ok       bool
	}{{before, during, true}, {during, before, true}, {during, after, true}, {after, during, true}, {before, after, false}, {before, nil, false}} {
		_, err := c.to.Verify(signed(c.from, "id", exampleTime, "body"), []byte("body"), exampleTime)
		if (err == nil) != c.ok {
			t.Errorf("from %d to %d secrets: %v", len(c.from), len(c.to), err)
		}
	}
	h := signed(before, "id", exampleTime, "body")
	h.Set(gateway.HeaderSignature, "v1a,xyz v2,"+"AAAA v1,!! "+h.Get(gateway.HeaderSignature))
	if _, err := before.Verify(h, []byte("body"), exampleTime); err != nil {
		t.Errorf("among signatures of other kinds: %v", err)
	}
}

func TestParseSecrets(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_!!", "whsec_c2hvcnQ=", newSecret('a') + ",x", "whsec_" + strings.Repeat("AAAA", 30)} {
		if s, err := gateway.ParseSecrets(bad); err == nil || s != nil || strings.Contains(err.Error(), bad) && bad != "whsec_" {
			t.Errorf("%q: %v %v", bad, s, err)
		}
	}
	s := secrets(t, "  "+newSecret('a')+"\n"+newSecret('b')+"\n")
	if shown := fmt.Sprintf("%s %v %#v", s, s, s); len(s) != 2 || strings.Contains(shown, "97") || strings.Contains(shown, "YWFh") {
		t.Errorf("shown as %s", shown)
	}
}

// FuzzReceive gives the sandbox any headers and bodies: it takes what is signed with its secret alone, and what it takes can be stored.
func FuzzReceive(f *testing.F) {
	sandbox, err := gateway.NewSandbox(gateway.SandboxConfig{
		Pool: unreachable(f), BaseURL: "http://pay.example", WebhookURL: "http://pay.example/hook",
		Secrets: secrets(f, exampleSecret), Now: func() time.Time { return exampleTime },
	})
	if err != nil {
		f.Fatal(err)
	}
	captured := `{"type":"payment.captured","timestamp":"2026-05-04T18:30:00Z","data":{"paymentId":"0199a1b2-c3d4-7a11-9b22-3c33d4e5f607","charge":"ch_1","amount":"50.00","currency":"EUR"}}`
	f.Add(exampleID, "1614265330", exampleSignature, exampleBody, false)
	f.Add("evt_1", "1614265330", "", captured, true)
	f.Add("evt_2", "1614265330", "", strings.Replace(captured, "captured", "declined", 1), true)
	f.Add("evt_3", "1614265330", "", strings.Replace(captured, "50.00", "0.00", 1), true)
	f.Add("evt_4", "1614265330", "v1,", `{"type":"payment.captured"}`, true)
	f.Add("evt_5", "1614265330", "v1,", `{"type":"something.else"}`, true)
	f.Fuzz(func(t *testing.T, id, stamp, signature, body string, sign bool) {
		h := http.Header{gateway.HeaderID: {id}, gateway.HeaderTimestamp: {stamp}, gateway.HeaderSignature: {signature}}
		if sign {
			secrets(t, exampleSecret).Sign(h, id, exampleTime, []byte(body))
		}
		e, err := sandbox.Receive(t.Context(), h, []byte(body))
		if err != nil {
			return
		}
		if !sign && body != exampleBody {
			t.Fatalf("forged: %q", body)
		}
		if e.ID != id || e.ID == "" || len(e.ID) > 255 {
			t.Errorf("id %q", e.ID)
		}
		if e.Kind == gateway.Captured && (e.Amount <= 0 || !e.Amount.Valid() || e.Charge == "" || len(e.Charge) > 255 || len(e.Currency) != 3) {
			t.Errorf("%+v", e)
		}
	})
}
