package inbox

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
)

// retryBatch bounds how many stuck messages are tried before the queue gets its turn again.
const retryBatch = 20

// retryDue tries the stuck heads of the partition whose time has come, and goes on with the followers of those
// that it frees, until the batch is used up. What it does not reach waits for the next look.
func (w *worker) retryDue(ctx context.Context) {
	for tried := 0; tried < retryBatch && ctx.Err() == nil; {
		heads, err := w.dueHeads(ctx, w.partition, retryBatch-tried)
		if err != nil {
			w.undecided(ctx, err)
			return
		}
		if len(heads) == 0 {
			return
		}
		for _, h := range heads {
			if ctx.Err() != nil {
				return
			}
			tried++
			if err := w.retry(context.WithoutCancel(ctx), h); err != nil {
				w.undecided(ctx, err)
				return
			}
		}
	}
}

// undecided says that the next look must try again.
func (w *worker) undecided(ctx context.Context, err error) {
	if ctx.Err() == nil {
		w.log.Warn("stuck messages not retried", "error", err)
	}
}

// errGone says that the head is no longer what it was: released, parked or skipped by somebody else.
var errGone = errors.New("no longer the head of its key")

// retry calls the handler for the head of a key in a transaction that also releases it.
func (w *worker) retry(ctx context.Context, h head) error {
	d, err := newDelivery(h.MessageID.String(), h.Type, h.Key, h.Payload, h.Headers)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(withMeta(ctx, d.meta), w.cfg.Timeout)
	defer cancel()
	start, began := time.Now(), false
	err = outbox.InTx(ctx, w.cfg.Pool, func(tx pgx.Tx) error {
		began = true
		return w.retryInTx(ctx, tx, &d, &h)
	})
	switch {
	case err == nil:
		w.observe(d, Handled, h.Attempts, time.Since(start), nil)
		return nil
	case errors.Is(err, errGone):
		return nil
	case !began:
		return err
	}
	return w.failAgain(ctx, d, h, time.Since(start), err)
}

// retryInTx brings d and h up to date, and handles them.
func (w *worker) retryInTx(ctx context.Context, tx pgx.Tx, d *delivery, h *head) error {
	if err := lockKey(ctx, tx, w.cfg.Name, h.Key); err != nil {
		return err
	}
	if err := claim(ctx, tx, w.cfg.Name, h); err != nil {
		return err
	}
	now, err := newDelivery(h.MessageID.String(), h.Type, h.Key, h.Payload, h.Headers)
	if err != nil {
		return err
	}
	*d = now
	if err := w.call(ctx, tx, now); err != nil {
		return err
	}
	return release(ctx, tx, w.cfg.Name, *h)
}

// failAgain notes one more failure, if the message is still stuck.
func (w *worker) failAgain(ctx context.Context, d delivery, h head, took time.Duration, cause error) error {
	f := w.failure(h.Attempts+1, cause)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.cfg.Timeout)
	defer cancel()
	noted := false
	err := outbox.InTx(ctx, w.cfg.Pool, func(tx pgx.Tx) (err error) {
		if err := lockKey(ctx, tx, w.cfg.Name, h.Key); err != nil {
			return err
		}
		noted, err = recordFailure(ctx, tx, w.cfg.Name, h.MessageID, h.Attempts, f)
		return err
	})
	if err == nil && noted {
		w.observe(d, f.result(), f.attempts, took, cause)
	}
	return err
}
