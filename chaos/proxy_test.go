package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// proxy stands between a program and a server.
type proxy struct {
	*toxiproxy.Proxy
	port    int
	address string
}

// newProxy listens on a port of its own until the harness ends.
func newProxy(name string, upstream int) (*proxy, error) {
	p, err := freePort()
	if err != nil {
		return nil, err
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	made := &proxy{Proxy: toxiproxy.NewProxy(server, name, local(p), local(upstream)), port: p, address: local(p)}
	return made, made.Start()
}

// cut closes all connections and refuses new ones, until mend.
func (p *proxy) cut() { p.Stop() }

// mend undoes cut and removes all toxics.
func (p *proxy) mend(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p.Toxics.ResetToxics(ctx)
	if err := p.Start(); err != nil && err != toxiproxy.ErrProxyAlreadyStarted { //nolint:errorlint // it is never wrapped
		tb.Fatalf("start proxy %s: %v", p.Name, err)
	}
}

// spoil adds a toxic to one direction: "upstream" is towards the server.
func (p *proxy) spoil(tb testing.TB, kind, direction string, attributes map[string]any) {
	tb.Helper()
	document, err := json.Marshal(map[string]any{"type": kind, "stream": direction, "attributes": attributes})
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := p.Toxics.AddToxicJson(strings.NewReader(string(document))); err != nil {
		tb.Fatalf("toxic %s: %v", fmt.Sprint(kind, direction), err)
	}
}
