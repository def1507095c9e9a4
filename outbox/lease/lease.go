package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrLost says that a write was refused because its lease belongs to another member now.
var ErrLost = errors.New("lease lost to another member")

// Config describes one member of one pool. Zero durations take the defaults.
type Config struct {
	// Pool is the database that holds the leases.
	Pool *pgxpool.Pool
	// Schema holds the tables leases and members: "outbox" or "inbox".
	Schema string
	// Name is the pool's name: "relay", or a consumer's.
	Name string
	// Partitions is how many partitions the pool has, numbered from 0.
	Partitions int
	// Label says who this member is, for people: host and process id, say.
	Label string
	// Build is the version that this member runs, for people.
	Build string
	// Interval is the time between two beats. Default 250 ms.
	Interval time.Duration
	// Timeout is how long a counter must stand still before its owner counts as dead. Default 1.25 s: with the beats
	// before and after, another member is at work within 2 s of a crash.
	Timeout time.Duration
	// Drain is how long Run waits at its end for work to return and leases to be given back. Default 30 s.
	Drain time.Duration
	// Logger takes what changes. Default slog.Default.
	Logger *slog.Logger
	// Observe, if set, is told after each beat how many leases this member has. It must not block.
	Observe func(held int)
}

// Held is one lease of this member.
type Held struct {
	Partition int
	// Token goes with every write made under the lease.
	Token int64
	// Owner is the member.
	Owner uuid.UUID
}

// Work is what a member does with a partition while it holds it. It returns soon after ctx ends; only then
// is the lease handed over. When the lease was lost, or may have been, the cause of ctx is ErrLost. When Work returns
// before ctx ends, it is started again after a pause that grows.
type Work func(ctx context.Context, held Held) error

func (c *Config) setDefaults() error {
	switch {
	case c.Pool == nil:
		return errors.New("lease: config has no Pool")
	case c.Schema != "outbox" && c.Schema != "inbox":
		return fmt.Errorf("lease: schema is %q, not outbox or inbox", c.Schema)
	case c.Name == "":
		return errors.New("lease: config has no Name")
	case c.Partitions < 1:
		return fmt.Errorf("lease: %d partitions, at least 1 is needed", c.Partitions)
	}
	c.Interval = orDefault(c.Interval, 250*time.Millisecond)
	c.Timeout = orDefault(c.Timeout, 1250*time.Millisecond)
	c.Drain = orDefault(c.Drain, 30*time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d <= 0 {
		return fallback
	}
	return d
}

// Run takes part in the pool until ctx ends. It calls work in a goroutine of its own for every partition
// that this member holds, at most once at a time for each. When ctx ends it ends all work, waits for it,
// gives the leases back so that others take them at once, and returns nil. A database that is away is not
// an error: work is stopped when the lease may have passed on, and started again when it is still ours.
func Run(ctx context.Context, cfg Config, work Work) error {
	if err := cfg.setDefaults(); err != nil {
		return err
	}
	m := newMember(cfg, work)
	ticker := time.NewTicker(cfg.Interval)
	defer ticker.Stop()
	for {
		m.beat(ctx)
		m.observe()
		select {
		case <-ctx.Done():
			return m.drain()
		case <-ticker.C:
		case <-m.returned:
		}
	}
}

// member is one process's part in a pool. Only Run's goroutine touches it.
type member struct {
	cfg      Config
	store    store
	id       uuid.UUID
	work     Work
	running  map[int]*job
	seen     *sightings
	renewed  time.Time     // when the leases were last known to be ours
	prepared bool          // the pool's rows exist
	failed   int           // beats in a row that failed
	returned chan struct{} // work has returned
}

// job is the work on one held partition.
type job struct {
	held   Held
	cancel context.CancelCauseFunc
	ending bool          // cancelled: the lease is given back once done closes
	done   chan struct{} // closed when work has returned
}

func newMember(cfg Config, work Work) *member {
	id := uuid.New()
	return &member{
		cfg: cfg, id: id, work: work,
		store:    store{pool: cfg.Pool, schema: cfg.Schema, name: cfg.Name, member: id, label: cfg.Label, build: cfg.Build},
		running:  map[int]*job{},
		seen:     newSightings(),
		returned: make(chan struct{}, 1),
	}
}

// beat is one step: renew, look, let go of what is too much, take what is free and due.
func (m *member) beat(ctx context.Context) {
	now := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.Timeout)
	defer cancel()
	view, err := m.renew(ctx)
	if err != nil {
		m.missed(err)
		return
	}
	if m.failed > 0 {
		m.cfg.Logger.Info("leases reachable again", "pool", m.cfg.Name)
	}
	m.failed, m.renewed = 0, now
	m.seen.note(view, time.Now())
	m.reconcile(view)
	m.giveBack(ctx)
	m.share(ctx, view)
}

