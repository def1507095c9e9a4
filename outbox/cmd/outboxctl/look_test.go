package main_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// trouble is a town in which something is stuck at every place that there is.
type trouble struct {
	*town
	fine, head, follower, unrouted, behind, odd string
	bin                                         string // the dead-letter queue with something in it
}

func newTrouble(t *testing.T) *trouble {
	t.Helper()
	w := &trouble{town: newTown(t)}
	w.consume("billing")
	w.consume("mail")
	w.fail("billing", "poison", inbox.Permanent(errors.New("no such seat 17")))
	w.fail("mail", "poison", errors.New("the mail server is away"))
	w.fine = w.write("fine", order{Key: "fine"})[0]
	w.handled("billing", w.fine) // the relay works: no attempt has an outcome that is not known
	w.handled("mail", w.fine)
	ids := w.write("poison", order{Key: "poison", N: 1}, order{Key: "poison", N: 2})
	w.head, w.follower = ids[0], ids[1]
	ids = w.write("lost", order{Kind: lost, Key: "lost", N: 1}, order{Key: "lost", N: 2})
	w.unrouted, w.behind = ids[0], ids[1]
	w.stuckAt("outbox", w.behind)
	w.odd = w.town.odd("odd", "odd")
	w.publish("billing.0", "nobody can read this")
	w.bin = "billing.0.dead"
	for _, id := range []string{w.head, w.follower} {
		w.stuckAt("billing", id)
		w.stuckAt("mail", id)
	}
	for _, id := range []string{w.unrouted, w.behind, w.odd} {
		w.stuckAt("outbox", id)
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return strings.Contains(w.run("dead", "list").out, "billing.0.dead") }, "a dead letter")
	w.settle()
	return w
}

// settle makes what changes by itself stand still: the route's probes, and ages.
func (w *trouble) settle() {
	w.t.Helper()
	w.exec(w.shop, `UPDATE outbox.stuck SET attempts = 3, fingerprint = class || ' ' || topic WHERE attempts > 0`)
	w.age()
}

