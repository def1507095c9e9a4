package relay

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/jcp/ticketwave/outbox/lease"
)

const (
	// lookAhead bounds the messages of a window that are read while an earlier one waits; most are ids alone.
	lookAhead = 50_000
	// keepWithin bounds how long the journal may be behind what is decided.
	keepWithin = 200 * time.Millisecond
	// maxLoaded bounds the waiting messages that are kept whole: more than relaying without a hot key needs.
	maxLoaded = 4 * pageSize
	// maxBytes bounds the bytes of all rows in memory, but for one page and one row.
	maxBytes = 4 * pageBytes
	// reload is how many waiting messages of a key are read again at a time.
	reload = 32
)

// pump moves one partition's rows from its session to the router, while its lease lasts. One goroutine owns it.
type pump struct {
	sess *session
	cfg  *Config
	db   string
	log  *slog.Logger
	out  chan<- *message.Message
	wake <-chan struct{}

	st     state
	lanes  map[string]*lane // keys that have something unfinished
	ready  []*entry         // may go out now, in order
	order  []*entry         // unfinished and finished entries in order of id, from the first unfinished one
	loaded int              // waiting entries whose rows are in memory
	bytes  int              // of all entries' rows in memory
	empty  []string         // keys whose next entry must be read again
	flying int              // of the window, given to the router and not yet answered
	paused int              // waiting to be given again
	sent   int64            // the highest id given to the router in this window
	limit  int64            // nothing above this id goes out any more
	done   chan *entry      // finished attempts; never blocks the sender
	again  chan *entry      // entries whose pause is over; never blocks the sender
	looks  int              // at the outbox, by this session
	stores int              // journal rows written since the last pruning
	fresh  int              // messages confirmed since the last journal row
	unkept bool             // the journal does not know all that is done ...
	since  time.Time        // ... since then
	stuck  stuck
}

// lane is one key: its first unfinished entry is out or ready, the rest wait.
type lane struct{ waiting []*entry }

// entry is one message on its way.
type entry struct {
	id       int64
	row      *row // nil while it waits beyond what is kept in memory, and when it is finished
	attempts int
	finished bool
	seq      int64 // of outbox.stuck; 0 for a message of the window
	tried    int   // attempts that outbox.stuck knows of
	inherits bool  // an earlier session may have published it
	delivery *Delivery
}

func newPump(sess *session, cfg *Config, db string, out chan<- *message.Message, wake <-chan struct{}) *pump {
	return &pump{
		sess: sess, cfg: cfg, db: db, out: out, wake: wake,
		log:   cfg.Logger.With("database", db, "partition", sess.held.Partition),
		lanes: map[string]*lane{}, limit: everything.upTo,
		done:  make(chan *entry, cfg.InFlight),
		again: make(chan *entry, cfg.InFlight),
		stuck: newStuck(),
	}
}

// run relays window after window until ctx ends (nil) or the session fails.
func (p *pump) run(ctx context.Context) (err error) {
	if p.st, err = p.sess.load(ctx); err != nil {
		return err
	}
	if err := p.recall(ctx); err != nil {
		return err
	}
	idle := newIdle(p.cfg.PollMin, p.cfg.PollMax)
	for hinted := false; ctx.Err() == nil; {
		moved, err := p.step(ctx)
		if err != nil {
			return err
		}
		if moved && !hinted { // who writes without hints is likely to write more
			idle.reset()
		}
		if hinted, err = p.rest(ctx, idle); err != nil {
			return err
		}
	}
	if errors.Is(context.Cause(ctx), lease.ErrLost) {
		return nil // another may be at work: nothing more goes out
	}
	return p.record()
}

// step relays one window, or finds that there is none and records what is done.
func (p *pump) step(ctx context.Context) (moved bool, err error) {
	if err := p.probe(ctx); err != nil {
		return false, err
	}
	if p.st.target != nil && !p.closed() {
		return true, p.resume(ctx)
	}
	if p.due() {
		if err := p.keep(ctx); err != nil {
			return false, err
		}
	}
	base := p.base()
	p.looks++
	now, rows, fits, err := p.sess.next(ctx, base)
	if err != nil {
		return false, err
	}
	w, err := between(base, now)
	if err != nil || fits && len(rows) == 0 {
		return false, err
	}
	p.st = state{relayed: base, target: &now}
	if fits {
		return true, p.relayRows(ctx, rows)
	}
	if err := p.save(ctx, p.st); err != nil {
		return false, err
	}
	return true, p.relayLarge(ctx, w, everything)
}

