package relay

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/lease"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// highest bounds the transaction ids of these tests, so that they can be tried one by one.
const highest = 40

// snapshots draws any well-formed snapshot.
func snapshots() *rapid.Generator[snapshot] {
	return rapid.Custom(func(t *rapid.T) snapshot {
		xmax := rapid.Uint64Range(1, highest).Draw(t, "xmax")
		s := snapshot{xmin: xmax, xmax: xmax}
		for tx := uint64(1); tx < xmax; tx++ {
			if rapid.IntRange(0, 3).Draw(t, "open") == 0 {
				s.xip = append(s.xip, tx)
			}
		}
		if len(s.xip) > 0 {
			s.xmin = s.xip[0]
		}
		return s
	})
}

func TestWindowIsWhatOneSnapshotSeesAndTheOtherDoesNot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		relayed, target := snapshots().Draw(t, "relayed"), snapshots().Draw(t, "target")
		w, err := between(relayed, target)
		if target.xmax < relayed.xmax {
			if !errors.Is(err, ErrIdentity) {
				t.Fatalf("a target from before the cursor gives %v, want ErrIdentity", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		contains := 0
		for tx := uint64(1); tx <= highest+1; tx++ {
			want := target.sees(tx) && !relayed.sees(tx)
			if w.contains(tx) != want {
				t.Fatalf("window %+v contains %d: %v, want %v", w, tx, !want, want)
			}
			if want {
				contains++
			}
		}
		if w.empty() && contains > 0 {
			t.Fatalf("window %+v calls itself empty and contains %d transactions", w, contains)
		}
	})
}

// history is a server's transactions as they begin and end.
type history struct {
	next uint64
	open []uint64
}

func (h *history) snapshot() snapshot {
	s := snapshot{xmin: h.next, xmax: h.next, xip: slices.Clone(h.open)}
	slices.Sort(s.xip)
	if len(s.xip) > 0 {
		s.xmin = s.xip[0]
	}
	return s
}

func (h *history) begin() {
	h.open = append(h.open, h.next)
	h.next++
}

func (h *history) end(i int) { h.open = slices.Delete(h.open, i, i+1) }

func TestSuccessiveWindowsCoverEachTransactionOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := history{next: rapid.Uint64Range(1, 5).Draw(t, "first id")}
		first, relayed := h.next, nothing
		covered := map[uint64]int{}
		take := func(t *rapid.T) {
			target := h.snapshot()
			w, err := between(relayed, target)
			if err != nil {
				t.Fatal(err)
			}
			for tx := uint64(1); tx < h.next; tx++ {
				if w.contains(tx) {
					covered[tx]++
				}
			}
			relayed = target
		}
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(*rapid.T) { h.begin() },
			"end": func(t *rapid.T) {
				if len(h.open) > 0 {
					h.end(rapid.IntRange(0, len(h.open)-1).Draw(t, "which"))
				}
			},
			"window": take,
		})
		take(t)
		for tx := first; tx < h.next; tx++ {
			want := 1
			if slices.Contains(h.open, tx) {
				want = 0
			}
			if covered[tx] != want {
				t.Fatalf("transaction %d was covered %d times, want %d", tx, covered[tx], want)
			}
		}
	})
}

func TestSnapshotsSurviveTheirTextForm(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := snapshots().Draw(t, "snapshot")
		back, err := parseSnapshot(s.String())
		if err != nil || back.String() != s.String() || !slices.Equal(back.xip, s.xip) {
			t.Fatalf("%s became %s, %v", s, back, err)
		}
	})
}

func TestParseSnapshotRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "1", "1:2", "1:2:3:4", "0:1:", "2:1:", "-1:2:", "x:2:", "1:y:", "1:2:x", "1:3:3", "2:5:1", "1:5:2,2", "1:5:3,2", "1:5:,",
		"1:5:2,", "1:18446744073709551616:",
	} {
		if s, err := parseSnapshot(text); err == nil {
			t.Errorf("%q is taken for %s", text, s)
		}
	}
}

