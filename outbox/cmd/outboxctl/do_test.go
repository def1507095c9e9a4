package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// yes makes a command do it.
func yes(line string) []string { return append(words(line), "--yes", "--reason", "the test wants it") }

// state is everything that a dry run must leave as it is.
func (w *town) state() string {
	w.t.Helper()
	text := get[string](w, w.shop, `
		SELECT coalesce((SELECT jsonb_agg(to_jsonb(s) - 'attempts' - 'next_attempt' - 'claim' ORDER BY seq) FROM outbox.stuck AS s)::text, '') || (SELECT count(*) FROM ops.audit)
		    || (SELECT count(*) FROM outbox.messages)`)
	for _, name := range []string{"billing", "mail"} {
		text += get[string](w, w.inboxes[name], `
			SELECT coalesce((SELECT jsonb_agg(s ORDER BY seq) FROM inbox.stuck AS s)::text, '') || (SELECT count(*) FROM ops.audit)
			    || coalesce((SELECT jsonb_agg(m ORDER BY message_id) FROM inbox.messages AS m)::text, '')`)
	}
	return text
}

// Dry runs change nothing, whoever makes them; and whatever needs a yes does nothing without one.
func TestDryRunsChangeNothing(t *testing.T) {
	t.Parallel()
	w := newTrouble(t)
	letter := asJSON[api.DeadList](w.console, 0, "dead list").Items[0].Fingerprint
	before := w.state()
	for line, says := range map[string]string{
		"stuck replay --all":                                     "dry run: 4 messages fit, 4 would be replayed",
		"stuck replay " + w.odd:                                  "dry run: 1 message fits, 1 would be replayed",
		"stuck skip --all":                                       "dry run: 7 messages fit, 7 would be given up",
		"stuck skip " + w.follower + " --database mail":          "dry run: 1 message fits, 1 would be given up",
		"stuck park --all":                                       "dry run: 2 messages fit, 2 would be parked",
		"stuck edit " + w.head + " -d billing --header price=12": "dry run: 1 message fits, 1 would be edited",
		"dead redrive " + w.bin + " --all":                       "dry run: 1 dead letter fits, 1 would be sent back",
		"dead discard " + w.bin + " " + letter:                   "dry run: 1 dead letter fits, 1 would be removed",
		"cursor rebase -d shop --force":                          "would count as relayed",
		"stuck replay --key nothing":                             "dry run: 0 messages fit, 0 would be replayed",
		"stuck replay --all --limit 3":                           "dry run: 3 messages fit, 3 would be replayed",
	} {
		for _, c := range []console{w.console, w.viewer} {
			c.want(0, append(words(line), "--dry-run"), says)
			r := c.run(append(words(line), "--dry-run", "-o", "json")...)
			var document map[string]any
			if err := json.Unmarshal([]byte(r.out), &document); err != nil || r.code != 0 || document["dryRun"] != true || r.err != "" {
				t.Errorf("%s -o json: %d, %v\n%s%s", line, r.code, err, r.out, r.err)
			}
		}
		w.want(2, words(line), "nobody can be asked here: give --yes and --reason, or --dry-run")
		w.want(2, append(words(line), "--yes"), "--reason is needed")
		w.viewer.want(1, yes(line), "this takes an operator's token")
	}
	w.want(1, append(words("stuck replay "+w.follower), "--dry-run"), "it waits behind "+w.head)
	w.want(1, append(words("stuck park "+w.odd), "--dry-run"), "it waits for an operator already")
	w.want(1, append(words("stuck park "+w.behind), "--dry-run"), "it waits behind "+w.unrouted+": park that one")
	w.want(1, append(words("stuck edit "+w.unrouted+" --header a=b"), "--dry-run"), "it is tried again by itself: park it first")
	w.want(2, append(words("stuck edit "+w.head+" --header a=b"), "--dry-run"), "the message is stuck at 2 places; choose one:", "--database billing --side inbox --consumer billing")
	w.want(2, append(words("stuck edit "+w.odd+" --header ab"), "--dry-run"), `--header is "ab": want name=value`)
	w.want(2, append(words("stuck edit "+w.odd+" --remove-header none"), "--dry-run"), `the message has no header "none"`)
	w.want(2, append(words("stuck edit "+w.odd+" --payload-file /nowhere"), "--dry-run"), "--payload-file")
	w.want(2, append(words("stuck edit "+w.odd), "--dry-run"), "say what is new")
	w.want(1, append(words("stuck edit "+w.head+" -d billing --header cloudEvents_id=17"), "--dry-run"), "says what the message is, and is not edited")
	bad := w.feed(`{"n": }`, "stuck", "edit", w.odd, "--dry-run", "--payload-file", "-")
	bad.check(t, 2, nil, "the payload is not valid JSON", "at byte 7")
	if after := w.state(); after != before {
		t.Errorf("something has changed:\n%s\n%s", before, after)
	}
	if n := len(asJSON[api.DeadList](w.console, 0, "dead list").Items); n != 1 {
		t.Errorf("%d dead letters", n)
	}
}

