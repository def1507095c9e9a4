package chaos_test

import (
	"context"
	"fmt"
	"net/http"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
)

const atFailpoint = "TW_FAILPOINTS="

// again starts a program that has ended, and waits until it is ready.
func (r *run) again(name string, env ...string) *program {
	r.Helper()
	p := r.w.launch(r.T, name, env...)
	r.w.awaitReady(r.T, name)
	return p
}

// armed starts a program that is killed at a failpoint. Something that has been under way may kill it before it is ready; then
// it is started again, some times.
func (r *run) armed(name, failpoint string) *program {
	r.Helper()
	for try := 1; ; try++ {
		p := r.w.launch(r.T, name, atFailpoint+failpoint)
		eventually(r.T, time.Minute, func() bool { return p.ready() || !p.alive() }, "%s is not ready", name)
		if p.alive() {
			return p
		}
		if try == 5 {
			r.Fatalf("%s never comes up: %s", name, p.log.tail())
		}
	}
}

// dies waits until a program has been killed by its failpoint.
func (r *run) dies(p *program) {
	r.Helper()
	if !p.await(time.Minute) {
		r.Fatalf("%s does not come to its failpoint", p.name)
	}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		r.Fatalf("%s ended with %s, not by its failpoint: %s", p.name, p.cmd.ProcessState, p.log.tail())
	}
}

// one is an order that is sent by hand.
func (r *run) one(event string) *order {
	return &order{key: uuid.NewString(), user: uuid.NewString(), event: event, tickets: 2}
}

// byHand places orders without a load.
func (r *run) byHand() *load {
	l := &load{w: r.w, t: r.T}
	l.aim(r.w.ports["booking"])
	return l
}

// traces are the rows that an order has left: bookings, idempotency keys, and the messages with which they begin, one for each,
// whoever leads them.
func (r *run) traces(o *order) (bookings, keys, messages int) {
	r.Helper()
	r.w.admin(r.T, "booking", `
		SELECT (SELECT count(*) FROM booking.bookings WHERE user_id = $1::uuid),
		       (SELECT count(*) FROM booking.idempotency_keys WHERE key = $2),
		       (SELECT count(*) FROM outbox.messages WHERE topic = ANY ($3) AND key IN
		           (SELECT id::text FROM booking.bookings WHERE user_id = $1::uuid))`,
		[]any{o.user, o.key, []string{contracts.TypeUpdateEventInventory, contracts.TypeBookingCreated}}, &bookings, &keys, &messages)
	return bookings, keys, messages
}

func writerDiesBeforeCommit(r *run) {
	r.begin()
	r.load.stop() // all are answered: the next request is the only one
	r.w.killed("booking")
	p := r.armed("booking", "outbox.before-commit=kill")
	o := r.one(r.load.event)
	o.began = time.Now()
	r.w.clients.add(o)
	if _, status := r.byHand().try(quickClient, o); status != 0 {
		r.Errorf("a request that killed its server was answered with status %d", status)
	}
	r.dies(p)
	if bookings, keys, messages := r.traces(o); bookings+keys+messages != 0 {
		r.Errorf("a writer that died before its commit has left %d bookings, %d keys, %d messages", bookings, keys, messages)
	}
	r.again("booking")
	r.byHand().place(quickClient, o)
	r.begin()
	// Once more among others.
	r.w.killed("booking")
	p = r.w.launch(r.T, "booking", atFailpoint+fmt.Sprintf("outbox.before-commit=kill@%d", 5+r.rng.IntN(20)))
	r.dies(p)
	r.again("booking")
	r.healed("booking")
}

func writerDiesAfterCommit(r *run) {
	r.begin()
	r.load.stop()
	r.w.killed("booking")
	p := r.armed("booking", "outbox.after-commit=kill")
	o := r.one(r.load.event)
	o.began = time.Now()
	r.w.clients.add(o)
	if _, status := r.byHand().try(quickClient, o); status != 0 {
		r.Errorf("a request that killed its server was answered with status %d", status)
	}
	r.dies(p)
	r.again("booking")
	r.answeredAsBefore(o)
	r.replyDropped()
	r.begin()
	r.w.killed("booking")
	p = r.w.launch(r.T, "booking", atFailpoint+fmt.Sprintf("outbox.after-commit=kill@%d", 5+r.rng.IntN(20)))
	r.dies(p)
	r.again("booking")
	r.healed("booking")
}