func FuzzParseSnapshot(f *testing.F) {
	for _, seed := range []string{"1:1:", "10:20:10,14,15", "1:5:3,2", "::", "18446744073709551615:18446744073709551615:"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSnapshot(text)
		if err != nil {
			return
		}
		back, err := parseSnapshot(s.String())
		if err != nil || back.String() != s.String() || s.xmax < s.xmin || s.sees(s.xmax) || s.xmin > 1 && !s.sees(s.xmin-1) {
			t.Errorf("%q gives %s and then %s, %v", text, s, back, err)
		}
	})
}

// TestPostgreSQLAgrees asks the server what its own snapshots see.
func TestPostgreSQLAgrees(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t, outboxtest.Env(t).PostgresURL)
	ctx := t.Context()
	rapid.Check(t, func(t *rapid.T) {
		s := snapshots().Draw(t, "snapshot")
		rows, err := pool.Query(ctx, `
			SELECT pg_visible_in_snapshot(n::text::xid8, $1::text::pg_snapshot)
			FROM generate_series(1, $2) AS n ORDER BY n`, s.String(), highest+1)
		if err != nil {
			t.Fatal(err)
		}
		visible, err := pgx.CollectRows(rows, pgx.RowTo[bool])
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range visible {
			if tx := uint64(i) + 1; s.sees(tx) != want {
				t.Fatalf("%s sees %d: %v, PostgreSQL says %v", s, tx, !want, want)
			}
		}
	})
}

// TestWindowsReadTheirRows compares both forms of the SQL with the definition, over rows whose order of ids is
// not that of their transactions.
func TestWindowsReadTheirRows(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	if _, err := db.Exec(t.Context(), `
		INSERT INTO outbox.messages (uuid, topic, key, payload, transaction_id)
		SELECT gen_random_uuid(), 't', 'k' || n % 9, '{}', (1 + n * 17 % $1)::text::xid8
		FROM generate_series(1, 4 * $1::int) AS n`, highest); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), db.RelayURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	ctx := t.Context()
	rapid.Check(t, func(t *rapid.T) {
		relayed, target := snapshots().Draw(t, "relayed"), snapshots().Draw(t, "target")
		if target.xmax < relayed.xmax {
			relayed, target = target, relayed
		}
		w, err := between(relayed, target)
		if err != nil {
			t.Fatal(err)
		}
		sess := &session{conn: conn, held: lease.Held{Partition: rapid.IntRange(0, 3).Draw(t, "partition")}, timeout: 1e10}
		in := span{after: rapid.Int64Range(0, 100).Draw(t, "after"), upTo: rapid.Int64Range(100, 200).Draw(t, "up to")}
		want := idsIn(ctx, t, conn, sess.held.Partition, w, in)
		byTransaction, fits, err := sess.read(ctx, w, in)
		if err != nil || !fits || !slices.Equal(ids(byTransaction), want) {
			t.Fatalf("read %v, %v, %v, want %v", ids(byTransaction), fits, err, want)
		}
		byID, _, err := sess.page(ctx, w, in)
		if err != nil || !slices.Equal(ids(byID), want) {
			t.Fatalf("page %v, %v, want %v", ids(byID), err, want)
		}
	})
}

