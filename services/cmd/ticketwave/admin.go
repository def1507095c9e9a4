package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/services/internal/daemon"
	schema "github.com/jcp/ticketwave/sql"
)

// madeTokens is the token file that is made where none is named.
var madeTokens = filepath.Join(".run", "admin-tokens")

// offerAdmin opens the administration API. Without a token file it makes one in .run, and token is the file that the
// operator's token is in.
func offerAdmin(ctx context.Context, opts options) (d *admin.Daemon, token string, err error) {
	offered := admin.Options{
		Addr: opts.AdminAddr, TokenFile: opts.AdminTokens, Logger: daemon.NewLogger(os.Stderr, opts.LogLevel, "admin"),
		Operate: operate.Config{AMQPURL: opts.AMQPURL, ManagementURL: opts.ManagementURL},
	}
	if offered.TokenFile == "" {
		token = filepath.Join(".run", "admin-token")
		offered.TokenFile = madeTokens
		if err := makeToken(token, offered.TokenFile); err != nil {
			return nil, "", err
		}
	}
	for _, service := range schema.Services {
		url, err := opts.databaseURL(service, "operator")
		if err != nil {
			return nil, "", err
		}
		offered.Operate.Databases = append(offered.Operate.Databases, operate.Database{Name: service, URL: url})
	}
	d, err = admin.Open(ctx, offered)
	return d, token, err
}

// makeToken makes an operator's token and its token file, unless both are there.
func makeToken(tokenFile, linesFile string) error {
	_, err := os.Stat(tokenFile)
	_, other := os.Stat(linesFile)
	if err = errors.Join(err, other); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	token, line, err := admin.NewToken("developer", api.Operator)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(tokenFile), 0o750); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(tokenFile, []byte(token+"\n"), 0o600), os.WriteFile(linesFile, []byte(line+"\n"), 0o600))
}

// operators says how to reach the administration API.
func (h *house) operators(token string) string {
	if h.admin == nil {
		return ""
	}
	command := "bin/outboxctl status"
	if token != "" {
		command = "TW_ADMIN_TOKEN_FILE=" + token + " " + command
	}
	if address := h.admin.URL(); address != "http://127.0.0.1:5011" {
		command = "TW_ADMIN_URL=" + address + " " + command
	}
	return fmt.Sprintf("\nSee what is stuck, and move it:\n\n  %s\n", command)
}
