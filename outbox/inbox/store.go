package inbox

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// keyLock separates the locks of inbox keys from those of the outbox.
const keyLock = 0x696e626f78

// Once records that the consumer handles the message, as the first statement of the handler's transaction. It
// returns false when that was recorded before: whatever tx was to do has been done or is taken care of. Two
// transactions with one message wait for each other. [Consumer] calls it; use it where a message comes by
// another way.
func Once(ctx context.Context, tx pgx.Tx, consumer string, id uuid.UUID) (first bool, err error) {
	tag, err := tx.Exec(ctx, insertDone, id, consumer)
	if err != nil {
		return false, fmt.Errorf("record message %s: %w", id, err)
	}
	return tag.RowsAffected() == 1, nil
}

const (
	insertDone = `
		INSERT INTO inbox.messages (message_id, consumer) VALUES ($1, $2)
		ON CONFLICT DO NOTHING`
	// tooOld holds for an id from before everything that the inbox remembers. Other versions say nothing about time.
	tooOld   = `substr(id::text, 15, 1) = '7' AND id < since`
	keyWaits = `
		SELECT EXISTS (SELECT FROM inbox.stuck WHERE consumer = $1 AND key = $2)`
)

// open is Once and a look at whether the key's earlier messages wait, in one round trip. A message from before what
// the inbox remembers is errTooOld, unless it is known.
func open(ctx context.Context, tx pgx.Tx, consumer string, m Meta) (first, waits bool, err error) {
	batch := &pgx.Batch{}
	batch.Queue(insertDone, m.ID, consumer)
	batch.Queue(keyWaits, consumer, m.Key)
	batch.Queue(`SELECT `+tooOld+` FROM inbox.remembered, (SELECT $1::uuid AS id) AS m`, m.ID)
	results := tx.SendBatch(ctx, batch)
	defer func() { _ = results.Close() }() // its errors are those of the calls below
	tag, err := results.Exec()
	if err != nil {
		return false, false, fmt.Errorf("record message %s: %w", m.ID, err)
	}
	if err := results.QueryRow().Scan(&waits); err != nil {
		return false, false, fmt.Errorf("look for earlier messages of the key: %w", err)
	}
	var old bool
	if err := results.QueryRow().Scan(&old); err != nil {
		return false, false, fmt.Errorf("look how far the inbox remembers: %w", err)
	}
	if first = tag.RowsAffected() == 1; first && old {
		return false, false, errTooOld
	}
	return first, waits, results.Close()
}

