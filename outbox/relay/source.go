package relay

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/lease"
)

// poolName is the lease pool of all relays on one database.
const poolName = "relay"

// recordWithin bounds, at the end of a lease and after the grace period, the recording of what is done.
const recordWithin = 15 * time.Second

// source is one database's outbox as a Watermill subscriber: it emits the messages of the partitions that
// this process holds.
type source struct {
	db    Database
	cfg   *Config
	conf  *pgx.ConnConfig
	pool  *pgxpool.Pool // for leases and wake-ups, not for the cursor
	wakes []chan struct{}

	leases   atomic.Int32 // that this process holds
	relaying [outbox.Partitions]atomic.Bool
}

var _ message.Subscriber = (*source)(nil)

func newSource(db Database, cfg *Config) (*source, error) {
	conf, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", db.Name, err)
	}
	conf.MaxConns, conf.MinConns = 3, 0
	conf.ConnConfig.ConnectTimeout = 5 * time.Second
	conf.ConnConfig.RuntimeParams["application_name"] = "outbox relay"
	session := conf.ConnConfig.Copy()
	// One plan for each statement, never a scan of the whole table: see window.go.
	session.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	session.RuntimeParams["enable_seqscan"] = "off"
	session.RuntimeParams["enable_bitmapscan"] = "off" // it would collect a whole window before the first row
	session.RuntimeParams["jit"] = "off"               // a switched-off scan looks expensive enough to compile: 0.9 s at each start
	session.RuntimeParams["synchronous_commit"] = "on"
	pool, err := pgxpool.NewWithConfig(context.Background(), conf)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", db.Name, err)
	}
	s := &source{db: db, cfg: cfg, conf: session, pool: pool}
	for range outbox.Partitions {
		s.wakes = append(s.wakes, make(chan struct{}, 1))
	}
	return s, nil
}

// Subscribe relays until ctx ends; then it finishes what is in flight and closes the channel.
func (s *source) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	var listener sync.WaitGroup
	listener.Go(func() { s.listen(ctx) })
	go func() {
		defer close(out)
		defer listener.Wait()
		err := lease.Run(ctx, lease.Config{
			Pool: s.pool, Schema: "outbox", Name: poolName, Partitions: outbox.Partitions, Label: s.cfg.Label, Build: s.cfg.Build,
			Interval: s.cfg.LeaseInterval, Timeout: s.cfg.LeaseTimeout, Drain: s.cfg.Grace + recordWithin, Logger: s.cfg.Logger.With("database", s.db.Name),
			Observe: func(held int) { s.leases.Store(int32(held)) },
		}, func(ctx context.Context, held lease.Held) error { return s.work(ctx, held, out) })
		if err != nil {
			s.cfg.Logger.Error("relay of a database ended", "database", s.db.Name, "error", err)
		}
	}()
	return out, nil
}

// Close does nothing: the subscription ends with its context, the pool with the relay.
func (s *source) Close() error { return nil }

// work relays one partition on a connection of its own.
func (s *source) work(ctx context.Context, held lease.Held, out chan<- *message.Message) error {
	sess, err := openSession(ctx, s.conf.Copy(), held, s.cfg.QueryTimeout)
	if err != nil {
		return err
	}
	defer sess.close()
	sess.build = s.cfg.Build
	s.relaying[held.Partition].Store(true)
	defer s.relaying[held.Partition].Store(false)
	return newPump(sess, s.cfg, s.db.Name, out, s.wakes[held.Partition]).run(ctx)
}

// listen turns notifications into wake-ups, connecting again for as long as ctx lasts. Without it the relay
// merely polls.
func (s *source) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.listenOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		s.cfg.Logger.Debug("wake-ups interrupted, polling meanwhile", "database", s.db.Name, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (s *source) listenOnce(ctx context.Context) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	raw := conn.Hijack()
	defer func() { _ = raw.Close(context.WithoutCancel(ctx)) }()
	if _, err := raw.Exec(ctx, "LISTEN "+outbox.WakeChannel); err != nil {
		return err
	}
	for {
		n, err := raw.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		for partition, wake := range s.wakes {
			if n.Payload != "" && !strings.Contains(n.Payload, strconv.Itoa(partition)) {
				continue
			}
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
}
