package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

const (
	applyTimeout = 30 * time.Minute
	// silence is how long a replay may say nothing; the API repeats itself every 5 s.
	silence = 30 * time.Second
)

func (a *app) replay() *cobra.Command {
	return group("replay", "Publish messages again that were relayed already", "  outboxctl replay plan --database booking --from 2h --type ticketwave.booking.created.v1",
		a.replayPlan(), a.replayApply())
}

func (a *app) replayPlan() *cobra.Command {
	var from, to string
	var req api.PlanRequest
	c := &cobra.Command{
		Use: "plan", Short: "Say what a replay would do, and name the plan that does it", Args: cobra.NoArgs,
		Long: "Says how many messages and keys a replay would publish again, what consumers have already processed, and what\n" +
			"cannot be decoded or routed. Nothing is sent. Consumers absorb what they have handled.",
		Example: "  outboxctl replay plan --database booking --from 2h --to 1h --to-queue payment",
		RunE: func(c *cobra.Command, _ []string) error {
			a.patient(c)
			var err error
			if req.From, req.To, err = a.span(from, to); err != nil {
				return err
			}
			plan, err := call[api.Plan](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) { return c.PlanReplay(ctx, req) })
			if err != nil {
				return err
			}
			if done, err := a.json(plan); done {
				return err
			}
			a.showPlan(plan)
			return nil
		},
	}
	spanFlags(c, &from, &to, "")
	must(c.MarkFlagRequired("from"))
	c.Flags().StringVarP(&req.Database, "database", "d", "", "the database that the messages were written in")
	must(c.MarkFlagRequired("database"))
	c.Flags().StringVarP(&req.Type, "type", "t", "", "a message type")
	c.Flags().StringVarP(&req.Key, "key", "k", "", "a key, such as a booking id")
	c.Flags().StringVar(&req.ToQueue, "to-queue", "", "one consumer's queues alone, past the exchange")
	return c
}

func (a *app) showPlan(p api.Plan) {
	a.field("plan", "%s", p.Hash)
	a.field("database", "%s, committed from %s to %s", plain(p.Request.Database), clock(p.Request.From), clock(p.Request.To))
	to := "whoever is bound"
	if p.Request.ToQueue != "" {
		to = plain(p.Request.ToQueue) + " alone"
	}
	a.field("to", "%s", to)
	a.field("publishes", "%s of %s", plural(p.Messages, "message", "messages"), plural(p.Keys, "key", "keys"))
	for _, typ := range sorted(p.Types) {
		a.printf("  %8d  %s\n", p.Types[typ], plain(typ))
	}
	for _, consumer := range sorted(p.Handled) {
		a.field("handled", "%d of them by %s already", p.Handled[consumer], plain(consumer))
	}
	for _, left := range []struct {
		name string
		n    int64
	}{{"undecodable", p.Undecodable}, {"unroutable", p.Unroutable}, {"not relayed", p.NotRelayed}} {
		if left.n > 0 {
			a.field(left.name, "%d", left.n)
		}
	}
	for _, w := range p.Warnings {
		a.field("warning", "%s", a.colored(yellow, plain(w)))
	}
	if p.Messages > 0 {
		canary := " --canary"
		if len(p.Handled) > 0 && !slices.ContainsFunc(slices.Collect(maps.Values(p.Handled)), func(n int64) bool { return n < p.Messages }) {
			canary = "" // every consumer has them all: it could show nothing
		}
		a.hint("outboxctl replay apply %s%s --reason \"...\"", p.Hash, canary)
	}
}

func (a *app) replayApply() *cobra.Command {
	var body api.Apply
	c := &cobra.Command{
		Use: "apply HASH", Short: "Do what a plan says, if nothing has changed since", Args: cobra.ExactArgs(1),
		Long: "Publishes what a plan named. It refuses when the state has changed since the plan was made. --canary sends one message\n" +
			"of each type first, and waits until a consumer's inbox shows it. Interrupting it stops after the messages in flight.",
		Example: "  outboxctl replay apply 3f9a1c2b77d0 --canary --reason \"payment lost its queue\" --yes",
		RunE: func(c *cobra.Command, args []string) error {
			if a.dryRun {
				return usagef("the plan is the dry run: \"outboxctl replay plan\"")
			}
			if err := a.mayChange(); err != nil {
				return err
			}
			if !a.yes {
				if err := a.confirm(c.Context(), "Publish what plan "+plain(args[0])+" names?"); err != nil {
					return err
				}
			}
			body.Reason = a.reason
			done, err := a.apply(c.Context(), args[0], body)
			if err == nil {
				return notClean(len(done.Failed) == 0, a.showApplied(done))
			}
			var told *apiError
			if errors.As(err, &told) && told.Applied != nil {
				err = errors.Join(a.showApplied(*told.Applied), err)
			}
			return err
		},
	}
	c.Flags().BoolVar(&body.Canary, "canary", false, "one message of each type first, until a consumer has it")
	return a.changes(c)
}

func (a *app) showApplied(done api.Applied) error {
	if shown, err := a.json(done); shown {
		return err
	}
	a.printf("%s published, %s%s\n", plural(done.Published, "message", "messages"), plural(done.Canaries, "canary", "canaries"), audited(done.Audit))
	for _, f := range done.Failed {
		a.printf("  failed: %s\n", plain(f))
	}
	return nil
}

// apply follows the stream of a replay to its last line.
func (a *app) apply(ctx context.Context, hash string, body api.Apply) (api.Applied, error) {
	c, err := a.client()
	if err != nil {
		return api.Applied{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	resp, err := c.ApplyReplay(ctx, hash, body)
	if err != nil {
		return api.Applied{}, a.unreachable(err)
	}
	defer resp.Body.Close()
	if err := refused(resp); err != nil {
		return api.Applied{}, err
	}
	progress := &bar{a: a}
	defer progress.end()
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	lines := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	for {
		var event api.ApplyEvent
		if err := lines.Decode(&event); err != nil {
			return api.Applied{}, cut(err)
		}
		quiet.Reset(silence)
		switch {
		case event.Applied != nil:
			return *event.Applied, nil
		case event.Problem != nil:
			return api.Applied{}, &apiError{Problem: *event.Problem}
		case event.Progress != nil:
			progress.draw(event.Progress.Done, event.Progress.Total)
		}
	}
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the connection ended")
	}
	return fmt.Errorf("the replay was cut before its end (%w): \"outboxctl audit list\" shows what was done", err)
}
