package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/lease"
)

// heldLease locks the lease for the statement it begins, which must do nothing when it is gone.
const heldLease = `WITH held AS (SELECT FROM outbox.leases WHERE pool = $1 AND partition = $2 AND token = $3 AND owner = $4 FOR SHARE) `

func (s *session) heldBy(args ...any) []any {
	return append([]any{poolName, s.held.Partition, s.held.Token, s.held.Owner}, args...)
}

// fenced runs a statement that gives one row for the lease, if it is held.
func (s *session) fenced(ctx context.Context, what, text string, args ...any) error {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	tag, err := s.conn.Exec(ctx, heldLease+text, s.heldBy(args...)...)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("%s of partition %d: %w", what, s.held.Partition, lease.ErrLost)
	}
	return nil
}

// storeCursor is the last part of a fenced statement.
const storeCursor = `
		INSERT INTO outbox.cursor (partition, relayed, target, last_id, token)
		SELECT $2, $5::text::pg_snapshot, $6::text::pg_snapshot, $7, $3 FROM held`

// divert copies messages to outbox.stuck, with the failures of some, and stores the cursor, in one statement. Those that
// are there already, from before a crash, stay as they are.
func (s *session) divert(ctx context.Context, st state, ids []int64, failures map[int64]*failure) error {
	n := len(ids)
	attempts, classes, texts := make([]int64, n), make([]string, n), make([]string, n)
	parked, exposed, pauses := make([]bool, n), make([]bool, n), make([]float64, n)
	for i, id := range ids {
		if f := failures[id]; f != nil {
			attempts[i], classes[i], texts[i] = int64(f.attempts), string(f.class), f.text
			parked[i], exposed[i], pauses[i] = f.class.parks(), f.exposed, f.pause.Seconds()
		}
	}
	relayed, target := st.texts()
	return s.fenced(ctx, "divert messages", `, diverted AS (
			INSERT INTO outbox.stuck (message_id, partition, uuid, topic, key, payload, metadata, created_at,
				attempts, class, error, fingerprint, build, parked, exposed, next_attempt)
			SELECT m.id, m.partition, m.uuid, m.topic, m.key, m.payload, m.metadata, m.created_at,
				f.attempts, nullif(f.class, ''), CASE WHEN f.class <> '' THEN f.error END, nullif(f.class, '') || ' ' || m.topic,
				CASE WHEN f.class <> '' THEN $15 END, f.parked, f.exposed,
				CASE WHEN f.attempts > 0 THEN clock_timestamp() + make_interval(secs => f.pause) END
			FROM unnest($8::bigint[], $9::bigint[], $10::text[], $11::text[], $12::boolean[], $13::boolean[], $14::float8[])
				AS f (id, attempts, class, error, parked, exposed, pause),
				LATERAL (SELECT * FROM outbox.messages AS m WHERE m.partition + 0 = $2 AND m.id = f.id OFFSET 0) AS m
			WHERE EXISTS (SELECT FROM held)
			ORDER BY m.id
			ON CONFLICT (message_id) DO NOTHING
		)`+storeCursor,
		relayed, target, st.lastID, ids, attempts, classes, texts, parked, exposed, pauses, s.build)
}

// failStuck records another failure of a stuck message, unless an operator has taken it out of this relay's hand, which
// seemed dead: what the operator did stands.
func (s *session) failStuck(ctx context.Context, f *failure) error {
	return s.fenced(ctx, "record a failure", `, failed AS (
			UPDATE outbox.stuck
			SET attempts = $6, class = $7, error = $8, fingerprint = $7 || ' ' || topic, build = $12, parked = parked OR $9, exposed = exposed OR $11,
			    next_attempt = clock_timestamp() + make_interval(secs => $10), claim = NULL
			WHERE seq = $5 AND claim = $3 AND EXISTS (SELECT FROM held)
		)
		SELECT FROM held`, f.seq, f.attempts, string(f.class), f.text, f.class.parks(), f.pause.Seconds(), f.exposed, s.build)
}

// exposeStuck notes that nobody knows what became of an attempt. Who takes the message out of this relay's hand notes it too.
func (s *session) exposeStuck(ctx context.Context, seq int64) error {
	return s.fenced(ctx, "record an attempt", `, tried AS (
			UPDATE outbox.stuck SET exposed = true, claim = NULL WHERE seq = $5 AND claim = $3 AND EXISTS (SELECT FROM held)
		)
		SELECT FROM held`, seq)
}