func (m *member) renew(ctx context.Context) (view, error) {
	if !m.prepared {
		if err := m.store.prepare(ctx, m.cfg.Partitions); err != nil {
			return view{}, err
		}
		m.prepared = true
	}
	return m.store.renew(ctx)
}

// observe tells what is ours as far as we know: nothing, once it may have passed to others.
func (m *member) observe() {
	if m.cfg.Observe == nil {
		return
	}
	held := len(m.running)
	if time.Since(m.renewed) >= m.cfg.Timeout {
		held = 0
	}
	m.cfg.Observe(held)
}

// missed stops all work once the leases may have passed to others.
func (m *member) missed(err error) {
	m.failed++
	switch m.failed {
	case 1:
		m.cfg.Logger.Warn("leases not renewed", "pool", m.cfg.Name, "error", err)
	case 2: // one may be a busy machine
		m.cfg.Pool.Reset() // or each connection that the network has forgotten costs a beat of its own when it is back
	}
	if time.Since(m.renewed) < m.cfg.Timeout {
		return
	}
	for _, j := range m.running {
		j.cancel(ErrLost)
	}
}

// reconcile ends work on partitions that the database says are not ours, and starts it on those that are.
func (m *member) reconcile(v view) {
	mine := map[int]int64{}
	for _, l := range v.leases {
		if l.Owner == m.id {
			mine[l.Partition] = l.Token
		}
	}
	for p, j := range m.running {
		if token, ok := mine[p]; !ok || token != j.held.Token {
			if !j.ending {
				m.cfg.Logger.Warn("lease lost", "pool", m.cfg.Name, "partition", p, "token", j.held.Token)
			}
			j.cancel(ErrLost)
			if j.returned() {
				delete(m.running, p)
			}
		}
	}
	for p, token := range mine {
		if j, ok := m.running[p]; ok && j.returned() && !j.ending {
			delete(m.running, p)
		}
		if _, ok := m.running[p]; !ok {
			m.start(Held{Partition: p, Token: token, Owner: m.id})
		}
	}
}

// giveBack frees the leases of work that was ended on purpose and has returned.
func (m *member) giveBack(ctx context.Context) {
	for p, j := range m.running {
		if !j.ending || !j.returned() {
			continue
		}
		if err := m.store.release(ctx, j.held); err != nil {
			m.cfg.Logger.Warn("lease not given back, it will time out", "pool", m.cfg.Name, "partition", p, "error", err)
		}
		delete(m.running, p)
		m.cfg.Logger.Debug("lease given back", "pool", m.cfg.Name, "partition", p, "token", j.held.Token)
	}
}

// share moves towards an even split: end what is above our quota, take what is free below it.
func (m *member) share(ctx context.Context, v view) {
	live := m.seen.live(v, m.id, m.cfg.Timeout)
	quota := quotaOf(m.id, live, m.cfg.Partitions)
	kept := m.kept()
	for i := len(kept) - 1; i >= quota; i-- {
		j := m.running[kept[i]]
		j.ending = true
		j.cancel(nil)
	}
	missing := quota - len(m.running)
	for _, l := range v.leases {
		if missing <= 0 {
			break
		}
		if m.due(l) && m.take(ctx, l) {
			missing--
		}
	}
	m.sweep(ctx, v)
}

