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
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// MaxKeys is how many different keys one call may write: each holds a lock until the transaction ends, and
// the server's lock table is shared by everybody.
const MaxKeys = 1000

// ErrTooManyKeys says that one call wrote more than MaxKeys different keys.
var ErrTooManyKeys = errors.New("too many different keys in one append: split it over several transactions")

// Append adds the events to tx: they are relayed after tx commits and never if it does not. Events of one key
// keep the order given. In a transaction of [InTx] they are checked now and written with its COMMIT, all
// together and in the same round trip; in any other pgx.Tx they are written now, in one round trip, and an error
// has aborted tx.
func Append(ctx context.Context, tx pgx.Tx, events ...Event) error {
	messages, err := Encode(ctx, events...)
	if err != nil {
		return err
	}
	return Write(ctx, tx, messages...)
}

// Write is Append for messages that were encoded before, for callers that need their ids.
func Write(ctx context.Context, tx pgx.Tx, messages ...Message) error {
	rows, err := newRows(messages)
	if err != nil || len(rows) == 0 {
		return err
	}
	if u, ok := tx.(*unitTx); ok {
		u.rows = append(u.rows, rows...)
		return nil
	}
	if err := sortByKey(rows); err != nil {
		return err
	}
	text, args := insert(rows)
	if _, err := tx.Exec(ctx, text, args...); err != nil {
		return fmt.Errorf("append %d messages: %w", len(rows), err)
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
	rows, err := newRows(messages)
	if err != nil {
		return "", err
	}
	if err := sortByKey(rows); err != nil {
		return "", err
	}
	fields := make([][5]string, len(rows))
	for i, r := range rows {
		fields[i] = [5]string{r.id.String(), r.topic, r.key, base64.StdEncoding.EncodeToString(r.payload), r.metadata}
	}
	document, err := json.Marshal(fields)
	return string(document), err
}

// row is a message that has been checked, as it is written.
type row struct {
	id         uuid.UUID
	topic, key string
	payload    []byte
	metadata   string
}

func newRows(messages []Message) ([]row, error) {
	rows := make([]row, len(messages))
	for i, m := range messages {
		if err := m.validate(); err != nil {
			return nil, err
		}
		metadata, err := m.encodeMetadata()
		if err != nil {
			return nil, err
		}
		rows[i] = row{id: m.ID, topic: m.Topic, key: m.Key, payload: nonNil(m.Payload), metadata: metadata}
	}
	return rows, nil
}

// sortByKey brings rows into the order in which every writer takes the locks of their keys.
func sortByKey(rows []row) error {
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(a.key, b.key) })
	keys := 0
	for i := range rows {
		if i == 0 || rows[i].key != rows[i-1].key {
			keys++
		}
	}
	if keys > MaxKeys {
		return fmt.Errorf("%w: %d keys, the limit is %d", ErrTooManyKeys, keys, MaxKeys)
	}
	return nil
}

const insertColumns = `INSERT INTO outbox.messages (uuid, topic, key, payload, metadata) `

// manyRows takes arrays, for any number of rows.
const manyRows = insertColumns + `
	SELECT m.uuid, m.topic, m.key, m.payload, m.metadata::jsonb
	FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::text[])
	     WITH ORDINALITY AS m (uuid, topic, key, payload, metadata, n)
	ORDER BY m.n`

// fewRows are statements for 1, 2 ... rows: they cost less than arrays.
var fewRows = func() (texts [8]string) {
	for n := range texts {
		values := make([]string, n+1)
		for i := range values {
			values[i] = fmt.Sprintf("($%d, $%d, $%d, $%d, $%d::text::jsonb)", 5*i+1, 5*i+2, 5*i+3, 5*i+4, 5*i+5)
		}
		texts[n] = insertColumns + "VALUES " + strings.Join(values, ", ")
	}
	return texts
}()

// insert is the statement that writes the rows in their order.
func insert(rows []row) (text string, args []any) {
	if len(rows) <= len(fewRows) {
		for _, r := range rows {
			args = append(args, pgtype.UUID{Bytes: r.id, Valid: true}, r.topic, r.key, r.payload, r.metadata)
		}
		return fewRows[len(rows)-1], args
	}
	n := len(rows)
	ids, topics, keys, payloads, metadata := make([]uuid.UUID, n), make([]string, n), make([]string, n), make([][]byte, n), make([]string, n)
	for i, r := range rows {
		ids[i], topics[i], keys[i], payloads[i], metadata[i] = r.id, r.topic, r.key, r.payload, r.metadata
	}
	return manyRows, []any{ids, topics, keys, payloads, metadata}
}

func nonNil(payload []byte) []byte {
	if payload == nil {
		return []byte{}
	}
	return payload
}
