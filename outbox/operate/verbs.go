package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox"
)

const (
	defaultTouched = 1000
	mostTouched    = 10000
	chunk          = 250 // messages of one transaction
	mostLeft       = 100
	callTimeout    = 10 * time.Second // beyond the statement's own, so that its outcome is known
)

// verdict is what became of one message.
type verdict struct {
	RowSeq  int64
	Verdict string
	Head    *uuid.UUID
	AuditID *int64
}

// Do does what a command says, with each side of each database in turn, in transactions of at most 250 messages, each
// with its entry in the audit log. A message that a relay or a handler has in hand is waited for, for Config.Patience in
// all, and then left. When something fails on the way, the result says what has been done, beside the error.
//
// Replay without a State takes heads alone: what waits behind them goes after them. Park takes those that are tried again. When the command names one message
// and nothing could be done, that is an error: ErrNotFound, ErrBusy or ErrRefused.
//
// What chooses more than one command may touch is done piece by piece, each with the Next of the one before as its After.
// A piece that is done twice does no harm. What gets stuck after a side was begun with is left.
func (o *Operator) Do(ctx context.Context, c Command) (Result, error) {
	result := Result{DryRun: c.DryRun, Left: []Left{}, AuditIDs: []AuditRef{}}
	if err := c.check(); err != nil {
		return result, err
	}
	if c.Limit == 0 {
		c.Limit = defaultTouched
	}
	if c.Verb == VerbEdit {
		if err := o.prepareEdit(ctx, &c); err != nil {
			return result, err
		}
	}
	var from reached
	if err := readToken(c.After, &from); err != nil {
		return result, err
	}
	began := time.Now()
	places, err := o.places(ctx, c.Filter)
	errs := []error{err}
	if c.After == "" && c.Filter.MessageID == uuid.Nil {
		result.Total = o.count(ctx, c, places)
	}
	passed := c.After == ""
	for _, p := range places {
		w := work{Operator: o, place: p, command: c, result: &result, began: began}
		here := p.name == from.Database && p.side == from.Side
		if passed = passed || here; !passed || result.More {
			continue
		}
		if here {
			w.last, w.until = from.Seq, from.Until
		}
		errs = append(errs, w.run(ctx))
	}
	if !passed {
		errs = append(errs, fmt.Errorf("%w: after is not the next of a command before", ErrInvalid))
	}
	if err := errors.Join(errs...); err != nil {
		return result, err
	}
	return result, result.outcome(c)
}

// reached is how far a command came: what it chooses on this side is between the two.
type reached struct {
	Database string `json:"d"`
	Side     Side   `json:"s"`
	Seq      int64  `json:"q"`
	Until    int64  `json:"u"`
}

// count is how many messages the command chooses, or 0 when that takes too long.
func (o *Operator) count(ctx context.Context, c Command, places []place) (total int) {
	for _, p := range places {
		q := (&work{place: p, command: c}).choice()
		n, err := column[int](ctx, p.database, "count stuck messages", `SELECT count(*) FROM `+p.side.rows()+` WHERE `+q.String(), q.args...)
		if err != nil {
			return 0 // what it says is for people; whatever is wrong shows at once in the command itself
		}
		total += n[0]
	}
	return total
}

func (a Actor) check() error {
	if strings.TrimSpace(a.Name) == "" || len(a.Name) > 200 || strings.TrimSpace(a.Reason) == "" || len(a.Reason) > 2000 {
		return fmt.Errorf("%w: say who acts, in at most 200 bytes, and why, in at most 2000", ErrInvalid)
	}
	if !storable(a.Name) || !storable(a.Reason) {
		return fmt.Errorf("%w: who acts, and why, must be text without a zero byte", ErrInvalid)
	}
	return nil
}

func (c Command) check() error {
	switch {
	case c.Verb != VerbReplay && c.Verb != VerbSkip && c.Verb != VerbPark && c.Verb != VerbEdit:
		return fmt.Errorf("%w: verb %q, want %q, %q, %q or %q", ErrInvalid, c.Verb, VerbReplay, VerbSkip, VerbPark, VerbEdit)
	case c.Limit < 0 || c.Limit > mostTouched:
		return fmt.Errorf("%w: limit %d, want 1 to %d", ErrInvalid, c.Limit, mostTouched)
	case c.Verb != VerbEdit && (c.Payload != nil || c.Headers != nil):
		return fmt.Errorf("%w: only %q takes a payload or headers", ErrInvalid, VerbEdit)
	case !c.DryRun && c.Actor.check() != nil:
		return c.Actor.check()
	case c.Verb == VerbEdit:
		return errors.Join(c.Filter.check(), c.checkEdit())
	}
	return c.Filter.check()
}

