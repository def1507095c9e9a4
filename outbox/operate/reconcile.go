package operate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const (
	defaultGrace = 10 * time.Second
	// mostGaps bounds the gaps that are told one by one.
	mostGaps = 1000
	// mostSuspects bounds the messages that are looked at a second time.
	mostSuspects = 100_000
	// around is how far from the asked range ids and rows are read beside it: an id is drawn before its row is written.
	around = time.Hour
	// portion is how many ids one question holds.
	portion = 5000
	// reconcileTimeout bounds a statement that goes through a range.
	reconcileTimeout = 10 * time.Minute
)

// Reconcile compares, message by message, what was committed from From and before To with what was relayed and with what
// every bound consumer's inbox has. A message that was relayed less than grace ago, 10 s by default, is pending, not
// missing; Reconcile waits that long when it must, and it should be longer than a handler takes. It goes through outboxes and inboxes side by side in the order of
// message ids, so memory is bounded whatever the range.
func (o *Operator) Reconcile(ctx context.Context, from, to time.Time, grace time.Duration) (Reconciliation, error) {
	if grace <= 0 {
		grace = defaultGrace
	}
	if !from.Before(to) || from.Before(time.Unix(0, 0)) {
		return Reconciliation{}, fmt.Errorf("%w: want a time and a later one, not %s and %s", ErrInvalid, from, to)
	}
	select { // it holds two connections to each database
	case o.reconciling <- struct{}{}:
		defer func() { <-o.reconciling }()
	case <-ctx.Done():
		return Reconciliation{}, fmt.Errorf("wait for another reconciliation: %w", ctx.Err())
	}
	s := o.survey(ctx)
	r := &reconciler{Operator: o, scene: s, grace: grace, began: time.Now(), report: Reconciliation{From: from, To: to, Gaps: []Gap{}, NotChecked: []string{}}}
	for _, err := range s.away {
		r.report.NotChecked = append(r.report.NotChecked, err.Error())
	}
	if s.topology == nil {
		return r.report, fmt.Errorf("%w: no database has a topology, so nobody knows who must have what", ErrRefused)
	}
	if err := r.merge(ctx); err != nil {
		return r.report, err
	}
	if err := r.settle(ctx); err != nil {
		return r.report, err
	}
	r.report.Clean = r.report.GapsTotal == 0 && r.report.Duplicates == 0 && r.report.Unknown == 0 && len(r.report.NotChecked) == 0
	return r.report, nil
}

// reconciler is one run.
type reconciler struct {
	*Operator
	scene    *scene
	grace    time.Duration
	began    time.Time // before the outboxes were read
	report   Reconciliation
	suspects []suspect
	unknown  []unknown
	floor    map[string]uuid.UUID // by consumer: what its inbox remembers begins here
	lacking  map[string]bool      // consumers whose inbox was not found
}

// sent is a message of an outbox.
type sent struct {
	ID        uuid.UUID
	Database  int
	Type      string
	Key       string
	Partition int
	InRange   bool
	Passed    bool // by the cursor
	Old       bool // the cursor had passed it a grace period ago
	Stuck     bool
}

// got is a row of an inbox.
type got struct {
	ID       uuid.UUID
	Database int
	Consumer string
	State    string
	Replay   bool
}

// suspect is a message that a consumer did not have when it was looked for.
type suspect struct {
	sent
	consumer string
}

// unknown is an inbox row whose message was not found.
type unknown struct {
	id       uuid.UUID
	consumer string
}

// stream reads rows one by one, with one row ahead.
type stream[T any] struct {
	rows pgx.Rows
	scan func(pgx.Rows) (T, error)
	head *T
}

func (s *stream[T]) next() error {
	if !s.rows.Next() {
		s.head = nil
		return s.rows.Err()
	}
	value, err := s.scan(s.rows)
	s.head = &value
	return err
}

