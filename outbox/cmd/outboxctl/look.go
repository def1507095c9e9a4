package main

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

func (a *app) getStatus(ctx context.Context) (api.Status, error) {
	return call[api.Status](ctx, a, func(ctx context.Context, c *api.Client) (*http.Response, error) { return c.Status(ctx) })
}

func (a *app) status() *cobra.Command {
	var problems bool
	c := &cobra.Command{
		Use: "status", Short: "Everything at a glance: lag, owners, what is stuck, parked and dead", Args: cobra.NoArgs,
		Long:    "Shows every partition of every outbox and inbox. The exit code is 3 when something is unhealthy.",
		Example: "  outboxctl status --problems",
		RunE: func(c *cobra.Command, _ []string) error {
			status, err := a.getStatus(c.Context())
			if err != nil {
				return err
			}
			if done, err := a.json(status); done {
				return unhealthy(status.Healthy, err)
			}
			for _, line := range a.statusLines(status, a.width(), problems) {
				a.printf("%s\n", line)
			}
			if anyStuck(status) {
				a.hint("outboxctl stuck groups")
			}
			return unhealthy(status.Healthy, nil)
		},
	}
	c.Flags().BoolVarP(&problems, "problems", "p", false, "only partitions where something waits")
	return c
}

func unhealthy(healthy bool, err error) error {
	if err == nil && !healthy {
		err = errUnhealthy
	}
	return err
}

func anyStuck(s api.Status) bool {
	for _, p := range s.Partitions {
		if p.Parked+p.Retrying+p.Behind > 0 {
			return true
		}
	}
	return false
}

// statusLines are the status as a screen shows it.
func (a *app) statusLines(s api.Status, width int, problems bool) []string {
	var lag, parked, retrying, behind int64
	t := newTable(left("DATABASE"), left("SIDE"), left("CONSUMER"), right("PART"), flex("OWNER"), right("LAG"), right("BEHIND BY"),
		right("RETRYING"), right("PARKED"), right("WAITING"), right("DEAD"))
	for _, p := range s.Partitions {
		lag, parked, retrying, behind = lag+max(p.Lag, 0), parked+p.Parked, retrying+p.Retrying, behind+p.Behind
		quiet := p.Owner != "" && p.Lag <= 0 && p.Parked+p.Retrying+p.Behind == 0 && p.Dead <= 0
		if problems && quiet {
			continue
		}
		r := t.add(plain(p.Database), string(p.Side), plain(p.Consumer), fmt.Sprint(p.Partition), owner(p.Owner), lagOf(p), seconds(p.LagSeconds),
			count(p.Retrying), count(p.Parked), count(p.Behind), dead(p))
		switch {
		case p.Parked > 0 || p.Dead > 0 || p.Owner == "":
			r.color = red
		case p.Retrying > 0 || p.LagSeconds > 10:
			r.color = yellow
		}
	}
	head := a.colored(green, "healthy")
	if !s.Healthy {
		head = a.colored(red, "UNHEALTHY")
	}
	lines := []string{fmt.Sprintf("%s at %s: lag %d, %d parked, %d retrying, %d waiting behind them",
		head, s.At.UTC().Format("15:04:05Z"), lag, parked, retrying, behind)}
	for _, p := range together(s.Problems) {
		lines = append(lines, "  - "+plain(p))
	}
	if len(t.rows) == 0 {
		return lines
	}
	return append(append(lines, ""), t.lines(width, a.colored)...)
}

var ofPartition = regexp.MustCompile(`^(.+), partition (\d+): (.+)$`)

// together says once what is so of several partitions.
func together(problems []string) (lines []string) {
	type problem struct{ where, what string }
	partitions := map[problem][]string{}
	for _, text := range problems {
		if m := ofPartition.FindStringSubmatch(text); m != nil {
			partitions[problem{m[1], m[3]}] = append(partitions[problem{m[1], m[3]}], m[2])
		}
	}
	for _, text := range problems {
		m := ofPartition.FindStringSubmatch(text)
		if m == nil {
			lines = append(lines, text)
			continue
		}
		switch all := partitions[problem{m[1], m[3]}]; {
		case len(all) == 1:
			lines = append(lines, text)
		case all[0] == m[2]:
			lines = append(lines, fmt.Sprintf("%s, partitions %s: %s", m[1], strings.Join(all, " "), m[3]))
		}
	}
	return lines
}

func owner(text string) string {
	if text == "" {
		return "nobody"
	}
	return plain(text)
}