// answeredAsBefore wants the order to be booked already, and its repetition to be answered with that booking.
func (r *run) answeredAsBefore(o *order) {
	r.Helper()
	if bookings, keys, messages := r.traces(o); bookings != 1 || keys != 1 || messages != 1 {
		r.Errorf("a writer that died after its commit has left %d bookings, %d keys, %d messages", bookings, keys, messages)
	}
	var id string
	r.w.admin(r.T, "booking", `SELECT id::text FROM booking.bookings WHERE user_id = $1`, []any{o.user}, &id)
	r.byHand().place(quickClient, o)
	if o.booked.ID != id {
		r.Errorf("the repetition was answered with booking %s, the first request made %s", o.booked.ID, id)
	}
}

// replyDropped lets a proxy swallow the answer of a booking.
func (r *run) replyDropped() {
	r.Helper()
	front, err := newProxy("booking", r.w.ports["booking"])
	if err != nil {
		r.Fatal(err)
	}
	defer front.Stop()
	front.spoil(r.T, "timeout", "downstream", map[string]any{"timeout": 0})
	o, l := r.one(r.load.event), r.byHand()
	l.aim(front.port)
	o.began = time.Now()
	r.w.clients.add(o)
	impatient := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if _, status := l.try(impatient, o); status != 0 {
		r.Errorf("a reply that was dropped has arrived with status %d", status)
	}
	eventually(r.T, 10*time.Second, func() bool { n, _, _ := r.traces(o); return n == 1 }, "the request has not been carried out")
	r.answeredAsBefore(o)
}

func relayDiesBeforePublish(r *run) {
	event := r.w.sell(r.T, 100)
	if !r.w.quiet(r.T, time.Minute, nil, nil) { // the cursor knows all
		return
	}
	r.w.killed("relay")
	p := r.again("relay", atFailpoint+"relay.before-publish=kill")
	o := r.one(event)
	r.byHand().place(quickClient, o)
	r.dies(p)
	r.again("relay")
	began := time.Now()
	eventually(r.T, time.Minute, func() bool { return r.w.answered(o.booked.ID) }, "the booking is not answered")
	r.result.recoveries = append(r.result.recoveries, recovery{"relay", time.Since(began)})
	if n := r.repeatedSince(); n != 0 {
		r.Errorf("%d messages were published again, and the relay had published none", n)
	}
	r.begin()
}

// repeatedSince counts what was published again since the last look at the tap.
func (r *run) repeatedSince() int {
	r.Helper()
	before := (&picture{tapped: r.w.tapped}).repeated()
	if !r.w.quiet(r.T, time.Minute, nil, nil) {
		return 0
	}
	if err := r.w.drainTap(); err != nil {
		r.Fatal(err)
	}
	return (&picture{tapped: r.w.tapped}).repeated() - before
}

func relayDiesAfterConfirm(r *run) {
	event := r.w.sell(r.T, 100)
	if !r.w.quiet(r.T, time.Minute, nil, nil) {
		return
	}
	r.w.killed("relay")
	p := r.again("relay", atFailpoint+"relay.after-confirm=kill")
	o := r.one(event)
	r.byHand().place(quickClient, o)
	r.dies(p)
	r.again("relay")
	eventually(r.T, time.Minute, func() bool { return r.w.answered(o.booked.ID) }, "the booking is not answered")
	if n := r.repeatedSince(); n < 1 || n > 3 {
		r.Errorf("%d messages were published again, want the one that was confirmed, and no more than the three there were", n)
	}
	r.begin()
	r.w.killed("relay")
	p = r.w.launch(r.T, "relay", atFailpoint+fmt.Sprintf("relay.after-confirm=kill@%d", 20+r.rng.IntN(60)))
	r.dies(p)
	r.again("relay")
	r.healed("relay")
}

func relayDiesMidWindow(r *run) {
	r.begin()
	for range 5 {
		r.pause(200*time.Millisecond, 1200*time.Millisecond)
		r.w.killed("relay")
		r.again("relay")
	}
	r.healed("relay")
}

