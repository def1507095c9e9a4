package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// pageSize is how many rows one query brings into memory.
const pageSize = 1000

// row is one outbox message as stored.
type row struct {
	ID        int64
	UUID      uuid.UUID
	Topic     string
	Key       string
	Payload   []byte
	Metadata  []byte
	CreatedAt time.Time
}

const rowColumns = `id, uuid, topic, key, payload, metadata, created_at`

// span is a range of ids within a window: after < id <= upTo.
type span struct{ after, upTo int64 }

// The window's predicate comes in two forms. By transaction id it finds a small window wherever its rows lie;
// by id it pages through a large one. A lower bound on id is no part of it: a transaction may hold ids from
// before the window opened.
//
// With a partition for every day, planning takes longer than the query itself, so the session keeps one generic plan
// for each statement. "+ 0" leaves only the index that is meant: (partition, transaction_id, id) in the first form,
// the primary key in the second; and one probe for each late transaction, for "= ANY" on the index's second column may
// scan all of the partition's entries, and does when it was planned on an empty table. The first two are the window up to the statement's own snapshot, whose upper bound is
// what the statement sees.
const (
	visible = `
			SELECT %[1]s FROM outbox.messages
			WHERE partition = $1 AND transaction_id >= $2::text::xid8`
	visibleLate = `
			UNION ALL
			SELECT m.* FROM unnest($3::text::xid8[]) AS late (tx), LATERAL (
				SELECT %[1]s FROM outbox.messages WHERE partition = $1 AND transaction_id = late.tx OFFSET 0
			) AS m WHERE pg_visible_in_snapshot(late.tx, pg_current_snapshot())`
	byTransaction = `
		SELECT %[1]s FROM outbox.messages
		WHERE partition = $1 AND transaction_id >= $2::text::xid8 AND transaction_id < $3::text::xid8
		  AND transaction_id <> ALL ($4::text::xid8[]) AND id + 0 > $5 AND id + 0 <= $6`
	byLateTransaction = `
		UNION ALL
		SELECT m.* FROM unnest($7::text::xid8[]) AS late (tx), LATERAL (
			SELECT %[1]s FROM outbox.messages WHERE partition = $1 AND transaction_id = late.tx AND id + 0 > $5 AND id + 0 <= $6 OFFSET 0
		) AS m`
	byID = `
		SELECT %[1]s FROM outbox.messages
		WHERE partition + 0 = $1 AND id > $5 AND id <= $6
		  AND (transaction_id >= $2::text::xid8 AND transaction_id < $3::text::xid8
		       AND transaction_id <> ALL ($4::text::xid8[]) OR transaction_id = ANY ($7::text::xid8[]))
		ORDER BY id`
)

func (w window) selectByTransaction(columns string) string {
	text := byTransaction
	if len(w.late) > 0 {
		text += byLateTransaction
	}
	return fmt.Sprintf(text, columns)
}

func (w window) args(partition int, s span) []any {
	args := []any{partition, fmt.Sprint(w.from), fmt.Sprint(w.to), "{" + joined(w.except) + "}", s.after, s.upTo}
	if len(w.late) > 0 {
		args = append(args, "{"+joined(w.late)+"}")
	}
	return args
}

