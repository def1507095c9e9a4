package relay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/lease"
)

// Class says whose fault a failed publication is.
type Class string

// Classes of failures. The empty one is the broker's: the message is tried again where it is, and nothing is counted.
const (
	// Unroutable and Refused are the route's: the message waits in outbox.stuck and is tried again until it goes.
	Unroutable Class = "unroutable"
	Refused    Class = "refused"
	// Unencodable and TooLarge are the message's own: it is parked in outbox.stuck for an operator.
	Unencodable Class = "unencodable"
	TooLarge    Class = "too_large"
)

func (c Class) parks() bool { return c == Unencodable || c == TooLarge }

const (
	maxMoving  = 500                    // entries moved to outbox.stuck in one transaction
	probeEvery = 200 * time.Millisecond // between two looks for stuck messages that are due
	probeKeys  = 50                     // keys tried at a time ...
	probeRows  = 20                     // ... and messages of each
)

// stuck is what a pump knows of outbox.stuck: a message that fails goes there with all later ones of its key, in the
// transaction that moves the cursor past them, so that nobody else waits for them.
type stuck struct {
	keys     map[string]bool // have rows there, or entries in moving
	moving   []*entry        // of the window, to be stored there
	failures []stuckFailure  // of entries in moving
	look     time.Time       // when to look next
	lanes    map[string]*lane
	flying   int     // given to the router and not yet answered
	released []int64 // rows whose messages have been published
}

// stuckFailure is what is stored with the oldest message of a key.
type stuckFailure struct {
	id       int64 // of the message, or ...
	seq      int64 // ... of its row
	attempts int
	class    Class
	text     string
	pause    time.Duration
}

func newStuck() stuck { return stuck{keys: map[string]bool{}, lanes: map[string]*lane{}} }

// full reports that moving should be stored: it is long, or the window has nothing else left.
func (s *stuck) full(open int) bool {
	return len(s.moving) >= maxMoving || len(s.moving) > 0 && open == 0
}

// divert lets an entry go the way of its key.
func (p *pump) divert(e *entry) {
	e.row, e.delivery = nil, nil
	p.stuck.moving = append(p.stuck.moving, e)
}

// divertKey sends a failed entry and all that wait behind it to outbox.stuck.
func (p *pump) divertKey(e *entry, class Class, cause error) {
	key := e.row.Key
	f := p.failure(e, class, cause)
	p.stuck.failures = append(p.stuck.failures, f)
	p.stuck.keys[key] = true
	waiting := p.lanes[key].waiting
	delete(p.lanes, key)
	for _, follower := range waiting {
		if follower.row != nil {
			p.loaded--
		}
	}
	p.open -= 1 + len(waiting)
	for _, each := range append([]*entry{e}, waiting...) {
		p.divert(each)
	}
}

func (p *pump) failure(e *entry, class Class, cause error) stuckFailure {
	attempts := e.attempts + 1
	text := strings.ToValidUTF8(strings.ReplaceAll(cause.Error(), "\x00", ""), "?")
	text = strings.ToValidUTF8(text[:min(len(text), 2000)], "")
	if class.parks() {
		p.log.Error("message parked in outbox.stuck, its key waits for an operator", "message_id", e.row.UUID, "event_type", e.row.Topic,
			"key", e.row.Key, "class", string(class), "error", cause)
	} else if attempts&(attempts-1) == 0 {
		p.log.Warn("message waits in outbox.stuck, and its key behind it", "message_id", e.row.UUID, "event_type", e.row.Topic,
			"key", e.row.Key, "class", string(class), "attempts", attempts, "error", cause)
	}
	return stuckFailure{id: e.id, seq: e.seq, attempts: attempts, class: class, text: text, pause: p.pause(attempts)}
}

// move stores what is diverted, together with the cursor that passes it.
func (p *pump) move(ctx context.Context) error {
	ids := make([]int64, len(p.stuck.moving))
	for i, e := range p.stuck.moving {
		ids[i], e.finished = e.id, true
	}
	p.advance()
	st := p.st
	if err := p.sess.divert(ctx, st, ids, p.stuck.failures); err != nil {
		return err
	}
	p.stuck.moving, p.stuck.failures = p.stuck.moving[:0], nil
	return p.saved(ctx, st)
}

