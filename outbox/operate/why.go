package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// States of a message as [Where] has them.
const (
	stateNotCommitted  = "not_committed"
	stateWaiting       = "waiting"
	stateInWindow      = "in_window"
	stateStuck         = "stuck"
	stateBrokerBlocked = "broker_blocked"
	stateNoBinding     = "no_binding"
	stateRelayed       = "relayed"
	stateConsumed      = "consumed"
	stateDead          = "dead"
	stateSkipped       = "skipped"
	stateUnknown       = "unknown"
)

// Why says where a message is and what it waits for. The id is a message's, or a key such as a booking's: then there is
// an answer for each of its newest messages, in the order in which they were written. Databases that do not answer are
// an error beside what the others say.
func (o *Operator) Why(ctx context.Context, id string) ([]Where, error) {
	if id == "" || len(id) > outbox.MaxKey || (Filter{Key: id}).check() != nil {
		return nil, fmt.Errorf("%w: want a message's id, or a key of 1 to %d bytes", ErrInvalid, outbox.MaxKey)
	}
	q := inquiry{Operator: o, scene: o.survey(ctx)}
	q.errs = slices.Clone(q.scene.away)
	if parsed, err := uuid.Parse(id); err == nil {
		q.find(func(st *store) ([]trace, error) { return st.byID(ctx, parsed) })
		if len(q.traces) == 0 {
			q.findElsewhere(ctx, parsed)
		}
	}
	if len(q.traces) == 0 {
		q.find(func(st *store) ([]trace, error) { return st.byKey(ctx, id) })
	}
	if len(q.traces) == 0 {
		return []Where{q.nowhere(ctx, id)}, errors.Join(q.errs...)
	}
	slices.SortStableFunc(q.traces, func(a, b trace) int {
		if a.store == b.store {
			return cmp.Compare(a.ID, b.ID)
		}
		return a.CreatedAt.Compare(b.CreatedAt)
	})
	q.traces = q.traces[max(0, len(q.traces)-mostTraced):]
	q.found = q.errs
	q.gather(ctx)
	for range missTries { // the broker does not count what a consumer has in hand
		if !q.misses(ctx) || sleep(ctx, missPause) != nil {
			break
		}
		q.gather(ctx)
	}
	answers := make([]Where, len(q.traces))
	for i, t := range q.traces {
		answers[i] = q.answer(ctx, t)
	}
	return answers, errors.Join(q.errs...)
}

// What seems to be missing is asked for again so often, so far apart, before it is said to be.
const (
	missTries = 4
	missPause = 500 * time.Millisecond
)

// misses reports that a message seems to be missing at a consumer that may have it in hand.
func (q *inquiry) misses(ctx context.Context) bool {
	return slices.ContainsFunc(q.traces, func(t trace) bool {
		return t.Passed && stuckAmong(q.stuck, "", t.MessageID) == nil && slices.ContainsFunc(q.consumers(ctx, t), func(c Consumed) bool {
			return c.State == "missing" && q.depths[q.scene.topology.QueueName(c.Consumer, t.Partition)].consumers > 0
		})
	})
}

// inquiry is one question with all that was found out for it.
type inquiry struct {
	*Operator
	scene  *scene
	traces []trace
	errs   []error
	found  []error // of them, those from before gather

	inboxes   map[string]map[uuid.UUID]held // by consumer
	stuck     []Stuck                       // of both sides
	forgotten map[string]uuid.UUID          // by database: what its inbox remembers begins here
	depths    map[string]depth
	broker    error            // why it takes nothing, or is not asked
	dead      map[string]error // by queue and message id: its reason
	keepers   map[*store]*keeper
}

// keeper is how a database's relay stands.
type keeper struct {
	owners  map[int]string
	refuses string
	lags    []lag
}

func (q *inquiry) note(err error) {
	if err != nil {
		q.errs = append(q.errs, err)
	}
}

func (q *inquiry) find(look func(st *store) ([]trace, error)) {
	for _, st := range q.scene.stores {
		if st.outbox {
			found, err := look(st)
			q.note(err)
			q.traces = append(q.traces, found...)
		}
	}
}

