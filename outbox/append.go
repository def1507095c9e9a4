package outbox

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// MaxKeys is how many different keys one call may write: each holds a lock until the transaction ends, and
// the server's lock table is shared by everybody.
const MaxKeys = 1000

// ErrTooManyKeys says that one call wrote more than MaxKeys different keys.
var ErrTooManyKeys = errors.New("too many different keys in one append: split it over several transactions")

// Append writes the events to the outbox as part of tx, in one round trip. They are relayed after tx commits
// and never if it does not. Events of one key keep the order given. An error has aborted tx.
func Append(ctx context.Context, tx pgx.Tx, events ...Event) error {
	messages, err := Encode(ctx, events...)
	if err != nil {
		return err
	}
	return Write(ctx, tx, messages...)
}

// Write is Append for messages that were encoded before, for callers that need their ids.
func Write(ctx context.Context, tx pgx.Tx, messages ...Message) error {
	if len(messages) == 0 {
		return nil
	}
	b, err := newBatch(messages)
	if err != nil {
		return err
	}
	if t, ok := tx.(*trackedTx); ok {
		t.wrote.Store(true)
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO outbox.messages (uuid, topic, key, payload, metadata)
		SELECT m.uuid, m.topic, m.key, m.payload, m.metadata::jsonb
		FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::text[])
		     WITH ORDINALITY AS m (uuid, topic, key, payload, metadata, n)
		ORDER BY m.n`,
		b.ids, b.topics, b.keys, b.payloads, b.metadata)
	if err != nil {
		return fmt.Errorf("append %d messages: %w", len(messages), err)
	}
	return nil
}

// AppendSQL is Append for database/sql, with any PostgreSQL driver.
func AppendSQL(ctx context.Context, tx *sql.Tx, events ...Event) error {
	messages, err := Encode(ctx, events...)
	if err != nil {
		return err
	}
	return WriteSQL(ctx, tx, messages...)
}

// WriteSQL is Write for database/sql, with any PostgreSQL driver. It sends no wake-up: the relay finds the
// messages at its next poll.
func WriteSQL(ctx context.Context, tx *sql.Tx, messages ...Message) error {
	if len(messages) == 0 {
		return nil
	}
	document, err := encodeRows(messages)
	if err != nil {
		return err
	}
	if _, err = tx.ExecContext(ctx, insertRows, document); err != nil {
		return fmt.Errorf("append %d messages: %w", len(messages), err)
	}
	return nil
}

// insertRows takes what encodeRows makes: one text parameter, which every driver can send.
const insertRows = `
	INSERT INTO outbox.messages (uuid, topic, key, payload, metadata)
	SELECT (m.row->>0)::uuid, m.row->>1, m.row->>2, decode(m.row->>3, 'base64'), (m.row->>4)::jsonb
	FROM json_array_elements($1::json) WITH ORDINALITY AS m (row, n)
	ORDER BY m.n`

func encodeRows(messages []Message) (string, error) {
	b, err := newBatch(messages)
	if err != nil {
		return "", err
	}
	document, err := json.Marshal(b.rows())
	return string(document), err
}

// batch is the columns of one statement, sorted by key: locks are taken in that order by every writer.
type batch struct {
	ids      []uuid.UUID
	topics   []string
	keys     []string
	payloads [][]byte
	metadata []string
}

func newBatch(messages []Message) (*batch, error) {
	sorted := slices.Clone(messages)
	slices.SortStableFunc(sorted, func(a, b Message) int { return cmp.Compare(a.Key, b.Key) })
	b, keys := &batch{}, 0
	for i, m := range sorted {
		if err := m.validate(); err != nil {
			return nil, err
		}
		metadata, err := m.encodeMetadata()
		if err != nil {
			return nil, err
		}
		if i == 0 || m.Key != sorted[i-1].Key {
			keys++
		}
		b.ids, b.topics, b.keys = append(b.ids, m.ID), append(b.topics, m.Topic), append(b.keys, m.Key)
		b.payloads, b.metadata = append(b.payloads, nonNil(m.Payload)), append(b.metadata, metadata)
	}
	if keys > MaxKeys {
		return nil, fmt.Errorf("%w: %d keys, the limit is %d", ErrTooManyKeys, keys, MaxKeys)
	}
	return b, nil
}

func (b *batch) rows() [][5]string {
	rows := make([][5]string, len(b.ids))
	for i := range rows {
		rows[i] = [5]string{b.ids[i].String(), b.topics[i], b.keys[i], base64.StdEncoding.EncodeToString(b.payloads[i]), b.metadata[i]}
	}
	return rows
}

func nonNil(payload []byte) []byte {
	if payload == nil {
		return []byte{}
	}
	return payload
}