// probe gives stuck messages that are due to the router: of each key the oldest, then those behind it.
func (p *pump) probe(ctx context.Context) error {
	if len(p.stuck.keys) == 0 || len(p.stuck.lanes) > 0 || time.Now().Before(p.stuck.look) {
		return nil
	}
	p.stuck.look = time.Now().Add(probeEvery)
	due, err := p.sess.dueStuck(ctx)
	if err != nil {
		return err
	}
	for i := range due {
		e := &entry{id: due[i].ID, row: &due[i].row, seq: due[i].Seq, attempts: due[i].Attempts}
		if l, busy := p.stuck.lanes[e.row.Key]; busy {
			l.waiting = append(l.waiting, e)
			continue
		}
		p.stuck.lanes[e.row.Key] = &lane{}
		p.ready = append(p.ready, e)
	}
	return nil
}

// probed takes the result of a stuck message: on to the next of its key, or the key goes on waiting.
func (p *pump) probed(ctx context.Context, e *entry, cause error) error {
	p.stuck.flying--
	key := e.row.Key
	if cause == nil {
		p.stuck.released = append(p.stuck.released, e.seq)
		if l := p.stuck.lanes[key]; len(l.waiting) > 0 {
			p.next(l)
			return nil
		}
		p.stuck.look = time.Time{} // there may be more of it
	} else if class := p.cfg.Classify(cause); class != "" {
		if err := p.sess.failStuck(ctx, p.failure(e, class, cause)); err != nil {
			return err
		}
	}
	return p.probedKey(ctx, key)
}

// probedKey ends the turn of a key, and lets it go its ordinary way when nothing of it is left.
func (p *pump) probedKey(ctx context.Context, key string) error {
	delete(p.stuck.lanes, key)
	if len(p.stuck.released) == 0 {
		return nil
	}
	if err := p.release(ctx); err != nil {
		return err
	}
	if len(p.stuck.moving) > 0 { // some may be of this key
		if err := p.move(ctx); err != nil {
			return err
		}
	}
	left, err := p.sess.isStuck(ctx, key)
	if err == nil && !left {
		delete(p.stuck.keys, key)
		p.log.Info("key is no longer stuck", "key", key)
	}
	return err
}

// release removes rows whose messages have been published.
func (p *pump) release(ctx context.Context) error {
	if len(p.stuck.released) == 0 {
		return nil
	}
	err := p.sess.releaseStuck(ctx, p.stuck.released)
	p.stuck.released = p.stuck.released[:0]
	return err
}

// heldLease locks the lease for the statement it begins, which must do nothing when it is gone.
const heldLease = `WITH held AS (SELECT FROM outbox.leases WHERE pool = $1 AND partition = $2 AND token = $3 AND owner = $4 FOR SHARE) `

func (s *session) fenced(ctx context.Context, what, text string, args ...any) error {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	tag, err := s.conn.Exec(ctx, heldLease+text, append([]any{poolName, s.held.Partition, s.held.Token, s.held.Owner}, args...)...)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("%s of partition %d: %w", what, s.held.Partition, lease.ErrLost)
	}
	return nil
}