// merge goes through all outboxes and inboxes in the order of message ids.
func (r *reconciler) merge(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		outboxes []*stream[sent]
		inboxes  []*stream[got]
	)
	// All outboxes are opened before the first inbox: whatever an inbox has was in its outbox before.
	for i, st := range r.scene.stores {
		if st.outbox {
			s, done, err := r.openOutbox(ctx, i, st)
			if err != nil {
				return err
			}
			defer done()
			outboxes = append(outboxes, s)
		}
	}
	if err := r.readFloors(ctx); err != nil {
		return err
	}
	for i, st := range r.scene.stores {
		if st.inbox {
			s, done, err := r.openInbox(ctx, i, st)
			if err != nil {
				return err
			}
			defer done()
			inboxes = append(inboxes, s)
		}
	}
	for {
		id, ok := smallest(outboxes, inboxes)
		if !ok {
			return nil
		}
		wrote, err := taken(outboxes, id, func(s sent) uuid.UUID { return s.ID })
		if err != nil {
			return fmt.Errorf("read the outboxes: %w", err)
		}
		have, err := taken(inboxes, id, func(g got) uuid.UUID { return g.ID })
		if err != nil {
			return fmt.Errorf("read the inboxes: %w", err)
		}
		r.compare(id, wrote, have)
	}
}

func smallest(outboxes []*stream[sent], inboxes []*stream[got]) (id uuid.UUID, ok bool) {
	consider := func(other uuid.UUID) {
		if !ok || bytesBefore(other, id) {
			id, ok = other, true
		}
	}
	for _, s := range outboxes {
		if s.head != nil {
			consider(s.head.ID)
		}
	}
	for _, s := range inboxes {
		if s.head != nil {
			consider(s.head.ID)
		}
	}
	return id, ok
}

// taken takes the rows of one id off all streams.
func taken[T any](streams []*stream[T], id uuid.UUID, of func(T) uuid.UUID) (rows []T, err error) {
	for _, s := range streams {
		for s.head != nil && of(*s.head) == id {
			rows = append(rows, *s.head)
			if err := s.next(); err != nil {
				return nil, err
			}
		}
	}
	return rows, nil
}

const sentQuery = `
	SELECT m.uuid, m.topic, m.key, m.partition::int, m.created_at >= $1 AND m.created_at < $2,
	       ` + isRelayed + `,
	       coalesce(pg_visible_in_snapshot(m.transaction_id, c.old), false), k.message_id IS NOT NULL
	FROM outbox.messages AS m
	LEFT JOIN (
		SELECT p AS partition, c.*, (
			SELECT h.relayed FROM (
				SELECT h.stored_at AS at, h.relayed FROM outbox.cursor AS h WHERE h.partition = p
				UNION ALL
				SELECT w.at, w.relayed[p + 1] FROM outbox.watermarks AS w
			) AS h WHERE h.at < clock_timestamp() - make_interval(secs => $4) ORDER BY h.at DESC LIMIT 1) AS old
		FROM generate_series(0, 3) AS p
		LEFT JOIN LATERAL (SELECT c.relayed, c.target, c.last_id FROM outbox.cursor AS c WHERE c.partition = p ORDER BY c.seq DESC LIMIT 1) AS c ON true
	) AS c ON c.partition = m.partition
	LEFT JOIN outbox.stuck AS k ON k.message_id = m.id
	WHERE m.created_at >= $1::timestamptz - make_interval(secs => $3) AND m.created_at < $2::timestamptz + make_interval(secs => $3)
	ORDER BY m.uuid`

func (r *reconciler) openOutbox(ctx context.Context, i int, st *store) (*stream[sent], func(), error) {
	return open(ctx, st, "read the outbox", func(rows pgx.Rows) (s sent, err error) {
		s.Database = i
		return s, rows.Scan(&s.ID, &s.Type, &s.Key, &s.Partition, &s.InRange, &s.Passed, &s.Old, &s.Stuck)
	}, sentQuery, r.report.From, r.report.To, around.Seconds(), r.grace.Seconds())
}

