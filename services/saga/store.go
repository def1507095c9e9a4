package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/services/internal/batch"
	"github.com/jcp/ticketwave/services/internal/loop"
	"github.com/jcp/ticketwave/services/internal/web"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// record is a stored instance. Body is decoded only under its own definition.
type record struct {
	ID            uuid.UUID       `db:"id"`
	Version       int             `db:"version"`
	State         string          `db:"state"`
	Body          json.RawMessage `db:"body"`
	Revision      int64           `db:"revision"`
	DueAt         *time.Time      `db:"due_at"`
	CorrelationID string          `db:"correlation_id"`
	TraceParent   string          `db:"trace_parent"`
	CausedBy      uuid.UUID       `db:"caused_by"`
	CreatedAt     time.Time       `db:"created_at"`
	UpdatedAt     time.Time       `db:"updated_at"`
	// Now is the database's time of the reading.
	Now time.Time `db:"now"`
}

const columns = `id, version, state, body, revision, due_at, correlation_id, trace_parent, caused_by, created_at, updated_at,
	clock_timestamp() AS now`

// scan is pgx.RowToStructByName in UTC.
func scan(row pgx.CollectableRow) (record, error) {
	r, err := pgx.RowToStructByName[record](row)
	r.CreatedAt, r.UpdatedAt, r.Now = r.CreatedAt.UTC(), r.UpdatedAt.UTC(), r.Now.UTC()
	if r.DueAt != nil {
		*r.DueAt = r.DueAt.UTC()
	}
	return r, err
}

// entry is a line of an instance's history.
type entry struct {
	At        time.Time  `db:"at" json:"at"`
	Kind      string     `db:"kind" json:"kind"`
	Step      string     `db:"step" json:"step,omitempty"`
	Type      string     `db:"type" json:"type,omitempty"`
	MessageID *uuid.UUID `db:"message_id" json:"messageId,omitempty"`
	Note      string     `db:"note" json:"note,omitempty"`
	State     string     `db:"state" json:"state"`
}

// change is what one event makes of an instance.
type change struct {
	ctx     context.Context // of the event's flow
	was     string          // the state before
	record  record
	entries []entry
}

// errRevision says that an instance was changed since it was read.
var errRevision = errors.New("the saga was changed by another")

// locked are the instances among ids, locked in the order of their ids.
func locked(ctx context.Context, tx pgx.Tx, ids []string) (map[string]record, error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM saga.instances WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE`, ids)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, scan)
	byID := make(map[string]record, len(found))
	for _, r := range found {
		byID[r.ID.String()] = r
	}
	return byID, err
}

// isDue is an instance of a known version whose deadline has passed by the database's clock, and was not put off.
const isDue = `due_at <= clock_timestamp() AND version = ANY ($1) AND (deadline_next_at IS NULL OR deadline_next_at <= clock_timestamp())`

// lockDue gives instances that are due, or the one named if it is, the longest due first, and leaves out those that somebody else
// has.
func lockDue(ctx context.Context, tx pgx.Tx, versions []int, which uuid.NullUUID, most int) ([]record, error) {
	if which.Valid {
		most = 1
	}
	rows, err := tx.Query(ctx, `
		SELECT `+columns+` FROM saga.instances
		WHERE `+isDue+` AND ($2::uuid IS NULL OR id = $2)
		ORDER BY due_at
		LIMIT $3
		FOR UPDATE SKIP LOCKED`, versions, which, most)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// dueInstances are the ids of some that are due, the longest due first.
func dueInstances(ctx context.Context, db querier, versions []int, most int) ([]uuid.UUID, error) {
	rows, err := db.Query(ctx, `SELECT id FROM saga.instances WHERE `+isDue+` ORDER BY due_at LIMIT $2`, versions, most)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
}

// putOffDeadline lets an instance that is due wait, longer each time, up to five minutes.
var putOffDeadline = `
	UPDATE saga.instances
	SET deadline_failures = deadline_failures + 1,
	    deadline_next_at = ` + loop.NextTry("deadline_failures") + `
	WHERE id = $1 AND due_at <= clock_timestamp()`

// insertAll gives false for a booking that has an instance. It waits for another transaction of the same booking.
func insertAll(ctx context.Context, tx pgx.Tx, records []record) ([]bool, error) {
	statements := make([]batch.Statement, len(records))
	for i, r := range records {
		statements[i] = batch.Statement{SQL: `
			INSERT INTO saga.instances (id, version, state, body, due_at, correlation_id, trace_parent, caused_by, created_at, updated_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
			ON CONFLICT (id) DO NOTHING
			RETURNING true`,
			Args: []any{r.ID, r.Version, r.State, r.Body, r.DueAt, r.CorrelationID, r.TraceParent, r.CausedBy, r.CreatedAt}}
	}
	made, err := batch.Rows(ctx, tx, statements, pgx.RowTo[bool])
	inserted := make([]bool, len(records))
	for i := range made {
		inserted[i] = made[i] != nil
	}
	return inserted, err
}

// updateAll writes the changes in one round trip. It is errRevision when one of the instances is not at the revision that
// was read.
func updateAll(ctx context.Context, tx pgx.Tx, changes []change) error {
	statements := make([]batch.Statement, len(changes))
	for i, c := range changes {
		r := c.record
		statements[i] = batch.Statement{SQL: `
			UPDATE saga.instances
			SET state = $3, body = $4, due_at = $5, caused_by = $6, updated_at = $7, revision = revision + 1,
			    deadline_failures = 0, deadline_next_at = NULL
			WHERE id = $1 AND revision = $2
			RETURNING true`,
			Args: []any{r.ID, r.Revision, r.State, r.Body, r.DueAt, r.CausedBy, r.UpdatedAt}}
	}
	updated, err := batch.Rows(ctx, tx, statements, pgx.RowTo[bool])
	if err != nil {
		return err
	}
	for i := range updated {
		if updated[i] == nil {
			return fmt.Errorf("%s: %w", changes[i].record.ID, errRevision)
		}
	}
	return nil
}

// appendAll writes the changes' history in one statement.
func appendAll(ctx context.Context, tx pgx.Tx, changes []change) error {
	var (
		ids, messages                    []*uuid.UUID
		at                               []time.Time
		kinds, steps, types, notes, sets []string
	)
	for _, c := range changes {
		for _, e := range c.entries {
			ids, messages, at = append(ids, &c.record.ID), append(messages, e.MessageID), append(at, e.At)
			kinds, steps, types = append(kinds, e.Kind), append(steps, e.Step), append(types, e.Type)
			notes, sets = append(notes, e.Note), append(sets, e.State)
		}
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO saga.history (instance_id, at, kind, step, type, message_id, note, state)
		SELECT id, at, kind, step, type, message_id, note, state
		FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::text[])
		     WITH ORDINALITY AS e (id, at, kind, step, type, message_id, note, state, n)
		ORDER BY n`, ids, at, kinds, steps, types, messages, notes, sets)
	return err
}

