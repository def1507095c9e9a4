package inbox

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
)

// retryBatch and retryTime bound how many stuck messages are tried, and for how long, before the queue has its turn.
const (
	retryBatch = 20
	retryTime  = time.Second
)

// retryDue tries the stuck heads of the partition whose time has come, and goes on with the followers of those
// that it frees. It returns true when a bound ended it and not the want of work.
func (w *worker) retryDue(ctx context.Context) (more bool) {
	if err := w.revive(ctx); err != nil {
		w.undecided(ctx, err)
		return false
	}
	start := time.Now()
	for tried := 0; tried < retryBatch; {
		heads, err := w.dueHeads(ctx, w.partition, retryBatch-tried)
		if err != nil {
			w.undecided(ctx, err)
			return false
		}
		w.blind = false
		if len(heads) == 0 {
			return false
		}
		for _, h := range heads {
			if ctx.Err() != nil || tried > 0 && time.Since(start) > retryTime {
				return true
			}
			tried++
			if err := w.retry(context.WithoutCancel(ctx), h); err != nil {
				w.undecided(ctx, err)
				return false
			}
		}
	}
	return true
}

// revive gives what another build could not read a fresh start with this one, when the lease begins and then every
// RetryMax.
func (w *worker) revive(ctx context.Context) error {
	if !w.revived.IsZero() && time.Since(w.revived) < w.cfg.RetryMax {
		return nil
	}
	n, err := w.unparkReadable(ctx, w.partition)
	if err != nil {
		return err
	}
	w.revived = time.Now()
	if n > 0 {
		w.log.Info("messages that another build could not read are tried again", "messages", n, "build", w.cfg.Build)
	}
	return nil
}

// undecided says, once until it goes again, that the next look must try again.
func (w *worker) undecided(ctx context.Context, err error) {
	if ctx.Err() == nil && !w.blind {
		w.log.Warn("stuck messages not retried", "error", err)
		w.blind = true
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
	ctx, cancel := w.limited(withMeta(ctx, d.meta))
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
	ctx, cancel := w.limited(context.WithoutCancel(ctx))
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
