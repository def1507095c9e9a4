package operate_test

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jcp/ticketwave/outbox/lease"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// code is the error's SQLSTATE, or "".
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func TestAThousandFailuresAreOneLine(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		b.many(side, 1000)
		b.exec(`UPDATE ` + string(side) + `.stuck SET build = 'B', parked = false WHERE seq % 4 = 0`)
		first := one[uuid.UUID](b, `SELECT `+map[operate.Side]string{operate.Outbox: "uuid", operate.Inbox: "message_id"}[side]+` FROM `+string(side)+`.stuck ORDER BY seq LIMIT 1`)
		for range 3 {
			b.stuck(side, row{key: b.show(side, first).Key})
		}
		b.stuck(side, row{key: "other", class: "failed", text: "something else", attempts: 1})
		pool := map[operate.Side]string{operate.Outbox: "relay", operate.Inbox: consumer}[side]
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		members := outboxtest.NewPool(t, b.AdminURL)
		go func() {
			ended <- lease.Run(ctx, lease.Config{Pool: members, Schema: string(side), Name: pool, Partitions: 1, Build: "B", Logger: slog.New(slog.DiscardHandler)},
				func(ctx context.Context, _ lease.Held) error { <-ctx.Done(); return nil })
		}()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		outboxtest.Eventually(t, 10*time.Second, func() bool { return one[int](b, `SELECT count(*) FROM `+string(side)+`.members`) == 1 }, "a member of build B runs")
		groups, err := b.Groups(t.Context(), operate.Filter{})
		if err != nil || len(groups) != 2 {
			t.Fatalf("%d groups, %v: %+v", len(groups), err, groups)
		}
		g := groups[0]
		if g.Parked != 750 || g.Retrying != 250 || g.Keys != 1000 || g.Behind != 3 || g.Side != side || g.Error == "" || g.Newest.Before(g.Oldest) {
			t.Errorf("the group: %+v", g)
		}
		if want := []operate.Build{{Build: "A", Messages: 750}, {Build: "B", Messages: 250, Running: true}}; !slices.Equal(g.Builds, want) {
			t.Errorf("builds: %+v", g.Builds)
		}
		if groups[1].Error != "something else" || groups[1].Retrying != 1 {
			t.Errorf("the other group: %+v", groups[1])
		}
		if parkedOnly, err := b.Groups(t.Context(), operate.Filter{State: operate.Parked}); err != nil || len(parkedOnly) != 1 || parkedOnly[0].Retrying != 0 {
			t.Errorf("parked groups: %+v, %v", parkedOnly, err)
		}
	})
}

