package payment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// Kinds of tasks.
const (
	taskOpen   = "open"
	taskClose  = "close"
	taskRefund = "refund"
)

const (
	tasksAtOnce  = 16
	claimTimeout = 10 * time.Second
	callTimeout  = 20 * time.Second
	taskLease    = 45 * time.Second // more than a call and its record may take
	againMin     = 250 * time.Millisecond
	againMax     = 5 * time.Minute
	// manyAttempts are more than what passes by itself takes.
	manyAttempts = 6
)

// maxAttempts ends the trying, after some hours; of refunds, which are owed, after a week.
var maxAttempts = map[string]int{taskOpen: 60, taskClose: 60, taskRefund: 2000}

// newTask is a task to be stored, and the flow of what asked for it.
type newTask struct {
	payment uuid.UUID
	kind    string
	charge  string
	flow    outbox.Causality
}

// addTasks stores tasks that are not there yet, and wakes the loop. A task that was refused is tried anew under another key.
func (s *Service) addTasks(ctx context.Context, tx pgx.Tx, tasks ...newTask) error {
	if len(tasks) == 0 {
		return nil
	}
	inserts := &pgx.Batch{}
	for _, t := range tasks {
		id, err := uuid.NewV7()
		if err != nil {
			return err
		}
		inserts.Queue(`
		INSERT INTO payment.tasks (id, payment_id, kind, charge, correlation_id, causation_id, trace_parent)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (payment_id, kind, charge) DO UPDATE
		   SET state = 'due', attempts = 0, round = payment.tasks.round + 1, next_at = clock_timestamp()
		 WHERE payment.tasks.state = 'refused'`, id, t.payment, t.kind, t.charge, t.flow.CorrelationID, t.flow.CausationID, t.flow.TraceParent)
	}
	if err := tx.SendBatch(ctx, inserts).Close(); err != nil {
		return fmt.Errorf("store %d tasks: %w", len(tasks), err)
	}
	s.tasks.Ring() // before the commit: the loop looks again
	return nil
}

// task is something to be done at the gateway.
type task struct {
	ID            uuid.UUID `db:"id"`
	PaymentID     uuid.UUID `db:"payment_id"`
	Kind          string    `db:"kind"`
	Charge        string    `db:"charge"`
	Attempts      int       `db:"attempts"`
	Round         int       `db:"round"`
	CreatedAt     time.Time `db:"created_at"`
	CorrelationID string    `db:"correlation_id"`
	CausationID   string    `db:"causation_id"`
	TraceParent   string    `db:"trace_parent"`
}

// key is the gateway's idempotency key.
func (t task) key() string {
	if t.Round == 0 {
		return t.ID.String()
	}
	return fmt.Sprintf("%s-%d", t.ID, t.Round)
}

func (t task) causality() outbox.Causality {
	return outbox.Causality{CorrelationID: t.CorrelationID, CausationID: t.CausationID, TraceParent: t.TraceParent}
}

// claimTasks takes tasks that are due and puts them off for the time that doing them may take: who dies loses them by itself.
func claimTasks(ctx context.Context, db querier, most int, lease time.Duration) ([]task, error) {
	rows, err := db.Query(ctx, `
		UPDATE payment.tasks AS t
		   SET attempts = t.attempts + 1, next_at = clock_timestamp() + $2::float8 * interval '1 second'
		  FROM (SELECT id FROM payment.tasks WHERE state = 'due' AND next_at <= clock_timestamp()
		         ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED) AS due
		 WHERE t.id = due.id
		RETURNING t.id, t.payment_id, t.kind, t.charge, t.attempts, t.round, t.created_at, t.correlation_id, t.causation_id, t.trace_parent`,
		most, lease.Seconds())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[task])
}

// finish ends a task, and reports whether it was still due.
func finish(ctx context.Context, tx pgx.Tx, id uuid.UUID, state, cause string) (bool, error) {
	tag, err := tx.Exec(ctx, `UPDATE payment.tasks SET state = $2, error = nullif($3, '') WHERE id = $1 AND state = 'due'`, id, state, cause)
	return tag.RowsAffected() == 1, err
}

