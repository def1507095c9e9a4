package operate

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// The rows of both sides under one set of names. A head has no earlier message of its key before it.
const (
	outboxRows = `(
		SELECT s.seq, '' AS consumer, s.uuid AS message_id, s.topic AS type, s.key, s.partition, s.parked, s.class, s.error, s.fingerprint,
		       s.build, s.attempts, s.next_attempt, s.stuck_at, s.edited_at, s.message_id AS position, s.created_at, s.payload, s.metadata AS headers,
		       s.original_payload, s.original_metadata AS original_headers,
		       NOT EXISTS (SELECT FROM outbox.stuck AS e WHERE e.key = s.key AND e.message_id < s.message_id) AS head
		FROM outbox.stuck AS s) AS r`
	inboxRows = `(
		SELECT s.seq, s.consumer, s.message_id, s.type, s.key, s.partition, s.parked, s.class, s.error, s.fingerprint,
		       s.build, s.attempts, s.next_attempt, s.stuck_at, s.edited_at, s.seq AS position, NULL::timestamptz AS created_at, s.payload, s.headers,
		       s.original_payload, s.original_headers,
		       NOT EXISTS (SELECT FROM inbox.stuck AS e WHERE e.consumer = s.consumer AND e.key = s.key AND e.seq < s.seq) AS head
		FROM inbox.stuck AS s) AS r`
)

func (s Side) rows() string {
	if s == Outbox {
		return outboxRows
	}
	return inboxRows
}

// stuckRow is a row of either side.
type stuckRow struct {
	Seq         int64
	Consumer    string
	MessageID   uuid.UUID
	Type        string
	Key         string
	Partition   int
	Parked      bool
	Class       *string
	Error       *string
	Fingerprint *string
	Build       *string
	Attempts    int
	NextAttempt *time.Time
	StuckAt     time.Time
	Edited      bool
	Head        bool
}

const stuckColumns = `r.seq, r.consumer, r.message_id, r.type, r.key, r.partition, r.parked, r.class, r.error, r.fingerprint, r.build,
	r.attempts, r.next_attempt, r.stuck_at, r.edited_at IS NOT NULL AS edited, r.head`

