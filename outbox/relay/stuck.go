package relay

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"
)

// Class says whose fault a failed publication is.
type Class string

// Classes of failures. The empty one is the broker's: the message is tried again where it is, and nothing is counted.
const (
	// Unroutable and Refused are the route's: a breaker opens for the message's type in its partition. What comes to it
	// waits in outbox.stuck, its oldest message is tried again until it goes, and then all go in order.
	Unroutable Class = "unroutable"
	Refused    Class = "refused"
	// Failed is the message's own, and may pass: it waits in outbox.stuck and is tried again until it goes.
	Failed Class = "failed"
	// Unencodable and TooLarge are the message's own: it is parked in outbox.stuck for an operator.
	Unencodable Class = "unencodable"
	TooLarge    Class = "too_large"
)

func (c Class) parks() bool  { return c == Unencodable || c == TooLarge }
func (c Class) routes() bool { return c == Unroutable || c == Refused }

const (
	maxMoving  = 500                    // messages moved to outbox.stuck in one transaction
	probeEvery = 200 * time.Millisecond // between two looks for stuck messages that may go
	probeKeys  = 50                     // keys looked at, for each reason to look at one ...
	probeRows  = 20                     // ... and messages of each
	sweepEvery = time.Second            // between two rounds over all stuck keys
	sweepPage  = 1000                   // keys of a round that are read at a time, when they are too many to know
)

// maxStuckKeys bounds the stuck keys of a partition that a pump knows, but for those of the messages at hand: tens of MiB.
const maxStuckKeys = 100_000

// stuck is what a pump knows of outbox.stuck: a message that fails goes there with all later ones of its key, in the
// transaction that moves the cursor past them, so that nobody else waits for them.
//
// It knows all stuck keys while they are at most Config.stuckKeys. When there are more it asks outbox.stuck about the keys of
// the rows that it reads, a query for each read, and goes its rounds over the keys page by page, until they are half as many
// as it may know.
type stuck struct {
	keys     map[string]bool    // have rows there, or messages in moving; these are all, unless there are too many
	many     bool               // there are too many
	routes   map[string]*route  // by topic: those that do not take everything
	moving   []int64            // decided, to be stored there with the cursor
	failures map[int64]*failure // of messages in moving

	look     time.Time        // when to look next
	away     int              // messages in a row that the broker did not take
	timer    *time.Timer      // until the next look, within a window
	sweep    []string         // keys left of a round over all
	swept    time.Time        // when the round began
	passed   string           // of a round page by page, the last key that was read ...
	counted  int              // ... and how many
	claimed  []int64          // rows of the look
	lanes    map[string]*lane // keys that are being tried
	flying   int              // given to the router and not yet answered
	released []int64          // rows whose messages have been published
	tried    map[string]bool  // keys whose turn has ended; true if there may be more to publish
}

// route is a topic in this partition whose breaker is open, or was: then its keys go first what waits, the oldest first.
type route struct {
	class    Class
	text     string
	attempts int
	next     time.Time // no probe before
	draining bool      // a probe went through
}

// failure is what is stored with a message that failed, or that would have: attempts is zero then.
type failure struct {
	seq      int64 // of its row, if it has one
	attempts int
	class    Class
	text     string
	pause    time.Duration
	exposed  bool
}

func newStuck() stuck {
	return stuck{
		keys: map[string]bool{}, routes: map[string]*route{}, failures: map[int64]*failure{},
		lanes: map[string]*lane{}, tried: map[string]bool{}, timer: time.NewTimer(0),
	}
}

// recall reads which keys and routes are stuck.
func (p *pump) recall(ctx context.Context) (err error) {
	if err := p.recallKeys(ctx); err != nil || len(p.stuck.keys) == 0 && !p.stuck.many {
		return err
	}
	p.stuck.routes, err = p.sess.stuckRoutes(ctx)
	return err
}

