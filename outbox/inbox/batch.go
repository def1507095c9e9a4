package inbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/internal/failpoint"
)

// errApart says that messages cannot be handled together; each is then handled by itself.
var errApart = errors.New("not to be handled together")

// gather adds to a first message what is there already, and what comes until Config.Linger after the batch before: one
// that comes alone is not waited with, many that come one by one share a transaction.
func (w *worker) gather(ctx context.Context, first *message.Message, messages <-chan *message.Message) []*message.Message {
	batch := []*message.Message{first}
	linger := time.NewTimer(w.cfg.Linger - time.Since(w.began))
	defer linger.Stop()
	for waited := false; len(batch) < w.batch; {
		select {
		case msg, ok := <-messages:
			if !ok {
				return batch
			}
			batch = append(batch, msg)
			continue
		default:
		}
		if waited {
			break
		}
		select {
		case msg, ok := <-messages:
			if !ok {
				return batch
			}
			batch = append(batch, msg)
		case <-linger.C:
			waited = true
		case <-ctx.Done():
			waited = true
		}
	}
	w.began = time.Now()
	return batch
}

// receiveAll handles messages in one transaction if that succeeds, or else one by one, so that the failure of one is
// its own. After a failure batches begin small again. It returns false when the lease has ended and messages went back.
func (w *worker) receiveAll(ctx context.Context, batch []*message.Message) bool {
	if len(batch) > 1 && w.together(batch) {
		w.batch = min(2*w.batch, w.cfg.Batch)
		failpoint.Hit("inbox.after-commit")
		for _, msg := range batch {
			msg.Ack()
		}
		return true
	}
	if len(batch) > 1 {
		w.batch = 1
	} else {
		w.batch = min(2*w.batch, w.cfg.Batch)
	}
	for i, msg := range batch {
		if i > 0 && ctx.Err() != nil || !w.receive(ctx, msg) {
			for _, rest := range batch[i:] {
				rest.Nack()
			}
			return false
		}
	}
	return true
}

// together handles all messages in one transaction, and reports whether it took effect.
func (w *worker) together(batch []*message.Message) bool {
	deliveries := make([]delivery, len(batch))
	for i, msg := range batch {
		d, err := parse(msg)
		if err != nil {
			return false
		}
		deliveries[i] = d
	}
	ctx, cancel := w.limited(batch[0].Context())
	defer cancel()
	start := time.Now()
	var first map[uuid.UUID]bool
	err := outbox.InTx(ctx, w.cfg.Pool, func(tx pgx.Tx) (err error) {
		first, err = w.allInTx(ctx, tx, deliveries)
		failpoint.Hit("inbox.before-commit")
		return err
	})
	if err != nil {
		w.log.Debug("messages are handled one by one", "messages", len(batch), "error", err)
		return false
	}
	took := time.Since(start) / time.Duration(len(batch))
	for _, d := range deliveries {
		result := Duplicate
		if first[d.meta.ID] {
			result = Handled
			delete(first, d.meta.ID) // a second delivery of it in the batch
		}
		w.observe(d, result, 0, took, nil)
	}
	return true
}

// allInTx is one transaction: inbox rows, then the handlers.
func (w *worker) allInTx(ctx context.Context, tx pgx.Tx, deliveries []delivery) (first map[uuid.UUID]bool, err error) {
	if first, err = openAll(ctx, tx, w.cfg.Name, deliveries); err != nil {
		return nil, err
	}
	jobs, err := w.arranged(deliveries, first)
	if err != nil {
		return nil, err
	}
	for len(jobs) > 0 {
		run := []delivery{jobs[0].delivery}
		for _, j := range jobs[1:] {
			if j.meta.Type != run[0].meta.Type || j.turn != jobs[0].turn {
				break
			}
			run = append(run, j.delivery)
		}
		if err := w.call(ctx, tx, run...); err != nil {
			return nil, err
		}
		jobs = jobs[len(run):]
	}
	return first, nil
}

// job is a message whose turn has come when turn earlier ones of its key are handled.
type job struct {
	delivery
	lock string
	turn int
}

// arranged is each first delivery once. Messages of one key keep their order. Where handlers lock rows that other keys
// lock too, the order is that of the locks, so that two batches never wait for each other crosswise; otherwise those of
// one type come together.
func (w *worker) arranged(deliveries []delivery, first map[uuid.UUID]bool) ([]job, error) {
	jobs, shared := []job{}, false
	locks, turns, seen := map[string]string{}, map[string]int{}, map[uuid.UUID]bool{}
	for _, d := range deliveries {
		if !first[d.meta.ID] || seen[d.meta.ID] {
			continue
		}
		seen[d.meta.ID] = true
		lock := d.meta.Key
		if h := w.handlers[d.meta.Type]; h.lock != nil {
			lock, shared = h.lock(d.payload), true
		}
		if earlier, ok := locks[d.meta.Key]; ok && earlier != lock {
			return nil, errApart
		}
		locks[d.meta.Key] = lock
		jobs = append(jobs, job{d, lock, turns[d.meta.Key]})
		turns[d.meta.Key]++
	}
	slices.SortStableFunc(jobs, func(a, b job) int {
		if shared {
			return cmp.Compare(a.lock, b.lock)
		}
		return cmp.Or(cmp.Compare(a.turn, b.turn), cmp.Compare(a.meta.Type, b.meta.Type), cmp.Compare(a.meta.Key, b.meta.Key))
	})
	return jobs, nil
}

// openAll records all messages, in one round trip, and returns which were not known. It is errApart when one of their
// keys waits, or when one is too old to know.
func openAll(ctx context.Context, tx pgx.Tx, consumer string, deliveries []delivery) (first map[uuid.UUID]bool, err error) {
	ids, keys := make([]uuid.UUID, len(deliveries)), make([]string, len(deliveries))
	for i, d := range deliveries {
		ids[i], keys[i] = d.meta.ID, d.meta.Key
	}
	batch := &pgx.Batch{}
	batch.Queue(`
		INSERT INTO inbox.messages (message_id, consumer) SELECT id, $2 FROM unnest($1::uuid[]) AS id ORDER BY id
		ON CONFLICT DO NOTHING RETURNING message_id`, ids, consumer)
	batch.Queue(`
		SELECT EXISTS (SELECT FROM inbox.stuck WHERE consumer = $2 AND key = ANY ($3))
		    OR EXISTS (SELECT FROM unnest($1::uuid[]) AS id, inbox.remembered WHERE `+tooOld+`)`, ids, consumer, keys)
	results := tx.SendBatch(ctx, batch)
	defer func() { _ = results.Close() }() // its errors are those of the calls below
	rows, err := results.Query()
	if err != nil {
		return nil, fmt.Errorf("record %d messages: %w", len(ids), err)
	}
	fresh, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("record %d messages: %w", len(ids), err)
	}
	var apart bool
	if err := results.QueryRow().Scan(&apart); err != nil {
		return nil, fmt.Errorf("look for earlier messages of the keys: %w", err)
	}
	if apart {
		return nil, errApart
	}
	first = make(map[uuid.UUID]bool, len(fresh))
	for _, id := range fresh {
		first[id] = true
	}
	return first, results.Close()
}
