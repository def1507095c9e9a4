package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox/outboxtest"
	schema "github.com/jcp/ticketwave/sql"
)

const servicePassword = "bench-password"

// Who leads bookings.
const (
	choreography  = "choreography"
	orchestration = "orchestration"
)

// town is a whole TicketWave: databases, a vhost, and its programs as processes.
type town struct {
	prefix, amqp, admin string
	addr                map[string]string
	client              *http.Client
	db                  *pgxpool.Pool // booking's
}

func newTown(b *testing.B, style string) *town {
	b.Helper()
	t := &town{prefix: "tw_bench_" + uuid.NewString()[:8] + "_", amqp: outboxtest.NewVHost(b), admin: outboxtest.Env(b).PostgresURL, addr: map[string]string{}}
	t.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(b, schema.Drop(ctx, t.admin, schema.TicketWave(t.prefix, servicePassword)))
	})
	t.prepare(b, "migrate")
	t.prepare(b, "topology", "apply")
	mail := "TW_MAIL_DIR=" + mailDir(b)
	for _, name := range schema.Services {
		t.addr[name] = freeAddr(b)
		startProcess(b, name, "TW_AMQP_URL="+t.amqp, "TW_DATABASE_URL="+t.url(b, name, name), "TW_HTTP_ADDR="+t.addr[name], "TW_SAGA="+style, mail)
	}
	var outboxes []string
	for _, name := range schema.Services {
		outboxes = append(outboxes, name+"="+t.url(b, name, "relay"))
	}
	startProcess(b, "relay", "TW_AMQP_URL="+t.amqp, "TW_RELAY_DATABASES="+strings.Join(outboxes, ","))
	for _, name := range schema.Services {
		t.ready(b, name)
	}
	pool, err := pgxpool.New(b.Context(), t.url(b, "booking", ""))
	must(b, err)
	b.Cleanup(pool.Close)
	t.db = pool
	return t
}

// mailDir is in memory where that is possible: making files beside those that other rows have just removed is slow.
func mailDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "bench-mail-")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (t *town) prepare(b *testing.B, args ...string) {
	b.Helper()
	cmd := exec.Command(filepath.Join("..", "bin", "ticketwave"), args...)
	cmd.Env = append(os.Environ(), "TW_POSTGRES_URL="+t.admin, "TW_AMQP_URL="+t.amqp, "TW_SERVICE_PASSWORD="+servicePassword, "TW_DATABASE_PREFIX="+t.prefix)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("ticketwave %v: %v: %s", args, err, out)
	}
}

// url connects to a service's database as a login, or as administrator.
func (t *town) url(b *testing.B, service, login string) string {
	b.Helper()
	password := servicePassword
	if login == "" {
		password = ""
	} else {
		login = t.prefix + login
	}
	url, err := schema.URL(t.admin, t.prefix+service, login, password)
	must(b, err)
	return url
}

func freeAddr(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (t *town) ready(b *testing.B, name string) {
	b.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := t.client.Get("http://" + t.addr[name] + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(end) {
			b.Fatalf("%s is not ready", name)
		}
	}
}

func (t *town) post(ctx context.Context, service, path string, body any) error {
	document, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+t.addr[service]+path, bytes.NewReader(document))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := t.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("%s answers %d: %.200s", path, resp.StatusCode, answer)
	}
	return nil
}

// sell puts events on sale and waits until booking can price them.
func (t *town) sell(b *testing.B, n int) (events []string) {
	b.Helper()
	for range n {
		id := uuid.NewString()
		must(b, t.post(b.Context(), "catalog", "/api/events", map[string]any{
			"eventId": id, "name": "Bench night", "startsAt": "2099-06-01T19:00:00Z", "price": "25.00", "currency": "EUR", "capacity": 1_000_000,
		}))
		events = append(events, id)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var known int
		must(b, t.db.QueryRow(b.Context(), `SELECT count(*) FROM booking.events`).Scan(&known))
		if known == n {
			return events
		}
		if time.Now().After(end) {
			b.Fatal("booking has not heard of the events")
		}
	}
}

func (t *town) book(ctx context.Context, event string) error {
	return t.post(ctx, "booking", "/api/bookings", map[string]any{"eventId": event, "userId": uuid.NewString(), "ticketCount": 1})
}

const isSettled = `status = 'awaiting_payment' AND notified IS NOT NULL`

// settled waits until every booking is, and returns how many.
func (t *town) settled(b *testing.B) (n int) {
	b.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var open int
		must(b, t.db.QueryRow(b.Context(), `SELECT count(*) FILTER (WHERE NOT (`+isSettled+`)), count(*) FROM booking.bookings`).Scan(&open, &n))
		if open == 0 {
			return n
		}
		if time.Now().After(end) {
			b.Fatalf("%d bookings of %d are not settled", open, n)
		}
	}
}