// rest waits until there may be something to do, takes what comes back meanwhile, and keeps what is done. It reports
// whether a hint ended it.
func (p *pump) rest(ctx context.Context, idle *idle) (hinted bool, err error) {
	timer := time.NewTimer(min(idle.next, p.untilLook()))
	defer timer.Stop()
	keep := time.NewTimer(keepWithin - time.Since(p.since))
	defer keep.Stop()
	for ctx.Err() == nil {
		if p.untilLook() <= 0 {
			return false, nil
		}
		switch why, err := p.turn(ctx, p.wake, timer.C, keep.C); {
		case err != nil:
			return false, err
		case why == toKeep:
			if err := p.keep(ctx); err != nil {
				return false, err
			}
		case why == woken:
			return true, nil
		case why == timedOut:
			idle.grow()
			return false, nil
		}
	}
	return false, nil
}

// everything is the whole of a window.
var everything = span{after: 0, upTo: 1<<63 - 1}

// doneID marks a window as finished in memory before the journal says so.
const doneID = 1<<63 - 1

func (p *pump) closed() bool { return p.st.target != nil && p.st.lastID == doneID }

// base is the snapshot up to which everything is relayed.
func (p *pump) base() snapshot {
	if p.closed() {
		return *p.st.target
	}
	return p.st.relayed
}

// due reports that what is done should be in the journal by now. Later is no loss, for what the journal does not know is
// repeated after a crash; this bounds how much.
func (p *pump) due() bool { return p.unkept && time.Since(p.since) >= keepWithin }

// owe notes that the journal does not know all that is done.
func (p *pump) owe() {
	if !p.unkept {
		p.unkept, p.since = true, time.Now()
	}
}

// keep records what is done.
func (p *pump) keep(ctx context.Context) error {
	if !p.unkept {
		return nil
	}
	st := p.st
	if p.closed() {
		st = state{relayed: p.base()}
	}
	return p.save(ctx, st)
}

// save stores the state together with the messages that it passes and that go to outbox.stuck: never one without the
// other.
func (p *pump) save(ctx context.Context, st state) error {
	var err error
	if len(p.stuck.moving) > 0 {
		err = p.sess.divert(ctx, st, p.stuck.moving, p.stuck.failures)
	} else {
		err = p.sess.store(ctx, st)
	}
	if err != nil {
		return err
	}
	p.stuck.moving = p.stuck.moving[:0]
	clear(p.stuck.failures)
	p.st, p.fresh, p.unkept = st, 0, false
	if p.stores++; p.stores < 1000 {
		return nil
	}
	p.stores = 0
	return p.sess.prune(ctx)
}

// resume goes on with a window that was open when this or another relay stopped.
func (p *pump) resume(ctx context.Context) error {
	w, err := between(p.st.relayed, *p.st.target)
	if err != nil {
		return err
	}
	rest := span{after: p.st.lastID, upTo: everything.upTo}
	rows, fits, err := p.sess.read(ctx, w, rest)
	if err != nil {
		return err
	}
	if fits {
		return p.relayRows(ctx, rows)
	}
	return p.relayLarge(ctx, w, rest)
}

func (p *pump) relayRows(ctx context.Context, rows []row) error {
	if err := p.admit(ctx, rows); err != nil {
		return err
	}
	return p.finish(ctx)
}

// relayLarge pages through a window, reading ahead no further than the bounds allow.
func (p *pump) relayLarge(ctx context.Context, w window, in span) error {
	spans, err := p.sess.split(ctx, w, in)
	if err != nil {
		return err
	}
	for _, part := range spans {
		for whole := false; !whole; {
			var rows []row
			if rows, whole, err = p.sess.page(ctx, w, part); err != nil {
				return err
			}
			if len(rows) > 0 {
				part.after = rows[len(rows)-1].ID
			}
			if err := p.admit(ctx, rows); err != nil {
				return err
			}
			if len(p.stuck.moving) >= maxMoving { // a page that is wholly blocked comes to no turn
				if err := p.keep(ctx); err != nil {
					return err
				}
			}
			if err := p.pass(ctx, p.wantsMore); err != nil || ctx.Err() != nil {
				return err
			}
		}
	}
	return p.finish(ctx)
}

// wantsMore reports room for more rows: little is held, or what is held waits for so few keys that others could go.
func (p *pump) wantsMore() bool {
	switch {
	case p.bytes >= maxBytes:
		return p.flying+p.paused+len(p.ready) == 0
	case len(p.order) < p.cfg.InFlight+pageSize:
		return true
	}
	return len(p.order) < lookAhead && p.flying+p.paused+len(p.ready) < p.cfg.InFlight/2
}

// finish works until nothing of the window is left, and closes it.
func (p *pump) finish(ctx context.Context) error {
	if err := p.pass(ctx, func() bool { return len(p.order) == 0 }); err != nil || len(p.order) > 0 {
		return err
	}
	p.st.lastID, p.sent = doneID, 0
	p.owe()
	return nil
}

