package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/services/internal/loop"
)

// DefaultLook is the time between two looks for deadlines when Config names none.
const DefaultLook = time.Second

// Config of a Service.
type Config struct {
	// Pool connects as a role that is a member of saga_service, outbox_writer and inbox_consumer. Required.
	Pool *pgxpool.Pool
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Tokens say who may resume and compensate; nil for nobody.
	Tokens *admin.Tokens
	// Definitions are all versions that are known, the newest last. Default Definitions().
	Definitions []Definition
	// Look is the time between two looks for deadlines that have passed. Default DefaultLook.
	Look time.Duration
}

// Service is the coordinator.
type Service struct {
	pool     *pgxpool.Pool
	log      *slog.Logger
	tokens   *admin.Tokens
	known    map[int]Definition
	versions []int
	newest   Definition
	look     time.Duration
	gauges   gauges
}

// New makes a Service. It does not touch the database.
func New(cfg Config) (*Service, error) {
	if cfg.Pool == nil {
		return nil, errors.New("saga: config has no Pool")
	}
	if cfg.Definitions == nil {
		cfg.Definitions = Definitions()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Look <= 0 {
		cfg.Look = DefaultLook
	}
	s := &Service{pool: cfg.Pool, log: cfg.Logger, tokens: cfg.Tokens, known: map[int]Definition{}, look: cfg.Look, gauges: newGauges()}
	for _, d := range cfg.Definitions {
		if err := d.check(); err != nil {
			return nil, fmt.Errorf("saga: version %d: %w", d.Version, err)
		}
		if d.Version <= s.newest.Version {
			return nil, fmt.Errorf("saga: version %d comes after version %d", d.Version, s.newest.Version)
		}
		s.known[d.Version], s.versions, s.newest = d, append(s.versions, d.Version), d
	}
	if len(s.versions) == 0 {
		return nil, errors.New("saga: config has no Definitions")
	}
	return s, nil
}

// check finds what a definition cannot mean.
func (d Definition) check() error {
	names := map[string]bool{}
	for _, s := range d.all() {
		switch {
		case s.Name == "" || names[s.Name]:
			return fmt.Errorf("the name %q stands there twice, or is empty", s.Name)
		case s.After != "" && !names[s.After]:
			return fmt.Errorf("step %s comes after %s, which is no earlier one", s.Name, s.After)
		case s.Command == "" && len(s.Done) == 0:
			return fmt.Errorf("step %s has neither a command nor an answer", s.Name)
		case s.Undo != "" && (len(s.Over) == 0 || s.UndoWait.Timeout <= 0):
			return fmt.Errorf("the undoing of step %s has no answer, or no timeout", s.Name)
		case len(s.Done) > 0 && s.Wait.Timeout <= 0 && s.Wait.PastExpiry <= 0:
			return fmt.Errorf("step %s has no timeout", s.Name)
		}
		for _, typ := range []string{s.Command, s.Undo} {
			if _, ok := requests[typ]; !ok && typ != "" {
				return fmt.Errorf("step %s: nobody can make %s", s.Name, typ)
			}
		}
		names[s.Name] = true
	}
	if len(d.Steps) == 0 || d.Decision.Commit == "" || len(d.Decision.Undo) == 0 {
		return errors.New("it has no steps, or no decision")
	}
	if len(d.Notice.Done) > 0 || d.Notice.Undo != "" {
		return errors.New("the notice is waited for, or undone")
	}
	for _, a := range slices.AppendSeq([]Answer{{Type: d.Decision.Commit}}, maps.Keys(d.Decision.Undo)) {
		if _, ok := lookup(letters, a); !ok {
			return fmt.Errorf("nobody knows what to write of %s", a.Type)
		}
	}
	return nil
}

// errVersion says that an instance goes on under a definition that this build does not have. Its messages wait for one
// that has it.
var errVersion = errors.New("the definition's version is not known to this build")

const (
	stuck = "stuck"
	// heard, sent, timeout and operator are the kinds of history.
	kindHeard, kindSent, kindTimeout, kindOperator = "heard", "sent", "timeout", "operator"
)

// state is the instance's, as it is stored and shown.
func (i Instance) state() string {
	if i.Stuck() != "" {
		return stuck
	}
	return string(i.Phase)
}

// open gives the instance and its definition.
func (s *Service) open(r record) (d Definition, i Instance, err error) {
	d, ok := s.known[r.Version]
	if !ok {
		return d, i, fmt.Errorf("saga %s of version %d: %w", r.ID, r.Version, errVersion)
	}
	if err := json.Unmarshal(r.Body, &i); err != nil {
		return d, i, fmt.Errorf("read saga %s: %w", r.ID, err)
	}
	return d, i, nil
}

// apply makes the change that an event brings about, and the messages that it sends. The message's id is uuid.Nil for what
// came by none.
func (s *Service) apply(ctx context.Context, r record, e Event, kind string, message uuid.UUID, note string) (change, []outbox.Message, error) {
	d, i, err := s.open(r)
	if err != nil {
		return change{}, nil, err
	}
	after, commands, err := Next(d, i, e)
	if err != nil {
		return change{}, nil, fmt.Errorf("saga %s: %w", r.ID, err)
	}
	events := make([]outbox.Event, len(commands))
	for n, c := range commands {
		events[n] = requests[c.Type](after, e.At)
	}
	messages, err := outbox.Encode(ctx, events...)
	if err != nil {
		return change{}, nil, fmt.Errorf("saga %s: %w", r.ID, err)
	}
	c := change{ctx: ctx, record: r, was: r.State}
	if c.record.Body, err = json.Marshal(after); err != nil {
		return change{}, nil, fmt.Errorf("saga %s: %w", r.ID, err)
	}
	c.record.State, c.record.DueAt, c.record.UpdatedAt = after.state(), after.Due(), e.At
	told := entry{At: e.At, Kind: kind, Step: d.about(e.Answer), Type: e.Type, Note: note, State: after.state()}
	if e.Told != "" {
		told.Note = e.Told
	}
	if message != uuid.Nil {
		c.record.CausedBy, told.MessageID = message, &message
	}
	c.entries = append(c.entries, told)
	for n, command := range commands {
		sent := entry{At: e.At, Kind: kindSent, Step: command.Step, Type: command.Type, MessageID: &messages[n].ID, State: after.state()}
		if command.Try > 1 {
			sent.Note = fmt.Sprintf("request %d", command.Try)
		}
		c.entries = append(c.entries, sent)
	}
	return c, messages, nil
}

// tell logs how far an instance has come.
func (s *Service) tell(c change) {
	level := slog.LevelInfo
	if c.record.State == stuck {
		level = slog.LevelWarn
	}
	s.log.Log(c.ctx, level, "saga moved", "booking_id", c.record.ID.String(), "event_type", c.entries[0].Type, "was", c.was, "state", c.record.State)
}

// about is the first step that an answer is about, or empty.
func (d Definition) about(a Answer) string {
	for _, s := range slices.Concat(d.Steps, d.Finish) {
		_, refused := lookup(s.Refused, a)
		if refused || slices.Contains(s.Done, a.Type) || slices.Contains(s.Over, a.Type) {
			return s.Name
		}
	}
	if _, undo := lookup(d.Decision.Undo, a); undo || a.Type == d.Decision.Commit {
		return d.Decision.Name
	}
	return ""
}

// write stores changes and what they send.
func (s *Service) write(ctx context.Context, tx pgx.Tx, changes []change, messages []outbox.Message) error {
	if len(changes) == 0 {
		return nil
	}
	if err := updateAll(ctx, tx, changes); err != nil {
		return fmt.Errorf("update %d sagas: %w", len(changes), err)
	}
	if err := appendAll(ctx, tx, changes); err != nil {
		return fmt.Errorf("write the history of %d sagas: %w", len(changes), err)
	}
	for _, c := range changes {
		s.tell(c)
	}
	return outbox.Write(ctx, tx, messages...)
}

// flow is the context of what an instance does without a message: it belongs to the booking's flow, and what was heard last
// caused it.
func (r record) flow(ctx context.Context) context.Context {
	return outbox.WithCausality(ctx, outbox.Causality{CorrelationID: r.CorrelationID, CausationID: r.CausedBy.String(), TraceParent: r.TraceParent})
}

const (
	// batchOfDue is how many deadlines share a transaction.
	batchOfDue = 50
	dueTimeout = 30 * time.Second
)

// Run looks for deadlines that have passed until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	loop.Run(ctx, loop.Config{Name: "saga deadlines", Logger: s.log, Idle: s.look, Step: s.expireDue})
	return nil
}