// findElsewhere takes what is left of a message whose outbox row is gone: its copy where it is stuck.
func (q *inquiry) findElsewhere(ctx context.Context, id uuid.UUID) {
	for _, st := range q.scene.stores {
		for _, side := range []Side{Outbox, Inbox} {
			if side == Outbox && !st.outbox || side == Inbox && !st.inbox {
				continue
			}
			found, err := st.stuckOf(ctx, side, []uuid.UUID{id})
			q.note(err)
			if len(found) > 0 && len(q.traces) == 0 {
				s := found[0]
				q.traces = append(q.traces, trace{MessageID: id, Type: s.Type, Key: s.Key, Partition: s.Partition, Passed: true, store: st})
			}
		}
	}
}

// gather asks everybody about all messages at once.
func (q *inquiry) gather(ctx context.Context) {
	q.errs, q.stuck = slices.Clone(q.found), nil
	ids := make([]uuid.UUID, len(q.traces))
	for i, t := range q.traces {
		ids[i] = t.MessageID
	}
	q.inboxes, q.forgotten, q.keepers = map[string]map[uuid.UUID]held{}, map[string]uuid.UUID{}, map[*store]*keeper{}
	for _, st := range q.scene.stores {
		if st.inbox {
			q.askInbox(ctx, st, ids)
		}
		if st.outbox {
			found, err := st.stuckOf(ctx, Outbox, ids)
			q.note(err)
			q.stuck = append(q.stuck, found...)
		}
	}
	var err error
	q.depths, err = q.Operator.broker.sureDepths(ctx, q.pending())
	if q.broker = err; err == nil && q.scene.topology != nil {
		q.broker = q.Operator.broker.takes(q.scene.topology.Exchange)
	}
	q.dead = map[string]error{}
	for name, d := range q.depths {
		if strings.HasSuffix(name, rabbitmq.DeadName("")) && d.messages > 0 {
			q.askDead(ctx, name)
		}
	}
}

