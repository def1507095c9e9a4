package outbox

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
)

// Schema lets stock watermill-sql v3 publishers and subscribers write and read outbox.messages, so that a
// team can move in and out. Watermill's topic is the row's topic; the message's UUID is the row's uuid and
// must be one; the key is the metadata [HeaderSubject], or the UUID where there is none, which orders the
// message with no other. What stands in the row's columns is left out of the row's metadata.
//
// The stock subscriber reads by (transaction_id, id) below the oldest open transaction: it may wait for
// transactions that have nothing to do with it, and order per key is not kept where transactions on one key
// overlap. The relay of package relay has neither fault. Use it with watermill-sql's
// DefaultPostgreSQLOffsetsAdapter; tables are made by the migrations, not by InitializeSchema.
type Schema struct {
	// BatchSize is how many messages one query of the subscriber reads. Default 100.
	BatchSize int
}

var _ watermillsql.SchemaAdapter = Schema{}

// SchemaInitializingQueries returns none: the migrations make the table.
func (s Schema) SchemaInitializingQueries(string) []watermillsql.Query { return nil }

// SubscribeIsolationLevel is repeatable read, as the stock schema's.
func (s Schema) SubscribeIsolationLevel() sql.IsolationLevel { return sql.LevelRepeatableRead }

// InsertQuery writes the messages as Write does, with the same checks.
func (s Schema) InsertQuery(topic string, msgs message.Messages) (watermillsql.Query, error) {
	messages, err := fromWatermill(topic, msgs)
	if err != nil {
		return watermillsql.Query{}, err
	}
	document, err := encodeRows(messages)
	if err != nil {
		return watermillsql.Query{}, err
	}
	return watermillsql.Query{Query: insertRows, Args: []any{document}}, nil
}

// fromWatermill makes rows of Watermill's messages.
func fromWatermill(topic string, msgs message.Messages) ([]Message, error) {
	messages := make([]Message, len(msgs))
	for i, msg := range msgs {
		id, err := uuid.Parse(msg.UUID)
		if err != nil {
			return nil, fmt.Errorf("%w %.40q: its UUID must be one (watermill.NewUUID makes them): %w", ErrInvalid, msg.UUID, err)
		}
		metadata := maps.Clone(map[string]string(msg.Metadata))
		for _, name := range OwnHeaders() {
			delete(metadata, name)
		}
		key := msg.Metadata.Get(HeaderSubject)
		if key == "" {
			key = id.String()
		}
		messages[i] = Message{ID: id, Topic: topic, Key: key, Payload: msg.Payload, Metadata: metadata}
	}
	return messages, nil
}

// SelectQuery reads the topic's next messages after the consumer group's offset.
func (s Schema) SelectQuery(topic, consumerGroup string, offsets watermillsql.OffsetsAdapter) watermillsql.Query {
	size := s.BatchSize
	if size <= 0 {
		size = 100
	}
	next := offsets.NextOffsetQuery(topic, consumerGroup)
	return watermillsql.Query{
		Query: fmt.Sprintf(`
			WITH last AS MATERIALIZED (%s)
			SELECT m.id, m.transaction_id::text::bigint, m.uuid::text, m.key, m.payload, m.metadata
			FROM outbox.messages AS m, last
			WHERE m.topic = $%d AND m.transaction_id < pg_snapshot_xmin(pg_current_snapshot())
			  AND (m.transaction_id, m.id) > (last.last_processed_transaction_id, last.offset_acked)
			ORDER BY m.transaction_id, m.id
			LIMIT %d`, next.Query, len(next.Args)+1, size),
		Args: append(next.Args, topic),
	}
}

// UnmarshalMessage is the inverse of InsertQuery; the key comes back as [HeaderSubject].
func (s Schema) UnmarshalMessage(row watermillsql.Scanner) (watermillsql.Row, error) {
	var (
		r             watermillsql.Row
		transactionID int64
		key           string
	)
	if err := row.Scan(&r.Offset, &transactionID, &r.UUID, &key, &r.Payload, &r.Metadata); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return r, err
		}
		return r, fmt.Errorf("scan outbox row: %w", err)
	}
	msg := message.NewMessage(string(r.UUID), r.Payload)
	if err := json.Unmarshal(r.Metadata, &msg.Metadata); err != nil {
		return r, fmt.Errorf("decode metadata of outbox row %d: %w", r.Offset, err)
	}
	if msg.Metadata == nil { // JSON's null
		msg.Metadata = message.Metadata{}
	}
	msg.Metadata.Set(HeaderSubject, key)
	r.Msg = msg
	r.ExtraData = map[string]any{"transaction_id": transactionID}
	return r, nil
}