func TestLooking(t *testing.T) {
	t.Parallel()
	w := newTrouble(t)
	w.relay.stop() // the API is another's; nothing is tried any more
	w.settle()
	look := w.start("TW_RELAY_DATABASES=shop=postgres://nobody@127.0.0.1:1/none")
	w.console, w.viewer = w.at(look, w.console), w.at(look, w.viewer)
	w.exec(w.shop, `UPDATE outbox.stuck SET next_attempt = clock_timestamp() + interval '90 minutes' WHERE next_attempt IS NOT NULL AND NOT parked`)
	w.exec(w.inboxes["mail"], `UPDATE inbox.stuck SET next_attempt = clock_timestamp() + interval '90 minutes' WHERE next_attempt IS NOT NULL`)
	groups := asJSON[api.GroupList](w.viewer, 0, "stuck groups")
	if len(groups.Items) != 4 {
		t.Errorf("%d groups: %+v", len(groups.Items), groups)
	}
	for name, line := range map[string]string{
		"stuck-groups": "stuck groups", "stuck-list": "stuck list", "stuck-show-parked": "stuck show " + w.head + " --database billing",
		"stuck-show-both": "stuck show " + w.follower, "stuck-show-outbox": "stuck show " + w.unrouted, "stuck-show-odd": "stuck show " + w.odd,
		"dead-list": "dead list", "stuck-list-page": "stuck list --limit 1 --state parked --type " + placed,
		"stuck-list-none": "stuck list --key nothing", "stuck-groups-none": "stuck groups --class nothing",
		"audit-none": "audit list", "audit-verify": "audit verify",
	} {
		t.Run(name, func(t *testing.T) {
			r := w.viewer.want(0, words(line))
			golden(t, name, strings.TrimRight(normal(r.out+r.err, w.names), "\n")+"\n")
			for _, text := range strings.Split(strings.TrimSuffix(r.out, "\n"), "\n") {
				if strings.TrimRight(text, " ") != text {
					t.Errorf("blanks at the end of %q", text)
				}
			}
		})
	}
	narrow := w.viewer.with("COLUMNS=100").want(0, words("stuck list"))
	for _, line := range strings.Split(narrow.out, "\n") {
		if len([]rune(line)) > 100 && !strings.Contains(line, "->") {
			t.Errorf("wider than 100 columns: %q", line)
		}
	}
	t.Run("status", func(t *testing.T) {
		r := w.viewer.want(3, words("status"), "UNHEALTHY", "outboxctl stuck groups")
		owner := asJSON[api.Status](w.viewer, 3, "status").Partitions
		for _, p := range owner {
			if p.Owner != "" {
				w.names[p.Owner] = "OWNER"
			}
		}
		golden(t, "status", loose(normal(r.out+r.err, w.names)))
		problems := w.viewer.want(3, words("status --problems"))
		if !strings.Contains(problems.out, "nobody") || strings.Count(problems.out, "\n") > strings.Count(r.out, "\n") {
			t.Errorf("only partitions with problems:\n%s", problems.out)
		}
	})
	t.Run("json", func(t *testing.T) {
		if got := asJSON[api.StuckPage](w.viewer, 0, "stuck list").Items; len(got) != 7 {
			t.Errorf("%d stuck messages", len(got))
		}
		if got := asJSON[[]api.Detail](w.viewer, 0, "stuck show "+w.follower); len(got) != 2 || got[0].Head.MessageID.String() != w.head {
			t.Errorf("details: %+v", got)
		}
		if got := asJSON[api.DeadList](w.viewer, 0, "dead list").Items; len(got) != 1 || got[0].Queue != w.bin {
			t.Errorf("dead letters: %+v", got)
		} else {
			shown := asJSON[api.DeadMessage](w.viewer, 0, "dead show "+w.bin+" "+got[0].Fingerprint)
			if string(shown.Payload) != "nobody can read this" {
				t.Errorf("%+v", shown)
			}
			w.names[got[0].Fingerprint] = strings.Repeat("f", len(got[0].Fingerprint))
			r := w.viewer.want(0, words("dead show "+w.bin+" "+got[0].Fingerprint))
			golden(t, "dead-show", normal(r.out+r.err, w.names))
			w.viewer.want(0, words("dead show billing.0 "+got[0].Fingerprint), "nobody can read this")
		}
		asJSON[api.WhereList](w.viewer, 0, "why poison")
		asJSON[api.CursorList](w.viewer, 0, "cursor show")
		asJSON[api.AuditPage](w.viewer, 0, "audit list")
		asJSON[api.AuditReportList](w.viewer, 0, "audit verify")
		doctor := asJSON[api.Doctor](w.viewer, 3, "doctor")
		if doctor.Healthy || len(doctor.Findings) < 10 {
			t.Errorf("doctor: %+v", doctor)
		}
		for _, f := range doctor.Findings {
			if (f.Severity == api.Critical || f.Severity == api.Warning) && f.Remedy == "" {
				t.Errorf("no remedy: %+v", f)
			}
		}
	})
	t.Run("stable", func(t *testing.T) {
		for _, line := range []string{"stuck groups", "stuck list", "stuck show " + w.follower, "dead list", "cursor show", "audit verify", "why poison"} {
			first := w.viewer.run(append(words(line), "-o", "json")...)
			for range 3 {
				if again := w.viewer.run(append(words(line), "-o", "json")...); again.out != first.out {
					t.Errorf("%s is not the same twice:\n%s%s", line, first.out, again.out)
				}
			}
		}
	})
	t.Run("doctor", func(t *testing.T) {
		some, all := w.viewer.want(3, words("doctor"), "critical", "no-relay", "=> "), w.viewer.want(3, words("doctor --all"), "well")
		if len(all.out) <= len(some.out) {
			t.Error("--all shows no more")
		}
	})
	t.Run("pages", func(t *testing.T) {
		var seen []uuid.UUID
		page := asJSON[api.StuckPage](w.viewer, 0, "stuck list --limit 2")
		for rounds := 0; rounds < 10; rounds++ {
			for _, m := range page.Items {
				seen = append(seen, m.MessageID)
			}
			if page.Next == "" {
				break
			}
			page = asJSON[api.StuckPage](w.viewer, 0, "stuck list --limit 2 --after "+page.Next)
		}
		if len(seen) != 7 {
			t.Errorf("%d messages on all pages, want 7", len(seen))
		}
		w.viewer.want(1, words("stuck list --after nonsense"), "after is not the next of a page before")
	})
	t.Run("filters", func(t *testing.T) {
		for line, want := range map[string]int{
			"--database billing": 2, "--service billing": 2, "--side outbox": 3, "--side inbox": 4, "--consumer mail": 2, "--type " + lost: 2, "--key poison": 4,
			"--class permanent": 1, "--state parked": 2, "--state retrying": 2, "--state behind": 3, "--older-than 1h": 7, "--older-than 2h": 0,
		} {
			if got := len(asJSON[api.StuckPage](w.viewer, 0, "stuck list "+line).Items); got != want {
				t.Errorf("stuck list %s: %d messages, want %d", line, got, want)
			}
		}
		for _, g := range groups.Items {
			line := w.viewer.want(0, words("stuck groups")).out
			name := ""
			for _, text := range strings.Split(line, "\n") {
				if strings.Contains(text, g.Class) && strings.Contains(text, g.Database) {
					name = strings.Fields(text)[0]
				}
			}
			got := asJSON[api.StuckPage](w.viewer, 0, "stuck list --group "+name).Items
			if len(got) != g.Parked+g.Retrying {
				t.Errorf("group %s has %d messages, want %d", name, len(got), g.Parked+g.Retrying)
			}
		}
		w.viewer.want(2, words("stuck list --group ffffffff"), `there is no group "ffffffff" now`)
	})
	t.Run("unknown", func(t *testing.T) {
		for line, says := range map[string]string{
			"stuck show " + someID: "is not stuck: \"outboxctl why", "stuck list --database nope": `there is no database "nope"`,
			"dead list --queue nope": `there is no queue "nope"`, "dead show nope abc": `there is no queue "nope"`, "dead show " + w.bin + " abc": "no message abc",
			"cursor show -d nope": `there is no database "nope"`, "audit list -d nope": `there is no database "nope"`, "audit verify -d nope": `there is no database "nope"`,
			"replay plan -d nope --from 1h": `there is no database "nope"`, "replay plan -d shop --from 1h --to-queue nope": "nope",
			"stuck replay " + someID + " --dry-run": "is not stuck", "stuck skip " + someID + " --dry-run": "is not stuck",
			"stuck edit " + someID + " --dry-run --header a=b": "is not stuck", "cursor rebase -d nope --dry-run": `there is no database "nope"`,
			"dead redrive nope --all --dry-run": `there is no queue "nope"`, "dead discard " + w.bin + " abc --dry-run": "holds none of these messages",
			"audit verify -d shop --head " + strings.Repeat("a", 64): "",
		} {
			r := w.viewer.want(1, words(line), says)
			if strings.Contains(r.err, "internal error") || strings.Contains(r.err, "not found: not found") {
				t.Errorf("%s: %s", line, r.err)
			}
		}
		w.run("replay", "apply", "abc", "--yes", "--reason", "x").check(t, 1, words("replay apply abc"), `there is no plan "abc"`)
		w.viewer.want(0, words("why "+someID), "no outbox holds a message with this id")
		w.viewer.want(0, words("why nothing"), "no outbox holds a message with this id or key (nothing)")
	})
	t.Run("tokens", func(t *testing.T) {
		w.viewer.with("TW_ADMIN_TOKEN=twa_wrong").want(1, words("status"), "the API does not know this token")
		w.viewer.want(1, words("stuck skip --all --yes --reason x"), "this takes an operator's token")
		w.viewer.want(1, words("replay apply abc --yes --reason x"), "this takes an operator's token")
	})
	if n := w.audited(); n != 0 {
		t.Errorf("looking wrote %d audit entries", n)
	}
}