// checkEdit holds new contents against the limits of the outbox.
func (c Command) checkEdit() error {
	switch {
	case c.Filter.MessageID == uuid.Nil:
		return fmt.Errorf("%w: edit takes one message: name it by its id", ErrInvalid)
	case c.Payload == nil && c.Headers == nil:
		return fmt.Errorf("%w: edit needs a payload or headers", ErrInvalid)
	case c.Payload != nil && !json.Valid(c.Payload):
		return fmt.Errorf("%w: the payload is not JSON", ErrInvalid)
	case len(c.Payload) > outbox.MaxPayload:
		return fmt.Errorf("%w: the payload has %d bytes, the limit is %d", ErrInvalid, len(c.Payload), outbox.MaxPayload)
	}
	for name, value := range c.Headers {
		if name == "" || len(name) > outbox.MaxHeader || !storable(name) || !storable(value) {
			return fmt.Errorf("%w: header %.40q, want text without a zero byte, and a name of 1 to %d bytes", ErrInvalid, name, outbox.MaxHeader)
		}
	}
	return nil
}

// own are the headers that say what a message is: an edit leaves them alone.
var own = outbox.OwnHeaders()

// prepareEdit finds the one message, keeps its own headers, and refuses when a consumer has it already.
func (o *Operator) prepareEdit(ctx context.Context, c *Command) error {
	p, row, err := o.one(ctx, c.Filter)
	if err != nil {
		return err
	}
	c.Filter.Database, c.Filter.Side, c.Filter.Consumer = p.name, p.side, row.Consumer
	d := Detail{Stuck: p.stuck(row)}
	if err := p.describe(ctx, &d); err != nil {
		return err
	}
	if c.Headers != nil {
		c.Headers = maps.Clone(c.Headers)
		for _, name := range own {
			old, had := d.Headers[name]
			switch value, given := c.Headers[name]; {
			case given && (!had || value != old):
				return fmt.Errorf("%w: header %s says what the message is, and is not edited", ErrInvalid, name)
			case had:
				c.Headers[name] = old
			}
		}
	}
	if p.side == Inbox {
		return nil
	}
	return o.unconsumed(ctx, row.MessageID)
}

// unconsumed is nil when no inbox has the message, and ErrRefused when one has, or does not say.
func (o *Operator) unconsumed(ctx context.Context, id uuid.UUID) error {
	for _, d := range o.databases {
		sides, err := d.has(ctx)
		var consumers []struct{ Consumer string }
		if err == nil && slices.Contains(sides, Inbox) {
			consumers, err = collect[struct{ Consumer string }](ctx, d, "look for consumers", `SELECT consumer FROM inbox.messages WHERE message_id = $1 LIMIT 1`, id)
		}
		switch {
		case err != nil:
			return fmt.Errorf("%w: it is not known which consumers have the message: %w", ErrRefused, err)
		case len(consumers) > 0:
			return fmt.Errorf("%w: consumer %s in database %s has the message as it was; skip this one and send a new message", ErrRefused, consumers[0].Consumer, d.name)
		}
	}
	return nil
}

// work is a command on one side of one database.
type work struct {
	*Operator
	place
	command Command
	result  *Result
	began   time.Time  // the command
	last    int64      // of the sequence, that is done
	until   int64      // of the sequence, that there was when this side was begun with
	waiting []stuckRow // in somebody's hand, or changed meanwhile
}

