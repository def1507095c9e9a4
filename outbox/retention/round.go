package retention

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	roundTimeout = 10 * time.Minute
	// tries is how often a lock is asked for in one round.
	tries = 5
	// batch and batches bound what one round deletes from the default partition.
	batch, batches = 5000, 200
)

// round is one pass over one schema.
type round struct {
	store  store
	ahead  int
	report Report
}

func once(ctx context.Context, cfg Config) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	s, err := open(ctx, cfg)
	if err != nil {
		return Report{}, err
	}
	defer s.close()
	r := &round{store: s, ahead: cfg.Ahead, report: Report{Postponed: map[string]string{}}}
	err = r.run(ctx)
	return r.report, err
}

func (r *round) run(ctx context.Context) error {
	mine, err := r.store.tryLock(ctx)
	if err != nil || !mine {
		r.report.Busy = err == nil
		return err
	}
	if err := r.store.mark(ctx); err != nil {
		return err
	}
	if err := r.make(ctx); err != nil {
		return err
	}
	if err := r.drop(ctx); err != nil {
		return err
	}
	if err := r.sweep(ctx); err != nil {
		return err
	}
	return r.store.state(ctx, &r.report)
}

func (r *round) make(ctx context.Context) error {
	missing, err := r.store.missing(ctx, r.ahead)
	if err != nil {
		return err
	}
	for _, day := range missing {
		ok, err := r.try(ctx, day, r.store.add)
		if err != nil {
			return err
		}
		if ok {
			r.report.Made = append(r.report.Made, day)
		}
	}
	return nil
}

// drop empties what is old and then drops it. Once the table could not be locked it is left alone: each try makes
// writers wait.
func (r *round) drop(ctx context.Context) error {
	old, err := r.store.old(ctx)
	if err != nil {
		return err
	}
	locked := true
	for _, day := range old {
		if r.store.schema == "outbox" {
			ok, err := r.try(ctx, day, r.store.empty)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			r.report.Emptied = append(r.report.Emptied, day)
		}
		if !locked {
			r.report.Postponed[day] = lockTaken
			continue
		}
		ok, err := r.try(ctx, day, r.store.drop)
		if err != nil {
			return err
		}
		if ok {
			r.report.Dropped = append(r.report.Dropped, day)
		}
		locked = r.report.Postponed[day] != lockTaken
	}
	return nil
}

func (r *round) sweep(ctx context.Context) error {
	for range batches {
		n, err := r.store.sweep(ctx, batch)
		r.report.Swept += n
		if err != nil || n < batch {
			return err
		}
	}
	return nil
}

const lockTaken = "its lock is taken"

// try does something to a day's partition, again after a pause when its lock cannot be had. It returns false when
// that is postponed.
func (r *round) try(ctx context.Context, day string, do func(ctx context.Context, day string) (reason string, err error)) (bool, error) {
	for n := 1; ; n++ {
		reason, err := do(ctx, day)
		switch {
		case err == nil && reason == "":
			return true, nil
		case err == nil:
			r.report.Postponed[day] = reason
			return false, nil
		case !contended(err):
			return false, err
		case n == tries:
			r.report.Postponed[day] = lockTaken
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(100*time.Millisecond + rand.N(200*time.Millisecond)):
		}
	}
}

// contended reports whether somebody else was in the way: nothing has happened, and it may work the next time.
func contended(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "55P03", // lock_not_available
		"40P01", // deadlock_detected
		"57014", // query_canceled: statement_timeout
		"23514": // check_violation: a row of that day has come into the default partition
		return true
	}
	return false
}