func TestAllIsWell(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.consume("billing")
	w.consume("mail")
	id := w.write("fine", order{Key: "a"})[0]
	w.handled("billing", id)
	w.handled("mail", id)
	var status result
	outboxtest.Eventually(t, 30*time.Second, func() bool { // and the cursor stored
		status = w.run("status")
		return status.code == 0 && strings.Contains(status.out, "lag 0,")
	}, "healthy")
	status.check(t, 0, words("status"), "healthy at", "lag 0, 0 parked, 0 retrying, 0 waiting behind them")
	quiet := w.want(0, words("status -p"))
	if strings.Contains(quiet.out, "DATABASE") {
		t.Errorf("status -p shows quiet partitions:\n%s", quiet.out)
	}
	w.want(0, words("cursor show -d shop"), "the same")
	w.want(0, words("stuck groups"), "nothing is stuck")
	w.want(0, words("dead list"), "no dead letters")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return w.run(words("reconcile --grace 1s")...).code == 0 }, "clean")
	w.want(0, words("reconcile --grace 1s --from 1h"), "1 message committed from", "0 gaps", "clean")
	if r := asJSON[api.Reconciliation](w.console, 0, "reconcile --grace 1s"); !r.Clean || r.Messages != 1 {
		t.Errorf("%+v", r)
	}
	r := w.run("doctor")
	if r.code != 0 && !strings.Contains(r.out, "critical") {
		t.Errorf("doctor: %d\n%s%s", r.code, r.out, r.err)
	}
	// What a consumer has lost is a gap.
	w.exec(w.inboxes["mail"], `DELETE FROM inbox.messages`)
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		r := w.run(words("reconcile --grace 1s")...)
		return r.code == 1 && strings.Contains(r.out, "NOT CLEAN")
	}, "not clean")
	gap := w.want(1, words("reconcile --grace 1s"), "1 gap", id, "mail", "-> outboxctl why "+id)
	golden(t, "reconcile-gap", normal(gap.out+gap.err, w.names))
	// A cursor of another server.
	w.exec(w.shop, `UPDATE outbox.identity SET timeline = '00000099'`)
	w.want(3, words("cursor show -d shop"), "ANOTHER", "outboxctl cursor rebase")
	// A broken chain.
	if head := asJSON[api.AuditReportList](w.console, 0, "audit verify -d shop").Items[0].Head; head != "" {
		t.Errorf("the head of an empty log is %q", head)
	}
}
