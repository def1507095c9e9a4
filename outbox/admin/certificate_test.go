package admin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/operate"
)

// A renewed certificate counts at once, and while its file and the key's do not fit each other the one before is served.
func TestACertificateIsRenewed(t *testing.T) {
	t.Parallel()
	dir, logs := t.TempDir(), &lockedBuffer{}
	opts := admin.Options{
		Addr: "127.0.0.1:0", TokenFile: filepath.Join(dir, "tokens"), CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key"),
		Operate: operate.Config{Databases: []operate.Database{{Name: "shop", URL: "postgres://nobody@127.0.0.1:1/nothing"}}},
		Logger:  slog.New(slog.NewTextHandler(logs, nil)),
	}
	cert, key := pair(t, "first")
	other, otherKey := pair(t, "second")
	_, line := newToken(t, "vera", api.Viewer)
	writeFile(t, opts.TokenFile, line+"\n", 0o600)
	writeFile(t, opts.CertFile, cert, 0o600)
	writeFile(t, opts.KeyFile, otherKey, 0o600)
	if _, err := admin.Open(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "TW_ADMIN_TLS_CERT") {
		t.Fatalf("it begins with a key of another certificate: %v", err)
	}
	writeFile(t, opts.KeyFile, key, 0o600)
	d, err := admin.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	const complaint = "level=ERROR msg=\"certificate not usable"
	served(t, d.Addr(), "first")
	writeFile(t, opts.CertFile, other, 0o600)
	for range 3 {
		served(t, d.Addr(), "first")
	}
	if n := strings.Count(logs.String(), complaint); n != 1 {
		t.Errorf("the log complains %d times, want once a minute:\n%s", n, logs)
	}
	writeFile(t, opts.KeyFile, otherKey, 0o600)
	served(t, d.Addr(), "second")
}

// served wants a handshake to show the certificate of that name.
func served(t *testing.T, addr, name string) {
	t.Helper()
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: waits}, Config: &tls.Config{InsecureSkipVerify: true}} // its name is what is looked at
	conn, err := dialer.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Errorf("want certificate %s: %v", name, err)
		return
	}
	defer conn.Close()
	if got := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName; got != name {
		t.Errorf("served is certificate %s, want %s", got, name)
	}
}

// pair is a certificate that is its own authority, and its key, in PEM.
func pair(t *testing.T, name string) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	signed, err := x509.CreateCertificate(rand.Reader, of, of, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	bits, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: bits}))
}