// A handler that fails for one booking: seen, explained, mended, replayed; and the verbs on the outbox's side.
func TestMovingWhatIsStuck(t *testing.T) {
	t.Parallel()
	w := newTrouble(t)
	// Skip: what waits behind goes on.
	w.want(0, yes("stuck skip "+w.odd), "1 message fits, 1 given up (audit shop/1)")
	w.want(0, words("why "+w.odd), "taken out of the outbox of shop by olaf", "the test wants it")
	w.want(1, yes("stuck skip "+w.odd), "is not stuck")
	// Park, edit, replay, at a consumer; the follower goes after its head, and as it was.
	w.want(0, yes("stuck park "+w.head+" --database mail"), "1 message fits, 1 parked (audit mail/1)")
	w.want(1, yes("stuck park "+w.head+" --database mail"), "it waits for an operator already")
	r := w.feed(`{"key":"mended","n":7}`, append(yes("stuck edit "+w.head+" --database mail --payload-file -"), "--header", "note=by hand")...)
	r.check(t, 0, nil, "1 message fits, 1 edited (audit mail/2)", "-> outboxctl stuck replay "+w.head)
	shown := asJSON[[]api.Detail](w.console, 0, "stuck show "+w.head+" -d mail")[0]
	if string(shown.Payload) != `{"key":"mended","n":7}` || string(shown.Original.Payload) != `{"key":"poison","n":1}` || shown.Headers["note"] != "by hand" || !shown.Edited {
		t.Errorf("after the edit: %+v", shown)
	}
	w.want(0, words("stuck show "+w.head+" -d mail"), "parked, waits for an operator, edited", "original, 22 bytes", "inbox.edit", "inbox.park", "olaf")
	w.mend("mail", "poison")
	w.want(0, yes("stuck replay "+w.head+" --database mail"), "1 replayed (audit mail/3)")
	w.handled("mail", w.head)
	w.handled("mail", w.follower)
	w.want(0, words("why "+w.head), "consumed by mail; stuck at billing: parked after 1 attempt because of permanent (no such seat 17)", "-> outboxctl stuck show "+w.head)
	// By its group, once its cause is gone.
	w.mend("billing", "poison")
	groups := w.want(0, words("stuck groups --database billing"), "no such seat 17").out
	group := strings.Fields(strings.Split(groups, "\n")[1])[0]
	w.want(0, yes("stuck replay --group "+group), "1 message fits, 1 replayed (audit billing/1)")
	w.handled("billing", w.follower)
	w.want(2, yes("stuck replay --group "+group), "there is no group")
	// The outbox's side: the queue is bound, and the route heals by itself, in order.
	w.want(0, yes("stuck park "+w.unrouted), "1 parked")
	w.want(0, words("why "+w.unrouted), "until an operator replays, edits or skips it (outboxctl stuck replay "+w.unrouted+")")
	w.feed(`{"key":"lost","n":9}`, yes("stuck edit "+w.unrouted+" --payload-file -")...).check(t, 0, nil, "1 edited")
	w.apply(topology(true))
	w.want(0, yes("stuck replay "+w.unrouted), "1 replayed")
	w.handled("mail", w.unrouted)
	w.handled("mail", w.behind)
	if first := get[string](w.town, w.inboxes["mail"], `SELECT message_id::text FROM inbox.messages WHERE message_id IN ($1, $2) ORDER BY at LIMIT 1`, w.unrouted, w.behind); first != w.unrouted {
		t.Error("the follower was handled before its head")
	}
	w.until(w.shop, `SELECT count(*) = 0 FROM outbox.stuck`) // the relay has heard the confirm
	w.want(0, words("stuck groups"), "nothing is stuck")
	w.want(1, yes("stuck replay --all"), "0 messages fit, 0 replayed")
	// All of it stands in the audit log.
	log := w.want(0, words("audit list"), "outbox.skip", "inbox.park", "inbox.edit", "inbox.replay", "outbox.park", "outbox.edit", "outbox.replay", "olaf", "the test wants it")
	golden(t, "audit-list", byLine(normal(log.out, w.names)))
	w.want(0, words("audit list --action inbox.edit"), "inbox.edit")
	w.want(0, words("audit list --actor vera"), "no entry fits")
	w.want(0, words("audit list --message "+w.head+" -d mail"), "inbox.park", "inbox.edit")
	page := asJSON[api.AuditPage](w.console, 0, "audit list --limit 2")
	if len(page.Items) != 2 || page.Next == "" {
		t.Fatalf("%+v", page)
	}
	w.want(0, words("audit list --limit 2 --after "+page.Next), "olaf")
	// The chain, and what breaks it.
	w.want(0, words("audit verify"), "whole")
	reports := asJSON[api.AuditReportList](w.console, 0, "audit verify -d shop").Items
	w.want(0, words("audit verify -d shop --head "+reports[0].Head), "whole")
	w.want(1, words("audit verify -d shop --head "+strings.Repeat("a", 64)), "BROKEN")
	w.exec(w.shop, `ALTER TABLE ops.audit DISABLE TRIGGER append_only`)
	w.exec(w.shop, `UPDATE ops.audit SET actor = 'nobody' WHERE id = 1`)
	w.want(1, words("audit verify"), "BROKEN", "at entry 1")
	if report := asJSON[api.AuditReportList](w.console, 1, "audit verify -d shop").Items[0]; report.Ok || report.BrokenAt != 1 {
		t.Errorf("%+v", report)
	}
}