// whole measures both styles, one after the other. The goals are those of the default.
func whole(b *testing.B, r *Row) {
	met := false
	for _, style := range []string{choreography, orchestration} {
		if !b.Run(style, func(b *testing.B) {
			reached := wholeIn(b, r, style)
			met = met || style == choreography && reached
		}) {
			b.FailNow()
		}
	}
	r.note("50 events on sale; five services, the relay, PostgreSQL, RabbitMQ and the clients on the same cores, mails to files in memory; " +
		"settled: tickets held, payment prepared, user notified, all answers applied; confirmed: paid at the sandbox's page, tickets sold, all answers applied")
	r.judge(met)
}

func wholeIn(b *testing.B, r *Row, style string) (reached bool) {
	t := newTown(b, style)
	events := t.sell(b, 50)
	seconds := pick(20, 6)
	failed := newFailure()
	closedLoop := func(clients int, length time.Duration) {
		ctx, cancel := context.WithTimeout(b.Context(), length)
		defer cancel()
		var next atomic.Int64
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := t.book(b.Context(), events[int(next.Add(1))%len(events)]); err != nil {
						failed.set(err.Error())
						return
					}
				}
			})
		}
		wg.Wait()
		failed.check(b)
	}
	r.say("%s: warming up", style)
	closedLoop(8, 2*time.Second)
	before := t.settled(b)
	r.say("%s: as fast as it goes", style)
	start, busy := time.Now(), cpu()
	closedLoop(16, time.Duration(seconds)*time.Second)
	n := t.settled(b) - before
	rate := float64(n) / time.Since(start).Seconds()
	r.add(style+": bookings settled", rate, "per second")
	programs := append([]string{"postgres", "beam.smp", "relay", "bench.test"}, schema.Services...)
	spent := shares(busy, cpu(), n, programs)

	half := max(1, int(rate/2))
	r.say("%s: half of it, %d bookings/s", style, half)
	since := t.now(b)
	busy = cpu()
	c := newClock(half * seconds)
	openLoop(b, c, half*seconds, half, func(ctx context.Context, n int) (time.Time, error) {
		return time.Now(), t.book(ctx, events[n%len(events)])
	})
	calm := shares(busy, cpu(), t.settled(b)-before-n, programs)
	ms := t.took(b, "updated_at", since)
	p99 := percentile(ms, 0.99)
	r.add(style+": time to settle at half of it, p50", percentile(ms, 0.5), "ms")
	r.add(style+": time to settle at half of it, p99", p99, "ms")

	r.say("%s: paying", style)
	busy = cpu()
	paid, took := t.pay(b, pick(3000, 300))
	r.add(style+": bookings confirmed", float64(paid)/took.Seconds(), "per second")
	r.note("%s: %d bookings in %d s of load; processor time for one of them, ms: %s; at half of it: %s; from there to its end: %s",
		style, n, seconds, spent, calm, shares(busy, cpu(), paid, programs))
	return rate >= 400 && p99 <= 300
}

// now is the database's time.
func (t *town) now(b *testing.B) (now time.Time) {
	b.Helper()
	must(b, t.db.QueryRow(b.Context(), `SELECT clock_timestamp()`).Scan(&now))
	return now
}

// took is how long bookings made since then took to a moment that is in a column, in milliseconds.
func (t *town) took(b *testing.B, column string, since time.Time) []float64 {
	b.Helper()
	rows, err := t.db.Query(b.Context(), `SELECT extract(epoch FROM `+column+` - created_at) * 1000 FROM booking.bookings WHERE created_at > $1`, since)
	must(b, err)
	ms, err := pgx.CollectRows(rows, pgx.RowTo[float64])
	must(b, err)
	return ms
}

// pay pays for some of the bookings that wait for it, and waits until their tickets are sold.
func (t *town) pay(b *testing.B, most int) (n int, took time.Duration) {
	b.Helper()
	rows, err := t.db.Query(b.Context(), `SELECT payment_id::text FROM booking.bookings WHERE status = 'awaiting_payment' ORDER BY id DESC LIMIT $1`, most)
	must(b, err)
	pages, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(b, err)
	failed, start := newFailure(), time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(pages); i = int(next.Add(1)) - 1 {
				resp, err := t.client.PostForm("http://"+t.addr["payment"]+"/pay/"+pages[i], url.Values{"action": {"pay"}})
				if err != nil {
					failed.set(err.Error())
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body) // so that the connection can be used again
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					failed.set("the checkout page answers " + resp.Status)
				}
			}
		})
	}
	wg.Wait()
	failed.check(b)
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		must(b, t.db.QueryRow(b.Context(), `SELECT count(*) FROM booking.bookings WHERE status = 'confirmed' AND inventory = 'sold'`).Scan(&n))
		switch {
		case n == len(pages):
			return n, time.Since(start)
		case time.Now().After(end):
			b.Fatalf("%d of %d paid bookings are confirmed", n, len(pages))
		}
	}
}
