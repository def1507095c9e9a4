package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

func (a *app) stuck() *cobra.Command {
	return group("stuck", "What is stuck on either side, and the verbs that move it", "  outboxctl stuck groups",
		a.stuckGroups(), a.stuckList(), a.stuckShow(), a.stuckVerb("replay"), a.stuckVerb("skip"), a.stuckVerb("park"), a.stuckEdit())
}

func (a *app) stuckGroups() *cobra.Command {
	var f filter
	c := &cobra.Command{
		Use: "groups", Short: "What is stuck, a line for each way to fail", Args: cobra.NoArgs,
		Example: "  outboxctl stuck groups --database catalog",
		RunE: func(c *cobra.Command, _ []string) error {
			want, err := f.of(c.Context(), a)
			if err != nil {
				return err
			}
			groups, err := a.groups(c.Context(), want)
			if err != nil {
				return err
			}
			if done, err := a.json(groups); done {
				return err
			}
			a.showGroups(groups.Items)
			return a.warn(groups.Warnings)
		},
	}
	f.flags(c)
	return c
}

// place is where something is stuck, in a word or two.
func place(database string, side api.Side, consumer string) string {
	if side == api.Outbox {
		return plain(database) + " outbox"
	}
	if consumer == database {
		return plain(consumer) + " inbox"
	}
	return plain(database) + " inbox of " + plain(consumer)
}

func (a *app) showGroups(groups []api.Group) {
	if len(groups) == 0 {
		a.printf("nothing is stuck\n")
		return
	}
	t := newTable(left("GROUP"), flex("WHERE"), flex("TYPE"), left("CLASS"), right("PARKED"), right("RETRYING"), right("BEHIND"), right("KEYS"), right("OLDEST"))
	for _, g := range groups {
		r := t.add(groupName(g), place(g.Database, g.Side, g.Consumer), plain(g.Type), dash(g.Class), count(int64(g.Parked)),
			count(int64(g.Retrying)), count(int64(g.Behind)), count(int64(g.Keys)), a.age(g.Oldest))
		r.note("%s", plain(g.Error))
		r.note("%s", builds(g.Builds))
	}
	t.write(a, a.out)
	a.hint("outboxctl stuck list --group %s", groupName(groups[0]))
	a.printf("     outboxctl stuck replay --group %s\n", groupName(groups[0]))
}

// builds says which versions failed and whether they run.
func builds(list []api.Build) string {
	var texts []string
	for _, b := range list {
		state := "no longer runs"
		if b.Running {
			state = "is running"
		}
		texts = append(texts, fmt.Sprintf("%d failed on build %s, which %s", b.Messages, dash(b.Build), state))
	}
	return strings.Join(texts, "; ")
}

func (a *app) stuckList() *cobra.Command {
	var f filter
	var after string
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "Stuck messages, a line each", Args: cobra.NoArgs,
		Example: "  outboxctl stuck list --state parked --older-than 1h",
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 1 || limit > 500 {
				return usagef("--limit is %d: want 1 to 500", limit)
			}
			want, err := f.of(c.Context(), a)
			if err != nil {
				return err
			}
			page, err := a.list(c.Context(), want, after, limit)
			if err != nil {
				return err
			}
			if done, err := a.json(page); done {
				return err
			}
			a.showStuck(page)
			return a.warn(page.Warnings)
		},
	}
	f.flags(c)
	c.Flags().StringVar(&after, "after", "", "go on behind this point, as the page before says")
	c.Flags().IntVarP(&limit, "limit", "n", 50, "most lines, up to 500")
	return c
}

func (a *app) showStuck(page api.StuckPage) {
	if len(page.Items) == 0 {
		a.printf("no stuck message fits\n")
		return
	}
	a.stuckTable(page.Items).write(a, a.out)
	a.hint("outboxctl stuck show %s", page.Items[0].MessageID)
	if page.Next != "" {
		a.printf("     the next page: the same with --after %s\n", page.Next)
	}
}

