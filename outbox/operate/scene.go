package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// scene is who writes and who hears what, as the databases say at the moment of a question.
type scene struct {
	topology *rabbitmq.Topology // nil when none is stored
	stores   []*store
	away     []error // of databases that do not answer
}

// store is one database of a scene.
type store struct {
	*database
	outbox, inbox bool
	source        string
	topology      *rabbitmq.Topology
	consumers     []string // whose inbox it has
}

// survey asks all databases at once.
func (o *Operator) survey(ctx context.Context) *scene {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	stores, errs := make([]*store, len(o.databases)), make([]error, len(o.databases))
	o.each(func(i int, d *database) { stores[i], errs[i] = d.survey(ctx) })
	s := &scene{}
	for i, st := range stores {
		if errs[i] != nil {
			s.away = append(s.away, awayError{o.databases[i].name, errs[i]})
			continue
		}
		s.stores = append(s.stores, st)
		if s.topology == nil {
			s.topology = st.topology
		}
	}
	return s
}

// awayError is why a database does not answer.
type awayError struct {
	name string
	error
}

func (e awayError) Unwrap() error { return e.error }

const surveyTimeout = 5 * time.Second

// each calls fn for all databases side by side.
func (o *Operator) each(fn func(i int, d *database)) {
	var all sync.WaitGroup
	for i, d := range o.databases {
		all.Go(func() { fn(i, d) })
	}
	all.Wait()
}

func (d *database) survey(ctx context.Context) (*store, error) {
	sides, err := d.has(ctx)
	if err != nil {
		return nil, err
	}
	st := &store{database: d, outbox: slices.Contains(sides, Outbox), inbox: slices.Contains(sides, Inbox)}
	if st.outbox {
		if err := st.readConfig(ctx); err != nil {
			return nil, err
		}
	}
	if st.inbox {
		// A consumer makes its leases when it first runs, and they stay.
		if st.consumers, err = column[string](ctx, d, "look for consumers", `SELECT DISTINCT pool FROM inbox.leases ORDER BY 1`); err != nil {
			return nil, err
		}
	}
	return st, nil
}

func (st *store) readConfig(ctx context.Context) error {
	var document []byte
	err := st.pool.QueryRow(ctx, `SELECT source, topology FROM outbox.config`).Scan(&st.source, &document)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && document == nil {
		return nil
	}
	if err != nil {
		return st.failed("read outbox.config", err)
	}
	var t rabbitmq.Topology
	if err := json.Unmarshal(document, &t); err == nil && t.Validate() == nil {
		st.topology = &t
	}
	return nil
}

// home is the database that has a consumer's inbox, or nil.
func (s *scene) home(consumer string) *store {
	for _, st := range s.stores {
		if slices.Contains(st.consumers, consumer) {
			return st
		}
	}
	for _, st := range s.stores { // it has never run: the service of that name has its inbox in its own database
		if st.inbox && st.source == consumer {
			return st
		}
	}
	return nil
}

// bound are the consumers that a type goes to.
func (s *scene) bound(typ string) (consumers []string) {
	if s.topology == nil {
		return nil
	}
	for _, q := range s.topology.Queues {
		if slices.Contains(q.Types, typ) {
			consumers = append(consumers, q.Name)
		}
	}
	return consumers
}

// queues are the names of all queues of all consumers.
func (s *scene) queues() (names []string) {
	if s.topology == nil {
		return nil
	}
	for _, q := range s.topology.Queues {
		for p := range s.topology.Partitions {
			names = append(names, s.topology.QueueName(q.Name, p))
		}
	}
	return names
}

// look runs fn in a transaction that reads, with every statement bounded and none scanning a whole table where an
// index leads there.
func (d *database) look(ctx context.Context, what string, limit time.Duration, fn func(tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit+time.Second)
	defer cancel()
	err := pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(`
			SET LOCAL statement_timeout = %d; SET LOCAL idle_in_transaction_session_timeout = %[1]d;
			SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off`, limit.Milliseconds()))
		if err != nil {
			return err
		}
		return fn(tx)
	})
	if err != nil {
		return d.failed(what, err)
	}
	return nil
}

// rowsOf collects a query's rows by name within a transaction.
func rowsOf[T any](ctx context.Context, tx pgx.Tx, text string, args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[T])
}

// drawn is when a UUIDv7 was drawn.
func drawn(id uuid.UUID) (at time.Time, ok bool) {
	if id.Version() != 7 {
		return at, false
	}
	sec, nsec := id.Time().UnixTime()
	return time.Unix(sec, nsec), true
}

// firstID is the smallest UUIDv7 of a moment.
func firstID(at time.Time) (id uuid.UUID) {
	ms := max(at.UnixMilli(), 0)
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id
}
