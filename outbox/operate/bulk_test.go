package operate_test

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox/operate"
)

// A command that ends early says where, and the next one goes on there: all are done, each once, and none that came later.
func TestACommandGoesOnWhereTheOneBeforeEnded(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		b.many(side, 1000)
		for name, c := range []operate.Command{
			{Verb: operate.VerbReplay, Limit: 300, DryRun: true},
			{Verb: operate.VerbReplay, Within: time.Nanosecond, DryRun: true},
			{Verb: operate.VerbSkip, Filter: operate.Filter{Side: side}, Limit: 170},
		} {
			matched, pieces := 0, 0
			for {
				got := b.do(c)
				if pieces == 0 && got.Total != 1000 || pieces > 0 && got.Total != 0 {
					t.Errorf("command %d: piece %d has a total of %d", name, pieces, got.Total)
				}
				if matched, pieces = matched+got.Matched, pieces+1; !got.More {
					if got.Next != "" {
						t.Errorf("command %d: the last piece has a next", name)
					}
					break
				}
				if got.Next == "" || got.Matched == 0 || pieces > 20 {
					t.Fatalf("command %d: piece %d: %+v", name, pieces, got)
				}
				if c.After = got.Next; !c.DryRun && pieces == 1 {
					b.stuck(side, parked.of("late"))
				}
			}
			if matched != 1000 || pieces < 4 {
				t.Errorf("command %d: %d messages in %d pieces", name, matched, pieces)
			}
		}
		if left := one[int](b, `SELECT count(*) FROM `+string(side)+`.stuck`); left != 1 {
			t.Errorf("%d are left, want the one that came late", left)
		}
		b.refused(operate.ErrInvalid, operate.Command{Verb: operate.VerbSkip, After: "nonsense"})
		elsewhere := b.do(operate.Command{Verb: operate.VerbSkip, DryRun: true, Limit: 1})
		if elsewhere.More || elsewhere.Matched != 1 {
			t.Errorf("%+v", elsewhere)
		}
	})
}

// A next that leads from one side to the other.
func TestACommandGoesOnOnTheOtherSide(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.many(operate.Outbox, 300)
	b.many(operate.Inbox, 300)
	c := operate.Command{Verb: operate.VerbSkip, Limit: 300}
	first := b.do(c)
	if first.Matched != 300 || !first.More || first.Total != 600 || one[int](b, `SELECT count(*) FROM outbox.stuck`) != 0 {
		t.Fatalf("%+v", first)
	}
	c.After = first.Next
	if got := b.do(c); got.Matched != 300 || got.More || one[int](b, `SELECT count(*) FROM inbox.stuck`) != 0 {
		t.Errorf("%+v", got)
	}
	other := operate.Command{Verb: operate.VerbSkip, Filter: operate.Filter{Side: operate.Outbox}, After: func() string {
		b.many(operate.Inbox, 2)
		return b.do(operate.Command{Verb: operate.VerbSkip, Filter: operate.Filter{Side: operate.Inbox}, Limit: 1}).Next
	}()}
	b.refused(operate.ErrInvalid, other)
}

func TestParkKeepsAHeadForAnOperator(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		head, follower, other := b.stuck(side, failing.of("a")), b.stuck(side, row{key: "a"}), b.stuck(side, parked.of("b"))
		edit := operate.Command{Verb: operate.VerbEdit, Filter: just(side, head), Payload: json.RawMessage(`{"n":2}`)}
		got := b.refused(operate.ErrRefused, edit)
		if len(got.Left) != 1 || got.Left[0].Code != operate.LeftRetrying || got.Left[0].Reason != "it is tried again by itself: park it first, then edit it" {
			t.Errorf("edit of a retrying head: %+v", got)
		}
		if got := b.do(operate.Command{Verb: operate.VerbPark, DryRun: true}); got.Changed != 1 || got.Matched != 1 || b.show(side, head).State != operate.Retrying || b.audited() != 0 {
			t.Errorf("dry run: %+v", got)
		}
		if got := b.do(operate.Command{Verb: operate.VerbPark}); got.Changed != 1 || got.Matched != 1 || len(got.AuditIDs) != 1 {
			t.Errorf("park: %+v", got)
		}
		d := b.show(side, head)
		if d.State != operate.Parked || d.NextAttempt != nil || d.Error == "" || d.Attempts != 3 || d.BehindTotal != 1 || d.Behind[0].MessageID != follower {
			t.Errorf("the head: %+v", d)
		}
		if len(d.Audit) != 1 || d.Audit[0].Action != string(side)+".park" || d.Audit[0].Actor != ann {
			t.Errorf("audit: %+v", d.Audit)
		}
		for id, code := range map[uuid.UUID]operate.LeftCode{follower: operate.LeftBehind, other: operate.LeftParked, head: operate.LeftParked} {
			if got := b.refused(operate.ErrRefused, operate.Command{Verb: operate.VerbPark, Filter: just(side, id)}); len(got.Left) != 1 || got.Left[0].Code != code {
				t.Errorf("park of %s: %+v", id, got)
			}
		}
		b.refused(operate.ErrInvalid, operate.Command{Verb: operate.VerbPark, Payload: json.RawMessage(`{}`)})
		b.do(edit)
		b.do(operate.Command{Verb: operate.VerbReplay, Filter: just(side, head)})
		if d := b.show(side, head); d.State != operate.Retrying || d.Attempts != 0 || !d.Edited || d.BehindTotal != 1 {
			t.Errorf("after edit and replay: %+v", d)
		}
		actions := []string{}
		for _, e := range b.show(side, head).Audit {
			actions = append(actions, e.Action)
		}
		if want := []string{string(side) + ".replay", string(side) + ".edit", string(side) + ".park"}; !slices.Equal(actions, want) {
			t.Errorf("audit %v, want %v", actions, want)
		}
	})
}

// What a relay has in hand is not parked; what was in a dead relay's hand is, and is not edited, for a consumer may have it.
func TestParkKeepsOffWhatIsInHand(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := b.stuckOutbox(failing.of("a"))
	b.claimed(id, 7)
	park := operate.Command{Verb: operate.VerbPark, Filter: just(operate.Outbox, id)}
	b.exec(`UPDATE outbox.leases SET owner = NULL, token = 8`)
	b.do(park)
	if !one[bool](b, `SELECT exposed AND parked AND claim IS NULL FROM outbox.stuck`) {
		t.Error("it is not parked, exposed and free")
	}
	edit := operate.Command{Verb: operate.VerbEdit, Filter: just(operate.Outbox, id), Payload: json.RawMessage(`{}`)}
	if _, err := b.Do(t.Context(), b.by(edit)); !errors.Is(err, operate.ErrRefused) {
		t.Errorf("edit: %v", err)
	}
	b.do(operate.Command{Verb: operate.VerbReplay, Filter: just(operate.Outbox, id)})
	b.exec(`UPDATE outbox.leases SET owner = gen_random_uuid()`)
	b.claimed(id, 8)
	b.beating()
	b.refused(operate.ErrBusy, park)
}