// Work does the tasks that are due, some at once, and returns how many it took when they are done.
func (s *Service) Work(ctx context.Context) (n int, err error) {
	var doing sync.WaitGroup
	defer doing.Wait()
	return s.begin(ctx, &doing)
}

// begin begins tasks that are due, as many as there is room for, and returns how many. It waits for room, and for no task's end:
// a slow call holds up no other. Whoever dies meanwhile leaves them to be done again, under the same keys.
func (s *Service) begin(ctx context.Context, doing *sync.WaitGroup) (n int, err error) {
	room := s.takeRoom(ctx)
	defer func() { s.leaveRoom(room - n) }()
	if room == 0 {
		return 0, nil
	}
	until := time.Now().Add(taskLease)
	ctx = context.WithoutCancel(ctx)
	claiming, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	due, err := claimTasks(claiming, s.pool, room, taskLease)
	if err != nil {
		return 0, fmt.Errorf("claim tasks: %w", err)
	}
	for _, t := range due {
		doing.Go(func() {
			defer s.leaveRoom(1)
			ctx, cancel := context.WithDeadline(outbox.WithCausality(ctx, t.causality()), until)
			defer cancel()
			s.do(ctx, t)
		})
	}
	return len(due), nil
}

// takeRoom takes all the room that there is for tasks, at least for one; none when ctx ends first.
func (s *Service) takeRoom(ctx context.Context) (n int) {
	select {
	case <-ctx.Done():
		return 0
	case s.room <- struct{}{}:
	}
	for n = 1; ; n++ {
		select {
		case s.room <- struct{}{}:
		default:
			return n
		}
	}
}

func (s *Service) leaveRoom(n int) {
	for range n {
		<-s.room
	}
}

// do makes one call and records its outcome. What fails, the reading and the record too, is the task's own trouble: it is put off,
// or given up. A refund is owed, and asked for again when it is refused.
func (s *Service) do(ctx context.Context, t task) {
	log := s.log.With("task", t.Kind, "payment_id", t.PaymentID.String(), "attempts", t.Attempts)
	record, err := s.call(ctx, t)
	refused := errors.Is(err, gateway.ErrRefused)
	if err == nil {
		err = s.inTask(ctx, t, "done", "", record)
	}
	if err != nil && (refused && t.Kind != taskRefund || t.Attempts >= maxAttempts[t.Kind]) {
		log.ErrorContext(ctx, "a gateway task is given up", "error", err)
		err = s.inTask(ctx, t, "refused", gateway.Clip(err.Error()), s.refused(ctx, t))
	}
	if err == nil {
		return
	}
	level := slog.LevelWarn
	if refused || t.Attempts >= manyAttempts {
		level = slog.LevelError
	}
	log.Log(ctx, level, "a gateway task is put off", "error", err)
	if err := s.putOff(ctx, t, err); err != nil {
		log.ErrorContext(ctx, "a gateway task waits for the end of its claim", "error", err)
	}
}

// recorder changes a payment, which is locked, after a task was done.
type recorder func(tx pgx.Tx, p Payment) error

// call asks the gateway, outside any transaction, and returns what is then to be recorded.
func (s *Service) call(ctx context.Context, t task) (recorder, error) {
	p, err := paymentByID(ctx, s.pool, t.PaymentID)
	if err != nil {
		return nil, fmt.Errorf("read the payment: %w", err)
	}
	g, ok := s.gateways[p.Gateway]
	if !ok {
		return nil, fmt.Errorf("gateway %s is not configured", p.Gateway)
	}
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	switch t.Kind {
	case taskOpen:
		if p.Status != Preparing && t.Attempts == 1 { // it has ended, and nobody has called yet
			return func(pgx.Tx, Payment) error { return nil }, nil
		}
		c := p.checkout()
		c.Key, c.AskedAt = t.key(), t.CreatedAt
		session, err := g.Open(calling, c)
		if err == nil && (session.Ref == "" || len(session.Ref) > 255 || session.URL == "" || len(session.URL) > contracts.MaxURL) {
			err = fmt.Errorf("%w: it opened a session without a usable name and URL", gateway.ErrRefused)
		}
		return s.recordOpen(ctx, session), err
	case taskClose:
		return func(pgx.Tx, Payment) error { return nil }, g.Close(calling, *p.Session)
	}
	all, err := charges(ctx, s.pool, p.ID)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.Reference == t.Charge {
			reference, err := g.Refund(calling, gateway.Refund{Key: t.key(), Charge: c.Reference, Amount: c.Amount, Currency: c.Currency})
			return s.recordRefund(ctx, c, reference), err
		}
	}
	return nil, fmt.Errorf("%w: charge %s is not in the books", gateway.ErrRefused, t.Charge)
}