// lockKey keeps everybody else from diverting, retrying or releasing messages of the key.
func lockKey(ctx context.Context, tx pgx.Tx, consumer, key string) error {
	_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, $2))`, consumer+"\x1f"+key, int64(keyLock))
	if err != nil {
		return fmt.Errorf("lock the key: %w", err)
	}
	return nil
}

func waits(ctx context.Context, tx pgx.Tx, consumer, key string) (found bool, err error) {
	err = tx.QueryRow(ctx, keyWaits, consumer, key).Scan(&found)
	return found, err
}

// failure is what is stored with the head of a key; nil for a follower.
type failure struct {
	attempts    int
	class       string
	text        string
	fingerprint string
	build       string
	parked      bool
	pause       time.Duration
}

// divert stores the message behind what is stuck of its key. The inbox row exists.
func divert(ctx context.Context, tx pgx.Tx, consumer string, partition int, d delivery, f *failure) error {
	headers, err := json.Marshal(d.headers)
	if err != nil {
		return fmt.Errorf("encode headers: %w", err)
	}
	_, err = tx.Exec(ctx, `
		WITH marked AS (
			UPDATE inbox.messages SET state = 'stuck' WHERE message_id = $2 AND consumer = $1 AND replay = $8
		)
		INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, replay)
		VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8)`,
		consumer, d.meta.ID, partition, d.meta.Type, d.meta.Key, nonNil(d.payload), string(headers), uuid.Nil)
	if err != nil {
		return fmt.Errorf("divert message %s: %w", d.meta.ID, err)
	}
	if f == nil {
		return nil
	}
	_, err = recordFailure(ctx, tx, consumer, d.meta.ID, 0, *f)
	return err
}

// recordFailure notes a failed attempt at a message that had failed so often before; false when it is no longer stuck, or
// an operator let it be tried again meanwhile.
func recordFailure(ctx context.Context, tx pgx.Tx, consumer string, id uuid.UUID, before int, f failure) (bool, error) {
	tag, err := tx.Exec(ctx, `
		UPDATE inbox.stuck
		SET attempts = $3, class = $4, error = $5, fingerprint = $6, build = $7, parked = $8,
		    next_attempt = clock_timestamp() + make_interval(secs => $9)
		WHERE consumer = $1 AND message_id = $2 AND replay = $10 AND NOT parked AND attempts = $11`,
		consumer, id, f.attempts, f.class, f.text, f.fingerprint, f.build, f.parked, f.pause.Seconds(), uuid.Nil, before)
	if err != nil {
		return false, fmt.Errorf("record the failure of message %s: %w", id, err)
	}
	return tag.RowsAffected() == 1, nil
}

// head is the oldest stuck message of a key.
type head struct {
	Seq       int64
	MessageID uuid.UUID
	Type      string
	Key       string
	Payload   []byte
	Headers   map[string]string
	Attempts  int
}

const headColumns = `s.seq, s.message_id, s.type, s.key, s.payload, s.headers, s.attempts`

// dueHeads lists heads whose time has come, those that wait longest first.
func (c *Consumer) dueHeads(ctx context.Context, partition, most int) ([]head, error) {
	rows, err := c.cfg.Pool.Query(ctx, `
		SELECT `+headColumns+`
		FROM inbox.stuck AS s
		WHERE s.consumer = $1 AND s.partition = $2 AND NOT s.parked
		  AND (s.next_attempt IS NULL OR s.next_attempt <= clock_timestamp())
		  AND NOT EXISTS (SELECT FROM inbox.stuck AS e WHERE e.consumer = s.consumer AND e.key = s.key AND e.seq < s.seq)
		ORDER BY coalesce(s.next_attempt, s.stuck_at), s.seq
		LIMIT $3`, c.cfg.Name, partition, most)
	if err != nil {
		return nil, fmt.Errorf("look for stuck messages: %w", err)
	}
	heads, err := pgx.CollectRows(rows, pgx.RowToStructByPos[head])
	if err != nil {
		return nil, fmt.Errorf("look for stuck messages: %w", err)
	}
	return heads, nil
}

// unparkReadable lets heads be tried that failed for what another build could not read: their type has a handler now, or
// their body may fit now; not what an operator has parked (which alone leaves no next attempt) or edited. It waits for no
// lock on a key: whoever holds one looks at the row again before it is tried.
func (c *Consumer) unparkReadable(ctx context.Context, partition int) (int64, error) {
	tag, err := c.cfg.Pool.Exec(ctx, `
		UPDATE inbox.stuck SET parked = false, attempts = 0, next_attempt = clock_timestamp()
		WHERE consumer = $1 AND partition = $2 AND type = ANY ($3)
		  AND NOT (parked AND (next_attempt IS NULL OR edited_at IS NOT NULL))
		  AND (class = '`+classUnknownType+`' OR class = '`+classUndecodable+`' AND build <> $4)`,
		c.cfg.Name, partition, slices.Collect(maps.Keys(c.handlers)), c.cfg.Build)
	if err != nil {
		return 0, fmt.Errorf("look for what another build could not read: %w", err)
	}
	return tag.RowsAffected(), nil
}

// claim locks the head's row and reads it again, for an operator may have edited or replayed it: errGone when it is no
// longer there, no longer the oldest of its key, or parked.
func claim(ctx context.Context, tx pgx.Tx, consumer string, h *head) error {
	rows, err := tx.Query(ctx, `
		SELECT `+headColumns+`
		FROM inbox.stuck AS s
		WHERE s.seq = $1 AND NOT s.parked
		  AND NOT EXISTS (SELECT FROM inbox.stuck AS e WHERE e.consumer = $2 AND e.key = s.key AND e.seq < s.seq)
		FOR UPDATE`, h.Seq, consumer)
	if err != nil {
		return fmt.Errorf("claim stuck message %s: %w", h.MessageID, err)
	}
	claimed, err := pgx.CollectRows(rows, pgx.RowToStructByPos[head])
	switch {
	case err != nil:
		return fmt.Errorf("claim stuck message %s: %w", h.MessageID, err)
	case len(claimed) == 0:
		return errGone
	}
	*h = claimed[0]
	return nil
}

// release ends a stuck message whose handler has succeeded in this transaction.
func release(ctx context.Context, tx pgx.Tx, consumer string, h head) error {
	_, err := tx.Exec(ctx, `
		WITH gone AS (DELETE FROM inbox.stuck WHERE seq = $1)
		UPDATE inbox.messages SET state = 'done', at = clock_timestamp()
		WHERE message_id = $2 AND consumer = $3 AND replay = $4`, h.Seq, h.MessageID, consumer, uuid.Nil)
	if err != nil {
		return fmt.Errorf("release stuck message %s: %w", h.MessageID, err)
	}
	return nil
}

func nonNil(payload []byte) []byte {
	if payload == nil {
		return []byte{}
	}
	return payload
}
