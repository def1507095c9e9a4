package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
)

// Tokens are taken on this machine, or where somebody has said that they are safe on their way.
func TestTokensDoNotTravelInTheOpen(t *testing.T) {
	t.Parallel()
	_, line, err := admin.NewToken("alice", api.Operator)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tokens, insecure, addr string
		bad                    string
	}{
		{"", "false", ":5005", ""},
		{file, "false", "127.0.0.1:5005", ""},
		{file, "false", "localhost:5005", ""},
		{file, "false", "[::1]:5005", ""},
		{file, "false", ":5005", "TW_HTTP_ADDR"},
		{file, "false", "0.0.0.0:5005", "TW_HTTP_ADDR"},
		{file, "false", "saga.example:5005", "TW_HTTP_ADDR"},
		{file, "true", ":5005", ""},
		{file + "x", "false", "127.0.0.1:5005", "token file"},
	} {
		o := options{tokens: c.tokens, insecure: c.insecure}
		tokens, err := o.open(c.addr)
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || (tokens != nil) != (c.tokens != "") {
			t.Errorf("%+v: %v, %v", c, tokens, err)
		}
	}
}