// next takes a snapshot, and reads the rows that it sees and relayed does not, in the same statement. Rows are in order of
// id; ok is false if they do not fit one page.
func (s *session) next(ctx context.Context, relayed snapshot) (now snapshot, found []row, ok bool, err error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	text, args := visible, []any{s.held.Partition, fmt.Sprint(relayed.xmax)}
	if len(relayed.xip) > 0 {
		text, args = text+visibleLate, append(args, "{"+joined(relayed.xip)+"}")
	}
	text = fmt.Sprintf(`
		WITH now AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot, pg_postmaster_start_time() AS started)
		SELECT now.snapshot, now.started, m.* FROM now LEFT JOIN (%s
			LIMIT %d) AS m ON true`, fmt.Sprintf(text, rowColumns), pageSize+1)
	rows, err := s.conn.Query(ctx, text, args...)
	if err != nil {
		return now, nil, false, fmt.Errorf("look for messages: %w", err)
	}
	defer rows.Close()
	var (
		seen    string
		started time.Time
	)
	for rows.Next() {
		if rows.RawValues()[2] == nil { // no message
			err = rows.Scan(&seen, &started, nil, nil, nil, nil, nil, nil, nil)
		} else {
			var r row
			err = rows.Scan(&seen, &started, &r.ID, &r.UUID, &r.Topic, &r.Key, &r.Payload, &r.Metadata, &r.CreatedAt)
			found = append(found, r)
		}
		if err != nil {
			return now, nil, false, fmt.Errorf("look for messages: %w", err)
		}
	}
	if err := rows.Err(); err != nil {
		return now, nil, false, fmt.Errorf("look for messages: %w", err)
	}
	if !started.Equal(s.started) {
		return now, nil, false, fmt.Errorf("another server answers than the one that the session began with, started at %s and not at %s", started, s.started)
	}
	if now, err = parseSnapshot(seen); err != nil {
		return now, nil, false, err
	}
	if len(found) > pageSize {
		return now, nil, false, nil
	}
	slices.SortFunc(found, func(a, b row) int { return cmp.Compare(a.ID, b.ID) })
	return now, found, true, nil
}

// read returns the rows of the span in order of id if they fit one page, or else ok false.
func (s *session) read(ctx context.Context, w window, in span) (found []row, ok bool, err error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	text := w.selectByTransaction(rowColumns) + fmt.Sprintf(" LIMIT %d", pageSize+1)
	if found, err = s.collect(ctx, text, w.args(s.held.Partition, in)); err != nil {
		return nil, false, err
	}
	if len(found) > pageSize {
		return nil, false, nil
	}
	slices.SortFunc(found, func(a, b row) int { return cmp.Compare(a.ID, b.ID) })
	return found, true, nil
}

// split cuts a large window into spans of one page each, in one ordered pass over its ids.
func (s *session) split(ctx context.Context, w window, in span) ([]span, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*s.timeout)
	defer cancel()
	text := fmt.Sprintf(`
		SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM (%s) AS w) AS numbered
		WHERE n %% %d = 0 ORDER BY id`, w.selectByTransaction("id"), pageSize)
	rows, err := s.conn.Query(ctx, text, w.args(s.held.Partition, in)...)
	if err != nil {
		return nil, fmt.Errorf("split the window: %w", err)
	}
	ends, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("split the window: %w", err)
	}
	var spans []span
	after := in.after
	for _, end := range append(ends, in.upTo) {
		spans = append(spans, span{after: after, upTo: end})
		after = end
	}
	return spans, nil
}

// page reads one span of a split window in order of id.
func (s *session) page(ctx context.Context, w window, in span) ([]row, error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	args := w.args(s.held.Partition, in)
	if len(w.late) == 0 {
		args = append(args, "{}")
	}
	return s.collect(ctx, fmt.Sprintf(byID, rowColumns), args)
}

func (s *session) collect(ctx context.Context, text string, args []any) ([]row, error) {
	rows, err := s.conn.Query(ctx, text, args...)
	if err != nil {
		return nil, fmt.Errorf("read the window: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return nil, fmt.Errorf("read the window: %w", err)
	}
	return found, nil
}

// headers decodes a row's metadata. Rows written past the table's checks may hold any JSON: what is not a
// string is given in its JSON form, what is no object is dropped.
func (r row) headers() map[string]string {
	headers := map[string]string{}
	if len(r.Metadata) == 0 || json.Unmarshal(r.Metadata, &headers) == nil && headers != nil {
		return headers
	}
	headers = map[string]string{}
	var loose map[string]json.RawMessage
	if json.Unmarshal(r.Metadata, &loose) != nil {
		return map[string]string{}
	}
	for name, value := range loose {
		var text string
		if json.Unmarshal(value, &text) != nil {
			text = string(value)
		}
		headers[name] = text
	}
	return headers
}