// instanceByID is pgx.ErrNoRows when there is none.
func instanceByID(ctx context.Context, db querier, id uuid.UUID) (record, error) {
	rows, err := db.Query(ctx, `SELECT `+columns+` FROM saga.instances WHERE id = $1`, id)
	if err != nil {
		return record{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scan)
}

// instances is a page in the order of ids, and one more if more follow. The state is any for "". Those that go on under
// a version that is not among the known are stuck.
func instances(ctx context.Context, db querier, state string, known []int, page web.Page) ([]record, error) {
	filter := map[string]string{
		"": `true`,
		// Alternatives that are each ordered by an index.
		stuck: `(state = 'stuck' OR version <> ALL ($4) AND state NOT IN ('committed', 'compensated'))`,
	}
	where, ok := filter[state]
	if !ok {
		where = `state = $3 AND (version = ANY ($4) OR state IN ('committed', 'compensated'))`
	}
	rows, err := db.Query(ctx, `
		SELECT `+columns+` FROM saga.instances
		WHERE id > $1 AND ($3::text IS NOT NULL AND $4::int[] IS NOT NULL) AND `+where+`
		ORDER BY id
		LIMIT $2`, page.After, page.Limit+1, state, known)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

const (
	// mostCounted bounds what a look at the instances of a state costs.
	mostCounted      = 5000
	measureTimeout   = 3 * time.Second
	measureStatement = "1000" // ms
)

// measured is what is to be watched of the instances that have not ended.
type measured struct {
	// Counts are of each state, of its 5,000 oldest instances. Those of a version that is not among the known are stuck.
	Counts map[string]int
	// Overdue is for how long the first deadline has been past that nobody has kept, under a known version.
	Overdue time.Duration
}

// measure looks within three seconds and at a bounded cost.
func measure(ctx context.Context, db *pgxpool.Pool, known []int) (m measured, err error) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	unended := slices.DeleteFunc(slices.Clone(states), func(s string) bool { return Phase(s).Ended() })
	m.Counts = make(map[string]int, len(unended))
	for _, state := range unended {
		m.Counts[state] = 0
	}
	var (
		looks pgx.Batch
		late  float64
	)
	looks.Queue(`SELECT set_config('statement_timeout', $1, true)`, measureStatement)
	looks.Queue(`
		SELECT CASE WHEN i.version = ANY ($2) THEN i.state ELSE 'stuck' END, count(*)
		FROM unnest($1::text[]) AS s (state),
		     LATERAL (SELECT state, version FROM saga.instances WHERE state = s.state ORDER BY id LIMIT $3) AS i
		GROUP BY 1`, unended, known, mostCounted).Query(func(rows pgx.Rows) error {
		var (
			state string
			n     int
		)
		_, err := pgx.ForEachRow(rows, []any{&state, &n}, func() error { m.Counts[state] = n; return nil })
		return err
	})
	looks.Queue(`
		SELECT coalesce(extract(epoch FROM clock_timestamp() - min(due_at)), 0)::float8
		FROM (SELECT due_at FROM saga.instances WHERE due_at IS NOT NULL AND version = ANY ($1) ORDER BY due_at LIMIT 1) AS first`,
		known).QueryRow(func(row pgx.Row) error { return row.Scan(&late) })
	if err := db.SendBatch(ctx, &looks).Close(); err != nil {
		return measured{}, fmt.Errorf("measure sagas: %w", err)
	}
	m.Overdue = max(0, time.Duration(late*float64(time.Second)))
	return m, nil
}

// historyOf are the newest entries, at most most of them, oldest first.
func historyOf(ctx context.Context, db querier, id uuid.UUID, most int) ([]entry, error) {
	rows, err := db.Query(ctx, `
		SELECT at, kind, step, type, message_id, note, state FROM (
			SELECT * FROM saga.history WHERE instance_id = $1 ORDER BY n DESC LIMIT $2
		) AS newest
		ORDER BY n`, id, most)
	if err != nil {
		return nil, err
	}
	entries, err := pgx.CollectRows(rows, pgx.RowToStructByName[entry])
	for i := range entries {
		entries[i].At = entries[i].At.UTC()
	}
	return entries, err
}