// admit queues rows behind what is there, each key in its lane. Keys with stuck messages join those, and so do keys that
// come to a route whose breaker is open.
func (p *pump) admit(ctx context.Context, rows []row) error {
	if err := p.foresee(ctx, rows); err != nil {
		return err
	}
	for i := range rows {
		e := &entry{id: rows[i].ID, row: &rows[i], inherits: p.looks <= 1}
		p.bytes += e.row.size()
		p.order = append(p.order, e)
		l, busy := p.lanes[e.row.Key]
		switch {
		case p.stuck.keys[e.row.Key]:
			p.divert(e)
		case busy:
			p.hold(e, l)
		case p.blocked(e):
			p.divertBlocked(e)
		default:
			p.lanes[e.row.Key] = &lane{}
			p.ready = append(p.ready, e)
		}
	}
	p.advance()
	return nil
}

// hold lets an entry wait behind others of its key; beyond a bound only its id is kept.
func (p *pump) hold(e *entry, l *lane) {
	l.waiting = append(l.waiting, e)
	if p.loaded < maxLoaded && p.bytes < maxBytes/2 {
		p.loaded++
		return
	}
	p.drop(e)
}

// drop lets go of an entry's row.
func (p *pump) drop(e *entry) {
	if e.row != nil && e.seq == 0 {
		p.bytes -= e.row.size()
	}
	e.row, e.delivery = nil, nil
}

// pass hands messages to the router and takes results until enough says so or ctx ends.
func (p *pump) pass(ctx context.Context, enough func() bool) error {
	for !enough() && ctx.Err() == nil {
		if err := p.probe(ctx); err != nil { // a window may take long to end
			return err
		}
		if _, err := p.turn(ctx, nil, p.nextLook(), nil); err != nil {
			return err
		}
	}
	return nil
}

type event int

const (
	worked event = iota
	woken
	timedOut
	toKeep
)

// turn hands out one message, or takes one result, or waits for the first of wake, timer, keep and ctx.
func (p *pump) turn(ctx context.Context, wake <-chan struct{}, timer, keep <-chan time.Time) (event, error) {
	switch {
	case len(p.stuck.moving) >= maxMoving:
		return worked, p.keep(ctx)
	case len(p.empty) > 0 && (p.bytes < maxBytes || p.flying+p.paused+len(p.ready) == 0):
		return worked, p.load(ctx)
	}
	var (
		out  chan<- *message.Message
		next *message.Message
	)
	if len(p.ready) > 0 && p.flying+p.paused+p.stuck.flying < p.cfg.InFlight {
		out, next = p.out, p.prepare(p.ready[0])
	}
	select {
	case out <- next:
		p.launched()
	case e := <-p.done:
		return worked, p.result(ctx, e)
	case e := <-p.again:
		p.paused--
		p.ready = append(p.ready, e)
	case <-wake:
		return woken, nil
	case <-timer:
		return timedOut, nil
	case <-keep:
		return toKeep, nil
	case <-ctx.Done():
	}
	return worked, nil
}

// prepare builds the message of an attempt, once.
func (p *pump) prepare(e *entry) *message.Message {
	if e.delivery == nil {
		e.delivery = newDelivery(e, p.db, p.sess)
		e.delivery.report = func() { p.done <- e }
	}
	return e.delivery.msg
}

// launched notes that the router has taken the message at the head of ready.
func (p *pump) launched() {
	e := p.ready[0]
	p.ready = p.ready[1:]
	if e.seq != 0 {
		p.stuck.flying++
		return
	}
	p.flying++
	p.sent = max(p.sent, e.id)
}

// result takes one finished attempt: on to the key's next message, again after a pause, or to outbox.stuck.
func (p *pump) result(ctx context.Context, e *entry) error {
	err := e.delivery.err
	if e.seq != 0 {
		return p.probed(ctx, e, err)
	}
	p.flying--
	if err == nil {
		p.confirm(e)
		if p.fresh < p.cfg.InFlight && !p.due() {
			return nil
		}
		return p.keep(ctx)
	}
	if class := p.cfg.Classify(err); class != "" {
		p.divertKey(e, class, err)
		return nil
	}
	p.retry(e, err)
	return nil
}

// confirm lets the key's next message go, and moves the cursor if the confirmed one was the first unfinished.
func (p *pump) confirm(e *entry) {
	key := e.row.Key
	e.finished = true
	p.drop(e)
	l := p.lanes[key]
	switch {
	case len(l.waiting) == 0:
		delete(p.lanes, key)
	case l.waiting[0].id > p.limit:
	case l.waiting[0].row == nil:
		p.empty = append(p.empty, key)
	default:
		p.loaded--
		p.next(l)
	}
	p.advance()
}

