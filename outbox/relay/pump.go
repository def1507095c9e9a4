package relay

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
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
	flying int              // given to the router and not yet answered
	paused int              // waiting to be given again
	sent   int64            // the highest id given to the router in this window
	limit  int64            // nothing above this id goes out any more
	done   chan *entry      // finished attempts; never blocks the sender
	again  chan *entry      // entries whose pause is over; never blocks the sender
	stores int              // journal rows written since the last pruning
	fresh  int              // messages confirmed since the last journal row
}

// lane is one key: its first unfinished entry is out or ready, the rest wait.
type lane struct{ waiting []*entry }

// entry is one message on its way.
type entry struct {
	row      row
	attempts int
	finished bool
	delivery *Delivery
}

func newPump(sess *session, cfg *Config, db string, out chan<- *message.Message, wake <-chan struct{}) *pump {
	return &pump{
		sess: sess, cfg: cfg, db: db, out: out, wake: wake,
		log:   cfg.Logger.With("database", db, "partition", sess.held.Partition),
		lanes: map[string]*lane{}, limit: everything.upTo,
		done:  make(chan *entry, cfg.InFlight),
		again: make(chan *entry, cfg.InFlight),
	}
}

// run relays window after window until ctx ends (nil) or the session fails.
func (p *pump) run(ctx context.Context) (err error) {
	if p.st, err = p.sess.load(ctx); err != nil {
		return err
	}
	idle := newIdle(p.cfg.PollMin, p.cfg.PollMax)
	for ctx.Err() == nil {
		moved, err := p.step(ctx)
		if err != nil {
			return err
		}
		if moved {
			idle.reset()
			continue
		}
		idle.wait(ctx, p.wake)
	}
	return p.record()
}

// step relays one window, or finds that there is none and records what is done.
func (p *pump) step(ctx context.Context) (moved bool, err error) {
	if p.st.target != nil && !p.closed() {
		return true, p.resume(ctx)
	}
	now, err := p.sess.snapshot(ctx)
	if err != nil {
		return false, err
	}
	base := p.base()
	w, err := between(base, now)
	if err != nil {
		return false, err
	}
	if w.empty() {
		return false, p.settle(ctx)
	}
	rows, fits, err := p.sess.read(ctx, w, everything)
	if err != nil {
		return false, err
	}
	if fits && len(rows) == 0 {
		return false, p.settle(ctx)
	}
	if err := p.save(ctx, state{relayed: base, target: &now}); err != nil {
		return false, err
	}
	if fits {
		return true, p.relayRows(ctx, rows)
	}
	return true, p.relayLarge(ctx, w, everything)
}

// everything is the whole of a window.
var everything = span{after: 0, upTo: 1<<63 - 1}

// doneID marks a window as finished in memory before the journal says so.
const doneID = 1<<63 - 1

func (p *pump) closed() bool { return p.st.lastID == doneID }

// base is the snapshot up to which everything is relayed.
func (p *pump) base() snapshot {
	if p.st.target != nil && p.closed() {
		return *p.st.target
	}
	return p.st.relayed
}

// settle records a finished window that no next one has recorded yet.
func (p *pump) settle(ctx context.Context) error {
	if p.st.target == nil {
		return nil
	}
	return p.save(ctx, state{relayed: p.base()})
}

func (p *pump) save(ctx context.Context, st state) error {
	if err := p.sess.store(ctx, st); err != nil {
		return err
	}
	p.st, p.fresh = st, 0
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
	p.admit(rows)
	return p.finish(ctx)
}