func (r *reconciler) openInbox(ctx context.Context, i int, st *store) (*stream[got], func(), error) {
	return open(ctx, st, "read the inbox", func(rows pgx.Rows) (g got, err error) {
		g.Database = i
		return g, rows.Scan(&g.ID, &g.Consumer, &g.State, &g.Replay)
	}, `
		SELECT message_id, consumer, state, replay <> '00000000-0000-0000-0000-000000000000' FROM inbox.messages
		WHERE message_id >= $1 AND message_id < $2 ORDER BY message_id`,
		firstID(r.report.From.Add(-around)), firstID(r.report.To.Add(around)))
}

// open begins a query on a connection of its own, with a statement timeout of its own.
func open[T any](ctx context.Context, st *store, what string, scan func(pgx.Rows) (T, error), text string, args ...any) (*stream[T], func(), error) {
	tx, err := st.pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return nil, nil, st.failed(what, err)
	}
	end := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // it only read
	}
	_, err = tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d; SET LOCAL idle_in_transaction_session_timeout = %[1]d; SET LOCAL jit = off`, reconcileTimeout.Milliseconds()))
	if err != nil {
		end()
		return nil, nil, st.failed(what, err)
	}
	rows, err := tx.Query(ctx, text, args...)
	if err != nil {
		end()
		return nil, nil, st.failed(what, err)
	}
	s := &stream[T]{rows: rows, scan: scan}
	done := func() { rows.Close(); end() }
	if err := s.next(); err != nil {
		done()
		return nil, nil, st.failed(what, err)
	}
	return s, done, nil
}

// readFloors reads how far the consumers' inboxes remember.
func (r *reconciler) readFloors(ctx context.Context) error {
	r.floor, r.lacking = map[string]uuid.UUID{}, map[string]bool{}
	for _, q := range r.scene.topology.Queues {
		home := r.scene.home(q.Name)
		if home == nil {
			r.lacking[q.Name] = true
			r.report.NotChecked = append(r.report.NotChecked, fmt.Sprintf("no database is known to have the inbox of consumer %s", q.Name))
			continue
		}
		since, err := column[uuid.UUID](ctx, home.database, "look how far the inbox remembers", `SELECT since FROM inbox.remembered`)
		if err != nil {
			return err
		}
		for _, s := range since {
			r.floor[q.Name] = s
		}
	}
	return nil
}

// compare judges one message id with all that outboxes and inboxes have of it.
func (r *reconciler) compare(id uuid.UUID, wrote []sent, have []got) {
	if len(wrote) == 0 {
		if at, ok := drawn(id); ok && !at.Before(r.report.From) && at.Before(r.report.To) {
			for _, g := range have {
				if len(r.unknown) < mostSuspects {
					r.unknown = append(r.unknown, unknown{id, g.Consumer})
				} else {
					r.report.Unknown++
				}
			}
		}
		return
	}
	inRange := false
	for _, w := range wrote {
		if w.InRange {
			inRange = true
			r.report.Messages++
			r.judge(w, have)
		}
	}
	if !inRange {
		return
	}
	effects := map[string]int64{}
	for _, g := range have {
		if g.State == "done" && !g.Replay {
			effects[g.Consumer]++
		}
	}
	for _, n := range effects {
		r.report.Duplicates += n - 1
	}
}

func (r *reconciler) judge(w sent, have []got) {
	if w.Stuck {
		r.report.Stuck++
		return
	}
	if !w.Passed && len(have) == 0 {
		r.report.Pending++
		return
	}
	for _, consumer := range r.scene.bound(w.Type) {
		i := slices.IndexFunc(have, func(g got) bool { return g.Consumer == consumer })
		switch {
		case r.lacking[consumer] || bytesBefore(w.ID, r.floor[consumer]):
		case i >= 0 && have[i].State == "stuck":
			r.report.Stuck++
		case i >= 0:
		case !w.Passed:
			r.report.Pending++
		case len(r.suspects) < mostSuspects:
			r.suspects = append(r.suspects, suspect{w, consumer})
		case w.Old:
			r.gap(suspect{w, consumer}, "it is not in its inbox")
		default:
			r.report.Pending++
		}
	}
}

func (r *reconciler) gap(s suspect, why string) {
	r.report.GapsTotal++
	if len(r.report.Gaps) < mostGaps {
		r.report.Gaps = append(r.report.Gaps, Gap{
			Database: r.scene.stores[s.Database].name, MessageID: s.ID, Type: s.Type, Key: s.Key, Consumer: s.consumer, Why: why,
		})
	}
}

// settle looks at everything suspicious again, when whatever was on its way must have arrived.
func (r *reconciler) settle(ctx context.Context) error {
	if err := r.settleUnknown(ctx); err != nil {
		return err
	}
	if len(r.suspects) == 0 {
		return nil
	}
	if slices.ContainsFunc(r.suspects, func(s suspect) bool { return !s.Old }) {
		if err := until(ctx, r.began.Add(r.grace)); err != nil {
			return err
		}
	}
	// The queues are asked before the inboxes: what has left one then is in the other, or in a handler's hand for as long
	// as it works.
	depths, err := r.broker.depths(ctx, r.scene.queues())
	if err != nil {
		r.report.NotChecked = append(r.report.NotChecked, "the queues, so what is missing may be in them: "+err.Error())
	}
	if err := r.present(ctx); err != nil || len(r.suspects) == 0 {
		return err
	}
	for range 3 {
		if err := until(ctx, time.Now().Add(min(r.grace, 500*time.Millisecond))); err != nil {
			return err
		}
		if err := r.askAgain(ctx, depths); err != nil {
			return err
		}
		if err := r.present(ctx); err != nil || len(r.suspects) == 0 {
			return err
		}
	}
	if err := r.dropSkipped(ctx); err != nil {
		return err
	}
	r.suspects = slices.DeleteFunc(r.suspects, func(s suspect) bool {
		d, asked := depths[r.scene.topology.QueueName(s.consumer, s.Partition)]
		queued := !asked || d.messages > 0
		if queued {
			r.report.Pending++
		}
		return queued
	})
	r.judgeRest(ctx, depths)
	return nil
}

// askAgain keeps the largest depth that a queue has told: a quorum queue that does not answer its node in time counts as
// empty.
func (r *reconciler) askAgain(ctx context.Context, depths map[string]depth) error {
	var names []string
	for _, s := range r.suspects {
		names = append(names, r.scene.topology.QueueName(s.consumer, s.Partition))
	}
	slices.Sort(names)
	again, err := r.broker.depths(ctx, slices.Compact(names))
	for name, d := range again {
		if before, asked := depths[name]; asked && d.messages > before.messages {
			depths[name] = d
		}
	}
	if errors.Is(err, errNoBroker) || len(depths) == 0 { // said already
		return nil
	}
	return err
}

func (r *reconciler) judgeRest(ctx context.Context, depths map[string]depth) {
	var dead []string
	for _, s := range r.suspects {
		dead = append(dead, rabbitmq.DeadName(r.scene.topology.QueueName(s.consumer, s.Partition)))
	}
	slices.Sort(dead)
	dead = slices.Compact(dead)
	buried, err := r.broker.depths(ctx, dead)
	if err != nil {
		buried = map[string]depth{}
	}
	for _, s := range r.suspects {
		queue := r.scene.topology.QueueName(s.consumer, s.Partition)
		why := fmt.Sprintf("relayed, and neither in its inbox nor in queue %s", queue)
		if depths[queue].missing {
			why = fmt.Sprintf("relayed, and not in its inbox; queue %s does not exist", queue)
		}
		if n := buried[rabbitmq.DeadName(queue)].messages; n > 0 {
			why += fmt.Sprintf("; %d messages are in %s", n, rabbitmq.DeadName(queue))
		}
		r.gap(s, why)
	}
}

// until waits for a moment.
func until(ctx context.Context, moment time.Time) error {
	timer := time.NewTimer(time.Until(moment))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// present takes out of the suspects what has arrived. What is left stays pending if it is in a queue.
func (r *reconciler) present(ctx context.Context) error {
	found := map[string]map[uuid.UUID]string{}
	for _, consumer := range slices.Sorted(maps.Keys(r.byConsumer())) {
		home := r.scene.home(consumer)
		found[consumer] = map[uuid.UUID]string{}
		for ids := range slices.Chunk(r.byConsumer()[consumer], portion) {
			rows, err := home.inboxes(ctx, ids)
			if err != nil {
				return err
			}
			for _, row := range rows {
				if row.Consumer == consumer {
					found[consumer][row.MessageID] = row.State
				}
			}
		}
	}
	r.suspects = slices.DeleteFunc(r.suspects, func(s suspect) bool {
		state, ok := found[s.consumer][s.ID]
		if state == "stuck" {
			r.report.Stuck++
		}
		return ok
	})
	return nil
}

func (r *reconciler) byConsumer() map[string][]uuid.UUID {
	ids := map[string][]uuid.UUID{}
	for _, s := range r.suspects {
		ids[s.consumer] = append(ids[s.consumer], s.ID)
	}
	return ids
}

// dropSkipped takes out of the suspects what an operator took out of the outbox.
func (r *reconciler) dropSkipped(ctx context.Context) error {
	for i, st := range r.scene.stores {
		var ids []string
		for _, s := range r.suspects {
			if s.Database == i {
				ids = append(ids, s.ID.String())
			}
		}
		gone := map[string]bool{}
		for some := range slices.Chunk(ids, portion) {
			skipped, err := column[string](ctx, st.database, "read the audit log", `
				SELECT DISTINCT m.id FROM ops.audit AS a, jsonb_array_elements_text(a.detail -> 'messages') AS m (id)
				WHERE a.action = 'outbox.skip' AND a.detail -> 'messages' ?| $1 AND m.id = ANY ($1)`, some)
			if err != nil {
				return err
			}
			for _, id := range skipped {
				gone[id] = true
			}
		}
		r.suspects = slices.DeleteFunc(r.suspects, func(s suspect) bool { return s.Database == i && gone[s.ID.String()] })
	}
	return nil
}

// settleUnknown looks for the messages of inbox rows in the whole of all outboxes. What may have been there and dropped
// when it was old does not count.
func (r *reconciler) settleUnknown(ctx context.Context) error {
	if len(r.unknown) == 0 {
		return nil
	}
	known, oldest := map[uuid.UUID]bool{}, time.Time{}
	for _, st := range r.scene.stores {
		if !st.outbox {
			continue
		}
		for some := range slices.Chunk(r.unknown, portion) {
			ids := make([]uuid.UUID, len(some))
			for i, u := range some {
				ids[i] = u.id
			}
			err := st.look(ctx, "look for messages", reconcileTimeout, func(tx pgx.Tx) error {
				rows, err := tx.Query(ctx, `SELECT uuid FROM outbox.messages WHERE uuid = ANY ($1) UNION SELECT uuid FROM outbox.stuck WHERE uuid = ANY ($1)`, ids)
				if err != nil {
					return err
				}
				found, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
				for _, id := range found {
					known[id] = true
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		kept, err := column[*time.Time](ctx, st.database, "look how far the outbox goes back", `SELECT oldest::timestamp AT TIME ZONE 'UTC' FROM outbox.partition_state()`)
		if err != nil {
			return err
		}
		for _, at := range kept {
			if at != nil && at.After(oldest) {
				oldest = *at
			}
		}
	}
	for _, u := range r.unknown {
		if at, ok := drawn(u.id); ok && !known[u.id] && !at.Before(oldest) {
			r.report.Unknown++
		}
	}
	if r.report.Unknown > 0 && len(r.scene.away) > 0 { // they may be in a database that does not answer
		r.report.Unknown = 0
	}
	return nil
}