// divert copies messages to outbox.stuck and stores the cursor, in one transaction. Those that are there already,
// from before a crash, stay as they are.
func (s *session) divert(ctx context.Context, st state, ids []int64, failures []stuckFailure) error {
	if len(failures) == 0 {
		return s.divertFollowers(ctx, st, ids)
	}
	ctx, cancel := s.detached(ctx)
	defer cancel()
	return pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO outbox.stuck (message_id, partition, uuid, topic, key, payload, metadata, created_at)
			SELECT id, partition, uuid, topic, key, payload, metadata, created_at
			FROM outbox.messages WHERE partition + 0 = $1 AND id = ANY ($2)
			ORDER BY id
			ON CONFLICT (message_id) DO NOTHING`, s.held.Partition, ids)
		if err != nil {
			return fmt.Errorf("divert %d messages: %w", len(ids), err)
		}
		for _, f := range failures {
			if _, err := tx.Exec(ctx, `
				UPDATE outbox.stuck
				SET attempts = $2, class = $3, error = $4, fingerprint = $3 || ' ' || topic, parked = $5,
				    next_attempt = clock_timestamp() + make_interval(secs => $6)
				WHERE message_id = $1`, f.id, f.attempts, string(f.class), f.text, f.class.parks(), f.pause.Seconds()); err != nil {
				return fmt.Errorf("record a failure: %w", err)
			}
		}
		return s.store(ctx, st)
	})
}

// divertFollowers is divert without failures, in one statement: a key that fails for long must not keep its partition
// waiting at every message.
func (s *session) divertFollowers(ctx context.Context, st state, ids []int64) error {
	relayed, target := st.texts()
	return s.fenced(ctx, "divert messages", `, diverted AS (
			INSERT INTO outbox.stuck (message_id, partition, uuid, topic, key, payload, metadata, created_at)
			SELECT id, partition, uuid, topic, key, payload, metadata, created_at
			FROM outbox.messages WHERE partition + 0 = $2 AND id = ANY ($8) AND EXISTS (SELECT FROM held)
			ORDER BY id
			ON CONFLICT (message_id) DO NOTHING
		)
		INSERT INTO outbox.cursor (partition, relayed, target, last_id, token)
		SELECT $2, $5::text::pg_snapshot, $6::text::pg_snapshot, $7, $3 FROM held`, relayed, target, st.lastID, ids)
}

// failStuck records another failure of a stuck message.
func (s *session) failStuck(ctx context.Context, f stuckFailure) error {
	return s.fenced(ctx, "record a failure", `
		UPDATE outbox.stuck
		SET attempts = $6, class = $7, error = $8, fingerprint = $7 || ' ' || topic, parked = parked OR $9,
		    next_attempt = clock_timestamp() + make_interval(secs => $10)
		WHERE seq = $5 AND EXISTS (SELECT FROM held)`, f.seq, f.attempts, string(f.class), f.text, f.class.parks(), f.pause.Seconds())
}

func (s *session) releaseStuck(ctx context.Context, seqs []int64) error {
	return s.fenced(ctx, "release stuck messages", `DELETE FROM outbox.stuck WHERE seq = ANY ($5) AND EXISTS (SELECT FROM held)`, seqs)
}

func (s *session) stuckKeys(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	rows, err := s.conn.Query(ctx, `SELECT DISTINCT key FROM outbox.stuck WHERE partition = $1`, s.held.Partition)
	if err != nil {
		return nil, fmt.Errorf("read the stuck keys: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the stuck keys: %w", err)
	}
	keys := map[string]bool{}
	for _, key := range found {
		keys[key] = true
	}
	return keys, nil
}

func (s *session) isStuck(ctx context.Context, key string) (found bool, err error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	err = s.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM outbox.stuck WHERE key = $1)`, key).Scan(&found)
	return found, err
}

// stuckRow is a row of outbox.stuck.
type stuckRow struct {
	Seq      int64
	Attempts int
	row
}

// dueStuck reads the keys whose oldest message is due, each with some of the messages behind it, in order.
func (s *session) dueStuck(ctx context.Context) ([]stuckRow, error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	rows, err := s.conn.Query(ctx, fmt.Sprintf(`
		SELECT m.seq, m.attempts, m.message_id, m.uuid, m.topic, m.key, m.payload, m.metadata, m.created_at
		FROM (
			SELECT key FROM outbox.stuck AS s
			WHERE partition = $1 AND NOT parked AND (next_attempt IS NULL OR next_attempt <= clock_timestamp())
			  AND NOT EXISTS (SELECT FROM outbox.stuck AS e WHERE e.key = s.key AND e.message_id < s.message_id)
			ORDER BY next_attempt NULLS FIRST LIMIT %d
		) AS due CROSS JOIN LATERAL (
			SELECT * FROM outbox.stuck AS s WHERE s.key = due.key
			  AND NOT EXISTS (SELECT FROM outbox.stuck AS e WHERE e.key = s.key AND e.message_id < s.message_id AND e.parked)
			  AND NOT s.parked
			ORDER BY s.message_id LIMIT %d
		) AS m
		ORDER BY m.message_id`, probeKeys, probeRows), s.held.Partition)
	if err != nil {
		return nil, fmt.Errorf("look for stuck messages: %w", err)
	}
	var found []stuckRow
	var r stuckRow
	_, err = pgx.ForEachRow(rows, []any{&r.Seq, &r.Attempts, &r.ID, &r.UUID, &r.Topic, &r.Key, &r.Payload, &r.Metadata, &r.CreatedAt}, func() error {
		found = append(found, r)
		r = stuckRow{}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for stuck messages: %w", err)
	}
	return found, nil
}

// rows reads messages by their ids, in order.
func (s *session) rows(ctx context.Context, ids []int64) ([]row, error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	found, err := s.collect(ctx, `SELECT `+rowColumns+` FROM outbox.messages WHERE partition + 0 = $1 AND id = ANY ($2) ORDER BY id`, []any{s.held.Partition, ids})
	if err == nil && len(found) != len(ids) {
		err = errors.New("messages of an open window are gone from outbox.messages")
	}
	return found, err
}
