package operate_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// logged fills the audit log, with all that a text may hold.
func (b *bench) logged(n int) {
	b.t.Helper()
	for i := range n {
		b.exec(`SELECT ops.append($1, $2, 'test.entry', $3)`, "ann ü ,1:", fmt.Sprintf("why %d\n", i),
			map[string]any{"n": 1.50, "text": "ü\\\"", "list": []any{nil, true, 1e20}})
	}
}

func (b *bench) verify(known string) operate.AuditReport {
	b.t.Helper()
	report, err := b.VerifyAudit(b.t.Context(), "shop", known)
	if err != nil {
		b.t.Fatal(err)
	}
	return report
}

func TestTheAuditLogShowsTampering(t *testing.T) {
	t.Parallel()
	// Whoever can do this is the database's owner: it is shown, not hindered.
	const asOwner = `ALTER TABLE ops.audit DISABLE TRIGGER append_only;`
	for name, attack := range map[string]struct {
		sql      string
		brokenAt int64
	}{
		"actor altered":         {`UPDATE ops.audit SET actor = 'bob' WHERE id = 3`, 3},
		"reason altered":        {`UPDATE ops.audit SET reason = 'x' WHERE id = 3`, 3},
		"action altered":        {`UPDATE ops.audit SET action = 'x' WHERE id = 3`, 3},
		"detail altered":        {`UPDATE ops.audit SET detail = detail || '{"n": 2}' WHERE id = 3`, 3},
		"time altered":          {`UPDATE ops.audit SET at = at + interval '1 us' WHERE id = 3`, 3},
		"hash altered":          {`UPDATE ops.audit SET hash = sha256('x') WHERE id = 3`, 3},
		"altered with its hash": {`UPDATE ops.audit AS a SET actor = 'bob' WHERE id = 3; UPDATE ops.audit AS a SET hash = ops.hash_of(a) WHERE id = 3`, 4},
		"field moved":           {`UPDATE ops.audit SET actor = actor || '1', reason = substr(reason, 2) WHERE id = 3`, 3},
		"first removed":         {`DELETE FROM ops.audit WHERE id = 1`, 2},
		"removed":               {`DELETE FROM ops.audit WHERE id = 3`, 4},
		"removed, renumbered":   {`DELETE FROM ops.audit WHERE id = 3; UPDATE ops.audit SET id = 3 WHERE id = 4; UPDATE ops.audit SET id = 4 WHERE id = 5`, 3},
		"inserted":              {`INSERT INTO ops.audit SELECT 0, at, 'bob', reason, action, detail, '', hash FROM ops.audit WHERE id = 1`, 0},
		"appended":              {`INSERT INTO ops.audit SELECT 6, at, 'bob', reason, action, detail, hash, hash FROM ops.audit WHERE id = 5`, 6},
		"swapped":               {`UPDATE ops.audit SET id = 9 WHERE id = 2; UPDATE ops.audit SET id = 2 WHERE id = 3; UPDATE ops.audit SET id = 3 WHERE id = 9`, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.logged(5)
			if report := b.verify(""); !report.OK || report.Entries != 5 || len(report.Head) != 64 {
				t.Fatalf("before: %+v", report)
			}
			b.exec(asOwner)
			b.exec(attack.sql)
			if report := b.verify(""); report.OK || report.BrokenAt != attack.brokenAt || report.Why == "" {
				t.Errorf("after: %+v, want broken at %d", report, attack.brokenAt)
			}
		})
	}
	t.Run("tail cut, or written anew", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		b.logged(5)
		head := b.verify("").Head
		b.logged(2)
		newest := b.verify(head)
		if !newest.OK || newest.Entries != 7 || newest.Head == head {
			t.Errorf("the log went on: %+v", newest)
		}
		b.exec(asOwner)
		b.exec(`DELETE FROM ops.audit WHERE id > 5`)
		if report := b.verify(newest.Head); report.OK || report.Why == "" || report.BrokenAt != 6 {
			t.Errorf("cut: %+v", report)
		}
		if report := b.verify(strings.ToUpper(head)); !report.OK {
			t.Errorf("up to an older head: %+v", report)
		}
		b.exec(`DELETE FROM ops.audit`)
		if report := b.verify(head); report.OK {
			t.Errorf("empty: %+v", report)
		}
		b.logged(7)
		if report := b.verify(newest.Head); report.OK {
			t.Errorf("anew: %+v", report)
		}
		if report := b.verify(""); !report.OK {
			t.Errorf("anew, nothing remembered: %+v", report)
		}
	})
}

func TestVerifyAuditChecksItsArguments(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if report := b.verify(""); !report.OK || report.Entries != 0 || report.Head != "" {
		t.Errorf("an empty log: %+v", report)
	}
	for _, known := range []string{"x", "abc", "abcd"} {
		if _, err := b.VerifyAudit(t.Context(), "shop", known); !errors.Is(err, operate.ErrInvalid) {
			t.Errorf("head %q: %v", known, err)
		}
	}
	if _, err := b.VerifyAudit(t.Context(), "bakery", ""); !errors.Is(err, operate.ErrNotFound) {
		t.Errorf("another database: %v", err)
	}
}

func TestManyAppendAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for i := range 150 {
				tx, err := b.Begin(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := tx.Exec(t.Context(), `SELECT ops.append('ann', 'why', 'test.entry', '{}')`); err != nil {
					t.Error(err)
				}
				end := tx.Commit
				if i%3 == 0 {
					end = tx.Rollback
				}
				if err := end(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if report := b.verify(""); !report.OK || report.Entries != 800 {
		t.Errorf("%+v", report)
	}
}

func TestTheAuditLogIsListedNewestFirst(t *testing.T) {
	t.Parallel()
	first := newBench(t)
	second := &bench{Database: outboxtest.NewDatabase(t, "shop"), t: t}
	for range 4 {
		first.logged(1)
		second.logged(2)
	}
	first.exec(`SELECT ops.append('bob', 'why', 'test.other', '{"messages": ["5e0d0c9a-0000-7000-8000-000000000001"]}')`)
	o := operator(t, operate.Database{Name: "one", URL: first.OperatorURL}, operate.Database{Name: "two", URL: second.OperatorURL})
	var all []operate.AuditEntry
	for after, pages := "", 0; pages == 0 || after != ""; pages++ {
		entries, next, err := o.Audit(t.Context(), operate.AuditFilter{}, operate.Page{After: after, Limit: 3})
		if err != nil || len(entries) > 3 {
			t.Fatal(len(entries), err)
		}
		all, after = append(all, entries...), next
	}
	if len(all) != 13 || all[0].Actor.Name != "bob" {
		t.Fatalf("%d entries, the newest by %s", len(all), all[0].Actor.Name)
	}
	for i := range all[1:] {
		if all[i].At.Before(all[i+1].At) {
			t.Errorf("entry %d is older than the next", i)
		}
	}
	for name, f := range map[string]operate.AuditFilter{
		"actor": {Actor: "bob"}, "action": {Action: "test.other"}, "both": {Actor: "bob", Database: "one"},
	} {
		if entries, _, err := o.Audit(t.Context(), f, operate.Page{}); err != nil || len(entries) != 1 || entries[0].Database != "one" {
			t.Errorf("%s: %+v, %v", name, entries, err)
		}
	}
	if entries, _, err := o.Audit(t.Context(), operate.AuditFilter{Database: "two", Actor: "bob"}, operate.Page{}); err != nil || len(entries) != 0 {
		t.Errorf("none: %+v, %v", entries, err)
	}
}