func TestEveryFilterChooses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	want := map[string]uuid.UUID{}
	for _, side := range []operate.Side{operate.Outbox, operate.Inbox} {
		s := string(side)
		old := parked
		old.age, old.typ = time.Hour, "shop.orders.old.v1"
		want[s+" parked"] = b.stuck(side, old.of("a"))
		want[s+" behind"] = b.stuck(side, row{key: "a"})
		want[s+" retrying"] = b.stuck(side, failing.of("b"))
	}
	fingerprint := map[operate.Side]string{operate.Outbox: "failed shop.orders.placed.v1", operate.Inbox: "failed"}
	for name, c := range map[string]struct {
		filter operate.Filter
		want   []string
	}{
		"none":        {operate.Filter{}, []string{"outbox parked", "outbox behind", "outbox retrying", "inbox parked", "inbox behind", "inbox retrying"}},
		"database":    {operate.Filter{Database: "shop", State: operate.Parked}, []string{"outbox parked", "inbox parked"}},
		"side":        {operate.Filter{Side: operate.Inbox, State: operate.Behind}, []string{"inbox behind"}},
		"consumer":    {operate.Filter{Consumer: consumer, State: operate.Retrying}, []string{"inbox retrying"}},
		"nobody":      {operate.Filter{Consumer: "nobody"}, nil},
		"type":        {operate.Filter{Type: "shop.orders.old.v1"}, []string{"outbox parked", "inbox parked"}},
		"key":         {operate.Filter{Key: "b"}, []string{"outbox retrying", "inbox retrying"}},
		"class":       {operate.Filter{Class: "too_large"}, []string{"outbox parked", "inbox parked"}},
		"fingerprint": {operate.Filter{Fingerprint: fingerprint[operate.Outbox]}, []string{"outbox retrying"}},
		"message":     {operate.Filter{MessageID: want["inbox behind"]}, []string{"inbox behind"}},
		"age":         {operate.Filter{OlderThan: time.Minute}, []string{"outbox parked", "inbox parked"}},
		"several":     {operate.Filter{OlderThan: time.Minute, Side: operate.Outbox, Key: "a"}, []string{"outbox parked"}},
	} {
		list, next, err := b.List(t.Context(), c.filter, operate.Page{})
		if err != nil || next != "" {
			t.Errorf("%s: %v, next %q", name, err, next)
		}
		ids := []uuid.UUID{}
		for _, s := range list {
			ids = append(ids, s.MessageID)
		}
		wanted := []uuid.UUID{}
		for _, w := range c.want {
			wanted = append(wanted, want[w])
		}
		if !slices.Equal(ids, wanted) {
			t.Errorf("%s: %d messages, want %v", name, len(ids), c.want)
		}
		dry := b.do2(operate.Command{Verb: operate.VerbSkip, Filter: c.filter, DryRun: true})
		if dry.Changed != len(c.want) {
			t.Errorf("%s: a verb would take %d, want %d", name, dry.Changed, len(c.want))
		}
	}
}

// do2 is do for commands that may choose nothing.
func (b *bench) do2(c operate.Command) operate.Result {
	b.t.Helper()
	result, err := b.Do(b.t.Context(), b.by(c))
	if err != nil && !errors.Is(err, operate.ErrNotFound) {
		b.t.Error(err)
	}
	return result
}

func TestAListingComesInPages(t *testing.T) {
	t.Parallel()
	one, two := newBench(t), outboxtest.NewDatabase(t, "shop")
	second := &bench{Database: two, t: t}
	for _, b := range []*bench{one, second} {
		b.many(operate.Outbox, 13)
		b.many(operate.Inbox, 7)
	}
	o := operator(t, operate.Database{Name: "one", URL: one.OperatorURL}, operate.Database{Name: "two", URL: two.OperatorURL})
	for _, limit := range []int{1, 7, 13, 20, 40, 500} {
		seen, after, pages := map[uuid.UUID]bool{}, "", 0
		for {
			list, next, err := o.List(t.Context(), operate.Filter{}, operate.Page{After: after, Limit: limit})
			if err != nil || len(list) > limit || next != "" && len(list) != limit {
				t.Fatalf("limit %d: %d messages, %v", limit, len(list), err)
			}
			for _, s := range list {
				seen[s.MessageID] = true
			}
			pages++
			if after = next; next == "" {
				break
			}
		}
		if len(seen) != 40 || pages != (40+limit-1)/limit {
			t.Errorf("limit %d: %d messages on %d pages", limit, len(seen), pages)
		}
	}
	for _, page := range []operate.Page{{Limit: -1}, {Limit: 501}, {After: "nonsense!"}, {After: "bm9uc2Vuc2U"}} {
		if _, _, err := o.List(t.Context(), operate.Filter{}, page); !errors.Is(err, operate.ErrInvalid) {
			t.Errorf("%+v: %v", page, err)
		}
	}
}

