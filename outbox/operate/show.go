package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox"
)

const (
	mostBehind = 100
	mostAudit  = 100
)

// detailRow is what only Show reads.
type detailRow struct {
	CreatedAt       *time.Time
	Payload         []byte
	Headers         map[string]string
	OriginalPayload []byte
	OriginalHeaders map[string]string
}

// Show tells everything about one stuck message: what it is, what it waits for and who waits for it, and what operators
// did to it. The filter has its MessageID, and where to look if it is stuck at several places.
func (o *Operator) Show(ctx context.Context, f Filter) (Detail, error) {
	p, row, err := o.one(ctx, f)
	if err != nil {
		return Detail{}, err
	}
	d := Detail{Stuck: p.stuck(row), Behind: []Stuck{}, Audit: []AuditEntry{}}
	if err := p.describe(ctx, &d); err != nil {
		return Detail{}, err
	}
	if err := p.line(ctx, &d); err != nil {
		return Detail{}, err
	}
	d.Audit, err = p.auditEntries(ctx, AuditFilter{MessageID: row.MessageID}, 0, mostAudit)
	return d, err
}

// one is the one message that a filter names.
func (o *Operator) one(ctx context.Context, f Filter) (p place, row stuckRow, err error) {
	if err := f.check(); err != nil {
		return place{}, stuckRow{}, err
	}
	if f.MessageID == uuid.Nil {
		return place{}, stuckRow{}, fmt.Errorf("%w: name the message by its id", ErrInvalid)
	}
	places, err := o.places(ctx, f)
	var found []string
	for _, each := range places {
		rows, failed := each.list(ctx, matching(f), 10)
		if failed != nil {
			err = failed
		}
		for _, r := range rows {
			p, row = each, r
			found = append(found, strings.TrimSpace(fmt.Sprintf("%s %s %s", each.name, each.side, r.Consumer)))
		}
	}
	switch {
	case len(found) > 1:
		return place{}, stuckRow{}, fmt.Errorf("%w: message %s is stuck at several places, choose one: %s", ErrInvalid, f.MessageID, strings.Join(found, ", "))
	case len(found) == 1:
		return p, row, nil
	case err != nil:
		return place{}, stuckRow{}, err
	}
	return place{}, stuckRow{}, fmt.Errorf("%w: message %s is not stuck", ErrNotFound, f.MessageID)
}

// describe reads the message itself.
func (p place) describe(ctx context.Context, d *Detail) error {
	rows, err := collect[detailRow](ctx, p.database, "read a stuck message", `
		SELECT r.created_at, r.payload, r.headers, r.original_payload, r.original_headers FROM `+p.side.rows()+` WHERE r.seq = $1`, d.Seq)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return fmt.Errorf("%w: message %s is no longer stuck", ErrNotFound, d.MessageID)
	}
	r := rows[0]
	d.Payload, d.Headers = r.Payload, r.Headers
	if r.CreatedAt != nil {
		d.CreatedAt = *r.CreatedAt
	} else if at, err := time.Parse(time.RFC3339Nano, r.Headers[outbox.HeaderTime]); err == nil {
		d.CreatedAt = at
	}
	if utf8.Valid(r.Payload) {
		s := string(r.Payload)
		d.PayloadText = &s
	}
	if d.Edited {
		d.Original = &Original{Payload: r.OriginalPayload, Headers: r.OriginalHeaders}
	}
	return nil
}

// line reads who waits before and behind a message.
func (p place) line(ctx context.Context, d *Detail) error {
	q := &query{}
	q.and("r.consumer = ?", d.Consumer)
	q.and("r.key = ?", d.Key)
	q.and("r.position > (SELECT o.position FROM "+strings.TrimSuffix(p.side.rows(), "r")+"o WHERE o.seq = ?)", d.Seq)
	rows, err := collect[stuckRow](ctx, p.database, "read who waits", `
		SELECT `+stuckColumns+` FROM `+p.side.rows()+` WHERE `+q.String()+` ORDER BY r.position LIMIT `+fmt.Sprint(mostBehind), q.args...)
	if err != nil {
		return err
	}
	for _, r := range rows {
		d.Behind = append(d.Behind, p.stuck(r))
	}
	err = p.pool.QueryRow(ctx, `SELECT count(*) FROM `+p.side.rows()+` WHERE `+q.String(), q.args...).Scan(&d.BehindTotal)
	if err != nil {
		return p.failed("count who waits", err)
	}
	if d.State != Behind {
		return nil
	}
	heads, err := collect[stuckRow](ctx, p.database, "read the head", `
		SELECT `+stuckColumns+` FROM `+p.side.rows()+` WHERE r.consumer = $1 AND r.key = $2 AND r.head LIMIT 1`, d.Consumer, d.Key)
	if err == nil && len(heads) == 1 {
		head := p.stuck(heads[0])
		d.Head = &head
	}
	return err
}

// encodeHeaders is how headers go to the database; nil stays nil.
func encodeHeaders(headers map[string]string) (*string, error) {
	if headers == nil {
		return nil, nil
	}
	encoded, err := json.Marshal(headers)
	if err != nil {
		return nil, fmt.Errorf("%w: headers: %w", ErrInvalid, err)
	}
	s := string(encoded)
	return &s, nil
}