// next makes a key's oldest waiting entry ready.
func (p *pump) next(l *lane) {
	p.ready = append(p.ready, l.waiting[0])
	l.waiting = l.waiting[1:]
}

// load reads rows again that were too many to keep.
func (p *pump) load(ctx context.Context) error {
	byID := map[int64]*entry{}
	for _, key := range p.empty {
		for _, e := range p.lanes[key].waiting[:min(reload, len(p.lanes[key].waiting))] {
			if e.row == nil {
				byID[e.id] = e
			}
		}
	}
	ids := slices.Sorted(maps.Keys(byID)) // the first is that of a key's next entry
	rows, err := p.sess.rows(ctx, ids[:min(len(ids), p.sess.most())])
	if err != nil {
		return err
	}
	for i := range rows {
		byID[rows[i].ID].row = &rows[i]
		p.bytes += rows[i].size()
		p.loaded++
	}
	p.empty = slices.DeleteFunc(p.empty, func(key string) bool {
		l := p.lanes[key]
		if l.waiting[0].row == nil { // beyond one read
			return false
		}
		p.loaded--
		p.next(l)
		return true
	})
	return nil
}

// retry gives the message again after a pause that grows with its attempts, without end: the broker is away, which
// is nobody's fault.
func (p *pump) retry(e *entry, err error) {
	p.paused++
	e.attempts++
	if e.attempts&(e.attempts-1) == 0 && !errors.Is(err, errNotTaken) {
		p.log.Warn("message not relayed, trying again", "message_id", e.row.UUID, "event_type", e.row.Topic,
			"key", e.row.Key, "attempts", e.attempts, "error", err)
	}
	e.delivery = nil
	pause := p.pause(e.attempts)
	again := p.again
	time.AfterFunc(pause, func() { again <- e })
}

// pause grows with the attempts, with jitter.
func (p *pump) pause(attempts int) time.Duration {
	pause := min(p.cfg.RetryMin<<min(attempts-1, 16), p.cfg.RetryMax)
	return pause/2 + rand.N(pause/2+1)
}

// advance drops the finished entries at the head and moves the cursor to the last of them.
func (p *pump) advance() {
	n := 0
	for n < len(p.order) && p.order[n].finished {
		p.st.lastID = p.order[n].id
		p.order[n] = nil
		n++
	}
	p.order = p.order[n:]
	p.fresh += n
	if n > 0 {
		p.owe()
	}
}

// record ends the work because the lease ends: what is in flight is waited for, what is decided is stored.
func (p *pump) record() error {
	p.await()
	ctx := context.Background()
	if p.stuck.flying > 0 {
		p.stuck.claimed = nil // some are on their way still
	}
	if err := p.sess.settle(ctx, p.stuck.released, p.stuck.claimed); err != nil {
		return err
	}
	return p.keep(ctx)
}

// await finishes what has gone out, and what lies before it and was held back by its key, so that a clean stop
// leaves nothing to be repeated. It gives up at the first refusal, and when the grace period is over.
func (p *pump) await() {
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.Grace)
	defer cancel()
	p.limit = p.sent
	p.ready = slices.DeleteFunc(p.ready, func(e *entry) bool { return e.seq != 0 || e.id > p.limit })
	refused := p.paused > 0
	for ctx.Err() == nil && (p.flying+p.stuck.flying > 0 || len(p.ready)+len(p.empty) > 0 && !refused) {
		if len(p.empty) > 0 && !refused {
			refused = p.load(ctx) != nil // what could not be read is repeated
			p.ready = slices.DeleteFunc(p.ready, func(e *entry) bool { return e.id > p.limit })
			continue
		}
		var (
			out  chan<- *message.Message
			next *message.Message
		)
		if len(p.ready) > 0 && !refused && p.flying+p.stuck.flying < p.cfg.InFlight {
			out, next = p.out, p.prepare(p.ready[0])
		}
		select {
		case out <- next:
			p.launched()
		case e := <-p.done:
			refused = p.lastResult(e) || refused
		case <-ctx.Done():
			p.log.Warn("lease ends with messages unconfirmed, their next relay repeats them", "messages", p.flying)
		}
	}
}

// lastResult takes a result after the lease has ended, and reports a refusal.
func (p *pump) lastResult(e *entry) (refused bool) {
	switch err := e.delivery.err; {
	case e.seq != 0:
		p.stuck.flying--
		if err == nil {
			p.stuck.released = append(p.stuck.released, e.seq)
		}
		return false
	case err != nil:
		p.flying--
		return true
	}
	p.flying--
	p.confirm(e)
	return false
}
