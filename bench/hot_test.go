package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// hot offers bookings of one event at a rate of 1,000 per second, and then as many of 50 events, in the same town.
func hot(b *testing.B, r *Row) {
	t := newTown(b, choreography)
	n := pick(1000, 200)
	events := t.sell(b, 51)
	one, many := events[:1], events[1:]
	r.say("warming up")
	t.offer(b, n/2, many)
	even := t.offer(b, n, many)
	single := t.offer(b, n, one)
	for _, m := range []struct {
		name string
		offered
	}{{"50 events", even}, {"one event", single}} {
		r.add(m.name+": bookings held", m.rate, "per second")
		r.add(m.name+": time to held, p50", percentile(m.ms, 0.5), "ms")
		r.add(m.name+": time to held, p99", percentile(m.ms, 0.99), "ms")
		r.add(m.name+": transactions that wait for a lock", m.waiting, "on average")
		r.note("%s: waits by service and lock: %s", m.name, m.locks)
	}
	r.add("bookings held, one event / 50 events", single.rate/even.rate, "ratio")
	r.note("%d bookings offered within a second, each by a client of its own; held: booking knows that the tickets are held; waits sampled every %s", n, sampleEvery)
	r.judge(single.rate >= 0.8*even.rate)
}

// offered is how it went.
type offered struct {
	rate    float64
	ms      []float64
	waiting float64
	locks   string
}

// offer books n times within a second and waits until everything is settled.
func (t *town) offer(b *testing.B, n int, events []string) offered {
	b.Helper()
	since := t.now(b)
	s := t.watchLocks(b)
	openLoop(b, newClock(n), n, n, func(ctx context.Context, i int) (time.Time, error) {
		return time.Now(), t.book(ctx, events[i%len(events)])
	})
	t.settled(b)
	o := offered{ms: t.took(b, "reserved_at", since)}
	var first, last time.Time
	must(b, t.db.QueryRow(b.Context(), `SELECT min(created_at), max(reserved_at) FROM booking.bookings WHERE created_at > $1`, since).Scan(&first, &last))
	o.rate = float64(len(o.ms)) / last.Sub(first).Seconds()
	o.waiting, o.locks = s.stop(b, last.Sub(first))
	return o
}

const sampleEvery = 10 * time.Millisecond

// lockWatch samples which transactions wait for a lock.
type lockWatch struct {
	pool   *pgxpool.Pool
	cancel context.CancelFunc
	ended  chan error
	seen   map[string]int
}

func (t *town) watchLocks(b *testing.B) *lockWatch {
	b.Helper()
	pool, err := pgxpool.New(b.Context(), t.admin)
	must(b, err)
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	s := &lockWatch{pool: pool, cancel: cancel, ended: make(chan error, 1), seen: map[string]int{}}
	go func() { s.ended <- s.sample(ctx, t.prefix) }()
	return s
}

func (s *lockWatch) sample(ctx context.Context, prefix string) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		rows, err := s.pool.Query(ctx, `
			SELECT substr(datname, length($1) + 1) || ' ' || wait_event FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND starts_with(datname, $1)`, prefix)
		var waits []string
		if err == nil {
			waits, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		for _, w := range waits {
			s.seen[w]++
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// stop gives how many transactions waited at a time, on average over what the work took, and for what.
func (s *lockWatch) stop(b *testing.B, took time.Duration) (average float64, what string) {
	b.Helper()
	s.cancel()
	must(b, <-s.ended)
	s.pool.Close()
	var parts []string
	for name, n := range s.seen {
		share := float64(n) * sampleEvery.Seconds() / took.Seconds()
		average += share
		parts = append(parts, fmt.Sprintf("%s %.2f", name, share))
	}
	if len(parts) == 0 {
		return 0, "none"
	}
	slices.Sort(parts)
	return average, strings.Join(parts, ", ")
}