// relayLarge pages through a window, reading ahead no further than the bound allows.
func (p *pump) relayLarge(ctx context.Context, w window, in span) error {
	spans, err := p.sess.split(ctx, w, in)
	if err != nil {
		return err
	}
	for _, part := range spans {
		rows, err := p.sess.page(ctx, w, part)
		if err != nil {
			return err
		}
		p.admit(rows)
		if err := p.pass(ctx, func() bool { return len(p.order) < p.cfg.InFlight+pageSize }); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return p.finish(ctx)
}

// finish works until nothing of the window is left, and closes it.
func (p *pump) finish(ctx context.Context) error {
	if err := p.pass(ctx, func() bool { return len(p.order) == 0 }); err != nil || len(p.order) > 0 {
		return err
	}
	p.st.lastID, p.sent = doneID, 0
	return nil
}

// record ends the work because the lease ends: what is in flight is waited for, what is confirmed is stored.
func (p *pump) record() error {
	p.await()
	ctx := context.Background()
	switch {
	case p.st.target == nil:
		return nil
	case p.closed():
		return p.settle(ctx)
	case p.fresh > 0:
		return p.save(ctx, p.st)
	}
	return nil
}

// await finishes what has gone out, and what lies before it and was held back by its key, so that a clean stop
// leaves nothing to be repeated. It gives up at the first refusal, and when the grace period is over.
func (p *pump) await() {
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.Grace)
	defer cancel()
	p.limit = p.sent
	p.ready = slices.DeleteFunc(p.ready, func(e *entry) bool { return e.row.ID > p.limit })
	refused := p.paused > 0
	for ctx.Err() == nil && (p.flying > 0 || len(p.ready) > 0 && !refused) {
		var (
			out  chan<- *message.Message
			next *message.Message
		)
		if len(p.ready) > 0 && !refused {
			out, next = p.out, p.prepare(p.ready[0])
		}
		select {
		case out <- next:
			p.launched()
		case e := <-p.done:
			p.flying--
			if refused = refused || e.delivery.err != nil; e.delivery.err == nil {
				p.confirm(e)
			}
		case <-ctx.Done():
			p.log.Warn("lease ends with messages unconfirmed, their next relay repeats them", "messages", p.flying)
		}
	}
}

// admit queues rows behind what is there, each key in its lane.
func (p *pump) admit(rows []row) {
	for i := range rows {
		e := &entry{row: rows[i]}
		p.order = append(p.order, e)
		if l, busy := p.lanes[e.row.Key]; busy {
			l.waiting = append(l.waiting, e)
			continue
		}
		p.lanes[e.row.Key] = &lane{}
		p.ready = append(p.ready, e)
	}
}

// pass hands messages to the router and takes results until enough says so or ctx ends.
func (p *pump) pass(ctx context.Context, enough func() bool) error {
	for !enough() && ctx.Err() == nil {
		var (
			out  chan<- *message.Message
			next *message.Message
		)
		if len(p.ready) > 0 && p.flying+p.paused < p.cfg.InFlight {
			out, next = p.out, p.prepare(p.ready[0])
		}
		select {
		case out <- next:
			p.launched()
		case e := <-p.done:
			if err := p.result(ctx, e); err != nil {
				return err
			}
		case e := <-p.again:
			p.paused--
			p.ready = append(p.ready, e)
		case <-ctx.Done():
		}
	}
	return nil
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
	p.flying++
	p.sent = max(p.sent, e.row.ID)
}

// result takes one finished attempt: on to the key's next message, or again after a pause.
func (p *pump) result(ctx context.Context, e *entry) error {
	p.flying--
	if err := e.delivery.err; err != nil {
		p.retry(e, err)
		return nil
	}
	p.confirm(e)
	if p.fresh < p.cfg.InFlight {
		return nil
	}
	return p.save(ctx, p.st)
}

// confirm lets the key's next message go, and moves the cursor if the confirmed one was the first unfinished.
func (p *pump) confirm(e *entry) {
	e.finished = true
	l := p.lanes[e.row.Key]
	switch {
	case len(l.waiting) == 0:
		delete(p.lanes, e.row.Key)
	case l.waiting[0].row.ID <= p.limit:
		p.ready = append(p.ready, l.waiting[0])
		l.waiting = l.waiting[1:]
	}
	p.advance()
}

// retry gives the message again after a pause that grows with its attempts, without end: a message may wait,
// it may not be lost.
func (p *pump) retry(e *entry, err error) {
	p.paused++
	e.attempts++
	if e.attempts&(e.attempts-1) == 0 {
		p.log.Warn("message not relayed, trying again", "message_id", e.row.UUID, "event_type", e.row.Topic,
			"key", e.row.Key, "attempts", e.attempts, "error", err)
	}
	e.delivery = nil
	pause := min(p.cfg.RetryMin<<min(e.attempts-1, 16), p.cfg.RetryMax)
	again := p.again
	time.AfterFunc(pause/2+rand.N(pause/2+1), func() { again <- e })
}

// advance drops the finished entries at the head and moves the cursor to the last of them.
func (p *pump) advance() {
	n := 0
	for n < len(p.order) && p.order[n].finished {
		p.st.lastID = p.order[n].row.ID
		p.order[n] = nil
		n++
	}
	p.order = p.order[n:]
	p.fresh += n
}
