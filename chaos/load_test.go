package chaos_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
)

// booking is what booking's API answers.
type booking struct {
	ID, EventID, UserID, Currency string
	TicketCount                   int
	TotalAmount                   contracts.Amount
	ExpiresAt                     time.Time
}

// order is one client's wish, under one idempotency key and for a user of its own.
type order struct {
	key, user, event string
	tickets          int
	wish             string // how the client means it to end
	began            time.Time
	booked           booking // as answered; the id is empty when it never was
}

// clients are all that was ever asked of the world, and what came of it.
type clients struct {
	mu       sync.Mutex
	orders   []*order
	appended []uuid.UUID // messages whose commit was reported to the writer
	wrong    []string    // what no client should ever see
	refused  atomic.Int64
}

func (c *clients) add(o *order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orders = append(c.orders, o)
}

func (c *clients) complain(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.wrong) < 20 {
		c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
	}
}

// accepted are the orders since the moment that were answered with a booking.
func (c *clients) accepted(since time.Time) (found []order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.orders {
		if o.booked.ID != "" && o.began.After(since) {
			found = append(found, *o)
		}
	}
	return found
}

// load books over HTTP, as clients do that repeat themselves until they are answered, and writes to the outboxes with
// the services' own roles so that every key has many messages.
type load struct {
	w        *world
	t        *testing.T
	event    string // has room for everybody
	small    string // is sold out soon
	cancel   context.CancelFunc
	running  sync.WaitGroup
	answered atomic.Int64
	slowest  atomic.Int64 // attempt, in milliseconds
	url      atomic.Pointer[string]
	pools    []*pgxpool.Pool
	patient  chan struct{} // room for clients that wait to go on with their bookings
}

const (
	bookers     = 2
	bookEvery   = 80 * time.Millisecond
	chatterers  = 2
	chatEvery   = 120 * time.Millisecond
	answerLimit = 2 * time.Minute // within which a client that repeats itself must be answered
	tryLimit    = 20 * time.Second
	waiting     = 64 // clients that go on with their bookings at the same time; others leave theirs
)

// sell puts an event on sale and waits until booking can price it.
func (w *world) sell(t *testing.T, capacity int) (event string) {
	t.Helper()
	event = uuid.NewString()
	eventually(t, 30*time.Second, func() bool {
		status, _ := call(t.Context(), quickClient, http.MethodPost, "http://"+local(w.ports["catalog"])+"/api/events", "", map[string]any{
			"eventId": event, "name": "Night of the faults", "startsAt": "2099-06-01T19:00:00Z", "price": "25.00", "currency": "EUR", "capacity": capacity,
		}, nil)
		return status == http.StatusCreated || status == http.StatusOK
	}, "the catalog does not take an event")
	eventually(t, 30*time.Second, func() (known bool) {
		w.admin(t, "booking", `SELECT EXISTS (SELECT FROM booking.events WHERE id = $1)`, []any{event}, &known)
		return known
	}, "booking has not heard of the event")
	return event
}

// startLoad begins to book and to write until stop.
func (w *world) startLoad(t *testing.T, seed uint64) *load {
	t.Helper()
	l := &load{w: w, t: t, event: w.sell(t, 1_000_000), small: w.sell(t, 12), patient: make(chan struct{}, waiting)}
	l.aim(w.ports["booking"])
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(context.Background())
	for i := range bookers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		l.running.Go(func() { l.book(ctx, rng) })
	}
	keys := &hotKeys{}
	bookingPool, catalogPool := l.pool("booking"), l.pool("catalog")
	for i := range chatterers {
		rng := rand.New(rand.NewPCG(seed, uint64(100+i)))
		l.running.Go(func() { l.chat(ctx, bookingPool, keys, rng) })
	}
	programme := []string{uuid.NewString(), uuid.NewString()}
	l.running.Go(func() { l.publish(ctx, catalogPool, programme) })
	t.Cleanup(l.stop)
	return l
}

// aim says where booking is reached.
func (l *load) aim(port int) {
	address := "http://" + local(port)
	l.url.Store(&address)
}

func (l *load) pool(service string) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig(l.w.databaseURL(l.t, local(l.w.pg.port), service, service))
	if err != nil {
		l.t.Fatal(err)
	}
	config.MaxConns = 3
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	config.ConnConfig.RuntimeParams["statement_timeout"] = "15s"
	config.ConnConfig.RuntimeParams["application_name"] = "chaos"
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		l.t.Fatal(err)
	}
	l.pools = append(l.pools, pool)
	return pool
}

// stop ends the load when every client has its answer.
func (l *load) stop() {
	l.cancel()
	l.running.Wait()
	for _, pool := range l.pools {
		pool.Close()
	}
	l.pools = nil
}

// await waits for so many further answers.
func (l *load) await(t *testing.T, n int64) {
	t.Helper()
	want := l.answered.Load() + n
	eventually(t, 90*time.Second, func() bool { return l.answered.Load() >= want }, "%d bookings are not answered", n)
}