func (a *app) stuckTable(items []api.Stuck) *table {
	t := newTable(left("MESSAGE"), flex("WHERE"), flex("TYPE"), flex("KEY"), left("STATE"), right("TRIES"), right("NEXT"), right("AGE"))
	for _, m := range items {
		next := ""
		if m.State == api.StateRetrying {
			next = a.until(m.NextAttempt)
		}
		state := string(m.State)
		if m.Edited {
			state += ", edited"
		}
		r := t.add(m.MessageID.String(), place(m.Database, m.Side, m.Consumer), plain(m.Type), plain(m.Key), state, count(int64(m.Attempts)), next, a.age(m.StuckAt))
		r.note("%s", plain(m.Error))
	}
	return t
}

func (a *app) stuckShow() *cobra.Command {
	var f filter
	c := &cobra.Command{
		Use: "show MESSAGE-ID", Short: "One stuck message: payload, headers, attempts, and who waits behind it", Args: cobra.ExactArgs(1),
		Example: "  outboxctl stuck show 0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01",
		RunE: func(c *cobra.Command, args []string) error {
			details, err := a.details(c.Context(), args[0], f)
			if err != nil {
				return err
			}
			if done, err := a.json(details); done {
				return err
			}
			for i, d := range details {
				where := ""
				if len(details) > 1 {
					where = placeFlagsOf(d)
				}
				if i > 0 {
					a.printf("\n")
				}
				a.showDetail(d, where)
			}
			return nil
		},
	}
	placeFlags(c, &f)
	return c
}

// placeFlags are those that tell one place of a message from another.
func placeFlags(c *cobra.Command, f *filter) {
	c.Flags().StringVarP(&f.database, "database", "d", "", "where it is stuck, if at several places")
	c.Flags().StringVar(&f.side, "side", "", "outbox or inbox")
	c.Flags().StringVar(&f.consumer, "consumer", "", "a consumer, on the inbox's side")
	must(c.RegisterFlagCompletionFunc("side", fixed("outbox", "inbox")))
}

// details is the message at each place where it is stuck.
func (a *app) details(ctx context.Context, text string, f filter) ([]api.Detail, error) {
	id, err := messageID(text)
	if err != nil {
		return nil, err
	}
	want, err := f.of(ctx, a)
	if err != nil {
		return nil, err
	}
	want.MessageID = id
	page, err := a.list(ctx, want, "", 50)
	if err != nil {
		return nil, err
	}
	if len(page.Items) == 0 {
		return nil, fmt.Errorf("message %s is not stuck: \"outboxctl why %s\" says where it is", id, id)
	}
	var details []api.Detail
	for _, m := range page.Items {
		d, err := call[api.Detail](ctx, a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
			return c.ShowStuck(ctx, id, &api.ShowStuckParams{Database: m.Database, Side: m.Side, Consumer: m.Consumer})
		})
		if err != nil {
			return nil, err
		}
		details = append(details, d)
	}
	return details, nil
}

// placeFlagsOf names one of a message's places on a command line.
func placeFlagsOf(d api.Detail) string {
	text := fmt.Sprintf(" --database %s --side %s", plain(d.Database), d.Side)
	if d.Consumer != "" {
		text += " --consumer " + plain(d.Consumer)
	}
	return text
}

// bulkVerb is a verb over stuck messages, in words and in the API's.
type bulkVerb struct {
	short, long, question, past, reason string
	send                                func(ctx context.Context, c *api.Client, dry bool, body api.Command) (*http.Response, error)
}

var bulkVerbs = map[string]bulkVerb{
	"replay": {
		short: "Let heads be tried again at once; what waits behind them goes after", question: "Replay these messages?", past: "replayed", reason: "fixed by build 1.4.2",
		long: "Lets heads be tried again at once, with their attempts counted from zero. What waits behind them goes after them.",
		send: func(ctx context.Context, c *api.Client, dry bool, body api.Command) (*http.Response, error) {
			return c.ReplayStuck(ctx, &api.ReplayStuckParams{DryRun: dry}, body)
		},
	},
	"skip": {
		short: "Give messages up, so that what waits behind them goes on", question: "Give these messages up?", past: "given up", reason: "the customer was called",
		long: "Gives messages up: they are never handled here, and what waits behind them goes on. The audit log keeps their ids.",
		send: func(ctx context.Context, c *api.Client, dry bool, body api.Command) (*http.Response, error) {
			return c.SkipStuck(ctx, &api.SkipStuckParams{DryRun: dry}, body)
		},
	},
	"park": {
		short: "Let heads that are tried again wait for an operator, so that they can be edited", question: "Park these messages?", past: "parked", reason: "its price is missing",
		long: "Lets heads that are tried again by themselves wait for an operator instead: edit them then, and replay them. What waits\n" +
			"behind them goes on waiting, in its order.",
		send: func(ctx context.Context, c *api.Client, dry bool, body api.Command) (*http.Response, error) {
			return c.ParkStuck(ctx, &api.ParkStuckParams{DryRun: dry}, body)
		},
	},
}