// recallKeys reads all stuck keys, if they are not too many. Nothing is moving.
func (p *pump) recallKeys(ctx context.Context) (err error) {
	if p.stuck.keys, err = p.sess.stuckKeys(ctx, p.cfg.stuckKeys+1); err != nil {
		return err
	}
	many := len(p.stuck.keys) > p.cfg.stuckKeys
	switch {
	case many:
		clear(p.stuck.keys)
		p.crowded()
	case p.stuck.many:
		p.log.Info("all stuck keys are known again", "stuck_keys", len(p.stuck.keys))
	}
	p.stuck.many = many
	return nil
}

// crowded begins to ask about keys.
func (p *pump) crowded() {
	if !p.stuck.many {
		p.log.Warn("too many keys are stuck to know them all, every read of messages asks for its own", "most", p.cfg.stuckKeys)
		p.stuck.many, p.stuck.passed, p.stuck.counted = true, "", 0
	}
}

// foresee sees to it that of the rows' keys the stuck ones are known.
func (p *pump) foresee(ctx context.Context, rows []row) error {
	if !p.stuck.many && len(p.stuck.keys) <= p.cfg.stuckKeys {
		return nil
	}
	p.crowded()
	if len(p.stuck.keys) > p.cfg.stuckKeys {
		if err := p.keep(ctx); err != nil { // moving may hold some of them
			return err
		}
		clear(p.stuck.keys)
	}
	asked := map[string]bool{}
	for i := range rows {
		if !p.stuck.keys[rows[i].Key] {
			asked[rows[i].Key] = true
		}
	}
	found, err := p.sess.stillStuck(ctx, slices.Collect(maps.Keys(asked)))
	maps.Copy(p.stuck.keys, found)
	return err
}

// blocked reports that the breaker of the entry's route is open.
func (p *pump) blocked(e *entry) bool {
	r := p.stuck.routes[e.row.Topic]
	return r != nil && !r.draining
}

// divert decides that an entry goes the way of its key: to outbox.stuck, with the next store.
func (p *pump) divert(e *entry) {
	p.stuck.moving = append(p.stuck.moving, e.id)
	if e.inherits {
		p.expose(e.id)
	}
	e.finished = true
	p.drop(e)
	p.owe()
}

// expose notes of a message that is moving that some consumer may have it, unless it cannot be sent at all.
func (p *pump) expose(id int64) {
	f := p.stuck.failures[id]
	if f == nil {
		f = &failure{}
		p.stuck.failures[id] = f
	}
	f.exposed = f.exposed || !f.class.parks()
}

// divertBlocked lets a key wait whose message came to an open breaker.
func (p *pump) divertBlocked(e *entry) {
	r := p.stuck.routes[e.row.Topic]
	p.stuck.keys[e.row.Key] = true
	p.stuck.failures[e.id] = &failure{class: r.class, text: r.text}
	p.divert(e)
}

// divertKey sends a failed entry and all that wait behind it to outbox.stuck.
func (p *pump) divertKey(e *entry, class Class, cause error) {
	key := e.row.Key
	p.stuck.failures[e.id] = p.failure(e, class, cause)
	p.stuck.keys[key] = true
	waiting := p.lanes[key].waiting
	delete(p.lanes, key)
	for _, follower := range waiting {
		if follower.row != nil {
			p.loaded--
		}
	}
	for _, each := range append([]*entry{e}, waiting...) {
		p.divert(each)
	}
	p.advance()
}

// failure describes a failed attempt. One that is the route's opens its breaker.
func (p *pump) failure(e *entry, class Class, cause error) *failure {
	text := strings.ToValidUTF8(strings.ReplaceAll(cause.Error(), "\x00", ""), "?")
	text = strings.ToValidUTF8(text[:min(len(text), 2000)], "")
	attempts := e.tried + 1
	f := &failure{seq: e.seq, attempts: attempts, class: class, text: text, pause: p.pause(attempts), exposed: class == Refused || e.attempts > e.tried}
	about := []any{"message_id", e.row.UUID, "event_type", e.row.Topic, "key", e.row.Key, "class", string(class), "error", cause}
	switch {
	case class.parks():
		p.log.Error("message parked in outbox.stuck, its key waits for an operator", about...)
	case class.routes():
		p.trip(e, f, about)
	case attempts&(attempts-1) == 0:
		p.log.Warn("message waits in outbox.stuck, and its key behind it", append(about, "attempts", attempts)...)
	}
	return f
}