// byLine orders lines that several databases have at the same time.
func byLine(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := 2; i < len(lines); i++ {
		for j := i; j > 1 && lines[j] < lines[j-1]; j-- {
			lines[j], lines[j-1] = lines[j-1], lines[j]
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

func TestEditLeavesWhatAConsumerMayHave(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.consume("billing")
	id := w.write("lost", order{Kind: lost, Key: "a"})[0]
	w.stuckAt("outbox", id)
	w.exec(w.inboxes["mail"], `INSERT INTO inbox.messages (message_id, consumer) VALUES ($1, 'mail')`, id)
	w.want(0, yes("stuck park "+id))
	w.want(1, yes("stuck edit "+id+" --header a=b"), "consumer mail in database mail has the message as it was; skip this one and send a new message")
	file := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(file, []byte(`"`+strings.Repeat("x", 1<<20)+`"`), 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(2, yes("stuck edit "+id+" --payload-file "+file), "the payload is larger than 1048576 bytes")
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.consume("billing")
	for n := range 3 {
		w.publish("billing.1", fmt.Sprint("rubbish ", n))
	}
	list := func() []api.DeadMessage { return asJSON[api.DeadList](w.console, 0, "dead list -q billing.1").Items }
	outboxtest.Eventually(t, 30*time.Second, func() bool { return len(list()) == 3 }, "three dead letters")
	letters := list()
	w.want(3, words("status"), "3 in the dead-letter queue")
	w.want(0, yes("dead discard billing.1.dead "+letters[0].Fingerprint), "1 dead letter fits, 1 removed")
	w.want(1, yes("dead discard billing.1.dead "+letters[0].Fingerprint), "holds none of these messages")
	// Sent back, and dead again at once: each once.
	w.want(0, yes("dead redrive billing.1 --all"), "2 dead letters fit, 2 sent back")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return len(list()) == 2 }, "they are dead again")
	done := asJSONYes[api.DeadResult](w.console, 0, "dead discard billing.1 --all --limit 1")
	if done.Changed != 1 || done.DryRun {
		t.Errorf("%+v", done)
	}
	w.want(0, yes("dead discard billing.1 --all"), "1 dead letter fits, 1 removed")
	w.want(1, yes("dead discard billing.1 --all"), "0 dead letters fit, 0 removed")
	w.want(0, words("audit list -d billing"), "dead.discard", "dead.redrive", "olaf")
	// What ends early tells what it did.
	w.publish("billing.1", "rubbish")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return len(list()) == 1 }, "another dead letter")
	w.endBroken(w.inboxes["billing"])
	w.want(1, yes("dead redrive billing.1 "+list()[0].Fingerprint), "1 dead letter fits, 1 sent back (audit billing/", "outboxctl: an internal error")
	outboxtest.Eventually(t, 30*time.Second, func() bool { return len(list()) == 1 }, "it is dead again")
	r := w.run(append(yes("dead discard billing.1 --all"), "-o", "json")...)
	r.check(t, 1, nil, "an internal error", ", after 1 of 1 were removed")
	if err := json.Unmarshal([]byte(r.out), &done); err != nil || done.Changed != 1 || len(done.Audit) != 1 {
		t.Errorf("%v: %+v", err, done)
	}
}

