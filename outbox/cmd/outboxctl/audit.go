package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

func (a *app) audit() *cobra.Command {
	return group("audit", "What operators did, and whether the log is whole", "  outboxctl audit list", a.auditList(), a.auditVerify())
}

func (a *app) auditList() *cobra.Command {
	var p api.ListAuditParams
	var message string
	c := &cobra.Command{
		Use: "list", Short: "What operators did, newest first", Args: cobra.NoArgs,
		Example: "  outboxctl audit list --actor alice",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if p.Limit < 1 || p.Limit > 500 {
				return usagef("--limit is %d: want 1 to 500", p.Limit)
			}
			if message != "" {
				var id uuid.UUID
				if id, err = messageID(message); err != nil {
					return err
				}
				p.MessageID = id
			}
			page, err := call[api.AuditPage](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) { return c.ListAudit(ctx, &p) })
			if err != nil {
				return err
			}
			if done, err := a.json(page); done {
				return err
			}
			if len(page.Items) == 0 {
				a.printf("no entry fits\n")
				return a.warn(page.Warnings)
			}
			a.auditTable(page.Items).write(a, a.out)
			if page.Next != "" {
				a.hint("the next page: the same with --after %s", page.Next)
			}
			return a.warn(page.Warnings)
		},
	}
	f := c.Flags()
	f.StringVarP(&p.Database, "database", "d", "", "one database")
	f.StringVar(&p.Actor, "actor", "", "who")
	f.StringVar(&p.Action, "action", "", "what, inbox.replay for example")
	f.StringVar(&message, "message", "", "a message id")
	f.StringVar(&p.After, "after", "", "go on behind this point, as the page before says")
	f.IntVarP(&p.Limit, "limit", "n", 50, "most lines, up to 500")
	return c
}

func (a *app) auditTable(entries []api.AuditEntry) *table {
	t := newTable(left("ENTRY"), left("AT"), left("WHO"), left("ACTION"), flex("WHY"), right("CHANGED"))
	for _, e := range entries {
		var detail struct{ Changed *int64 }
		_ = json.Unmarshal(e.Detail, &detail) // an action may count something else
		changed := ""
		if detail.Changed != nil {
			changed = fmt.Sprint(*detail.Changed)
		}
		t.add(fmt.Sprintf("%s/%d", plain(e.Database), e.ID), e.At.UTC().Format("2006-01-02 15:04:05Z"), plain(e.Actor.Name), plain(e.Action), plain(e.Actor.Reason), changed)
	}
	return t
}

func (a *app) auditVerify() *cobra.Command {
	var p api.VerifyAuditParams
	c := &cobra.Command{
		Use: "verify", Short: "Check the log's hash chains; exit code 1 when one is broken", Args: cobra.NoArgs,
		Long: "Computes every chain again. What was altered, removed or inserted breaks it. Entries cut off the end show only against\n" +
			"a head that was remembered elsewhere: keep the heads, and give one back with --head.",
		Example: "  outboxctl audit verify --database booking --head 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		RunE: func(c *cobra.Command, _ []string) error {
			if p.Head != "" && p.Database == "" {
				return usagef("--head needs the --database that it was read from")
			}
			a.patient(c)
			found, err := call[api.AuditReportList](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) { return c.VerifyAudit(ctx, &p) })
			if err != nil {
				return err
			}
			whole := len(found.Warnings) == 0
			for _, r := range found.Items {
				whole = whole && r.Ok
			}
			if done, err := a.json(found); done {
				return notClean(whole, err)
			}
			a.showReports(found.Items)
			if err := a.warn(found.Warnings); err != nil {
				return err
			}
			return notClean(whole, nil)
		},
	}
	c.Flags().StringVarP(&p.Database, "database", "d", "", "one database")
	c.Flags().StringVar(&p.Head, "head", "", "a hash that was the head once, and must still be there")
	return c
}

func (a *app) showReports(reports []api.AuditReport) {
	t := newTable(left("DATABASE"), right("ENTRIES"), left("CHAIN"), left("HEAD"))
	for _, r := range reports {
		chain := "whole"
		if !r.Ok {
			chain = "BROKEN"
		}
		line := t.add(plain(r.Database), fmt.Sprint(r.Entries), chain, dash(strings.TrimSpace(r.Head)))
		if !r.Ok {
			line.color = red
			line.note("at entry %d: %s", r.BrokenAt, plain(r.Why))
		}
	}
	t.write(a, a.out)
}
