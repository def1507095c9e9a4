package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

func (a *app) cursor() *cobra.Command {
	return group("cursor", "The relay's cursors, and their repair after a restore or failover", "  outboxctl cursor show",
		a.cursorShow(), a.cursorRebase())
}

func (a *app) cursorShow() *cobra.Command {
	var database string
	c := &cobra.Command{
		Use: "show", Short: "How far each partition is, and whether its cursor fits the server that answers", Args: cobra.NoArgs,
		Example: "  outboxctl cursor show --database booking",
		RunE: func(c *cobra.Command, _ []string) error {
			found, err := call[api.CursorList](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
				return c.Cursors(ctx, &api.CursorsParams{Database: database})
			})
			if err != nil {
				return err
			}
			if done, err := a.json(found); done {
				return err
			}
			foreign := a.showCursors(found.Items)
			if err := a.warn(found.Warnings); err != nil {
				return err
			}
			return unhealthy(!foreign, nil)
		},
	}
	c.Flags().StringVarP(&database, "database", "d", "", "one database")
	return c
}

func (a *app) showCursors(items []api.Cursor) (foreign bool) {
	t := newTable(left("DATABASE"), right("PART"), flex("RELAYED"), flex("TARGET"), right("LAST ID"), right("STORED"), left("SERVER"))
	for _, c := range items {
		server := "the same"
		if !c.IdentityOk {
			server, foreign = "ANOTHER", true
		}
		r := t.add(plain(c.Database), fmt.Sprint(c.Partition), dash(c.Relayed), plain(c.Target), fmt.Sprint(c.LastID), a.age(c.StoredAt), server)
		if !c.IdentityOk {
			r.note("%s", plain(c.Identity))
			r.color = red
		}
	}
	t.write(a, a.out)
	if foreign {
		a.hint("outboxctl cursor rebase --database ... --dry-run   (docs/operations.md says when, and when --keep)")
	}
	return foreign
}

func (a *app) cursorRebase() *cobra.Command {
	var body api.Rebase
	c := &cobra.Command{
		Use: "rebase", Short: "Make the cursors of a database fit the server that answers now", Args: cobra.NoArgs,
		Long: "After a restore, a failover or an upgrade, transaction ids mean something else, and relays refuse to run. Rebase locks\n" +
			"out writers and marks every message as relayed or not, as the cursors knew it. --keep is for where ids go on, as after\n" +
			"pg_upgrade.",
		Example: "  outboxctl cursor rebase --database booking --reason \"failover to db2\"",
		RunE: func(c *cobra.Command, _ []string) error {
			a.patient(c)
			return change(c.Context(), a, "Rebase the cursors of "+plain(body.Database)+"? Its writers wait meanwhile.",
				func(ctx context.Context, dry bool) (api.Rebased, error) {
					body.Reason = a.because(dry)
					return call[api.Rebased](ctx, a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
						return c.Rebase(ctx, &api.RebaseParams{DryRun: dry}, body)
					})
				}, func(r api.Rebased) (bool, error) {
					if done, err := a.json(r); done {
						return true, err
					}
					verb, dry := "counted as", ""
					if r.DryRun {
						verb, dry = "would count as", "dry run: "
					}
					var audit []api.AuditRef
					if r.Audit.Database != "" {
						audit = append(audit, r.Audit)
					}
					a.printf("%s%s %s relayed, %d as not relayed%s\n", dry, plural(r.Relayed, "message", "messages"), verb, r.Pending, audited(audit))
					return true, nil
				})
		},
	}
	c.Flags().StringVarP(&body.Database, "database", "d", "", "the database")
	must(c.MarkFlagRequired("database"))
	c.Flags().BoolVar(&body.Keep, "keep", false, "transaction ids go on, as after pg_upgrade")
	c.Flags().BoolVar(&body.Force, "force", false, "even where the cursors fit")
	return a.changes(c)
}