// pending are the queues, and their dead-letter queues, of consumers that do not have a message that they should.
func (q *inquiry) pending() []string {
	names := map[string]bool{}
	for _, t := range q.traces {
		for _, c := range q.scene.bound(t.Type) {
			if _, has := q.inboxes[c][t.MessageID]; !has {
				name := q.scene.topology.QueueName(c, t.Partition)
				names[name], names[rabbitmq.DeadName(name)] = true, true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (q *inquiry) askInbox(ctx context.Context, st *store, ids []uuid.UUID) {
	rows, err := st.inboxes(ctx, ids)
	q.note(err)
	for _, r := range rows {
		if q.inboxes[r.Consumer] == nil {
			q.inboxes[r.Consumer] = map[uuid.UUID]held{}
		}
		if known, ok := q.inboxes[r.Consumer][r.MessageID]; !ok || known.State == "done" { // of several, what is not done yet
			q.inboxes[r.Consumer][r.MessageID] = r
		}
	}
	found, err := st.stuckOf(ctx, Inbox, ids)
	q.note(err)
	q.stuck = append(q.stuck, found...)
	since, err := column[uuid.UUID](ctx, st.database, "look how far the inbox remembers", `SELECT since FROM inbox.remembered`)
	q.note(err)
	if len(since) == 1 {
		q.forgotten[st.name] = since[0]
	}
}

func (q *inquiry) askDead(ctx context.Context, queue string) {
	messages, err := q.Operator.broker.peek(ctx, queue, mostTraced)
	q.note(err)
	for _, m := range messages {
		q.dead[queue+" "+m.MessageID] = errors.New(m.Reason)
	}
}

// keeper finds out about a database's relay, once.
func (q *inquiry) keeper(ctx context.Context, st *store) *keeper {
	if k := q.keepers[st]; k != nil {
		return k
	}
	k := &keeper{}
	q.keepers[st] = k
	var err error
	k.owners, err = st.owners(ctx)
	q.note(err)
	stored, now, err := st.identities(ctx)
	q.note(err)
	switch {
	case err != nil:
	case now.InRecovery:
		k.refuses = "the server of database " + st.name + " is a standby: the relay needs the primary"
	case !fits(stored, now):
		k.refuses = fmt.Sprintf("the relay refuses to run: the cursor of database %s belongs to another cluster, database or timeline (outboxctl cursor rebase)", st.name)
	}
	err = st.look(ctx, "count what is not relayed", statusTimeout, func(tx pgx.Tx) (err error) {
		k.lags, err = rowsOf[lag](ctx, tx, lagQuery, countedLag+1)
		return err
	})
	if !canceled(err) {
		q.note(err)
	}
	return k
}

// answer puts together what is known of one message.
func (q *inquiry) answer(ctx context.Context, t trace) Where {
	w := Where{
		MessageID: t.MessageID, Database: t.store.name, Type: t.Type, Key: t.Key, Partition: t.Partition, CreatedAt: t.CreatedAt,
		Consumers: q.consumers(ctx, t),
	}
	w.Stuck = stuckAmong(q.stuck, "", t.MessageID)
	gone := slices.ContainsFunc(w.Consumers, func(c Consumed) bool { return c.has() })
	switch {
	case w.Stuck != nil:
		q.judgeStuck(ctx, t, &w)
	case t.Passed || gone:
		q.judgeRelayed(ctx, t, &w)
	default:
		q.judgeWaiting(ctx, t, &w)
	}
	if w.Stuck != nil && w.Stuck.Side == Outbox || !t.Passed && !gone { // it has not been sent to those that do not have it
		w.Consumers = slices.DeleteFunc(w.Consumers, func(c Consumed) bool { return !c.has() })
	}
	return w
}

// has reports that the consumer got the message.
func (c Consumed) has() bool {
	return c.State == "handled" || c.State == "stuck" || c.State == "parked" || c.State == "behind" || c.State == "skipped" || c.State == "dead"
}

func (q *inquiry) judgeStuck(ctx context.Context, t trace, w *Where) {
	w.State = stateStuck
	w.Relay = q.keeper(ctx, t.store).owners[t.Partition]
	w.Head = q.head(ctx, t.store, *w.Stuck)
	w.Verdict = "stuck in the outbox of " + t.store.name + ": " + waits(w.Stuck, w.Head)
	if w.Stuck.Class == "unroutable" && len(q.scene.bound(t.Type)) == 0 {
		w.State = stateNoBinding
		w.Verdict += "; the topology has no queue for " + t.Type
	}
}

// head is what a follower waits for.
func (q *inquiry) head(ctx context.Context, st *store, s Stuck) *Stuck {
	if s.State != Behind {
		return nil
	}
	head, err := st.headOf(ctx, s.Side, s.Consumer, s.Key)
	q.note(err)
	return head
}

// waits is what a stuck message waits for.
func waits(s, head *Stuck) string {
	switch {
	case s.State == Behind && head != nil:
		return fmt.Sprintf("waits behind %s of its key, which is %s", head.MessageID, waits(head, nil))
	case s.State == Behind:
		return "waits behind an earlier message of its key"
	case s.State == Parked:
		return fmt.Sprintf("parked after %s because of %s (%s), until an operator replays, edits or skips it (outboxctl stuck replay %s)",
			amount(int64(s.Attempts), "attempt"), s.Class, s.Error, s.MessageID)
	case s.NextAttempt != nil && s.Error != "":
		return fmt.Sprintf("failing because of %s (%s), tried again at %s", s.Class, s.Error, stamp(*s.NextAttempt))
	case s.Error != "":
		return fmt.Sprintf("waiting because of %s (%s)", s.Class, s.Error)
	}
	return "about to be tried"
}

// amount is a number of things.
func amount(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprint(n, " ", thing)
}

func stamp(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.000Z") }

func (q *inquiry) judgeWaiting(ctx context.Context, t trace, w *Where) {
	k := q.keeper(ctx, t.store)
	w.State, w.Relay = stateWaiting, k.owners[t.Partition]
	head, err := t.store.headOf(ctx, Outbox, "", t.Key)
	q.note(err)
	w.Head = head
	committed := "committed in " + t.store.name + " and not relayed: "
	behind := ""
	if len(k.lags) > t.Partition {
		behind = fmt.Sprintf("; not relayed of partition %d: %s, the oldest is %s old", t.Partition, amount(k.lags[t.Partition].Counted, "message"), seconds(k.lags[t.Partition].Seconds))
	}
	switch {
	case k.refuses != "":
		w.State, w.Verdict = stateUnknown, "committed in "+t.store.name+"; whether it was relayed cannot be told: "+k.refuses
	case head != nil:
		w.Verdict = committed + fmt.Sprintf("waits behind %s of its key, which is %s", head.MessageID, waits(head, nil))
	case w.Relay == "":
		w.Verdict = committed + fmt.Sprintf("no relay works on partition %d", t.Partition) + behind
	case errors.Is(q.broker, rabbitmq.ErrUnavailable) || q.broker != nil && !errors.Is(q.broker, errNoBroker):
		w.State, w.Verdict = stateBrokerBlocked, committed+"the broker takes nothing: "+q.broker.Error()
	case q.scene.topology != nil && len(q.scene.bound(t.Type)) == 0:
		w.State, w.Verdict = stateNoBinding, committed+"the topology has no queue for "+t.Type
	case t.InWindow:
		w.State, w.Verdict = stateInWindow, committed+"relay "+w.Relay+" has it in its window"+behind
	default:
		w.Verdict = committed + "relay " + w.Relay + " has not come to it" + behind
	}
}

func (q *inquiry) judgeRelayed(ctx context.Context, t trace, w *Where) {
	w.Relay = q.keeper(ctx, t.store).owners[t.Partition]
	if refuses := q.keepers[t.store].refuses; refuses != "" && !slices.ContainsFunc(w.Consumers, Consumed.has) {
		w.State, w.Verdict = stateUnknown, "committed in "+t.store.name+"; whether it was relayed cannot be told: "+refuses
		return
	}
	w.State, w.RelayedAt = stateRelayed, t.NoLater
	if t.After != nil && (t.NoLater == nil || t.After.Before(*t.NoLater)) {
		w.RelayedAfter = t.After
	}
	if !slices.ContainsFunc(w.Consumers, Consumed.has) {
		if by := q.skipped(ctx, t); by != "" {
			w.State, w.Verdict, w.RelayedAt, w.RelayedAfter = stateSkipped, "taken out of the outbox of "+t.store.name+" by "+by+"; no consumer has it", nil, nil
			return
		}
	}
	w.Verdict = relayedWhen(w)
	if len(w.Consumers) == 0 {
		w.Verdict += "; the topology has no queue for " + t.Type
		return
	}
	var handled, rest []string
	all := true
	for _, c := range w.Consumers {
		if c.State == "handled" {
			handled = append(handled, c.Consumer)
			continue
		}
		all = all && c.State == "skipped"
		rest = append(rest, q.atConsumer(ctx, t, c))
		if c.State == "dead" {
			w.State = stateDead
		} else if c.Stuck != nil && w.State != stateDead {
			w.State = stateStuck
		}
		if c.Stuck != nil && w.Stuck == nil {
			w.Stuck, w.Head = c.Stuck, q.headAt(ctx, c)
		}
	}
	if all {
		w.State = stateConsumed
	}
	if len(handled) > 0 {
		w.Verdict += "; consumed by " + strings.Join(handled, " and ")
	}
	if len(rest) > 0 {
		w.Verdict += "; " + strings.Join(rest, "; ")
	}
}

func relayedWhen(w *Where) string {
	switch {
	case w.RelayedAt == nil && w.RelayedAfter == nil:
		return "relayed"
	case w.RelayedAt == nil:
		return "relayed after " + stamp(*w.RelayedAfter)
	case w.RelayedAfter == nil:
		return "relayed before " + stamp(*w.RelayedAt)
	}
	return "relayed between " + stamp(*w.RelayedAfter) + " and " + stamp(*w.RelayedAt)
}

func (q *inquiry) headAt(ctx context.Context, c Consumed) *Stuck {
	if home := q.scene.home(c.Consumer); home != nil {
		return q.head(ctx, home, *c.Stuck)
	}
	return nil
}

// atConsumer is a clause about a consumer that has not handled the message.
func (q *inquiry) atConsumer(ctx context.Context, t trace, c Consumed) string {
	queue := q.scene.topology.QueueName(c.Consumer, t.Partition)
	switch c.State {
	case "stuck", "parked", "behind":
		return "stuck at " + c.Consumer + ": " + waits(c.Stuck, q.headAt(ctx, c))
	case "skipped":
		return "skipped at " + c.Consumer
	case "dead":
		return fmt.Sprintf("dead at %s (%s): %s", c.Consumer, rabbitmq.DeadName(queue), q.dead[rabbitmq.DeadName(queue)+" "+t.MessageID.String()])
	case "queued":
		d := q.depths[queue]
		return fmt.Sprintf("not yet consumed by %s: queue %s has %s and %s", c.Consumer, queue, amount(d.messages, "message"), amount(int64(d.consumers), "consumer"))
	case "missing":
		inHand := ""
		if q.depths[queue].consumers > 0 {
			inHand = ", though a handler may have had it in hand all the while: ask again"
		}
		return fmt.Sprintf("missing at %s: neither in its inbox nor waiting in queue %s%s (outboxctl replay plan --database %s --from %s --to %s --key %s --to-queue %s)",
			c.Consumer, queue, inHand, t.store.name, t.CreatedAt.UTC().Truncate(time.Second).Format(time.RFC3339),
			t.CreatedAt.UTC().Add(time.Second).Truncate(time.Second).Format(time.RFC3339), shellWord(t.Key), c.Consumer)
	}
	if home := q.scene.home(c.Consumer); home != nil && bytesBefore(t.MessageID, q.forgotten[home.name]) {
		return fmt.Sprintf("whether %s consumed it is forgotten: its inbox goes back to a later time", c.Consumer)
	}
	return "nothing is known of " + c.Consumer
}

// shellWord is text as one word of a command line.
func shellWord(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("-_.:@/+,", r) && (r > '~' || !unicode.IsLetter(r) && !unicode.IsDigit(r))
	}) {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

// bytesBefore orders ids as the database does.
func bytesBefore(a, b uuid.UUID) bool { return slices.Compare(a[:], b[:]) < 0 }

// consumers is what each bound consumer did with the message.
func (q *inquiry) consumers(_ context.Context, t trace) []Consumed {
	list := []Consumed{}
	for _, name := range q.scene.bound(t.Type) {
		c := Consumed{Consumer: name, State: "unknown"}
		home := q.scene.home(name)
		if home != nil {
			c.Database = home.name
		}
		queue := q.scene.topology.QueueName(name, t.Partition)
		row, known := q.inboxes[name][t.MessageID]
		c.Stuck = stuckAmong(q.stuck, name, t.MessageID)
		_, dead := q.dead[rabbitmq.DeadName(queue)+" "+t.MessageID.String()]
		d, asked := q.depths[queue]
		switch {
		case c.Stuck != nil:
			c.State = string(c.Stuck.State)
			if c.Stuck.State == Retrying {
				c.State = "stuck"
			}
		case known && row.State == "done":
			c.State, c.At = "handled", &row.At
		case known:
			c.State, c.At = row.State, &row.At
		case dead:
			c.State = "dead"
		case home == nil || bytesBefore(t.MessageID, q.forgotten[home.name]):
		case asked && !d.missing && d.messages > 0:
			c.State = "queued"
		case asked:
			c.State = "missing"
		}
		list = append(list, c)
	}
	return list
}

// skipped says who took the message out of the outbox, and why.
func (q *inquiry) skipped(ctx context.Context, t trace) string {
	entries, err := t.store.auditEntries(ctx, AuditFilter{MessageID: t.MessageID, Action: "outbox.skip"}, 0, 1)
	q.note(err)
	if len(entries) == 0 {
		return ""
	}
	e := entries[0]
	return fmt.Sprintf("%s at %s (%s)", e.Actor.Name, stamp(e.At), e.Actor.Reason)
}

// nowhere is the answer about what no outbox holds.
func (q *inquiry) nowhere(ctx context.Context, id string) Where {
	w := Where{State: stateNotCommitted, Consumers: []Consumed{}, Verdict: fmt.Sprintf("no outbox holds a message with this id or key (%s)", id)}
	if parsed, err := uuid.Parse(id); err == nil {
		w.MessageID = parsed
		q.seen(ctx, &w)
	}
	if w.State != stateNotCommitted {
		return w
	}
	if len(q.errs) > 0 {
		w.State = stateUnknown
		w.Verdict += "; not every database could be asked"
	}
	var open []string
	for _, st := range q.scene.stores {
		sessions, err := st.openTransactions(ctx)
		q.note(err)
		for _, s := range sessions {
			open = append(open, "in "+st.name+" "+s.String())
		}
	}
	if len(open) == 0 {
		w.Verdict += ": it was never committed, or is older than what is kept; no transaction that could still commit it is open"
		return w
	}
	w.Verdict += ": it was never committed, is older than what is kept, or belongs to a transaction that is still open: " + strings.Join(open, ", ")
	return w
}

// seen looks whether consumers know a message that no outbox has any more.
func (q *inquiry) seen(ctx context.Context, w *Where) {
	for _, st := range q.scene.stores {
		if !st.inbox {
			continue
		}
		rows, err := st.inboxes(ctx, []uuid.UUID{w.MessageID})
		q.note(err)
		for _, r := range rows {
			state := r.State
			if state == "done" {
				state = "handled"
			}
			w.Consumers = append(w.Consumers, Consumed{Consumer: r.Consumer, Database: st.name, State: state, At: &r.At})
			w.State = stateConsumed
			w.Verdict = "no outbox holds it any more"
		}
	}
	for _, c := range w.Consumers {
		w.Verdict += fmt.Sprintf("; %s by %s at %s", c.State, c.Consumer, stamp(*c.At))
	}
}
