// Command saga leads bookings through their steps where booking leaves that to a coordinator.
package main

import (
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/services/internal/daemon"
	"github.com/jcp/ticketwave/services/saga"
)

// options are what this service can be told beside what every service can.
type options struct{ tokens, insecure string }

func main() {
	var o options
	build := func(common daemon.Options, pool *pgxpool.Pool, log *slog.Logger) (daemon.Service, error) {
		tokens, err := o.open(common.HTTPAddr)
		if err != nil {
			return nil, err
		}
		return saga.New(saga.Config{Pool: pool, Logger: log, Tokens: tokens})
	}
	daemon.Main("saga", ":5005", build, o.settings()...)
}

func (o *options) settings() []daemon.Setting {
	return []daemon.Setting{
		daemon.Text(&o.tokens, "tokens", "TW_ADMIN_TOKENS", "", "the operators' token file, or nothing: then nobody may list, resume or compensate"),
		daemon.Checked(&o.insecure, "insecure", "TW_ADMIN_INSECURE", "false", "true to take tokens beyond the loopback interface, or false",
			func(value string) bool { return value == "true" || value == "false" }),
	}
}

// open reads the token file, if one is named, unless its tokens would travel in the open.
func (o *options) open(addr string) (*admin.Tokens, error) {
	switch {
	case o.tokens == "":
		return nil, nil
	case o.insecure != "true" && !admin.Loopback(addr):
		return nil, fmt.Errorf("TW_HTTP_ADDR is %q, open to other hosts, and TW_ADMIN_TOKENS is set: set an address of 127.0.0.1, "+
			"or TW_ADMIN_INSECURE=true where something else protects the tokens", addr)
	}
	return admin.OpenTokens(o.tokens)
}