// dead is empty for an outbox, which has no dead-letter queue.
func dead(p api.PartitionStatus) string {
	if p.Side == api.Outbox {
		return ""
	}
	return count(p.Dead)
}

// lagOf marks a figure that is an estimate.
func lagOf(p api.PartitionStatus) string {
	if !p.LagExact && p.Lag > 0 {
		return "~" + count(p.Lag)
	}
	return count(p.Lag)
}

func (a *app) why() *cobra.Command {
	return &cobra.Command{
		Use: "why MESSAGE-ID|KEY", Short: "Where a message came to, or all messages of a key such as a booking id", Args: cobra.ExactArgs(1),
		Example: "  outboxctl why 7d0e8f3a-2f6f-4a1b-9c01-0199e4a27b7c",
		RunE: func(c *cobra.Command, args []string) error {
			found, err := call[api.WhereList](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) { return c.Why(ctx, args[0]) })
			if err != nil {
				return err
			}
			if done, err := a.json(found); done {
				return err
			}
			for i, w := range found.Items {
				if i > 0 {
					a.printf("\n")
				}
				a.showWhere(w)
			}
			return a.warn(found.Warnings)
		},
	}
}

func (a *app) showWhere(w api.Where) {
	a.printf("%s\n", a.colored(bold, w.MessageID.String()))
	if w.Type != "" {
		a.field("  type", "%s", plain(w.Type))
		a.field("  key", "%s, partition %d", plain(w.Key), w.Partition)
	}
	a.field("  answer", "%s", plain(w.Verdict))
	if !w.CreatedAt.IsZero() {
		a.field("  committed", "%s in %s, %s ago", clock(w.CreatedAt), dash(w.Database), a.age(w.CreatedAt))
	}
	switch {
	case !w.RelayedAfter.IsZero() && !w.RelayedAt.IsZero():
		a.field("  relayed", "between %s and %s", clock(w.RelayedAfter), clock(w.RelayedAt))
	case !w.RelayedAt.IsZero():
		a.field("  relayed", "by %s", clock(w.RelayedAt))
	case w.Relay != "":
		a.field("  relay", "%s", plain(w.Relay))
	}
	t := newTable(left("  CONSUMER"), left("STATE"), left("AT"), flex("WHY"))
	for _, c := range w.Consumers {
		at := ""
		if !c.At.IsZero() {
			at = clock(c.At)
		}
		t.add("  "+plain(c.Consumer), string(c.State), at, plain(c.Stuck.Error))
	}
	if len(w.Consumers) > 0 {
		t.write(a, a.out)
	}
	if stuckSomewhere(w) {
		a.hint("outboxctl stuck show %s", w.MessageID)
	}
}

func stuckSomewhere(w api.Where) bool {
	if w.Stuck.State != "" {
		return true
	}
	for _, c := range w.Consumers {
		if c.Stuck.State != "" {
			return true
		}
	}
	return false
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000Z") }

func (a *app) doctor() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "doctor", Short: "Check permissions, topology, clocks, transactions and versions; each finding has its remedy", Args: cobra.NoArgs,
		Long:    "Checks what messages depend on. The exit code is 3 when a finding is critical.",
		Example: "  outboxctl doctor --all",
		RunE: func(c *cobra.Command, _ []string) error {
			found, err := call[api.Doctor](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) { return c.Doctor(ctx) })
			if err != nil {
				return err
			}
			if done, err := a.json(found); done {
				return unhealthy(found.Healthy, err)
			}
			a.showFindings(found.Findings, all)
			if err := a.warn(found.Warnings); err != nil && found.Healthy {
				return err
			}
			return unhealthy(found.Healthy, nil)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also what is well")
	return c
}

func (a *app) showFindings(findings []api.Finding, all bool) {
	tally := map[api.Severity]int{}
	t := newTable(left("SEVERITY"), left("CHECK"), left("DATABASE"), flex("SUBJECT"))
	for _, f := range findings {
		tally[f.Severity]++
		if f.Severity == api.Ok && !all {
			continue
		}
		r := t.add(strings.ReplaceAll(string(f.Severity), "_", " "), plain(f.Check), plain(f.Database), plain(f.Subject))
		r.note("%s", plain(f.Message))
		if f.Remedy != "" {
			r.note("=> %s", plain(f.Remedy))
		}
		r.color = map[api.Severity]string{api.Critical: red, api.Warning: yellow}[f.Severity]
	}
	if len(t.rows) > 0 {
		for i := range t.rows {
			t.rows[i].notes = a.wrapped(t.rows[i].notes)
		}
		t.write(a, a.out)
		a.printf("\n")
	}
	a.printf("%d critical, %s, %d well, %d not checked\n", tally[api.Critical], plural(int64(tally[api.Warning]), "warning", "warnings"), tally[api.Ok], tally[api.NotChecked])
}

