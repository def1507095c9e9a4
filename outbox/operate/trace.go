package operate

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// mostTraced bounds the messages that one key is explained by: its newest.
	mostTraced = 200
	// traceTimeout bounds each search; neither ids nor keys have an index.
	traceTimeout = 10 * time.Second
	// drift is how far the clock that drew an id and the one that stamped its row may be apart.
	drift = 10 * time.Minute
)

// trace is what a database's outbox knows of one message.
type trace struct {
	ID        int64
	MessageID uuid.UUID
	Type, Key string
	Partition int
	CreatedAt time.Time
	Passed    bool // by the cursor: relayed, or stuck
	InWindow  bool // the open one
	NoLater   *time.Time
	After     *time.Time

	store *store
}

// Whether a message is relayed is asked of the stored snapshots, never of ids. When it was stands in the journal of the
// last seconds and in the watermarks of the last days.
const traceColumns = `
	SELECT m.id, m.uuid AS message_id, m.topic AS type, m.key, m.partition::int AS partition, m.created_at,
	       ` + isRelayed + ` AS passed,
	       coalesce(pg_visible_in_snapshot(m.transaction_id, c.target), false) AS in_window, h.no_later, h.after
	FROM (%s) AS m
	LEFT JOIN LATERAL (SELECT * FROM outbox.cursor AS c WHERE c.partition = m.partition ORDER BY c.seq DESC LIMIT 1) AS c ON true
	LEFT JOIN LATERAL (
		SELECT min(h.at) FILTER (WHERE h.has) AS no_later, max(h.at) FILTER (WHERE NOT h.has) AS after FROM (
			SELECT c.stored_at AS at, pg_visible_in_snapshot(m.transaction_id, c.relayed) OR ` + passed + ` AS has
			FROM outbox.cursor AS c WHERE c.partition = m.partition
			UNION ALL
			SELECT w.at, coalesce(pg_visible_in_snapshot(m.transaction_id, w.relayed[m.partition + 1]), false) FROM outbox.watermarks AS w
		) AS h WHERE h.at >= m.created_at) AS h ON true
	ORDER BY m.id`

// byID looks where the row should lie by the time in its id, then everywhere.
func (st *store) byID(ctx context.Context, id uuid.UUID) ([]trace, error) {
	if at, ok := drawn(id); ok {
		found, err := st.traces(ctx, `SELECT * FROM outbox.messages WHERE uuid = $1 AND created_at BETWEEN $2 AND $3`, id, at.Add(-drift), at.Add(drift))
		if err != nil || len(found) > 0 {
			return found, err
		}
	}
	return st.traces(ctx, `SELECT * FROM outbox.messages WHERE uuid = $1`, id)
}

// byKey gives the newest messages of the key, oldest first.
func (st *store) byKey(ctx context.Context, key string) ([]trace, error) {
	return st.traces(ctx, `
		SELECT * FROM outbox.messages WHERE partition = outbox.partition_of($1) AND key = $1 ORDER BY id DESC LIMIT $2`, key, mostTraced)
}

func (st *store) traces(ctx context.Context, rows string, args ...any) (found []trace, err error) {
	err = st.look(ctx, "look for the message", traceTimeout, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, `SET LOCAL enable_seqscan = on`); err != nil {
			return err
		}
		list, err := tx.Query(ctx, fmt.Sprintf(traceColumns, rows), args...)
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(list, pgx.RowToStructByNameLax[trace])
		return err
	})
	for i := range found {
		found[i].store = st
	}
	return found, err
}

// held is what a consumer's database knows of one message.
type held struct {
	MessageID uuid.UUID
	Consumer  string
	State     string
	At        time.Time
}

// inboxes reads what a database's consumers did with the messages. Replays count beside the first delivery.
func (st *store) inboxes(ctx context.Context, ids []uuid.UUID) ([]held, error) {
	return collect[held](ctx, st.database, "look into the inbox", `
		SELECT message_id, consumer, state, max(at) AS at FROM inbox.messages WHERE message_id = ANY ($1) GROUP BY 1, 2, 3`, ids)
}

// stuckOf reads the stuck rows of a side by message id.
func (st *store) stuckOf(ctx context.Context, side Side, ids []uuid.UUID) (found []Stuck, err error) {
	p := place{st.database, side}
	q := &query{}
	q.and("r.message_id = ANY (?)", ids)
	rows, err := p.list(ctx, q, mostTraced)
	for _, r := range rows {
		found = append(found, p.stuck(r))
	}
	return found, err
}

// headOf is the oldest stuck message of a key, or nil.
func (st *store) headOf(ctx context.Context, side Side, consumer, key string) (*Stuck, error) {
	p := place{st.database, side}
	q := &query{where: []string{"r.head"}}
	q.and("r.key = ?", key)
	q.and("r.consumer = ?", consumer)
	rows, err := p.list(ctx, q, 1)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	head := p.stuck(rows[0])
	return &head, nil
}

// owners are the labels of the live relays, by partition.
func (st *store) owners(ctx context.Context) (map[int]string, error) {
	type owner struct {
		Partition int
		Label     string
	}
	list, err := collect[owner](ctx, st.database, "look who relays", `
		SELECT l.partition::int AS partition, coalesce(nullif(m.label, ''), l.owner::text) AS label
		FROM outbox.leases AS l JOIN outbox.members AS m ON m.pool = l.pool AND m.member = l.owner
		WHERE l.pool = 'relay' AND m.beat_at > clock_timestamp() - interval '5 s'`)
	byPartition := map[int]string{}
	for _, o := range list {
		byPartition[o.Partition] = o.Label
	}
	return byPartition, err
}

// openTransactions are the sessions that may hold something not yet committed, oldest first.
func (st *store) openTransactions(ctx context.Context) ([]session, error) {
	return collect[session](ctx, st.database, "look for open transactions", `
		SELECT pid, login, application, state, age FROM ops.sessions()
		WHERE database = current_database() AND writes AND application <> 'outbox relay' ORDER BY age DESC LIMIT 5`)
}

// session is one that has a transaction open.
type session struct {
	PID         int
	Login       string
	Application string
	State       string
	Age         float64
}

func (s session) String() string {
	name := s.Login
	if s.Application != "" {
		name += ", " + s.Application
	}
	return fmt.Sprintf("pid %d (%s, %s for %s)", s.PID, name, s.State, seconds(s.Age))
}

// stuckAmong finds a message's row.
func stuckAmong(list []Stuck, consumer string, id uuid.UUID) *Stuck {
	i := slices.IndexFunc(list, func(s Stuck) bool { return s.Consumer == consumer && s.MessageID == id })
	if i < 0 {
		return nil
	}
	return &list[i]
}
