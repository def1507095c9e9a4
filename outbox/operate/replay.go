package operate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const (
	applyTimeout  = 2 * time.Hour
	canaryTimeout = 30 * time.Second
	replayLanes   = 64  // keys in flight
	replayPage    = 500 // rows in memory
	replayTries   = 6   // of a message while the broker is away
	mostFailed    = 100 // failures that are told one by one
)

// ApplyReplay publishes what a plan of the last day says, if it would be the same plan now: ErrChanged otherwise. Messages
// of a key go in order, each after the confirm of the one before; when one fails, the later ones of its key are left.
// What consumers have handled they absorb. With Canary one message of each type goes first, which some consumer does not
// have, and unless that shows in its inbox within 30 s nothing else is published. An error that comes later than the first
// entry of the audit log has beside it what was done.
func (o *Operator) ApplyReplay(ctx context.Context, req ApplyRequest) (Applied, error) {
	done := Applied{Failed: []string{}, Audit: []AuditRef{}}
	if err := req.Actor.check(); err != nil {
		return done, err
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	stored, err := o.storedPlan(ctx, req.Hash)
	if err != nil {
		return done, err
	}
	p, err := o.plan(ctx, stored)
	if err != nil {
		return done, err
	}
	if p.Hash != req.Hash {
		return done, fmt.Errorf("%w: it would be %s now", ErrChanged, amount(p.Messages, "message"))
	}
	if req.Canary && len(p.canaries) == 0 {
		return done, fmt.Errorf("%w: every consumer has handled these messages, so a canary could show nothing: apply without it", ErrRefused)
	}
	pub, err := o.replayPublisher(p)
	if err != nil {
		return done, err
	}
	defer func() { _ = pub.Close() }() // what counts is confirmed
	r := &replay{planned: p, pub: pub, req: req, done: &done, sent: map[int64]bool{}, broken: map[string]bool{}}
	if err := r.log(ctx, "began"); err != nil {
		return done, err
	}
	err = r.run(ctx)
	err = errors.Join(err, r.log(context.WithoutCancel(ctx), "ended"))
	return done, err
}

// storedPlan finds the request that a hash was made for.
func (o *Operator) storedPlan(ctx context.Context, hash string) (req PlanRequest, err error) {
	if !storable(hash) {
		return req, fmt.Errorf("%w: a plan's hash is hexadecimal, not %q", ErrInvalid, hash)
	}
	for _, d := range o.databases {
		var document []byte
		err := d.pool.QueryRow(ctx, `SELECT request FROM ops.plans WHERE hash = $1 AND made_at > clock_timestamp() - interval '`+planLasts+`'`, hash).Scan(&document)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			continue
		case err != nil:
			return req, d.failed("look for the plan", err)
		}
		if req, err = decodePlan(document); err != nil {
			return req, d.failed("read the plan", err)
		}
		return req, nil
	}
	return req, fmt.Errorf("%w: there is no plan %q of the last day", ErrNotFound, hash)
}

// decodePlan reads a request as [Operator.PlanReplay] stored it. Nothing rests on it: a request that was tampered with makes
// another plan, whose hash does not fit.
func decodePlan(document []byte) (req PlanRequest, err error) {
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&req); err != nil {
		return PlanRequest{}, err
	}
	if decoder.More() {
		return PlanRequest{}, errors.New("more than one document")
	}
	return req, nil
}

func (o *Operator) replayPublisher(p *planned) (*rabbitmq.Publisher, error) {
	if o.cfg.AMQPURL == "" {
		return nil, errNoBroker
	}
	cfg := rabbitmq.PublisherConfig{URL: o.cfg.AMQPURL, Exchange: p.scene.topology.Exchange, Name: "outbox operator, replay"}
	if p.Request.ToQueue != "" {
		cfg.Exchange, cfg.ToQueues = "", true
	}
	return rabbitmq.NewPublisher(cfg, slog.New(slog.DiscardHandler))
}

// replay is a plan being applied.
type replay struct {
	*planned
	pub  *rabbitmq.Publisher
	req  ApplyRequest
	sent map[int64]bool // canaries

	mu     sync.Mutex
	done   *Applied
	broken map[string]bool // keys of which a message failed
	failed int
}

// log appends to the audit log of the database that the messages were written in: the broker takes part in no
// transaction, so the log says first what is about to happen, then what has.
func (r *replay) log(ctx context.Context, stage string) error {
	r.mu.Lock()
	detail := map[string]any{
		"stage": stage, "plan": r.Hash, "request": r.Request, "messages": r.Messages, "published": r.done.Published, "failed": r.failed, "canary": r.req.Canary,
	}
	r.mu.Unlock()
	ref, err := r.from.log(ctx, r.req.Actor, "replay.apply", detail)
	if err == nil {
		r.done.Audit = append(r.done.Audit, ref)
	}
	return err
}