// settle removes rows whose messages have been published, and gives up the claim to the others of a look.
func (s *session) settle(ctx context.Context, released, claimed []int64) error {
	if len(claimed)+len(released) == 0 {
		return nil
	}
	return s.fenced(ctx, "release stuck messages", `, gone AS (
			DELETE FROM outbox.stuck WHERE seq = ANY ($5) AND EXISTS (SELECT FROM held)
		), freed AS (
			UPDATE outbox.stuck SET claim = NULL WHERE seq = ANY ($6) AND seq <> ALL ($5) AND claim IS NOT NULL AND EXISTS (SELECT FROM held)
		)
		SELECT FROM held`, nonNil(released), nonNil(claimed))
}

func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// stuckKeys reads keys that have stuck messages, up to so many.
func (s *session) stuckKeys(ctx context.Context, most int) (map[string]bool, error) {
	return s.set(ctx, `SELECT DISTINCT key FROM outbox.stuck WHERE partition = $1 LIMIT $2`, s.held.Partition, most)
}

// stuckKeysAfter reads the next keys that have stuck messages, in order, a look into the index for each key of any partition.
func (s *session) stuckKeysAfter(ctx context.Context, after string, most int) ([]string, error) {
	return s.keys(ctx, `
		WITH RECURSIVE k AS (
			(SELECT s.key, s.partition FROM outbox.stuck AS s WHERE s.key > $2 ORDER BY s.key LIMIT 1)
			UNION ALL
			SELECT n.key, n.partition FROM k, LATERAL (
				SELECT s.key, s.partition FROM outbox.stuck AS s WHERE s.key > k.key ORDER BY s.key LIMIT 1) AS n
		)
		SELECT key FROM k WHERE partition = $1 LIMIT $3`, s.held.Partition, after, most)
}

// stillStuck reads which of the keys have stuck messages.
func (s *session) stillStuck(ctx context.Context, keys []string) (map[string]bool, error) {
	return s.set(ctx, `SELECT k FROM unnest($1::text[]) AS k WHERE EXISTS (SELECT FROM outbox.stuck WHERE key = k)`, keys)
}