// trip opens the breaker of a message's route, or keeps it open after a probe.
func (p *pump) trip(e *entry, f *failure, about []any) {
	r := p.stuck.routes[e.row.Topic]
	switch {
	case r == nil || r.draining:
		p.log.Warn("route takes no messages, those that come to it wait in outbox.stuck", about...)
		p.stuck.routes[e.row.Topic] = &route{class: f.class, text: f.text, attempts: 1, next: time.Now().Add(f.pause)}
	case e.seq != 0:
		r.class, r.text = f.class, f.text
		r.attempts++
		f.pause = p.pause(r.attempts)
		r.next = time.Now().Add(f.pause)
		if r.attempts&(r.attempts-1) == 0 {
			p.log.Warn("route still takes no messages", append(about, "attempts", r.attempts)...)
		}
	}
}

// untilLook is how long it takes until stuck messages should be looked at, and for ever while none are or some go.
func (p *pump) untilLook() time.Duration {
	if len(p.stuck.keys) == 0 && !p.stuck.many || len(p.stuck.lanes) > 0 {
		return 1<<63 - 1
	}
	return time.Until(p.stuck.look)
}

// nextLook fires when stuck messages should be looked at, if there are any.
func (p *pump) nextLook() <-chan time.Time {
	until := p.untilLook()
	if until > time.Hour {
		return nil
	}
	p.stuck.timer.Reset(until)
	return p.stuck.timer.C
}

