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

const (
	// pageSize is how many rows one query brings into memory ...
	pageSize = 1000
	// ... while they have no more bytes than this, or are one row.
	pageBytes = 4 << 20
	// cautious is how often a new session's page is halved: a whole page of the largest rows may take longer than its deadline.
	cautious = 4
)

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

// size is about what the row takes of memory.
func (r row) size() int { return len(r.Payload) + len(r.Metadata) + 300 }

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
// id; ok is false if they do not fit one read.
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
			LIMIT %d) AS m ON true`, fmt.Sprintf(text, rowColumns), s.most()+1)
	rows, err := s.conn.Query(ctx, text, args...)
	if err != nil {
		return now, nil, false, fmt.Errorf("look for messages: %w", err)
	}
	defer rows.Close()
	var (
		seen    string
		started time.Time
		read    = s.reading()
	)
	for !read.full && rows.Next() {
		if rows.RawValues()[2] == nil { // no message
			err = rows.Scan(&seen, &started, nil, nil, nil, nil, nil, nil, nil)
		} else {
			var r row
			err = rows.Scan(&seen, &started, &r.ID, &r.UUID, &r.Topic, &r.Key, &r.Payload, &r.Metadata, &r.CreatedAt)
			read.take(r)
		}
		if err != nil {
			return now, nil, false, fmt.Errorf("look for messages: %w", err)
		}
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return now, nil, false, fmt.Errorf("look for messages: %w", err)
	}
	if !started.Equal(s.started) {
		return now, nil, false, fmt.Errorf("another server answers than the one that the session began with, started at %s and not at %s", started, s.started)
	}
	if now, err = parseSnapshot(seen); err != nil {
		return now, nil, false, err
	}
	if found = read.end(); read.full || len(found) > read.most {
		return now, nil, false, nil
	}
	slices.SortFunc(found, func(a, b row) int { return cmp.Compare(a.ID, b.ID) })
	return now, found, true, nil
}

// read returns the rows of the span in order of id if they fit one read, or else ok false.
func (s *session) read(ctx context.Context, w window, in span) (found []row, ok bool, err error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	most := s.most()
	text := w.selectByTransaction(rowColumns) + fmt.Sprintf(" LIMIT %d", most+1)
	found, ok, err = s.collect(ctx, text, w.args(s.held.Partition, in))
	if err != nil || !ok || len(found) > most {
		return nil, false, err
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

// page reads one span of a split window in order of id, or the beginning of it; whole is false then.
func (s *session) page(ctx context.Context, w window, in span) (found []row, whole bool, err error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	args := w.args(s.held.Partition, in)
	if len(w.late) == 0 {
		args = append(args, "{}")
	}
	most := s.most()
	found, whole, err = s.collect(ctx, fmt.Sprintf(byID+" LIMIT %d", rowColumns, most), args)
	return found, whole && (most == pageSize || len(found) < most), err
}

// collect reads rows as far as one read goes; whole says that these are all.
func (s *session) collect(ctx context.Context, text string, args []any) (found []row, whole bool, err error) {
	rows, err := s.conn.Query(ctx, text, args...)
	if err != nil {
		return nil, false, fmt.Errorf("read the window: %w", err)
	}
	defer rows.Close()
	read := s.reading()
	for !read.full && rows.Next() {
		r, err := pgx.RowToStructByPos[row](rows)
		if err != nil {
			return nil, false, fmt.Errorf("read the window: %w", err)
		}
		read.take(r)
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return nil, false, fmt.Errorf("read the window: %w", err)
	}
	return read.end(), !read.full, nil
}

// most is how many rows are asked for: fewer after large ones, of which the server would send in vain.
func (s *session) most() int { return max(pageSize>>s.halved, 1) }

// reading takes the rows of one query, up to the bounds.
type reading struct {
	sess  *session
	most  int
	rows  []row
	bytes int
	full  bool // what is beyond the last row is left
}

func (s *session) reading() *reading { return &reading{sess: s, most: s.most()} }

func (r *reading) take(next row) {
	if r.bytes += next.size(); r.bytes > pageBytes && len(r.rows) > 0 {
		r.full = true
		return
	}
	r.rows = append(r.rows, next)
}

// end adapts the next query to what this one found.
func (r *reading) end() []row {
	switch {
	case r.full:
		for r.sess.most() > len(r.rows) {
			r.sess.halved++
		}
	case r.sess.halved > 0 && r.bytes < pageBytes/4:
		r.sess.halved--
	}
	return r.rows
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