// idsIn finds the rows of a window one by one.
func idsIn(ctx context.Context, t *rapid.T, conn *pgx.Conn, partition int, w window, in span) []int64 {
	rows, err := conn.Query(ctx, `
		SELECT id, transaction_id::text::bigint FROM outbox.messages
		WHERE partition = $1 AND id > $2 AND id <= $3 ORDER BY id`, partition, in.after, in.upTo)
	if err != nil {
		t.Fatal(err)
	}
	var id, tx int64
	found := []int64{}
	if _, err := pgx.ForEachRow(rows, []any{&id, &tx}, func() error {
		if w.contains(uint64(tx)) {
			found = append(found, id)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

func ids(rows []row) []int64 {
	found := make([]int64, len(rows))
	for i, r := range rows {
		found[i] = r.ID
	}
	return found
}

// TestNextIsTheWindowUpToNow compares what one statement reads with the definition, over snapshots of the past.
func TestNextIsTheWindowUpToNow(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	if _, err := db.Exec(t.Context(), `
		INSERT INTO outbox.messages (uuid, topic, key, payload, transaction_id)
		SELECT gen_random_uuid(), 't', 'k' || n % 9, '{}', (1 + n * 17 % $1)::text::xid8
		FROM generate_series(1, 4 * $1::int) AS n`, highest); err != nil {
		t.Fatal(err)
	}
	config, err := pgx.ParseConfig(db.RelayURL)
	if err != nil {
		t.Fatal(err)
	}
	var sessions []*session
	for partition := range outbox.Partitions {
		sess, err := openSession(t.Context(), config, lease.Held{Partition: partition}, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer sess.close()
		sess.halved = 0 // as after some reads
		sessions = append(sessions, sess)
	}
	ctx := t.Context()
	rapid.Check(t, func(t *rapid.T) {
		relayed := snapshots().Draw(t, "relayed")
		sess := rapid.SampledFrom(sessions).Draw(t, "session")
		now, rows, fits, err := sess.next(ctx, relayed)
		if err != nil || !fits {
			t.Fatalf("next: %v, %v", fits, err)
		}
		w, err := between(relayed, now)
		if err != nil {
			t.Fatal(err)
		}
		if want := idsIn(ctx, t, sess.conn, sess.held.Partition, w, everything); !slices.Equal(ids(rows), want) {
			t.Fatalf("next after %s reads %v, want %v", relayed, ids(rows), want)
		}
	})
}

// TestSplitCoversALargeWindow pages through more rows than one query brings.
func TestSplitCoversALargeWindow(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	const total = 3*pageSize + 17
	if _, err := db.Exec(t.Context(), `
		INSERT INTO outbox.messages (uuid, topic, key, payload)
		SELECT gen_random_uuid(), 't', 'one key', '{}' FROM generate_series(1, $1::int) AS n`, total); err != nil {
		t.Fatal(err)
	}
	var partition int
	var now string
	if err := db.QueryRow(t.Context(), `SELECT outbox.partition_of('one key'), pg_current_snapshot()::text`).Scan(&partition, &now); err != nil {
		t.Fatal(err)
	}
	target, err := parseSnapshot(now)
	if err != nil {
		t.Fatal(err)
	}
	w, err := between(nothing, target)
	if err != nil {
		t.Fatal(err)
	}
	config, err := pgx.ParseConfig(db.RelayURL)
	if err != nil {
		t.Fatal(err)
	}
	sess, err := openSession(t.Context(), config, lease.Held{Partition: partition}, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer sess.close()
	for _, rest := range []span{everything, {after: 700, upTo: everything.upTo}} {
		read := allPages(t, sess, w, rest)
		if n := int64(len(read)); n != total-rest.after || !slices.IsSorted(read) || read[0] != rest.after+1 {
			t.Errorf("%d rows after %d, beginning with %d", n, rest.after, read[0])
		}
	}
}

func allPages(t *testing.T, sess *session, w window, in span) []int64 {
	t.Helper()
	if _, rows, fits, err := sess.next(t.Context(), nothing); fits || rows != nil || err != nil {
		t.Fatalf("all that is there fits one page: %v, %v, %v", rows, fits, err)
	}
	if _, fits, err := sess.read(t.Context(), w, in); fits || err != nil {
		t.Fatalf("the window fits one page: %v, %v", fits, err)
	}
	spans, err := sess.split(t.Context(), w, in)
	if err != nil {
		t.Fatal(err)
	}
	var all []int64
	for _, part := range spans {
		for whole := false; !whole; {
			var rows []row
			var err error
			rows, whole, err = sess.page(t.Context(), w, part)
			if err != nil || len(rows) > pageSize || len(rows) == 0 && !whole {
				t.Fatalf("a page of %d rows, %v", len(rows), err)
			}
			all = append(all, ids(rows)...)
			part.after = all[len(all)-1]
		}
	}
	return all
}
