package chaos_test

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// fakeClock makes the clock of a program that is started with it differ from the machine's.
func fakeClock(library string, off time.Duration) []string {
	return []string{"LD_PRELOAD=" + library, fmt.Sprintf("CLOCK_OFFSET=%d", int(off.Seconds()))}
}

// clockLibrary compiles what fakeClock preloads.
func clockLibrary(ctx context.Context, t *testing.T, s *stage) (file string) {
	t.Helper()
	file = filepath.Join(s.dir, "clock.so")
	if _, err := output(ctx, exec.Command("gcc", "-O2", "-shared", "-fPIC", "-o", file, "testdata/clock.c")); err != nil {
		t.Skipf("no C compiler to make a clock with: %v", err)
	}
	return file
}

// offClock is a stage whose PostgreSQL is an hour ahead of everybody else.
func offClock(t *testing.T, s *stage) *stage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	library := clockLibrary(ctx, t, s)
	pg, err := newPostgres(ctx, s.where["postgres"], filepath.Join(s.dir, "off"), "")
	if err == nil {
		pg.env = fakeClock(library, time.Hour)
		err = pg.start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pg.crash)
	return s.on(pg)
}

// clockOff has the databases' clock an hour ahead of the programs', and then an hour behind.
func clockOff(r *run) {
	r.clockIs(time.Hour)
	r.begin()
	r.named("clock", "ahead")
	r.expireInTime()
	r.load.stop()
	if !r.w.quiet(r.T, 3*time.Minute, nil, nil) {
		r.FailNow()
	}
	r.step("an hour ahead is done")
	if err := r.w.pg.stop(syscall.SIGINT); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := r.context(time.Minute)
	defer cancel()
	r.w.pg.env = fakeClock(clockLibrary(ctx, r.T, r.w.stage), -time.Hour)
	if err := r.w.pg.restart(ctx); err != nil {
		r.Fatal(err)
	}
	r.clockIs(-time.Hour)
	r.load = r.w.startLoad(r.T, r.seed+1)
	r.healed("PostgreSQL")
	r.named("clock", "behind")
	r.expireInTime()
}

// clockIs wants the server's clock to differ from this one so much.
func (r *run) clockIs(off time.Duration) {
	r.Helper()
	ctx, cancel := r.context(20 * time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.w.pg.url(""))
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing hangs on it
	var now time.Time
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		r.Fatal(err)
	}
	if wrong := time.Until(now) - off; wrong.Abs() > time.Minute {
		r.Fatalf("the server's clock is %s off, wanted %s", time.Until(now).Round(time.Second), off)
	}
}

// expireInTime lets some people book and not pay, and wants each to have all the time that was promised, by this clock,
// for the tickets and for the payment, and little more.
func (r *run) expireInTime() {
	r.Helper()
	const people = 4
	var group sync.WaitGroup
	for range people {
		group.Go(func() {
			if text := r.expiresInTime(); text != "" {
				r.Error(text)
			}
		})
	}
	group.Wait()
}

func (r *run) expiresInTime() (wrong string) {
	o := r.one(r.load.event)
	began := time.Now()
	r.load.place(quickClient, o)
	answered := time.Now()
	if o.booked.ID == "" {
		return "a client was not answered"
	}
	var seen, paidUntil time.Duration
	if !within(payWithin+endsAfter+recoverWithin, func() bool {
		if paidUntil == 0 {
			var list struct{ Items []struct{ Status string } }
			address := "http://" + local(r.w.ports["payment"]) + "/api/payments?bookingId=" + o.booked.ID
			if status, _ := call(r.Context(), quickClient, http.MethodGet, address, "", nil, &list); status == http.StatusOK && len(list.Items) == 1 && list.Items[0].Status == "expired" {
				paidUntil = time.Since(began)
			}
		}
		var now struct{ Status string }
		status, _ := call(r.Context(), quickClient, http.MethodGet, *r.load.url.Load()+"/api/bookings/"+o.booked.ID, "", nil, &now)
		if seen == 0 && status == http.StatusOK && now.Status != "pending" && now.Status != "awaiting_payment" {
			seen = time.Since(began)
		}
		return seen > 0 && paidUntil > 0
	}) {
		return fmt.Sprintf("booking %s has not expired %s after it was taken: booking after %s, payment after %s (0 is not yet)", o.booked.ID, time.Since(answered), seen, paidUntil)
	}
	if early := min(seen, paidUntil); early < payWithin {
		return fmt.Sprintf("booking %s was to be paid within %s: it expired after %s, its payment after %s", o.booked.ID, payWithin, seen, paidUntil)
	}
	return ""
}