// checkout is a payment as its gateway sees it.
func (p Payment) checkout() gateway.Checkout {
	return gateway.Checkout{
		Key: p.ID.String(), PaymentID: p.ID, BookingID: p.BookingID, Amount: p.Amount, Currency: p.Currency,
		AskedAt: p.PreparedAt, ExpiresAt: p.ExpiresAt,
	}
}

// inTask ends a task that is still due, and records what came of it with it.
func (s *Service) inTask(ctx context.Context, t task, state, cause string, record recorder) error {
	return outbox.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		p, err := lockPayment(ctx, tx, t.PaymentID)
		if err != nil {
			return err
		}
		first, err := finish(ctx, tx, t.ID, state, cause)
		if err != nil || !first {
			return err
		}
		return record(tx, p)
	})
}

// recordOpen stores the session. Where the payment has ended meanwhile, nobody is told and the session is closed.
func (s *Service) recordOpen(ctx context.Context, session gateway.Session) recorder {
	return func(tx pgx.Tx, p Payment) error {
		before := p.Status
		p, prepared, err := opened(ctx, tx, p.ID, session)
		switch {
		case err != nil:
			return err
		case prepared && before == Preparing:
			return s.tell(ctx, tx, p)
		case prepared || p.Status == Completed || p.Status == Refunded:
			return nil
		}
		return s.addTasks(ctx, tx, newTask{p.ID, taskClose, "", outbox.CausalityFrom(ctx)})
	}
}

// recordRefund enters the refund, and tells when nothing is left that was captured.
func (s *Service) recordRefund(ctx context.Context, c charge, reference string) recorder {
	return func(tx pgx.Tx, p Payment) error {
		if err := giveBack(ctx, tx, p, c.Reference, reference); err != nil {
			return err
		}
		s.log.InfoContext(ctx, logGivenBack, "booking_id", p.BookingID.String(), "payment_id", p.ID.String(), "amount", c.Amount.String(), "currency", c.Currency)
		all, err := charges(ctx, tx, p.ID)
		if err != nil {
			return err
		}
		event, done := p.refunded(all)
		if !done {
			return nil
		}
		if _, _, err := move(ctx, tx, p.ID, Completed, Refunded, ""); err != nil {
			return err
		}
		return s.publish(ctx, tx, event)
	}
}

// refused ends a payment that could not be opened.
func (s *Service) refused(ctx context.Context, t task) recorder {
	return func(tx pgx.Tx, p Payment) error {
		if t.Kind != taskOpen {
			return nil
		}
		p, ended, err := move(ctx, tx, p.ID, Preparing, Unavailable, string(contracts.PreparationRefused))
		if err != nil || !ended {
			return err
		}
		return s.tell(ctx, tx, p)
	}
}

// putOff lets a task wait, longer each time. A key under which the gateway has refused is spent like one under which it failed for good.
func (s *Service) putOff(ctx context.Context, t task, cause error) error {
	pause := min(againMin<<min(t.Attempts-1, 20), againMax)
	round := t.Round
	if errors.Is(cause, gateway.ErrKeySpent) || errors.Is(cause, gateway.ErrRefused) {
		round++
	}
	_, err := s.pool.Exec(ctx, `
		UPDATE payment.tasks SET error = $2, round = $3, next_at = clock_timestamp() + $4::float8 * interval '1 second'
		WHERE id = $1 AND state = 'due' AND round <= $3`, t.ID, gateway.Clip(cause.Error()), round, (pause/2 + rand.N(pause/2)).Seconds())
	return err
}
