package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const (
	maxDead     = 10_000           // messages of a dead-letter queue that one command reads
	deadTimeout = 10 * time.Minute // of a command over dead letters
)

// DeadCommand chooses dead letters of one queue.
type DeadCommand struct {
	// Queue is the dead-letter queue, or the queue that it belongs to.
	Queue string
	// Fingerprints name the messages; none means all.
	Fingerprints []string
	// Limit is the most messages that are touched. Default 1,000, at most 10,000.
	Limit  int
	DryRun bool
	Actor  Actor
}

// DeadResult says how many dead letters matched, and were sent back or removed, or with DryRun would be. Audit is what the
// log has of it: that it began, and that it ended.
type DeadResult struct {
	DryRun  bool       `json:"dryRun"`
	Matched int        `json:"matched"`
	Changed int        `json:"changed"`
	Audit   []AuditRef `json:"audit"`
}

// Dead lists dead letters of one queue, or of all, without their payloads and at most limit of each; 0 means 50. What
// is read goes back, in order. Queues that cannot be read are an error beside the rest.
func (o *Operator) Dead(ctx context.Context, queue string, limit int) ([]DeadMessage, error) {
	limit, err := Page{Limit: limit}.limit()
	if err != nil {
		return nil, err
	}
	s := o.survey(ctx)
	names := make([]string, 0, 1)
	if queue == "" {
		for _, name := range s.queues() {
			names = append(names, rabbitmq.DeadName(name))
		}
	} else {
		name, err := s.dead(queue)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	found := []DeadMessage{}
	errs := slices.Clone(s.away)
	for _, name := range names {
		list, err := o.broker.peek(ctx, name, limit)
		found, errs = append(found, list...), append(errs, err)
	}
	return found, errors.Join(errs...)
}

// DeadShow is one dead letter with its payload.
func (o *Operator) DeadShow(ctx context.Context, queue, fingerprint string) (DeadMessage, error) {
	name, err := o.survey(ctx).dead(queue)
	if err != nil {
		return DeadMessage{}, err
	}
	var found *DeadMessage
	read, err := o.broker.look(ctx, name, maxDead, func(m DeadMessage) bool {
		if m.Fingerprint == fingerprint {
			found = &m
		}
		return found == nil
	})
	switch {
	case err != nil:
		return DeadMessage{}, err
	case found == nil:
		return DeadMessage{}, fmt.Errorf("%w: no message %s among the first %d of %s", ErrNotFound, fingerprint, read, name)
	}
	return *found, nil
}

// DeadRedrive sends dead letters back to the queue that they came from, the oldest first. Each is confirmed there before
// it leaves the dead-letter queue; after a crash in between it is at both, and its consumer absorbs it. What it passes over
// goes back, in order as far as some thirty messages. An error that comes later than the first entry of the audit log has
// beside it what was done.
func (o *Operator) DeadRedrive(ctx context.Context, c DeadCommand) (DeadResult, error) {
	return o.dead(ctx, c, "dead.redrive")
}

// DeadDiscard removes dead letters for good. An error has beside it what was done, as with [Operator.DeadRedrive].
func (o *Operator) DeadDiscard(ctx context.Context, c DeadCommand) (DeadResult, error) {
	return o.dead(ctx, c, "dead.discard")
}

// dead is the name of a dead-letter queue, given it or its queue.
func (s *scene) dead(queue string) (string, error) {
	if s.topology == nil {
		return "", errors.Join(append([]error{fmt.Errorf("%w: no database has a topology", ErrNotFound)}, s.away...)...)
	}
	of := strings.TrimSuffix(queue, rabbitmq.DeadName(""))
	if !slices.Contains(s.queues(), of) {
		return "", fmt.Errorf("%w: there is no queue %q among %s", ErrNotFound, queue, strings.Join(s.queues(), ", "))
	}
	return rabbitmq.DeadName(of), nil
}

// keeper is the database whose audit log takes what is done to a queue: its consumer's, or the first.
func (o *Operator) keeper(s *scene, queue string) *database {
	consumer, _, _ := strings.Cut(queue, ".")
	if st := s.home(consumer); st != nil {
		return st.database
	}
	return o.databases[0]
}

func (o *Operator) dead(ctx context.Context, c DeadCommand, action string) (done DeadResult, err error) {
	done.DryRun, done.Audit = c.DryRun, []AuditRef{}
	if c.Limit == 0 {
		c.Limit = 1000
	}
	if c.Limit < 0 || c.Limit > maxDead {
		return done, fmt.Errorf("%w: limit is %d, want 1 to %d", ErrInvalid, c.Limit, maxDead)
	}
	if slices.ContainsFunc(c.Fingerprints, func(name string) bool { return len(name) > 128 || !storable(name) }) {
		return done, fmt.Errorf("%w: a fingerprint is text of at most 128 bytes", ErrInvalid)
	}
	if err := c.Actor.check(); err != nil && !c.DryRun {
		return done, err
	}
	ctx, cancel := context.WithTimeout(ctx, deadTimeout)
	defer cancel()
	s := o.survey(ctx)
	name, err := s.dead(c.Queue)
	if err != nil {
		return done, err
	}
	w := &deadWork{queue: name, command: c}
	if !c.DryRun {
		// The broker takes part in no transaction: the log says first what is about to happen, then what has.
		if err := o.log(ctx, s, w, action, "began", &done); err != nil {
			return done, err
		}
		if w.redrive = action == "dead.redrive"; w.redrive {
			w.target = strings.TrimSuffix(name, rabbitmq.DeadName(""))
		}
	}
	err = w.run(ctx, &o.broker)
	done.Matched, done.Changed = w.matched, w.changed
	if !c.DryRun {
		err = errors.Join(err, o.log(context.WithoutCancel(ctx), s, w, action, "ended", &done))
	}
	if err == nil && w.matched == 0 && len(c.Fingerprints) > 0 {
		err = fmt.Errorf("%w: %s holds none of these messages", ErrNotFound, name)
	}
	return done, err
}

func (o *Operator) log(ctx context.Context, s *scene, w *deadWork, action, stage string, done *DeadResult) error {
	detail := map[string]any{"queue": w.queue, "stage": stage, "changed": done.Changed, "limit": w.command.Limit, "fingerprints": w.command.Fingerprints[:min(len(w.command.Fingerprints), 100)]}
	ref, err := o.keeper(s, w.queue).log(ctx, w.command.Actor, action, detail)
	if err == nil {
		done.Audit = append(done.Audit, ref)
	}
	return err
}

// deadWork goes through a dead-letter queue, from its oldest message, and sends back each kind of message once.
type deadWork struct {
	queue, target    string
	command          DeadCommand
	redrive          bool
	matched, changed int
}

func (w *deadWork) run(ctx context.Context, b *broker) error {
	ch, done, err := b.alone(ctx)
	if err != nil {
		return err
	}
	defer done() // what is not acknowledged goes back
	if w.redrive {
		if err := ch.Confirm(false); err != nil {
			return fmt.Errorf("ask for confirms: %w", err)
		}
	}
	if err := w.through(ctx, ch); err != nil || w.changed == 0 || w.command.DryRun {
		return err
	}
	// Acknowledgements are not answered; what is answered behind them says that the broker has them.
	if _, err := ch.QueueDeclarePassive(w.queue, true, false, false, false, nil); err != nil {
		return fmt.Errorf("the last of %d messages of %s may not have left it: %w", w.changed, w.queue, err)
	}
	return nil
}

// through reads the queue and does to each message what is to be done.
func (w *deadWork) through(ctx context.Context, ch *amqp.Channel) error {
	returns := ch.NotifyReturn(make(chan amqp.Return, 1))
	sent := map[string]bool{} // what is sent back may be dead again at once, and is left then
	for read := 0; read < maxDead && w.matched < w.command.Limit; read++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		d, ok, err := ch.Get(w.queue, false)
		if err != nil {
			return fmt.Errorf("read queue %s: %w", w.queue, err)
		}
		if !ok {
			return nil
		}
		name := fingerprint(d)
		if len(w.command.Fingerprints) > 0 && !slices.Contains(w.command.Fingerprints, name) || sent[name] {
			continue
		}
		sent[name] = w.redrive
		w.matched++
		if w.command.DryRun {
			w.changed++
			continue
		}
		if w.redrive {
			if err := w.send(ctx, ch, returns, d); err != nil {
				return err
			}
		}
		if err := d.Ack(false); err != nil {
			return fmt.Errorf("acknowledge a message of %s: %w", w.queue, err)
		}
		w.changed++
	}
	return nil
}