// wrapped breaks notes at words, so that none is cut.
func (a *app) wrapped(notes []string) (lines []string) {
	width := a.width() - 4
	for _, n := range notes {
		for width > 0 && len([]rune(n)) > width {
			runes := []rune(n)
			at := strings.LastIndexByte(string(runes[:width]), ' ')
			if at <= 0 {
				break
			}
			lines = append(lines, n[:at])
			n = "   " + n[at+1:]
		}
		lines = append(lines, n)
	}
	return lines
}

func (a *app) reconcile() *cobra.Command {
	var from, to string
	var grace time.Duration
	c := &cobra.Command{
		Use: "reconcile", Short: "Compare what was committed with what was relayed and consumed; exit code 1 unless clean", Args: cobra.NoArgs,
		Example: "  outboxctl reconcile --from 24h",
		RunE: func(c *cobra.Command, _ []string) error {
			begin, end, err := a.span(from, to)
			if err != nil {
				return err
			}
			if grace < time.Second {
				return usagef("--grace is %s: want 1s or longer", grace)
			}
			a.patient(c)
			found, err := call[api.Reconciliation](c.Context(), a, func(ctx context.Context, c *api.Client) (*http.Response, error) {
				return c.Reconcile(ctx, &api.ReconcileParams{From: begin, To: end, Grace: int(grace / time.Second)})
			})
			if err != nil {
				return err
			}
			if done, err := a.json(found); done {
				return notClean(found.Clean, err)
			}
			a.showReconciliation(found)
			return notClean(found.Clean, nil)
		},
	}
	spanFlags(c, &from, &to, "1h")
	c.Flags().DurationVar(&grace, "grace", 10*time.Second, "time that a message may take before it counts as a gap")
	return c
}

func notClean(clean bool, err error) error {
	if err == nil && !clean {
		err = errNotClean
	}
	return err
}

func (a *app) showReconciliation(r api.Reconciliation) {
	a.printf("%s committed from %s to %s: %d on their way, %d stuck, %s, %s, %d in inboxes alone\n",
		plural(r.Messages, "message", "messages"), clock(r.From), clock(r.To), r.Pending, r.Stuck, plural(r.GapsTotal, "gap", "gaps"),
		plural(r.Duplicates, "duplicate", "duplicates"), r.Unknown)
	if r.Clean {
		a.printf("%s\n", a.colored(green, "clean"))
		return
	}
	a.printf("%s\n", a.colored(red, "NOT CLEAN"))
	for _, text := range r.NotChecked {
		a.printf("not checked: %s\n", plain(text))
	}
	if len(r.Gaps) == 0 {
		return
	}
	a.printf("\n")
	t := newTable(left("MESSAGE"), left("DATABASE"), left("CONSUMER"), flex("TYPE"), flex("KEY"))
	for _, g := range r.Gaps {
		t.add(g.MessageID.String(), plain(g.Database), plain(g.Consumer), plain(g.Type), plain(g.Key)).note("%s", plain(g.Why))
	}
	t.write(a, a.out)
	if int64(len(r.Gaps)) < r.GapsTotal {
		a.printf("and %d more\n", r.GapsTotal-int64(len(r.Gaps)))
	}
	a.hint("outboxctl why %s", r.Gaps[0].MessageID)
}

// spanFlags are --from and --to.
func spanFlags(c *cobra.Command, from, to *string, fallback string) {
	c.Flags().StringVar(from, "from", fallback, "begin: a time such as 2030-01-02T15:04:05Z, or how long ago, such as 2h")
	c.Flags().StringVar(to, "to", "0s", "end, like --from")
}

// span reads two points in time.
func (a *app) span(from, to string) (begin, end time.Time, err error) {
	now := a.now().UTC()
	if begin, err = moment(now, "--from", from); err != nil {
		return begin, end, err
	}
	if end, err = moment(now, "--to", to); err != nil {
		return begin, end, err
	}
	if !begin.Before(end) {
		return begin, end, usagef("--from must be before --to")
	}
	return begin, end, nil
}

func moment(now time.Time, flag, text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, usagef("%s is %q: want a time such as 2030-01-02T15:04:05Z, or how long ago, such as 2h", flag, text)
	}
	return at, nil
}