func relayPaused(r *run) {
	r.begin()
	second := r.again("relay2")
	first := r.w.procs["relay"]
	r.ownersAre(2)
	r.pause(100*time.Millisecond, 600*time.Millisecond)
	first.signal(syscall.SIGSTOP)
	began := time.Now()
	eventually(r.T, time.Minute, func() bool { return r.owners() == 1 }, "nobody takes over from a paused relay")
	r.result.recoveries = append(r.result.recoveries, recovery{"relay", time.Since(began)})
	r.load.await(r.T, 20)
	first.signal(syscall.SIGCONT)
	eventually(r.T, time.Minute, func() bool { return first.log.says(`lease lost|lease has passed|lost`) }, "the paused relay does not notice that it has lost its leases")
	r.ownersAre(2)
	r.fenced()
	r.w.stop(r.T, second.name)
	delete(r.w.procs, second.name)
	r.ownersAre(1)
	r.healed("relay")
}

// fenced wants the journal of every cursor to have been written by ever newer leases.
func (r *run) fenced() {
	r.Helper()
	for service := range r.w.pools {
		var late int
		r.w.admin(r.T, service, `
			SELECT count(*) FROM (SELECT token, max(token) OVER (PARTITION BY partition ORDER BY seq) AS newest FROM outbox.cursor) AS c
			WHERE token < newest`, nil, &late)
		if late > 0 {
			r.Errorf("%d cursor rows of %s were written under a lease that had passed on", late, service)
		}
	}
}

// owners is how many relays own partitions.
func (r *run) owners() (most int) {
	for service := range r.w.pools {
		var n int
		r.w.admin(r.T, service, `SELECT count(DISTINCT owner) FROM outbox.leases WHERE owner IN (SELECT member FROM outbox.members)`, nil, &n)
		most = max(most, n)
	}
	return most
}

// ownersAre waits until so many relays share the partitions of every database evenly, each with one owner.
func (r *run) ownersAre(n int) {
	r.Helper()
	eventually(r.T, time.Minute, func() bool {
		for service := range r.w.pools {
			var owned, owners, most int
			r.w.admin(r.T, service, `
				SELECT coalesce(sum(n), 0), count(*), coalesce(max(n), 0) FROM (SELECT owner, count(*) AS n FROM outbox.leases WHERE owner IS NOT NULL GROUP BY owner) AS o`,
				nil, &owned, &owners, &most)
			if want := min(n, 4); owned != 4 || owners != want || most != (4+want-1)/want {
				return false
			}
		}
		return true
	}, "the partitions are not shared by %d relays", n)
}

func manyRelays(r *run) {
	r.begin()
	r.again("relay2")
	r.ownersAre(2)
	for _, name := range []string{"relay3", "relay4", "relay5"} {
		r.w.launch(r.T, name)
	}
	r.ownersAre(5)
	r.load.await(r.T, 20)
	for _, name := range []string{"relay4", "relay2", "relay5", "relay3"} {
		r.w.stop(r.T, name)
		delete(r.w.procs, name)
		r.load.await(r.T, 10)
	}
	r.ownersAre(1)
	for _, name := range []string{"catalog", "payment", "notification", "booking", "saga", "relay"} {
		r.w.stop(r.T, name)
		r.again(name)
	}
	r.fenced()
	r.healed("relay")
}

func consumerDiesBeforeCommit(r *run) { consumerDies(r, "inbox.before-commit") }

func consumerDiesAfterCommit(r *run) {
	before := r.w.absorbed()
	consumerDies(r, "inbox.after-commit")
	eventually(r.T, 30*time.Second, func() bool { return r.w.absorbed() > before }, "no inbox has absorbed anything")
}

func consumerDies(r *run, point string) {
	r.begin()
	for _, name := range []string{"catalog", "payment", "booking", "notification", "saga"} {
		r.w.killed(name)
		p := r.w.launch(r.T, name, atFailpoint+fmt.Sprintf("%s=kill@%d", point, 2+r.rng.IntN(5)))
		r.dies(p)
		r.again(name)
	}
	r.healed("consumer")
}

func (r *run) context(limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), limit)
}