func (p place) stuck(r stuckRow) Stuck {
	s := Stuck{
		Database: p.name, Side: p.side, Consumer: r.Consumer, Seq: r.Seq, MessageID: r.MessageID, Type: r.Type, Key: r.Key, Partition: r.Partition,
		State: Retrying, Class: text(r.Class), Error: text(r.Error), Fingerprint: text(r.Fingerprint), Build: text(r.Build),
		Attempts: r.Attempts, StuckAt: r.StuckAt, Edited: r.Edited,
	}
	switch {
	case !r.Head:
		s.State = Behind
	case r.Parked:
		s.State = Parked
	default:
		s.NextAttempt = r.NextAttempt
	}
	return s
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// query collects conditions with their arguments.
type query struct {
	where []string
	args  []any
}

// and adds a condition; ? stands for the argument.
func (q *query) and(condition string, arg any) {
	q.args = append(q.args, arg)
	q.where = append(q.where, strings.ReplaceAll(condition, "?", "$"+strconv.Itoa(len(q.args))))
}

func (q *query) String() string {
	if len(q.where) == 0 {
		return "true"
	}
	return strings.Join(q.where, " AND ")
}

// matching is the condition of a filter on the rows of a side.
func matching(f Filter) *query {
	q := &query{}
	for _, c := range []struct{ condition, value string }{
		{"r.consumer = ?", f.Consumer}, {"r.type = ?", f.Type}, {"r.key = ?", f.Key}, {"r.fingerprint = ?", f.Fingerprint}, {"r.class = ?", f.Class},
	} {
		if c.value != "" {
			q.and(c.condition, c.value)
		}
	}
	if f.MessageID != uuid.Nil {
		q.and("r.message_id = ?", f.MessageID)
	}
	if f.OlderThan > 0 {
		q.and("r.stuck_at <= clock_timestamp() - make_interval(secs => ?)", f.OlderThan.Seconds())
	}
	switch f.State {
	case Retrying:
		q.where = append(q.where, "r.head AND NOT r.parked")
	case Parked:
		q.where = append(q.where, "r.head AND r.parked")
	case Behind:
		q.where = append(q.where, "NOT r.head")
	}
	return q
}

// list reads stuck messages in the order in which they came here.
func (p place) list(ctx context.Context, q *query, limit int) ([]stuckRow, error) {
	return collect[stuckRow](ctx, p.database, "list stuck messages",
		`SELECT `+stuckColumns+` FROM `+p.side.rows()+` WHERE `+q.String()+` ORDER BY r.seq LIMIT `+strconv.Itoa(limit), q.args...)
}

// check says what is wrong with a filter.
func (f Filter) check() error {
	switch {
	case f.Side != "" && f.Side != Outbox && f.Side != Inbox:
		return fmt.Errorf("%w: side %q, want %q or %q", ErrInvalid, f.Side, Outbox, Inbox)
	case f.State != "" && f.State != Retrying && f.State != Parked && f.State != Behind:
		return fmt.Errorf("%w: state %q, want %q, %q or %q", ErrInvalid, f.State, Retrying, Parked, Behind)
	case f.Side == Outbox && f.Consumer != "":
		return fmt.Errorf("%w: the outbox's side has no consumers", ErrInvalid)
	case f.OlderThan < 0:
		return fmt.Errorf("%w: an age below zero", ErrInvalid)
	}
	for name, value := range map[string]string{
		"database": f.Database, "consumer": f.Consumer, "type": f.Type, "key": f.Key, "fingerprint": f.Fingerprint, "class": f.Class,
	} {
		if len(value) > 2000 || !storable(value) {
			return fmt.Errorf("%w: %s must be text of at most 2000 bytes", ErrInvalid, name)
		}
	}
	return nil
}

// storable reports what PostgreSQL takes as text: UTF-8 without NUL.
func storable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// recorded is a filter in the audit log.
func (f Filter) recorded() map[string]string {
	set := map[string]string{
		"database": f.Database, "side": string(f.Side), "consumer": f.Consumer, "type": f.Type, "key": f.Key,
		"fingerprint": f.Fingerprint, "class": f.Class, "state": string(f.State),
	}
	for name, value := range set {
		if value == "" {
			delete(set, name)
		}
	}
	if f.MessageID != uuid.Nil {
		set["messageId"] = f.MessageID.String()
	}
	if f.OlderThan > 0 {
		set["olderThan"] = f.OlderThan.String()
	}
	return set
}

const (
	defaultPage = 50
	mostOfPage  = 500
)

func (p Page) limit() (int, error) {
	switch {
	case p.Limit == 0:
		return defaultPage, nil
	case p.Limit < 0 || p.Limit > mostOfPage:
		return 0, fmt.Errorf("%w: limit %d, want 1 to %d", ErrInvalid, p.Limit, mostOfPage)
	}
	return p.Limit, nil
}

// token makes a Page's After of what a listing ended with.
func token(state any) string {
	encoded, err := json.Marshal(state)
	if err != nil {
		panic("operate: a page's state cannot be encoded: " + err.Error()) // structs of strings and numbers can
	}
	return base64.RawURLEncoding.EncodeToString(encoded)
}

// readToken reads what token made, if anything.
func readToken(after string, state any) error {
	if after == "" {
		return nil
	}
	encoded, err := base64.RawURLEncoding.DecodeString(after)
	if err == nil {
		err = json.Unmarshal(encoded, state)
	}
	if err != nil || len(after) > 4096 || string(bytes.TrimSpace(encoded)) == "null" {
		return fmt.Errorf("%w: after is not the next of a page before", ErrInvalid)
	}
	return nil
}