func (l *load) book(ctx context.Context, rng *rand.Rand) {
	tick := time.NewTicker(bookEvery)
	defer tick.Stop()
	client := &http.Client{Transport: &http.Transport{}, Timeout: tryLimit}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		o := &order{key: uuid.NewString(), user: uuid.NewString(), event: l.event, tickets: 1 + rng.IntN(3), wish: wishes[rng.IntN(len(wishes))]}
		if rng.IntN(8) == 0 {
			o.event = l.small
		}
		l.place(client, o)
		if rng.IntN(8) == 0 {
			l.place(client, o)
		}
		l.goOn(ctx, client, *o)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// place sends an order until it is answered. A second time it must be answered as the first time.
func (l *load) place(client *http.Client, o *order) {
	if o.began.IsZero() {
		o.began = time.Now()
		l.w.clients.add(o)
	}
	first := o.booked.ID == ""
	for limit := time.Now().Add(answerLimit); ; {
		b, status := l.try(client, o)
		switch {
		case status == http.StatusCreated && (first || b.ID == o.booked.ID):
			l.w.clients.mu.Lock()
			o.booked = b
			l.w.clients.mu.Unlock()
			l.answered.Add(1)
			return
		case status == http.StatusCreated:
			l.w.clients.complain("one idempotency key was answered with bookings %s and %s", o.booked.ID, b.ID)
			return
		case time.Now().After(limit):
			l.w.clients.complain("a client was not answered within %s", answerLimit)
			return
		}
		time.Sleep(50*time.Millisecond + time.Duration(rand.IntN(150))*time.Millisecond)
	}
}

// try is one attempt. Anything but an answer, trouble on the way, and 503 with Retry-After is a complaint.
func (l *load) try(client *http.Client, o *order) (b booking, status int) {
	began := time.Now()
	status, header := call(context.Background(), client, http.MethodPost, *l.url.Load()+"/api/bookings", o.key,
		map[string]any{"eventId": o.event, "userId": o.user, "ticketCount": o.tickets}, &b)
	if took := time.Since(began).Milliseconds(); took > l.slowest.Load() {
		l.slowest.Store(took)
	}
	switch {
	case status == 0 || status == http.StatusCreated:
	case status == http.StatusServiceUnavailable && header.Get("Retry-After") != "":
		l.w.clients.refused.Add(1)
	default:
		l.w.clients.complain("a client was answered with status %d, Retry-After %q", status, header.Get("Retry-After"))
	}
	return b, status
}

// wishes are what clients do with their bookings once these can be paid, some at any time; the frequent ones stand more than once.
var wishes = []string{"pay", "pay", "pay", "pay", "pay", "pay", "decline", "late", "cancel", "cancel at once", "pay and cancel", "leave"}

// goOn lets a client do with its booking what it wishes, while others book.
func (l *load) goOn(ctx context.Context, client *http.Client, o order) {
	if o.booked.ID == "" || o.wish == "leave" {
		return
	}
	select {
	case l.patient <- struct{}{}:
	default:
		return
	}
	l.running.Go(func() {
		defer func() { <-l.patient }()
		l.follow(ctx, client, o)
	})
}

// follow looks at a booking until the client can do what it wishes, or the booking has ended, or the load has. Who is not
// answered tries again; what then does not happen in time is the booking's to end.
func (l *load) follow(ctx context.Context, client *http.Client, o order) {
	limit := time.Now().Add(answerLimit)
	for ctx.Err() == nil && time.Now().Before(limit) {
		if done := l.act(ctx, client, o); done {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(100*time.Millisecond + time.Duration(rand.IntN(200))*time.Millisecond):
		}
	}
}

// act does what the client wishes if it can be done now, and reports whether there is nothing more to do.
func (l *load) act(ctx context.Context, client *http.Client, o order) (done bool) {
	if o.wish == "cancel at once" {
		return l.press(ctx, client, l.cancelURL(o), "")
	}
	var now struct{ Status, PaymentURL string }
	if status, _ := call(ctx, client, http.MethodGet, *l.url.Load()+"/api/bookings/"+o.booked.ID, "", nil, &now); status != http.StatusOK {
		return false
	}
	if now.Status != "pending" && now.Status != "awaiting_payment" {
		return true
	}
	if now.PaymentURL == "" {
		return false
	}
	page := "http://" + local(l.w.ports["payment"]) + "/pay/" + path.Base(now.PaymentURL)
	switch o.wish {
	case "cancel":
		return l.press(ctx, client, l.cancelURL(o), "")
	case "pay and cancel":
		var paid bool
		var pair sync.WaitGroup
		pair.Go(func() { paid = l.press(ctx, client, page, "pay") })
		cancelled := l.press(ctx, client, l.cancelURL(o), "")
		pair.Wait()
		return paid && cancelled
	}
	return l.press(ctx, client, page, o.wish)
}

func (l *load) cancelURL(o order) string {
	return *l.url.Load() + "/api/bookings/" + o.booked.ID + "/cancel"
}

// press posts a form, and reports whether it was answered. That it comes too late is an answer.
func (l *load) press(ctx context.Context, client *http.Client, address, action string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(url.Values{"action": {action}}.Encode()))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // the status is the answer
	switch resp.StatusCode {
	case http.StatusOK, http.StatusConflict:
		return true
	case http.StatusServiceUnavailable:
	default:
		l.w.clients.complain("%s of %s was answered with status %d", action, address, resp.StatusCode)
	}
	return false
}