// endBroken lets the audit log refuse to note the end of what was begun.
func (w *town) endBroken(db *outboxtest.Database) {
	w.t.Helper()
	w.exec(db, `ALTER TABLE ops.audit ADD CONSTRAINT no_end CHECK (detail ->> 'stage' IS DISTINCT FROM 'ended') NOT VALID`)
}

// asJSONYes is asJSON of a command that changes something.
func asJSONYes[T any](c console, code int, line string) (value T) {
	c.t.Helper()
	r := c.run(append(yes(line), "-o", "json")...)
	r.check(c.t, code, words(line))
	if err := json.Unmarshal([]byte(r.out), &value); err != nil {
		c.t.Errorf("outboxctl %s -o json: %v\n%s%s", line, err, r.out, r.err)
	}
	return value
}

func TestReplayingWhatWasRelayed(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.consume("billing")
	w.consume("mail")
	var ids []string
	for n := range 5 {
		ids = append(ids, w.write("m", order{Key: fmt.Sprint("k", n)})...)
	}
	w.odd("odd", "odd")
	for _, id := range ids {
		w.handled("billing", id)
		w.handled("mail", id)
	}
	w.until(w.shop, `SELECT count(*) = 0 FROM (SELECT 1 FROM outbox.messages AS m WHERE NOT outbox.is_passed(m.partition, m.id)) AS left_over`)
	plan := asJSON[api.Plan](w.viewer, 0, "replay plan -d shop --from 1h")
	if plan.Messages != 5 || plan.Handled["mail"] != 5 || plan.NotRelayed != 1 {
		t.Errorf("%+v", plan)
	}
	from, to := plan.Request.From.Format(time.RFC3339Nano), plan.Request.To.Format(time.RFC3339Nano)
	line := "replay plan -d shop --from " + from + " --to " + to
	if again := asJSON[api.Plan](w.viewer, 0, line); again.Hash != plan.Hash {
		t.Error("the same plan has another hash")
	}
	w.names[plan.Hash] = strings.Repeat("a", len(plan.Hash))
	r := w.viewer.want(0, words(line))
	golden(t, "replay-plan", normal(r.out, w.names))
	w.want(1, yes("replay apply "+plan.Hash+" --canary"), "every consumer has handled these messages, so a canary could show nothing")
	// A consumer has lost some: only they make a difference.
	w.exec(w.inboxes["mail"], `DELETE FROM inbox.messages WHERE message_id = ANY ($1)`, ids[:2])
	w.want(1, yes("replay apply "+plan.Hash), "the state has changed since the plan was made", "make a new plan with \"outboxctl replay plan\"")
	w.want(1, words("reconcile --grace 1s"), "NOT CLEAN", "2 gaps")
	gap := w.want(0, words("why "+ids[0]), "missing at mail").out
	_, command, _ := strings.Cut(gap, "(outboxctl ")
	command, _, ok := strings.Cut(command, ")")
	if !ok || !strings.HasPrefix(command, "replay plan ") {
		t.Fatalf("why names no command: %s", gap)
	}
	one := asJSON[api.Plan](w.viewer, 0, command)
	if one.Messages != 1 || one.Request.ToQueue != "mail" {
		t.Errorf("what why says plans %+v", one)
	}
	plan = asJSON[api.Plan](w.viewer, 0, line+" --to-queue mail --type "+placed)
	applied := asJSONYes[api.Applied](w.console, 0, "replay apply "+plan.Hash+" --canary")
	if applied.Published != 5 || applied.Canaries != 1 || len(applied.Failed) != 0 || len(applied.Audit) != 2 {
		t.Errorf("%+v", applied)
	}
	w.handled("mail", ids[0])
	w.handled("mail", ids[1])
	outboxtest.Eventually(t, 30*time.Second, func() bool { return w.run("reconcile", "--grace", "1s").code == 0 }, "clean")
	plan = asJSON[api.Plan](w.viewer, 0, line+" --key k1")
	w.want(0, yes("replay apply "+plan.Hash), "1 message published, 0 canaries (audit shop/")
	w.want(0, words("audit list -d shop"), "replay.apply")
	w.viewer.want(0, words("replay plan -d shop --from 1h --key nothing"), "publishes    0 messages", "nothing would be published")
	// What ends early tells what it did.
	w.endBroken(w.shop)
	w.want(1, yes("replay apply "+plan.Hash), "1 message published, 0 canaries (audit shop/", "outboxctl: an internal error")
}

