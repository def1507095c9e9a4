package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

// field prints a line of a description.
func (a *app) field(name, format string, args ...any) {
	a.printf("%-12s "+format+"\n", append([]any{name}, args...)...)
}

// showDetail shows a message; where tells its place from others, for what to type next.
func (a *app) showDetail(d api.Detail, where string) {
	a.field("message", "%s", d.MessageID)
	a.field("where", "%s, partition %d", place(d.Database, d.Side, d.Consumer), d.Partition)
	a.field("type", "%s", plain(d.Type))
	a.field("key", "%s", plain(d.Key))
	a.field("state", "%s", a.stateOf(d))
	if !d.CreatedAt.IsZero() {
		a.field("created", "%s, %s ago", d.CreatedAt.UTC().Format("2006-01-02 15:04:05Z"), a.age(d.CreatedAt))
	}
	a.field("stuck", "%s, for %s", d.StuckAt.UTC().Format("2006-01-02 15:04:05Z"), a.age(d.StuckAt))
	if d.Error != "" {
		a.field("error", "%s (%s)", plain(d.Error), dash(d.Class))
		a.field("attempts", "%d, the last on build %s", d.Attempts, dash(d.Build))
	}
	a.showHeaders("headers", d.Headers)
	a.showPayload("payload", d.Payload)
	if d.Edited {
		a.showPayload("original", d.Original.Payload)
	}
	if len(d.Behind) > 0 {
		a.printf("\nbehind it wait %d:\n", d.BehindTotal)
		a.stuckTable(d.Behind[:min(len(d.Behind), 10)]).write(a, a.out)
	}
	if len(d.Audit) > 0 {
		a.printf("\noperators:\n")
		a.auditTable(d.Audit).write(a, a.out)
	}
	a.hintDetail(d, where)
}

func (a *app) stateOf(d api.Detail) string {
	state := string(d.State)
	switch d.State {
	case api.StateRetrying:
		state += ", next attempt " + a.until(d.NextAttempt)
	case api.StateParked:
		state = a.colored(red, state) + ", waits for an operator"
	case api.StateBehind:
		state += " " + d.Head.MessageID.String() + ", which is " + string(d.Head.State)
	}
	if d.Edited {
		state += ", edited"
	}
	return state
}

func (a *app) hintDetail(d api.Detail, where string) {
	verbs := map[api.State][]string{
		api.StateParked: {"replay", "edit", "skip"}, api.StateRetrying: {"replay", "park", "skip"}, api.StateBehind: {"show"},
	}[d.State]
	id := d.MessageID
	if d.State == api.StateBehind {
		id = d.Head.MessageID
	}
	for i, verb := range verbs {
		line := fmt.Sprintf("outboxctl stuck %s %s%s", verb, id, where)
		if i == 0 {
			a.hint("%s", line)
		} else {
			a.printf("     %s\n", line)
		}
	}
}

func (a *app) showHeaders(title string, headers map[string]string) {
	if len(headers) == 0 {
		return
	}
	a.printf("\n%s:\n", title)
	for _, name := range sorted(headers) {
		a.printf("  %s: %s\n", plain(name), plain(headers[name]))
	}
}

// showPayload shows JSON laid out, other text as it is, and anything else in base64.
func (a *app) showPayload(title string, payload []byte) {
	a.printf("\n%s, %s:\n", title, plural(int64(len(payload)), "byte", "bytes"))
	for _, line := range strings.Split(readable(payload), "\n") {
		a.printf("  %s\n", plain(line))
	}
}

func readable(payload []byte) string {
	var out bytes.Buffer
	if json.Indent(&out, payload, "", "  ") == nil {
		return out.String()
	}
	if text := string(payload); strings.ToValidUTF8(text, "") == text {
		return text
	}
	return "base64: " + base64.StdEncoding.EncodeToString(payload)
}