// due reports whether a lease is there to be taken: free or abandoned, and no earlier work of ours on it.
func (m *member) due(l leaseRow) bool {
	if _, ok := m.running[l.Partition]; ok || l.Owner == m.id {
		return false
	}
	return l.Owner == uuid.Nil || m.seen.stale(l, m.cfg.Timeout)
}

// take tries to become the owner of a lease as last seen; somebody faster may have been.
func (m *member) take(ctx context.Context, l leaseRow) bool {
	token, ok, err := m.store.take(ctx, l)
	if err != nil {
		m.cfg.Logger.Warn("lease not taken", "pool", m.cfg.Name, "partition", l.Partition, "error", err)
		return false
	}
	if ok {
		m.cfg.Logger.Debug("lease taken", "pool", m.cfg.Name, "partition", l.Partition, "token", token, "takeover", l.Owner != uuid.Nil)
		m.start(Held{Partition: l.Partition, Token: token, Owner: m.id})
	}
	return ok
}

// sweep removes members that have been dead for long.
func (m *member) sweep(ctx context.Context, v view) {
	for _, other := range v.members {
		if other.ID != m.id && m.seen.memberStale(other, 10*m.cfg.Timeout) {
			if err := m.store.forget(ctx, other); err != nil {
				m.cfg.Logger.Warn("dead member not removed", "pool", m.cfg.Name, "error", err)
			}
		}
	}
}

// kept lists the partitions we hold and mean to keep, in order.
func (m *member) kept() []int {
	var kept []int
	for p := range m.cfg.Partitions {
		if j, ok := m.running[p]; ok && !j.ending {
			kept = append(kept, p)
		}
	}
	return kept
}

func (m *member) start(held Held) {
	ctx, cancel := context.WithCancelCause(context.Background())
	j := &job{held: held, cancel: cancel, done: make(chan struct{})}
	m.running[held.Partition] = j
	go func() {
		defer m.wake()
		defer close(j.done)
		m.keepWorking(ctx, held)
	}()
}

// keepWorking calls work until the lease ends, with a growing pause after each early return.
func (m *member) keepWorking(ctx context.Context, held Held) {
	const first, most = 100 * time.Millisecond, 5 * time.Second
	pause := first
	for {
		began := time.Now()
		err := m.work(ctx, held)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > most {
			pause = first
		}
		m.cfg.Logger.Error("work on a partition ended, starting it again", "pool", m.cfg.Name,
			"partition", held.Partition, "pause", pause, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, most)
	}
}

func (m *member) wake() {
	select {
	case m.returned <- struct{}{}:
	default:
	}
}

// drain leaves the pool, so that the others may have all partitions, and ends all work. What is not yet handed over is
// held on to.
func (m *member) drain() error {
	ctx, cancel := context.WithTimeout(context.Background(), m.cfg.Drain)
	defer cancel()
	for _, j := range m.running {
		j.ending = true
		j.cancel(nil)
	}
	ticker := time.NewTicker(m.cfg.Interval)
	defer ticker.Stop()
	for left := m.leave(ctx); ; {
		m.giveBack(ctx)
		m.observe()
		if len(m.running) == 0 {
			if !left {
				m.leave(ctx) // or it times out
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("leave pool %s: work on %d partitions has not returned: %w", m.cfg.Name, len(m.running), ctx.Err())
		case <-m.returned:
		case <-ticker.C:
			left = left || m.leave(ctx)
			now := time.Now()
			if err := m.store.hold(ctx); err != nil {
				m.cfg.Logger.Warn("leases not renewed while draining", "pool", m.cfg.Name, "error", err)
				continue
			}
			m.renewed = now
		}
	}
}

// leave ends the membership, within a beat.
func (m *member) leave(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Interval)
	defer cancel()
	err := m.store.leave(ctx)
	if err != nil {
		m.cfg.Logger.Warn("membership not ended yet", "pool", m.cfg.Name, "error", err)
	}
	return err == nil
}

func (j *job) returned() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}
