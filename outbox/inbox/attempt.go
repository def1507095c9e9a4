package inbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/internal/failpoint"
)

// handle decides about one message from the queue: done, duplicate, or stuck. An error means undecided: the
// database is away.
func (w *worker) handle(ctx context.Context, d delivery) error {
	ctx = withMeta(ctx, d.meta)
	for try := 1; ; try++ {
		start := time.Now()
		result, began, err := w.attempt(ctx, d)
		switch {
		case err == nil:
			w.observe(d, result, try-1, time.Since(start), nil)
			return nil
		case !began:
			return err
		case try >= w.cfg.Tries || !quick(err):
			// When it was the database after all, this cannot be stored and nothing is counted.
			return w.fail(ctx, d, try, time.Since(start), err)
		}
		w.observe(d, Retried, try, time.Since(start), err)
		pause := 10 * time.Millisecond << (2 * try)
		select {
		case <-ctx.Done():
			return fmt.Errorf("interrupted: %w", err)
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// attempt is one transaction: inbox row, handler, or diversion behind earlier messages of the key.
func (w *worker) attempt(ctx context.Context, d delivery) (result Result, began bool, err error) {
	ctx, cancel := w.limited(ctx)
	defer cancel()
	err = outbox.InTx(ctx, w.cfg.Pool, func(tx pgx.Tx) (err error) {
		began = true
		result, err = w.inTx(ctx, tx, d)
		failpoint.Hit("inbox.before-commit")
		return err
	})
	return result, began, err
}

func (w *worker) inTx(ctx context.Context, tx pgx.Tx, d delivery) (Result, error) {
	first, behind, err := open(ctx, tx, w.cfg.Name, d.meta)
	switch {
	case err != nil:
		return "", err
	case !first:
		return Duplicate, nil
	case !behind:
		return Handled, w.call(ctx, tx, d)
	}
	// Look again under the lock: what it waits behind may have been released meanwhile.
	if err := lockKey(ctx, tx, w.cfg.Name, d.meta.Key); err != nil {
		return "", err
	}
	if behind, err = waits(ctx, tx, w.cfg.Name, d.meta.Key); err != nil {
		return "", err
	}
	if !behind {
		return Handled, w.call(ctx, tx, d)
	}
	return Diverted, divert(ctx, tx, w.cfg.Name, w.partition, d, nil)
}

// call runs the handler of the messages' one type; a panic is its error.
func (w *worker) call(ctx context.Context, tx pgx.Tx, messages ...delivery) (err error) {
	typ := messages[0].meta.Type
	h, ok := w.handlers[typ]
	if !ok {
		return fmt.Errorf("%w: %q", errUnknownType, typ)
	}
	defer recovered(withMeta(ctx, messages[0].meta), w.Consumer, &err)
	if err = h.call(ctx, tx, messages); err != nil {
		_ = err.Error() // one that panics is the handler's panic too
	}
	return err
}

// fail stores the message as stuck, unless somebody else has decided about it meanwhile.
func (w *worker) fail(ctx context.Context, d delivery, tries int, took time.Duration, cause error) error {
	f := w.failure(tries, cause)
	ctx, cancel := w.limited(ctx)
	defer cancel()
	stored := false
	err := outbox.InTx(ctx, w.cfg.Pool, func(tx pgx.Tx) (err error) {
		if err := lockKey(ctx, tx, w.cfg.Name, d.meta.Key); err != nil {
			return err
		}
		if stored, err = Once(ctx, tx, w.cfg.Name, d.meta.ID); err != nil || !stored {
			return err
		}
		return divert(ctx, tx, w.cfg.Name, w.partition, d, &f)
	})
	if err != nil {
		return err
	}
	if !stored {
		w.observe(d, Duplicate, tries, took, nil)
		return nil
	}
	w.observe(d, f.result(), tries, took, cause)
	return nil
}

// failure is what is stored about the nth failure of a message.
func (w *worker) failure(attempts int, cause error) failure {
	class := classOf(cause)
	pause := min(w.cfg.RetryMin<<min(attempts-1, 20), w.cfg.RetryMax)
	if pause <= 0 {
		pause = w.cfg.RetryMax
	}
	return failure{
		attempts: attempts, class: class, text: clip(cause.Error(), 2000), fingerprint: fingerprint(cause), build: w.cfg.Build,
		parked: class == classPermanent || class == classTooOld || attempts >= w.cfg.MaxAttempts,
		pause:  pause/2 + rand.N(pause/2+1),
	}
}

func (f failure) result() Result {
	if f.parked {
		return Parked
	}
	return Stuck
}

// observe tells what became of the message: once per message in the log, always to Observe.
func (w *worker) observe(d delivery, result Result, attempts int, took time.Duration, cause error) {
	w.cfg.Observe(Outcome{
		Consumer: w.cfg.Name, Partition: w.partition, Meta: d.meta, Result: result, Attempts: attempts, Took: took, Err: cause,
	})
	ctx := withMeta(context.Background(), d.meta)
	switch result {
	case Stuck, Parked:
		w.log.ErrorContext(ctx, "message "+string(result), "message_id", d.meta.ID, "event_type", d.meta.Type, "key", d.meta.Key,
			"attempts", attempts, "error", cause)
	case Diverted:
		w.log.WarnContext(ctx, "message waits behind a stuck one of its key", "message_id", d.meta.ID, "event_type", d.meta.Type, "key", d.meta.Key)
	case Handled, Duplicate, Retried, Dead, Held:
	}
}