// hotKeys are a few bookings about which much is said.
type hotKeys struct {
	mu   sync.Mutex
	some []order
}

const hot = 6

func (h *hotKeys) pick(c *clients, since time.Time, rng *rand.Rand) (order, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.some) < hot {
		if found := c.accepted(since); len(found) > len(h.some) {
			h.some = found[:min(len(found), hot)]
		}
	}
	if len(h.some) == 0 {
		return order{}, false
	}
	return h.some[rng.IntN(len(h.some))], true
}

// chat repeats requests about hot bookings: the participants answer each with their first answer, in order.
func (l *load) chat(ctx context.Context, pool *pgxpool.Pool, keys *hotKeys, rng *rand.Rand) {
	began := time.Now()
	every(ctx, chatEvery, func() {
		o, ok := keys.pick(&l.w.clients, began, rng)
		if !ok {
			return
		}
		b, now := o.booked, time.Now().UTC()
		events := []outbox.Event{
			contracts.UpdateEventInventory{EventID: b.EventID, BookingID: b.ID, QuantityReduced: b.TicketCount, RequestedAt: now},
			contracts.PreparePaymentData{BookingID: b.ID, Amount: b.TotalAmount, Currency: b.Currency, UserID: b.UserID, ExpiresAt: b.ExpiresAt, RequestedAt: now},
			contracts.UpdateEventInventory{EventID: b.EventID, BookingID: b.ID, QuantityReduced: b.TicketCount, RequestedAt: now},
		}
		l.write(ctx, pool, events[:1+rng.IntN(3)]...)
	})
}

// publish tells of ever newer versions of a programme; booking keeps the newest, and the journal says in what order.
func (l *load) publish(ctx context.Context, pool *pgxpool.Pool, programme []string) {
	version := int64(0)
	every(ctx, chatEvery, func() {
		version++
		now := time.Now().UTC()
		for _, event := range programme {
			l.write(ctx, pool, contracts.CatalogEventPublished{
				EventID: event, Name: "Programme", StartsAt: now.AddDate(10, 0, 0), Price: 2500, Currency: "EUR", Capacity: 100, Version: version, PublishedAt: now,
			})
		}
	})
}

// write appends in a transaction of its own and remembers the messages whose commit was confirmed.
func (l *load) write(ctx context.Context, pool *pgxpool.Pool, events ...outbox.Event) {
	messages, err := outbox.Encode(ctx, events...)
	if err != nil {
		l.w.clients.complain("encode: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tryLimit)
	defer cancel()
	if err := outbox.InTx(ctx, pool, func(tx pgx.Tx) error { return outbox.Write(ctx, tx, messages...) }); err != nil {
		return // whether it was committed is for the checks to find out
	}
	l.w.clients.mu.Lock()
	defer l.w.clients.mu.Unlock()
	for _, m := range messages {
		l.w.clients.appended = append(l.w.clients.appended, m.ID)
	}
}

func every(ctx context.Context, pause time.Duration, do func()) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

// isAnswered is a booking that has heard of everything it asked for at first.
const isAnswered = `status <> 'pending' AND payment <> 'asked' AND notified IS NOT NULL`

// isSettled is a booking that has ended, and has heard of everything that followed: its tickets are sold and its money is kept, or
// nothing is held and nothing can be paid any more.
const isSettled = `deadline_at IS NULL AND notified IS NOT NULL AND CASE status
	WHEN 'confirmed' THEN inventory = 'sold' AND payment = 'completed'
	ELSE inventory IN ('refused', 'released') AND payment NOT IN ('asked', 'prepared', 'completed') END`

// answered reports whether a booking has every first answer.
func (w *world) answered(id string) bool { return w.is(id, isAnswered) }

// settled reports whether a booking has ended, and everything that it set off.
func (w *world) settled(id string) bool { return w.is(id, isSettled) }

func (w *world) is(id, condition string) (done bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := w.pools["booking"].QueryRow(ctx, `SELECT `+condition+` FROM booking.bookings WHERE id = $1`, id).Scan(&done)
	return err == nil && done
}

// bookOne books and pays by itself, without a load, and waits until the booking has ended.
func (w *world) bookOne(t *testing.T, event string) order {
	t.Helper()
	l := &load{w: w, t: t}
	l.aim(w.ports["booking"])
	o := &order{key: uuid.NewString(), user: uuid.NewString(), event: event, tickets: 1, wish: "pay"}
	l.place(quickClient, o)
	l.follow(t.Context(), quickClient, *o)
	eventually(t, time.Minute, func() bool { return w.settled(o.booked.ID) }, "booking %s does not settle", o.booked.ID)
	return *o
}