const bulkHelp = "\n\nMany messages are done piece by piece, each with its entry in the audit log. What is interrupted says how to go on\n(--after)."

func (a *app) stuckVerb(verb string) *cobra.Command {
	var f filter
	var all bool
	v := bulkVerbs[verb]
	b := bulk{app: a, past: v.past, send: v.send}
	c := &cobra.Command{
		Use: verb + " [MESSAGE-ID]", Short: v.short, Long: v.long + bulkHelp, Args: cobra.MaximumNArgs(1),
		Example: fmt.Sprintf("  outboxctl stuck %s --group 3f9a1c2b --reason %q\n  outboxctl stuck %[1]s 0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01 --dry-run", verb, v.reason),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && f.empty() && !all:
				return usagef("name a message, choose with --group and the like, or say --all")
			case all && (len(args) > 0 || !f.empty()):
				return usagef("--all is everything that is stuck: leave out what chooses some of it")
			case b.limit < 0:
				return usagef("--limit is %d: want 0 or more", b.limit)
			}
			if err := a.mayChange(); err != nil {
				return err
			}
			var id uuid.UUID
			var err error
			if len(args) == 1 {
				if id, err = messageID(args[0]); err != nil {
					return err
				}
			}
			if b.body.Filter, err = f.of(c.Context(), a); err != nil {
				return err
			}
			b.body.Filter.MessageID = id
			return change(c.Context(), a, v.question, b.run, func(r api.Result) (bool, error) { return a.showResult(v.past, r) })
		},
	}
	f.flags(c)
	c.Flags().BoolVar(&all, "all", false, "everything that is stuck")
	c.Flags().IntVarP(&b.limit, "limit", "n", 0, "most messages; 0 is all that fit")
	c.Flags().StringVar(&b.body.After, "after", "", "go on where the same command ended, as it says")
	return a.changes(c)
}

// showResult says what a verb did or would do.
func (a *app) showResult(past string, r api.Result) (any bool, err error) {
	if done, err := a.json(r); done {
		return r.Changed > 0, errors.Join(err, a.warn(r.Warnings))
	}
	if r.DryRun {
		a.printf("dry run: %s, %d would be %s\n", plural(int64(r.Matched), "message fits", "messages fit"), r.Changed, past)
	} else {
		a.printf("%s, %d %s%s\n", plural(int64(r.Matched), "message fits", "messages fit"), r.Changed, past, audited(r.AuditIds))
	}
	if len(r.Left) > 0 {
		a.printf("\nleft as they are:\n")
		t := newTable(left("MESSAGE"), flex("WHERE"), left("STATE"), left("BECAUSE"))
		for _, l := range r.Left[:min(len(r.Left), shownLeft)] {
			t.add(l.MessageID.String(), place(l.Database, l.Side, l.Consumer), string(l.State), string(l.Code)).note("%s", plain(l.Reason))
		}
		t.write(a, a.out)
		if more := r.Matched - r.Changed - min(len(r.Left), shownLeft); more > 0 {
			a.printf("and %d more\n", more)
		}
	}
	if r.More {
		a.printf("\nmore fit: the same with --after %s goes on with them\n", r.Next)
	}
	return r.Changed > 0, a.warn(r.Warnings)
}

// audited names the entries of the audit log.
func audited(refs []api.AuditRef) string {
	if len(refs) == 0 {
		return ""
	}
	var texts []string
	for _, r := range refs[:min(len(refs), 4)] {
		texts = append(texts, fmt.Sprintf("%s/%d", plain(r.Database), r.ID))
	}
	if len(refs) > 4 {
		texts = append(texts, fmt.Sprintf("and %d more", len(refs)-4))
	}
	return " (audit " + strings.Join(texts, ", ") + ")"
}