// brokersOwn are the headers that the broker adds to what it dead-letters or delivers again.
var brokersOwn = []string{
	"x-death", "x-first-death-reason", "x-first-death-queue", "x-first-death-exchange",
	"x-last-death-reason", "x-last-death-queue", "x-last-death-exchange", "x-delivery-count", "x-acquired-count", "x-opt-deaths",
}

// send publishes a dead letter to its queue as it first came there, and waits until the queue has it.
func (w *deadWork) send(ctx context.Context, ch *amqp.Channel, returns <-chan amqp.Return, d amqp.Delivery) error {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	headers := amqp.Table{}
	for name, value := range d.Headers {
		if name != rabbitmq.HeaderMalformed && !slices.Contains(brokersOwn, name) {
			headers[name] = value
		}
	}
	confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", w.target, true, false, amqp.Publishing{
		Headers: headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: amqp.Persistent, CorrelationId: d.CorrelationId,
		ReplyTo: d.ReplyTo, MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, AppId: d.AppId, Body: d.Body,
	})
	if err != nil {
		return fmt.Errorf("publish to %s: %w", w.target, err)
	}
	taken, err := confirm.WaitContext(ctx)
	if err != nil {
		return fmt.Errorf("publish to %s: %w", w.target, err)
	}
	select {
	case <-returns:
		return fmt.Errorf("%w: there is no queue %s", ErrRefused, w.target)
	default:
	}
	if !taken {
		return fmt.Errorf("%w: %s takes no messages now: it is full, or its channel was closed", ErrRefused, w.target)
	}
	return nil
}