func (w *work) run(ctx context.Context) error {
	began := time.Now()
	before, err := w.beats(ctx)
	if err != nil {
		return err
	}
	if err := w.all(ctx); err != nil || len(w.waiting) == 0 {
		return err
	}
	for pause := 5 * time.Millisecond; len(w.waiting) > 0 && time.Since(began) < w.cfg.Patience; pause = min(2*pause, 250*time.Millisecond) {
		if err := sleep(ctx, min(pause/2+rand.N(pause), w.cfg.Patience-time.Since(began))); err != nil {
			return err
		}
		if err := w.again(ctx, nil); err != nil {
			return err
		}
	}
	if len(w.waiting) == 0 {
		return nil
	}
	still, err := w.beats(ctx)
	if err != nil {
		return err
	}
	if err := w.again(ctx, unmoved(before, still)); err != nil {
		return err
	}
	w.leave(w.waiting, nil)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// all goes through everything that the filter chooses, up to the limit, or the end of the command's time.
func (w *work) all(ctx context.Context) error {
	if w.until == 0 {
		newest, err := column[int64](ctx, w.database, "look for stuck messages", `SELECT coalesce(max(seq), 0) FROM `+string(w.side)+`.stuck`)
		if err != nil {
			return err
		}
		w.until = newest[0]
	}
	for {
		room := min(w.command.Limit-w.result.Matched, chunk)
		if w.command.Within > 0 && w.result.Matched > 0 && time.Since(w.began) > w.command.Within {
			room = 0
		}
		q := w.choice()
		q.and("r.seq > ?", w.last)
		q.and("r.seq <= ?", w.until)
		rows, err := w.list(ctx, q, room+1)
		if err != nil {
			return err
		}
		more := len(rows) > room
		if rows = rows[:min(len(rows), room)]; len(rows) == 0 {
			if more {
				w.result.More, w.result.Next = true, token(reached{w.name, w.side, w.last, w.until})
			}
			return nil
		}
		w.result.Matched += len(rows)
		if err := w.try(ctx, rows, nil); err != nil || !more {
			return err
		}
		w.last = rows[len(rows)-1].Seq
	}
}

// choice is the condition of the command's filter.
func (w *work) choice() *query {
	q := matching(w.command.Filter)
	if w.command.Filter.State != "" || w.command.Filter.MessageID != uuid.Nil {
		return q
	}
	switch w.command.Verb {
	case VerbReplay:
		q.where = append(q.where, "r.head")
	case VerbPark:
		q.where = append(q.where, "r.head AND NOT r.parked")
	case VerbSkip, VerbEdit:
	}
	return q
}

// again tries what is waiting once more, as far as it is still what the filter chooses.
func (w *work) again(ctx context.Context, still []int64) error {
	waiting := w.waiting
	w.waiting = nil
	for part := range slices.Chunk(waiting, chunk) {
		seqs := make([]int64, len(part))
		for i, r := range part {
			seqs[i] = r.Seq
		}
		q := w.choice()
		q.and("r.seq = ANY (?)", seqs)
		rows, err := w.list(ctx, q, len(part))
		if err != nil {
			return err
		}
		w.leave(slices.DeleteFunc(part, func(r stuckRow) bool {
			return slices.ContainsFunc(rows, func(found stuckRow) bool { return found.Seq == r.Seq })
		}), &verdict{Verdict: string(LeftGone)})
		if len(rows) == 0 {
			continue
		}
		if err := w.try(ctx, rows, still); err != nil {
			return err
		}
	}
	return nil
}

// try does the verb with rows, in one transaction, and sorts out what became of them.
func (w *work) try(ctx context.Context, rows []stuckRow, still []int64) error {
	verdicts, err := w.operate(ctx, rows, still)
	if err != nil {
		return err
	}
	bySeq := map[int64]verdict{}
	for _, v := range verdicts {
		bySeq[v.RowSeq] = v
	}
	var logged *int64
	for _, r := range rows {
		v := bySeq[r.Seq]
		switch v.Verdict {
		case "ok":
			w.result.Changed++
			logged = v.AuditID
		case string(LeftBusy), "changed":
			w.waiting = append(w.waiting, r)
		default:
			w.leave([]stuckRow{r}, &v)
		}
	}
	if logged != nil {
		w.result.AuditIDs = append(w.result.AuditIDs, AuditRef{Database: w.name, ID: *logged})
	}
	return nil
}

// operate calls the side's function. Once begun it is not interrupted, so that the result tells what was done.
func (w *work) operate(ctx context.Context, rows []stuckRow, still []int64) ([]verdict, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	seqs, tries, parked := make([]int64, len(rows)), make([]int, len(rows)), make([]bool, len(rows))
	for i, r := range rows {
		seqs[i], tries[i], parked[i] = r.Seq, r.Attempts, r.Parked
	}
	headers, err := encodeHeaders(w.command.Headers)
	if err != nil {
		return nil, err
	}
	filter, err := json.Marshal(w.command.Filter.recorded())
	if err != nil {
		return nil, err
	}
	args := []any{
		string(w.command.Verb), seqs, tries, parked, []byte(w.command.Payload), headers,
		w.command.DryRun, w.command.Actor.Name, w.command.Actor.Reason, string(filter),
	}
	if w.side == Inbox {
		return collect[verdict](ctx, w.database, string(w.command.Verb),
			`SELECT row_seq, verdict, head, audit_id FROM inbox.operate($1, $2, $3, $4, $5, $6::text::jsonb, $7, $8, $9, $10::text::jsonb)`, args...)
	}
	return collect[verdict](ctx, w.database, string(w.command.Verb),
		`SELECT row_seq, verdict, head, audit_id FROM outbox.operate($1, $2, $3, $4, $11, $5, $6::text::jsonb, $7, $8, $9, $10::text::jsonb)`, append(args, still)...)
}

// beat is a relay's sign of life for a partition.
type beat struct {
	Partition   int
	Token, Beat int64
}

func (w *work) beats(ctx context.Context) ([]beat, error) {
	if w.side == Inbox {
		return nil, nil
	}
	return collect[beat](ctx, w.database, "read the relays' leases",
		`SELECT partition, token, beat FROM outbox.leases WHERE pool = 'relay' AND owner IS NOT NULL ORDER BY partition`)
}

// unmoved are the beats that stood still between two looks, at their partition; -1 elsewhere.
func unmoved(before, now []beat) []int64 {
	still := slices.Repeat([]int64{-1}, outbox.Partitions)
	for _, b := range now {
		if b.Partition < len(still) && slices.Contains(before, b) {
			still[b.Partition] = b.Beat
		}
	}
	return still
}

// leave notes rows that are not touched; without a verdict they are busy.
func (w *work) leave(rows []stuckRow, v *verdict) {
	for _, r := range rows {
		if len(w.result.Left) == mostLeft {
			return
		}
		code := LeftBusy
		if v != nil {
			code = LeftCode(v.Verdict)
		}
		w.result.Left = append(w.result.Left, Left{Stuck: w.stuck(r), Code: code, Reason: w.reason(code, r, v)})
	}
}

// reason says it in words, and what to do instead.
func (w *work) reason(code LeftCode, r stuckRow, v *verdict) string {
	switch code {
	case LeftGone:
		return "it is no longer stuck, or no longer what the command chose"
	case LeftBehind:
		head := "its key's head"
		if v.Head != nil {
			head = v.Head.String()
		}
		if w.command.Verb == VerbPark {
			return "it waits behind " + head + ": park that one, and this goes on waiting"
		}
		return "it waits behind " + head + ": replay that one, and this goes after it"
	case LeftParked:
		return "it waits for an operator already"
	case LeftRetrying:
		return "it is tried again by itself: park it first, then edit it"
	case LeftExposed:
		return "a consumer may have its first version: skip it, and send a new message"
	case LeftBusy:
	}
	if w.side == Outbox {
		return "a relay has it in hand; try again in a moment"
	}
	return "a handler has it, or its key, in hand; try again in a moment"
}

// outcome is the error of a command that named one message and could not touch it.
func (r Result) outcome(c Command) error {
	if c.Filter.MessageID == uuid.Nil || r.Changed > 0 {
		return nil
	}
	if len(r.Left) == 0 {
		return fmt.Errorf("%w: message %s is not stuck, or not as the filter wants it", ErrNotFound, c.Filter.MessageID)
	}
	kind := ErrRefused
	switch r.Left[0].Code {
	case LeftGone:
		kind = ErrNotFound
	case LeftBusy:
		kind = ErrBusy
	case LeftBehind, LeftRetrying, LeftExposed, LeftParked:
	}
	return fmt.Errorf("%w: message %s: %s", kind, c.Filter.MessageID, r.Left[0].Reason)
}