func (r *replay) run(ctx context.Context) error {
	if r.req.Canary {
		if err := r.sendCanaries(ctx); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(r.ids, replayPage) {
		rows, err := r.read(ctx, part)
		if err != nil {
			return err
		}
		if err := r.publish(ctx, rows); err != nil {
			return err
		}
	}
	return nil
}

// stored is a row to be published.
type stored struct {
	ID        int64
	UUID      uuid.UUID
	Topic     string
	Key       string
	Partition int
	Payload   []byte
	Metadata  map[string]string
	CreatedAt time.Time
}

func (r *replay) read(ctx context.Context, ids []int64) ([]stored, error) {
	rows, err := collect[stored](ctx, r.from.database, "read the messages", `
		SELECT id, uuid, topic, key, partition::int AS partition, payload, metadata, created_at
		FROM outbox.messages WHERE id = ANY ($1) ORDER BY id`, ids)
	if err == nil && len(rows) != len(ids) {
		err = fmt.Errorf("%w: %d messages are gone from outbox.messages", ErrChanged, len(ids)-len(rows))
	}
	return rows, err
}

// publish sends a page: each key in order, many keys at a time.
func (r *replay) publish(ctx context.Context, rows []stored) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lanes := make([][]stored, replayLanes)
	for _, row := range rows {
		if !r.sent[row.ID] {
			sum := fnv.New32a()
			_, _ = sum.Write([]byte(row.Key)) // never fails
			lane := sum.Sum32() % replayLanes
			lanes[lane] = append(lanes[lane], row)
		}
	}
	var all sync.WaitGroup
	for _, lane := range lanes {
		all.Go(func() {
			for _, row := range lane {
				if ctx.Err() != nil {
					return
				}
				if err := r.one(ctx, row); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// one publishes a message. An error means that the broker is away; what is the message's own fault is counted.
func (r *replay) one(ctx context.Context, row stored) error {
	r.mu.Lock()
	if r.broken[row.Key] {
		r.fail(row, "an earlier message of its key failed")
		r.mu.Unlock()
		return nil
	}
	r.mu.Unlock()
	err := r.send(ctx, row)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.done.Published++
		if r.req.Progress != nil {
			r.req.Progress(r.done.Published, r.Messages)
		}
		return nil
	case errors.Is(err, rabbitmq.ErrUnavailable), errors.Is(err, rabbitmq.ErrClosed), ctx.Err() != nil:
		return fmt.Errorf("after %d messages: %w", r.done.Published, err)
	}
	r.broken[row.Key] = true
	r.fail(row, err.Error())
	return nil
}

// fail needs mu.
func (r *replay) fail(row stored, why string) {
	if r.failed++; r.failed <= mostFailed {
		r.done.Failed = append(r.done.Failed, fmt.Sprintf("%s %s (key %s): %s", row.UUID, row.Topic, row.Key, why))
	}
}

// send publishes and waits for the confirm, again with growing pauses while the broker is away or a queue is full.
func (r *replay) send(ctx context.Context, row stored) (err error) {
	topic := r.scene.topology.RoutingKey(row.Topic, row.Partition)
	if r.Request.ToQueue != "" {
		topic = r.scene.topology.QueueName(r.Request.ToQueue, row.Partition)
	}
	pause := 200 * time.Millisecond
	for try := 1; ; try++ {
		err = r.pub.Publish(topic, row.message(r.from.source))
		if try == replayTries || !errors.Is(err, rabbitmq.ErrUnavailable) && !errors.Is(err, rabbitmq.ErrRefused) {
			return err
		}
		if err := sleep(ctx, pause/2+rand.N(pause)); err != nil {
			return err
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// message is the row as the relay publishes it.
func (s stored) message(source string) *message.Message {
	msg := message.NewMessage(s.UUID.String(), s.Payload)
	for name, value := range s.Metadata {
		msg.Metadata[name] = value
	}
	outbox.SetOwnHeaders(msg.Metadata, msg.UUID, s.Topic, source, s.Key, s.CreatedAt)
	return msg
}

// sendCanaries publishes one message of each type and waits until consumers that lacked them have them.
func (r *replay) sendCanaries(ctx context.Context) error {
	var ids []int64
	for _, id := range r.canaries {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	rows, err := r.read(ctx, ids)
	if err != nil {
		return err
	}
	if err := r.publish(ctx, rows); err != nil {
		return err
	}
	if r.failed > 0 {
		return fmt.Errorf("%w: a canary could not be published, nothing else was: %s", ErrRefused, r.done.Failed[0])
	}
	for _, row := range rows {
		r.sent[row.ID] = true
		r.done.Canaries++
		for _, consumer := range r.lacking[row.ID] {
			if err := r.seen(ctx, row, consumer); err != nil {
				return err
			}
		}
	}
	return nil
}

// seen waits for a canary's row in an inbox that lacked it.
func (r *replay) seen(ctx context.Context, row stored, consumer string) error {
	home := r.scene.home(consumer)
	wait, cancel := context.WithTimeout(ctx, canaryTimeout)
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		var state string
		err := home.pool.QueryRow(wait, `SELECT state FROM inbox.messages WHERE consumer = $1 AND message_id = $2`, consumer, row.UUID).Scan(&state)
		switch {
		case err == nil && state == "done":
			return nil
		case err == nil:
			return fmt.Errorf("%w: canary %s (%s) is %s at %s, nothing else was published", ErrRefused, row.UUID, row.Topic, state, consumer)
		case !errors.Is(err, pgx.ErrNoRows) && wait.Err() == nil:
			return home.failed("look for the canary", err)
		}
		if sleep(wait, pause) != nil {
			return fmt.Errorf("%w: canary %s (%s) did not reach the inbox of %s within %s, nothing else was published", ErrRefused, row.UUID, row.Topic, consumer, canaryTimeout)
		}
	}
}