// probe gives stuck messages that may go to the router: of each key the oldest, then those behind it.
func (p *pump) probe(ctx context.Context) error {
	if p.untilLook() > 0 {
		return nil
	}
	if len(p.stuck.moving) > 0 { // a route whose messages are not there yet would seem to have none
		if err := p.keep(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := p.round(ctx, began); err != nil {
		return err
	}
	w := p.wanted(began)
	found, all, err := p.sess.claim(ctx, w)
	if err != nil {
		return err
	}
	// A look never takes more than a tenth of the partition's time.
	p.stuck.look = time.Now().Add(max(probeEvery, 10*time.Since(began)))
	for i := range found {
		p.stuck.claimed = append(p.stuck.claimed, found[i].Seq)
		e := &entry{id: found[i].ID, row: &found[i].row, seq: found[i].Seq, tried: found[i].Attempts, attempts: found[i].Attempts}
		if l, busy := p.stuck.lanes[e.row.Key]; busy {
			l.waiting = append(l.waiting, e)
			continue
		}
		p.stuck.lanes[e.row.Key] = &lane{}
		p.ready = append(p.ready, e)
	}
	p.forget(w, all)
	return p.settle(ctx)
}

// round begins another round over all stuck keys, or goes on with one that is done page by page, when it is time. Nothing is
// moving.
func (p *pump) round(ctx context.Context, now time.Time) (err error) {
	begins := p.stuck.passed == ""
	if len(p.stuck.sweep) > 0 || begins && now.Sub(p.stuck.swept) <= sweepEvery {
		return nil
	}
	if begins {
		p.stuck.swept = now
	}
	if !p.stuck.many {
		p.stuck.sweep = slices.Collect(maps.Keys(p.stuck.keys))
		return nil
	}
	if p.stuck.sweep, err = p.sess.stuckKeysAfter(ctx, p.stuck.passed, sweepPage); err != nil {
		return err
	}
	n := len(p.stuck.sweep)
	if p.stuck.counted += n; n == sweepPage {
		p.stuck.passed = p.stuck.sweep[n-1]
		return nil
	}
	few := p.stuck.counted <= p.cfg.stuckKeys/2
	p.stuck.passed, p.stuck.counted = "", 0
	if few {
		return p.recallKeys(ctx)
	}
	return nil
}

// wanted says where to look for stuck messages that may go.
type wanted struct {
	open     []string // topics that nothing but a probe may go to
	probes   []string // of them, those whose time has come
	draining []string // topics whose stuck messages may all go
	keys     []string // to be looked at whatever is known of them
}

func (p *pump) wanted(now time.Time) (w wanted) {
	for topic, r := range p.stuck.routes {
		switch {
		case r.draining && len(w.draining) < probeKeys:
			w.draining = append(w.draining, topic)
		case r.draining:
		default:
			w.open = append(w.open, topic)
			if len(w.probes) < probeKeys && !now.Before(r.next) {
				w.probes = append(w.probes, topic)
			}
		}
	}
	n := min(probeKeys, len(p.stuck.sweep))
	w.keys, p.stuck.sweep = p.stuck.sweep[:n], p.stuck.sweep[n:]
	return w
}

// forget drops the routes for which nothing waits any more, and ends the turn of keys that have nothing to try. A look
// that ended at its bound in bytes says nothing of routes.
func (p *pump) forget(w wanted, all bool) {
	going := map[string]bool{}
	for _, e := range p.ready {
		if e.seq != 0 {
			going[e.row.Topic] = true
		}
	}
	for _, topic := range slices.Concat(w.probes, w.draining) {
		if all && !going[topic] {
			delete(p.stuck.routes, topic)
		}
	}
	for _, key := range w.keys {
		if p.stuck.lanes[key] == nil {
			p.stuck.tried[key] = false
		}
	}
}

// probed takes the result of a stuck message: on to the next of its key, or the key goes on waiting.
func (p *pump) probed(ctx context.Context, e *entry, cause error) error {
	p.stuck.flying--
	key := e.row.Key
	if cause == nil {
		p.stuck.away = 0
		p.stuck.released = append(p.stuck.released, e.seq)
		p.opened(e)
		p.stuck.look = time.Time{} // there may be more
		if l := p.stuck.lanes[key]; len(l.waiting) > 0 {
			p.next(l)
			return nil
		}
	} else if class := p.cfg.Classify(cause); class != "" {
		if class == Failed { // the route is not what refused it
			p.opened(e)
		}
		if err := p.sess.failStuck(ctx, p.failure(e, class, cause)); err != nil {
			return err
		}
	} else {
		p.stuck.away++
		p.stuck.look = time.Now().Add(max(probeEvery, p.pause(p.stuck.away)))
		if err := p.sess.exposeStuck(ctx, e.seq); err != nil {
			return err
		}
	}
	delete(p.stuck.lanes, key)
	p.stuck.tried[key] = cause == nil
	return p.settle(ctx)
}

// opened notes that the entry's route takes messages.
func (p *pump) opened(e *entry) {
	if r := p.stuck.routes[e.row.Topic]; r != nil && !r.draining {
		r.draining = true
		p.log.Info("route takes messages again", "event_type", e.row.Topic, "attempts", r.attempts)
	}
}

// settle ends a look when all of its keys have had their turn: what was published goes, and a key of which nothing is
// left goes its ordinary way again.
func (p *pump) settle(ctx context.Context) error {
	if len(p.stuck.lanes) > 0 || len(p.stuck.tried) == 0 {
		return nil
	}
	if err := p.sess.settle(ctx, p.stuck.released, p.stuck.claimed); err != nil {
		return err
	}
	p.stuck.released, p.stuck.claimed = p.stuck.released[:0], p.stuck.claimed[:0]
	if err := p.keep(ctx); err != nil { // moving may hold some of these keys
		return err
	}
	left, err := p.sess.stillStuck(ctx, slices.Collect(maps.Keys(p.stuck.tried)))
	if err != nil {
		return err
	}
	for key, more := range p.stuck.tried {
		switch {
		case left[key] && more:
			p.stuck.sweep = append(p.stuck.sweep, key)
		case !left[key] && p.stuck.keys[key]:
			delete(p.stuck.keys, key)
			p.log.Info("key is no longer stuck", "key", key, "stuck_keys", len(p.stuck.keys))
		}
	}
	clear(p.stuck.tried)
	return nil
}