func (s *session) set(ctx context.Context, text string, args ...any) (map[string]bool, error) {
	found, err := s.keys(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	keys := make(map[string]bool, len(found))
	for _, key := range found {
		keys[key] = true
	}
	return keys, nil
}

func (s *session) keys(ctx context.Context, text string, args ...any) ([]string, error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	rows, err := s.conn.Query(ctx, text, args...)
	if err != nil {
		return nil, fmt.Errorf("read the stuck keys: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the stuck keys: %w", err)
	}
	return found, nil
}

// stuckRoutes reads which breakers are open: those of the topics whose messages wait for their route.
func (s *session) stuckRoutes(ctx context.Context) (map[string]*route, error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	rows, err := s.conn.Query(ctx, `
		SELECT DISTINCT ON (topic) topic, class, coalesce(error, ''), attempts, coalesce(extract(epoch FROM next_attempt - clock_timestamp()), 0)::float8
		FROM outbox.stuck WHERE partition = $1 AND class = ANY ($2) AND NOT parked
		ORDER BY topic, attempts = 0, message_id`, s.held.Partition, []string{string(Unroutable), string(Refused)})
	if err != nil {
		return nil, fmt.Errorf("read the open breakers: %w", err)
	}
	routes := map[string]*route{}
	var (
		topic, class, text string
		attempts           int
		wait               float64
	)
	_, err = pgx.ForEachRow(rows, []any{&topic, &class, &text, &attempts, &wait}, func() error {
		routes[topic] = &route{class: Class(class), text: text, attempts: attempts, next: time.Now().Add(time.Duration(wait * float64(time.Second)))}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the open breakers: %w", err)
	}
	return routes, nil
}

// stuckRow is a row of outbox.stuck.
type stuckRow struct {
	Seq      int64
	Attempts int
	row
}

// A head is the oldest stuck message of its key. It may go when its time has come and its route is not blocked, as the
// probe of a route, or when its route has just opened; messages behind it go with it as far as nothing holds them.
var claimStuck = heldLease + fmt.Sprintf(`, due AS (
		(SELECT s.key, s.message_id, %[2]d AS most FROM outbox.stuck AS s
		 WHERE s.partition = $2 AND NOT s.parked AND s.next_attempt <= clock_timestamp() AND s.topic <> ALL ($5) AND %[3]s
		 ORDER BY s.next_attempt LIMIT %[1]d)
		UNION
		SELECT s.key, s.message_id, %[2]d FROM unnest($8::text[]) AS k, LATERAL (
			SELECT * FROM outbox.stuck AS s WHERE s.key = k ORDER BY s.message_id LIMIT 1) AS s
		WHERE s.partition = $2 AND NOT s.parked AND (s.next_attempt IS NULL OR s.next_attempt <= clock_timestamp()) AND s.topic <> ALL ($5)
		UNION
		SELECT h.key, h.message_id, 1 FROM unnest($6::text[]) AS t, LATERAL (
			SELECT s.key, s.message_id FROM outbox.stuck AS s WHERE s.partition = $2 AND s.topic = t AND NOT s.parked AND %[3]s
			ORDER BY s.message_id LIMIT 1) AS h
		UNION
		SELECT h.key, h.message_id, %[2]d FROM unnest($7::text[]) AS t, LATERAL (
			SELECT s.key, s.message_id FROM outbox.stuck AS s WHERE s.partition = $2 AND s.topic = t AND NOT s.parked AND %[3]s
			  AND (s.class IN ('unroutable', 'refused') OR s.next_attempt IS NULL OR s.next_attempt <= clock_timestamp())
			ORDER BY s.message_id LIMIT %[1]d) AS h
	), going AS (
		SELECT m.* FROM due, LATERAL (
			SELECT s.seq, s.message_id, octet_length(s.payload) + pg_column_size(s.metadata) AS size FROM outbox.stuck AS s
			WHERE s.key = due.key AND s.message_id >= due.message_id AND NOT EXISTS (
				SELECT FROM outbox.stuck AS e
				WHERE e.key = s.key AND e.message_id > due.message_id AND e.message_id <= s.message_id AND (e.parked OR e.topic = ANY ($5)))
			ORDER BY s.message_id LIMIT due.most) AS m
	), picked AS MATERIALIZED ( -- the oldest first, so that of each key they are the first
		SELECT seq FROM (
			SELECT seq, message_id, sum(size) OVER (ORDER BY message_id) AS bytes, min(message_id) OVER () AS first FROM (SELECT DISTINCT * FROM going) AS each) AS added
		WHERE bytes <= %[4]d OR message_id = first
	)
	UPDATE outbox.stuck AS s SET claim = $3, exposed = s.exposed OR s.claim IS NOT NULL
	FROM picked WHERE s.seq = picked.seq AND EXISTS (SELECT FROM held)
	RETURNING (SELECT count(DISTINCT seq) FROM going) = (SELECT count(*) FROM picked),
		s.seq, s.attempts, s.message_id, s.uuid, s.topic, s.key, s.payload, s.metadata, s.created_at`, probeKeys, probeRows,
	`NOT EXISTS (SELECT FROM outbox.stuck AS e WHERE e.key = s.key AND e.message_id < s.message_id)`, pageBytes)

// claim takes stuck messages that may go, of each key in order, so that no operator changes them meanwhile. It takes all,
// or as many as one look may hold.
func (s *session) claim(ctx context.Context, w wanted) (found []stuckRow, all bool, err error) {
	all = true
	ctx, cancel := s.detached(ctx)
	defer cancel()
	var batch pgx.Batch // one transaction, and a snapshot for each statement
	batch.Queue(`SELECT outbox.lock_stuck($1)`, s.held.Partition)
	batch.Queue(claimStuck, s.heldBy(nonNil(w.open), nonNil(w.probes), nonNil(w.draining), nonNil(w.keys))...)
	results := s.conn.SendBatch(ctx, &batch)
	defer func() {
		if err = errors.Join(err, results.Close()); err != nil {
			err = fmt.Errorf("look for stuck messages: %w", err)
		}
	}()
	if _, err := results.Exec(); err != nil {
		return nil, false, err
	}
	rows, err := results.Query()
	if err != nil {
		return nil, false, err
	}
	var r stuckRow
	_, err = pgx.ForEachRow(rows, []any{&all, &r.Seq, &r.Attempts, &r.ID, &r.UUID, &r.Topic, &r.Key, &r.Payload, &r.Metadata, &r.CreatedAt}, func() error {
		found = append(found, r)
		r = stuckRow{}
		return nil
	})
	slices.SortFunc(found, func(a, b stuckRow) int { return cmp.Compare(a.ID, b.ID) })
	return found, all, err
}

// rows reads messages by their ids, in order, as far as one read goes, but at least one.
func (s *session) rows(ctx context.Context, ids []int64) ([]row, error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	found, whole, err := s.collect(ctx, `SELECT `+rowColumns+` FROM outbox.messages WHERE partition + 0 = $1 AND id = ANY ($2) ORDER BY id`, []any{s.held.Partition, ids})
	if err == nil && (whole && len(found) != len(ids) || len(found) == 0) {
		err = errors.New("messages of an open window are gone from outbox.messages")
	}
	return found, err
}
