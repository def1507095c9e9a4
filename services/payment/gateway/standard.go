package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Headers of Standard Webhooks (https://www.standardwebhooks.com, version 1.0.0).
const (
	HeaderID        = "Webhook-Id"
	HeaderTimestamp = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

// ReplayWindow is how far a webhook's time may lie from the receiver's, either way.
const ReplayWindow = 5 * time.Minute

const (
	secretPrefix  = "whsec_"
	secretMin     = 24 // bytes, as the specification has it
	secretMax     = 64
	maxID         = 255
	maxSignatures = 16
)

// ErrSecret says that a text is no signing secret.
var ErrSecret = errors.New(`not a webhook secret: want "whsec_" and 24 to 64 random bytes in base64`)

// Secrets sign webhooks. With several, all of them sign and any of them verifies: to rotate, add the new one first, and take the
// old one away when everybody knows the new one. They print as nothing.
type Secrets [][]byte

// ParseSecrets reads secrets separated by commas or white space.
func ParseSecrets(text string) (Secrets, error) {
	var all Secrets
	for _, item := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' || r == '\r' }) {
		encoded, ok := strings.CutPrefix(item, secretPrefix)
		key, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || err != nil || len(key) < secretMin || len(key) > secretMax {
			return nil, ErrSecret
		}
		all = append(all, key)
	}
	return all, nil
}

// String hides them.
func (s Secrets) String() string { return fmt.Sprintf("%d secrets", len(s)) }

// GoString hides them.
func (s Secrets) GoString() string { return s.String() }

// sign is the value of HeaderSignature: one signature for each secret.
func (s Secrets) sign(id string, at time.Time, body []byte) string {
	signatures := make([]string, len(s))
	for i, secret := range s {
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac(secret, id, strconv.FormatInt(at.Unix(), 10), body))
	}
	return strings.Join(signatures, " ")
}

// Sign sets the headers of a webhook that is sent now.
func (s Secrets) Sign(h http.Header, id string, now time.Time, body []byte) {
	h.Set(HeaderID, id)
	h.Set(HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
	h.Set(HeaderSignature, s.sign(id, now, body))
}

func mac(secret []byte, id, timestamp string, body []byte) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(id + "." + timestamp + "."))
	m.Write(body)
	return m.Sum(nil)
}

// Verify returns the id of a webhook that one of the secrets has signed within the window around now, or ErrSignature. It
// compares in constant time, and every signature given with every secret.
func (s Secrets) Verify(h http.Header, body []byte, now time.Time) (id string, err error) {
	id, stamp, signatures, err := signedHeaders(h)
	if err != nil {
		return "", err
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || seconds < 0 || stamp != strconv.FormatInt(seconds, 10) {
		return "", fmt.Errorf("%w: its time is no whole number of seconds", ErrSignature)
	}
	if away := now.Sub(time.Unix(seconds, 0)); away > ReplayWindow || away < -ReplayWindow {
		return "", fmt.Errorf("%w: its time is more than %s away", ErrSignature, ReplayWindow)
	}
	ok := false
	for _, secret := range s {
		want := mac(secret, id, stamp, body)
		for _, given := range signatures {
			ok = hmac.Equal(given, want) || ok
		}
	}
	if !ok {
		return "", ErrSignature
	}
	return id, nil
}

// signedHeaders are what is signed beside the body, and the signatures of version 1.
func signedHeaders(h http.Header) (id, timestamp string, signatures [][]byte, err error) {
	for _, name := range []string{HeaderID, HeaderTimestamp, HeaderSignature} {
		if len(h.Values(name)) != 1 {
			return "", "", nil, fmt.Errorf("%w: want one %s", ErrSignature, strings.ToLower(name))
		}
	}
	id, timestamp = h.Get(HeaderID), h.Get(HeaderTimestamp)
	if !plainID(id) || len(timestamp) > 11 {
		return "", "", nil, fmt.Errorf("%w: its id or time is none", ErrSignature)
	}
	for _, item := range strings.SplitN(h.Get(HeaderSignature), " ", maxSignatures+1) {
		encoded, ok := strings.CutPrefix(item, "v1,")
		if !ok || len(signatures) == maxSignatures {
			continue
		}
		if signature, err := base64.StdEncoding.DecodeString(encoded); err == nil {
			signatures = append(signatures, signature)
		}
	}
	return id, timestamp, signatures, nil
}

// plainID takes printable ASCII without a dot, which would let an id and a time change places.
func plainID(id string) bool {
	return id != "" && len(id) <= maxID && strings.IndexFunc(id, func(r rune) bool { return r <= ' ' || r > '~' || r == '.' }) < 0
}