// expireDue tells instances that their time is up, and returns how many it took. One that fails is put off, longer each time, and
// holds up no other.
func (s *Service) expireDue(ctx context.Context) (int, error) {
	return loop.Due{Do: s.expire, List: s.due, PutOff: s.putOff}.Step(ctx)
}

func (s *Service) due(ctx context.Context) ([]uuid.UUID, error) {
	ctx, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	return dueInstances(ctx, s.pool, s.versions, batchOfDue)
}

func (s *Service) putOff(ctx context.Context, id uuid.UUID, cause error) error {
	s.log.ErrorContext(ctx, "a saga that is due does not go on and is put off", "booking_id", id.String(), "error", cause)
	ctx, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	if _, err := s.pool.Exec(ctx, putOffDeadline, id); err != nil {
		return fmt.Errorf("put off the deadline of saga %s: %w", id, err)
	}
	return nil
}

// expire tells one instance that its time is up, if it is, or some, in one transaction, and returns how many.
func (s *Service) expire(ctx context.Context, which uuid.NullUUID) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	err = outbox.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		late, err := lockDue(ctx, tx, s.versions, which, batchOfDue)
		if err != nil {
			return fmt.Errorf("look for deadlines: %w", err)
		}
		var (
			changes  []change
			messages []outbox.Message
		)
		for _, r := range late {
			c, m, err := s.apply(r.flow(ctx), r, Event{Answer: Answer{Type: Timeout}, At: r.Now}, kindTimeout, uuid.Nil, "")
			if err != nil {
				return err
			}
			changes, messages = append(changes, c), append(messages, m...)
		}
		n = len(changes)
		return s.write(ctx, tx, changes, messages)
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}
