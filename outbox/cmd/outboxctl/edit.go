package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

// maxPayload is the largest payload that a message may have.
const maxPayload = 1 << 20

func (a *app) stuckEdit() *cobra.Command {
	var f filter
	var payloadFile string
	var set, remove []string
	c := &cobra.Command{
		Use: "edit MESSAGE-ID", Short: "Replace the payload or headers of a parked message", Args: cobra.ExactArgs(1),
		Long: "Replaces the payload or headers of a parked message. Its id stays, and so does the original, for show. One that is\n" +
			"tried again by itself is parked first (\"outboxctl stuck park\").\n\n" +
			"Without a flag that says what is new, $VISUAL or $EDITOR opens the payload. The message stays parked: replay it then.",
		Example: "  outboxctl stuck edit 0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01\n" +
			"  outboxctl stuck edit 0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01 --payload-file fixed.json --reason \"price was missing\" --yes",
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.mayChange(); err != nil {
				return err
			}
			details, err := a.details(c.Context(), args[0], f)
			if err != nil {
				return err
			}
			if len(details) > 1 {
				return a.ambiguous(details)
			}
			body, err := a.edited(c.Context(), details[0], payloadFile, set, remove)
			if err != nil {
				return err
			}
			return change(c.Context(), a, "Edit this message?", func(ctx context.Context, dry bool) (api.Result, error) {
				body.Reason = a.because(dry)
				return call[api.Result](ctx, a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
					return c.EditStuck(ctx, &api.EditStuckParams{DryRun: dry}, body)
				})
			}, func(r api.Result) (bool, error) {
				any, err := a.showResult("edited", r)
				if err == nil && any && !r.DryRun && a.output == "table" {
					a.hint("outboxctl stuck replay %s", details[0].MessageID)
				}
				return any, err
			})
		},
	}
	placeFlags(c, &f)
	c.Flags().StringVar(&payloadFile, "payload-file", "", "file with the new payload; - is the standard input")
	c.Flags().StringArrayVar(&set, "header", nil, "a header to set, as name=value; may be given again")
	c.Flags().StringArrayVar(&remove, "remove-header", nil, "a header to remove; may be given again")
	return a.changes(c)
}

func (a *app) ambiguous(details []api.Detail) error {
	var places []string
	for _, d := range details {
		places = append(places, " "+placeFlagsOf(d))
	}
	return usagef("the message is stuck at %d places; choose one:\n%s", len(details), strings.Join(places, "\n"))
}

// edited is what becomes of the message.
func (a *app) edited(ctx context.Context, d api.Detail, payloadFile string, set, remove []string) (api.Edit, error) {
	body := api.Edit{Filter: api.Filter{Database: d.Database, Side: d.Side, Consumer: d.Consumer, MessageID: d.MessageID}}
	var err error
	if len(set)+len(remove) > 0 {
		if body.Headers, err = newHeaders(d.Headers, set, remove); err != nil {
			return body, err
		}
	}
	var payload []byte
	switch {
	case payloadFile == "-":
		payload, err = io.ReadAll(io.LimitReader(a.ask, maxPayload+1))
	case payloadFile != "":
		payload, err = readFile(payloadFile)
	case body.Headers == nil:
		payload, err = a.editor(ctx, d.Payload)
	default:
		return body, nil
	}
	if err != nil {
		return body, err
	}
	body.Payload, err = checked(payload)
	return body, err
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usagef("--payload-file: %v", err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxPayload+1))
}

func checked(payload []byte) (json.RawMessage, error) {
	if len(payload) > maxPayload {
		return nil, usagef("the payload is larger than %d bytes", maxPayload)
	}
	var syntax *json.SyntaxError
	var v any
	if err := json.Unmarshal(payload, &v); errors.As(err, &syntax) {
		return nil, usagef("the payload is not valid JSON: %v at byte %d", err, syntax.Offset)
	} else if err != nil {
		return nil, usagef("the payload is not valid JSON: %v", err)
	}
	return payload, nil
}

func newHeaders(old map[string]string, set, remove []string) (map[string]string, error) {
	headers := maps.Clone(old)
	if headers == nil {
		headers = map[string]string{}
	}
	for _, name := range remove {
		if _, ok := headers[name]; !ok {
			return nil, usagef("--remove-header: the message has no header %q", name)
		}
		delete(headers, name)
	}
	for _, text := range set {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, usagef("--header is %q: want name=value", text)
		}
		headers[name] = value
	}
	return headers, nil
}

// signalGrace is how late a Ctrl-C that was the editor's may reach this process.
const signalGrace = time.Second

// editor lets the caller change the payload in a file that nobody else can read.
func (a *app) editor(ctx context.Context, payload []byte) ([]byte, error) {
	command := a.env("VISUAL", a.getenv("EDITOR"))
	if command == "" || a.input == nil {
		return nil, usagef("say what is new: --payload-file, --header, or at a terminal with $EDITOR set")
	}
	dir, err := os.MkdirTemp("", "outboxctl-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := dir + "/payload.json"
	before := []byte(readable(payload) + "\n")
	if err := os.WriteFile(path, before, 0o600); err != nil {
		return nil, err
	}
	words := strings.Fields(command)
	// Ctrl-C is the editor's as long as it runs.
	edit := exec.CommandContext(context.WithoutCancel(ctx), words[0], append(words[1:], path)...) //nolint:gosec // the caller's own editor
	edit.Stdin, edit.Stdout, edit.Stderr = a.in, a.out, a.err
	a.editing.Store(true)
	err = edit.Run()
	time.AfterFunc(signalGrace, func() { a.editing.Store(false) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w; nothing was done", words[0], err)
	}
	after, err := readFile(path)
	if err == nil && bytes.Equal(before, after) {
		err = errDeclined
	}
	return after, err
}
