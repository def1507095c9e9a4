package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

func (a *app) dead() *cobra.Command {
	return group("dead", "Dead letters: what no consumer can read", "  outboxctl dead list",
		a.deadList(), a.deadShow(), a.deadVerb("redrive"), a.deadVerb("discard"))
}

func (a *app) deadList() *cobra.Command {
	var queue string
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "Dead letters of one queue, or of all", Args: cobra.NoArgs,
		Example: "  outboxctl dead list --queue catalog.2.dead",
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 1 || limit > 500 {
				return usagef("--limit is %d: want 1 to 500", limit)
			}
			found, err := call[api.DeadList](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
				return c.ListDead(ctx, &api.ListDeadParams{Queue: queue, Limit: limit})
			})
			if err != nil {
				return err
			}
			if done, err := a.json(found); done {
				return err
			}
			a.showDead(found.Items)
			return a.warn(found.Warnings)
		},
	}
	c.Flags().StringVarP(&queue, "queue", "q", "", "a dead-letter queue")
	c.Flags().IntVarP(&limit, "limit", "n", 50, "most lines, up to 500")
	return c
}

func (a *app) showDead(items []api.DeadMessage) {
	if len(items) == 0 {
		a.printf("no dead letters\n")
		return
	}
	t := newTable(left("QUEUE"), left("FINGERPRINT"), left("MESSAGE"), right("BYTES"))
	for _, m := range items {
		t.add(plain(m.Queue), plain(m.Fingerprint), plain(m.MessageID), fmt.Sprint(m.Size)).note("%s", plain(m.Reason))
	}
	t.write(a, a.out)
	a.hint("outboxctl dead show %s %s", plain(items[0].Queue), plain(items[0].Fingerprint))
}

func (a *app) deadShow() *cobra.Command {
	return &cobra.Command{
		Use: "show QUEUE FINGERPRINT", Short: "One dead letter with its payload", Args: cobra.ExactArgs(2),
		Example: "  outboxctl dead show catalog.2.dead 3f9a1c2b77d0",
		RunE: func(c *cobra.Command, args []string) error {
			m, err := call[api.DeadMessage](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
				return c.ShowDead(ctx, args[0], args[1])
			})
			if err != nil {
				return err
			}
			if done, err := a.json(m); done {
				return err
			}
			a.field("queue", "%s, position %d", plain(m.Queue), m.Position)
			a.field("fingerprint", "%s", plain(m.Fingerprint))
			a.field("message", "%s", dash(m.MessageID))
			a.field("reason", "%s", plain(m.Reason))
			a.showHeaders("headers", m.Headers)
			a.showPayload("payload", m.Payload)
			a.hint("outboxctl dead redrive %s %s", plain(m.Queue), plain(m.Fingerprint))
			a.printf("     outboxctl dead discard %s %s\n", plain(m.Queue), plain(m.Fingerprint))
			return nil
		},
	}
}

func (a *app) deadVerb(verb string) *cobra.Command {
	var all bool
	var limit int
	short, past, question := "Send dead letters back to the queue that they came from", "sent back", "Send these back?"
	if verb == "discard" {
		short, past, question = "Remove dead letters for good", "removed", "Remove these for good?"
	}
	c := &cobra.Command{
		Use: verb + " QUEUE [FINGERPRINT...]", Short: short, Args: cobra.MinimumNArgs(1),
		Example: "  outboxctl dead " + verb + " catalog.2.dead 3f9a1c2b77d0 --reason \"read by the new build\"",
		RunE: func(c *cobra.Command, args []string) error {
			a.patient(c)
			if (len(args) == 1) != all {
				return usagef("name the fingerprints, or say --all for the whole queue")
			}
			if limit < 1 || limit > 10_000 {
				return usagef("--limit is %d: want 1 to 10000", limit)
			}
			show := func(r api.DeadResult) (bool, error) {
				if done, err := a.json(r); done {
					return r.Changed > 0, err
				}
				fits := plural(int64(r.Matched), "dead letter fits", "dead letters fit")
				if r.DryRun {
					a.printf("dry run: %s, %d would be %s\n", fits, r.Changed, past)
				} else {
					a.printf("%s, %d %s%s\n", fits, r.Changed, past, audited(r.Audit))
				}
				return r.Changed > 0, nil
			}
			return change(c.Context(), a, question, func(ctx context.Context, dry bool) (api.DeadResult, error) {
				r, err := a.deadPieces(ctx, dry, all, limit, past, func(ctx context.Context, dry bool, limit int) (api.DeadResult, error) {
					return a.deadPiece(ctx, verb, dry, api.DeadCommand{Queue: args[0], Fingerprints: args[1:], Limit: limit, Reason: a.because(dry)})
				})
				if err != nil && len(r.Audit) > 0 {
					_, unshown := show(r)
					err = errors.Join(unshown, err)
				}
				return r, err
			}, show)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "the whole queue")
	c.Flags().IntVarP(&limit, "limit", "n", 1000, "most messages, up to 10000")
	return a.changes(c)
}

// deadPiece is one request. An error has beside it what was done, as far as the API says so.
func (a *app) deadPiece(ctx context.Context, verb string, dry bool, body api.DeadCommand) (api.DeadResult, error) {
	r, err := call[api.DeadResult](ctx, a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
		if verb == "discard" {
			return c.DiscardDead(ctx, &api.DiscardDeadParams{DryRun: dry}, body)
		}
		return c.RedriveDead(ctx, &api.RedriveDeadParams{DryRun: dry}, body)
	})
	var told *apiError
	if errors.As(err, &told) && told.Dead != nil {
		r = *told.Dead
	}
	return r, err
}

// deadPieceSize is how many dead letters one request takes: the API has time for so many.
const deadPieceSize = 500

// deadPieces takes a whole queue piece by piece, the oldest first, as many as there were at the beginning: what was sent
// back and is dead again stands behind them. Ctrl-C ends it behind the piece that is under way.
func (a *app) deadPieces(ctx context.Context, dry, all bool, limit int, past string, do func(ctx context.Context, dry bool, limit int) (api.DeadResult, error)) (api.DeadResult, error) {
	if dry || !all {
		return do(ctx, dry, limit)
	}
	would, err := do(ctx, true, limit)
	sum := api.DeadResult{Audit: []api.AuditRef{}}
	if err != nil {
		return sum, err
	}
	progress := &bar{a: a}
	defer progress.end()
	for sum.Matched < would.Matched {
		r, err := do(context.WithoutCancel(ctx), false, min(deadPieceSize, would.Matched-sum.Matched))
		if err == nil && ctx.Err() != nil && r.Matched < would.Matched-sum.Matched {
			err = errors.New("interrupted")
		}
		sum.Matched, sum.Changed, sum.Audit = sum.Matched+r.Matched, sum.Changed+r.Changed, append(sum.Audit, r.Audit...)
		if err != nil {
			return sum, fmt.Errorf("%w, after %d of %d were %s; the same command goes on with the rest", err, sum.Changed, would.Matched, past)
		}
		if r.Matched == 0 {
			break // somebody else was faster
		}
		progress.draw(int64(sum.Matched), int64(would.Matched))
	}
	return sum, nil
}
