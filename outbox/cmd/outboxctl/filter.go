package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

// filter is the flags that choose stuck messages.
type filter struct {
	database, side, consumer, typ, key, class, state, group string
	olderThan                                               time.Duration
}

func (f *filter) flags(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVarP(&f.group, "group", "g", "", "a group of \"stuck groups\", by its name there")
	flags.StringVarP(&f.database, "database", "d", "", "a database, or the service that it belongs to (also --service)")
	flags.StringVar(&f.side, "side", "", "outbox or inbox")
	flags.StringVar(&f.consumer, "consumer", "", "a consumer, on the inbox's side")
	flags.StringVarP(&f.typ, "type", "t", "", "a message type")
	flags.StringVarP(&f.key, "key", "k", "", "a key, such as a booking id")
	flags.StringVar(&f.class, "class", "", "a class of error: handler, permanent, unroutable, ...")
	flags.StringVar(&f.state, "state", "", "retrying, parked or behind")
	flags.DurationVar(&f.olderThan, "older-than", 0, "stuck for at least so long, 1h30m for example")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "service" {
			name = "database"
		}
		return pflag.NormalizedName(name)
	})
	must(c.RegisterFlagCompletionFunc("side", fixed("outbox", "inbox")))
	must(c.RegisterFlagCompletionFunc("state", fixed("retrying", "parked", "behind")))
}

// empty reports a filter that chooses everything.
func (f *filter) empty() bool { return *f == filter{} }

// of is the filter in the API's words, with the group looked up.
func (f *filter) of(ctx context.Context, a *app) (api.Filter, error) {
	out := api.Filter{
		Database: f.database, Side: api.Side(f.side), Consumer: f.consumer, Type: f.typ, Key: f.key, Class: f.class,
		State: api.State(f.state), OlderThan: int64(f.olderThan / time.Second),
	}
	switch {
	case f.side != "" && !out.Side.Valid():
		return out, usagef("--side is %q: want outbox or inbox", f.side)
	case f.state != "" && !out.State.Valid():
		return out, usagef("--state is %q: want retrying, parked or behind", f.state)
	case f.olderThan < 0:
		return out, usagef("--older-than is %s: want a time of 0 or longer", f.olderThan)
	case f.group == "":
		return out, nil
	}
	groups, err := a.groups(ctx, out)
	if err != nil {
		return out, err
	}
	for _, g := range groups.Items {
		if strings.HasPrefix(groupName(g), f.group) && len(f.group) >= 4 {
			if g.Fingerprint == "" {
				return out, usagef("the messages of group %q have not failed yet, so nothing tells them from others: choose with --type, --key and the like", f.group)
			}
			out.Database, out.Side, out.Consumer, out.Type, out.Class, out.Fingerprint = g.Database, g.Side, g.Consumer, g.Type, g.Class, g.Fingerprint
			return out, nil
		}
	}
	return out, usagef("there is no group %q now: \"outboxctl stuck groups\" lists them", f.group)
}

// groupName is short and always the same for what fails in one way at one place.
func groupName(g api.Group) string {
	h := sha256.New()
	for _, part := range []string{g.Database, string(g.Side), g.Consumer, g.Type, g.Class, g.Fingerprint} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:4])
}

func (a *app) groups(ctx context.Context, f api.Filter) (api.GroupList, error) {
	return call[api.GroupList](ctx, a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
		return c.StuckGroups(ctx, &api.StuckGroupsParams{
			Database: f.Database, Side: f.Side, Consumer: f.Consumer, Type: f.Type, Key: f.Key, Fingerprint: f.Fingerprint,
			Class: f.Class, State: f.State, MessageID: f.MessageID, OlderThan: f.OlderThan,
		})
	})
}

func (a *app) list(ctx context.Context, f api.Filter, after string, limit int) (api.StuckPage, error) {
	return call[api.StuckPage](ctx, a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
		return c.ListStuck(ctx, &api.ListStuckParams{
			Database: f.Database, Side: f.Side, Consumer: f.Consumer, Type: f.Type, Key: f.Key, Fingerprint: f.Fingerprint,
			Class: f.Class, State: f.State, MessageID: f.MessageID, OlderThan: f.OlderThan, After: after, Limit: limit,
		})
	})
}

// messageID reads the argument that names a message.
func messageID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 || id == uuid.Nil {
		return id, usagef("%q is no message id: want one like 0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01 (\"outboxctl stuck list\" shows them)", text)
	}
	return id, nil
}