func TestShowTellsEverything(t *testing.T) {
	t.Parallel()
	eachSide(t, func(t *testing.T, b *bench, side operate.Side) {
		binary := parked.of("a")
		binary.payload, binary.headers = "\xff\x00", map[string]string{"x": "1"}
		head := b.stuck(side, binary)
		for range 120 {
			b.stuck(side, row{key: "a"})
		}
		d := b.show(side, head)
		if d.PayloadText != nil || string(d.Payload) != "\xff\x00" || d.Headers["x"] != "1" || d.BehindTotal != 120 || len(d.Behind) != 100 {
			t.Errorf("%+v", d.Stuck)
		}
		if d.Class != "too_large" || d.Error != "it is too large" || d.Build != "A" || d.Attempts != 1 || d.StuckAt.IsZero() || side == operate.Outbox && d.CreatedAt.IsZero() {
			t.Errorf("%+v", d.Stuck)
		}
		last := b.show(side, d.Behind[99].MessageID)
		if last.Head == nil || last.Head.MessageID != head || last.BehindTotal != 20 {
			t.Errorf("%+v", last.Stuck)
		}
		if _, err := b.Show(t.Context(), operate.Filter{}); !errors.Is(err, operate.ErrInvalid) {
			t.Errorf("of nothing: %v", err)
		}
	})
}

func TestAMessageStuckTwiceMustBeChosen(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := b.stuckInbox(parked.of("a"))
	b.exec(`INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, parked) SELECT 'mailing', message_id, partition, type, key, payload, headers, true FROM inbox.stuck`)
	if _, err := b.Show(t.Context(), operate.Filter{MessageID: id}); !errors.Is(err, operate.ErrInvalid) {
		t.Errorf("both: %v", err)
	}
	if d, err := b.Show(t.Context(), operate.Filter{MessageID: id, Consumer: "mailing"}); err != nil || d.Consumer != "mailing" {
		t.Errorf("one: %+v, %v", d, err)
	}
}

func TestADatabaseThatIsAwayHidesNoOther(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.stuckOutbox(parked.of("a"))
	o := operator(t, operate.Database{Name: "away", URL: "postgres://x:secret@127.0.0.1:1/away"}, operate.Database{Name: "shop", URL: b.OperatorURL})
	groups, err := o.Groups(t.Context(), operate.Filter{})
	if err == nil || len(groups) != 1 {
		t.Errorf("groups: %d, %v", len(groups), err)
	}
	list, _, err := o.List(t.Context(), operate.Filter{}, operate.Page{})
	if err == nil || len(list) != 1 {
		t.Errorf("list: %d, %v", len(list), err)
	}
	result, err := o.Do(t.Context(), operate.Command{Verb: operate.VerbReplay, Actor: ann})
	if err == nil || result.Changed != 1 {
		t.Errorf("replay: %+v, %v", result, err)
	}
	entries, _, err := o.Audit(t.Context(), operate.AuditFilter{}, operate.Page{})
	if err == nil || len(entries) != 1 {
		t.Errorf("audit: %d, %v", len(entries), err)
	}
}

// A page that goes on behind what this listing does not have is an error, and not the end of the listing.
func TestAPageBehindAnotherListing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, key := range []string{"a", "b"} {
		b.stuck(operate.Outbox, parked.of(key))
		b.stuck(operate.Inbox, parked.of(key))
	}
	_, next, err := b.List(t.Context(), operate.Filter{}, operate.Page{Limit: 1})
	if err != nil || next == "" {
		t.Fatalf("next %q, %v", next, err)
	}
	if list, _, err := b.List(t.Context(), operate.Filter{Side: operate.Inbox}, operate.Page{After: next}); !errors.Is(err, operate.ErrInvalid) {
		t.Errorf("another side: %v, %v", list, err)
	}
	elsewhere := base64.RawURLEncoding.EncodeToString([]byte(`{"d":"elsewhere","s":"outbox","q":1}`))
	list, _, err := b.List(t.Context(), operate.Filter{}, operate.Page{After: elsewhere})
	if !errors.Is(err, operate.ErrInvalid) || !strings.Contains(err.Error(), `"elsewhere"`) {
		t.Errorf("another database: %v, %v", list, err)
	}
}