func TestRebaseAfterARestore(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.consume("billing")
	w.consume("mail")
	id := w.write("m", order{Key: "a"})[0]
	w.handled("mail", id)
	w.want(1, yes("cursor rebase -d shop"), "there is nothing to rebase (force does it all the same)")
	w.relay.stop()
	api := w.start("TW_RELAY_DATABASES=shop=postgres://nobody@127.0.0.1:1/none")
	w.console = w.at(api, w.console)
	w.exec(w.shop, `UPDATE outbox.identity SET timeline = '00000099'`)
	w.want(3, words("cursor show"), "ANOTHER", "-> outboxctl cursor rebase")
	w.want(0, words("cursor rebase -d shop --dry-run"), "dry run: 1 message would count as relayed, 0 as not relayed")
	w.want(0, yes("cursor rebase -d shop"), "1 message counted as relayed, 0 as not relayed (audit shop/1)")
	w.want(0, words("cursor show"), "the same")
	w.want(0, words("audit list -d shop"), "rebase")
}

func TestAFailureOfOneBookingAlone(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.consume("billing")
	w.consume("mail")
	w.fail("billing", "bad", inbox.Permanent(errors.New("no such customer")))
	bad := w.write("bad", order{Key: "bad", N: 1}, order{Key: "bad", N: 2})
	good := w.write("good", order{Key: "good"})[0]
	w.handled("billing", good)
	w.stuckAt("billing", bad[1])
	why := w.want(0, words("why bad"), "because of permanent (no such customer)", "waits behind "+bad[0])
	if strings.Index(why.out, bad[0]) > strings.Index(why.out, bad[1]) {
		t.Errorf("not in order:\n%s", why.out)
	}
	w.mend("billing", "bad")
	w.want(0, yes("stuck replay "+bad[0]), "1 replayed")
	w.handled("billing", bad[1])
	outboxtest.Eventually(t, 30*time.Second, func() bool { return w.run("status").code == 0 }, "healthy again")
}
