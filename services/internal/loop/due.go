package loop

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
)

// Due does what is due: rows of a table whose time has come.
type Due struct {
	// Do does it for the row named, if it is due, or else for some together, in one transaction, and returns for how many.
	Do func(ctx context.Context, which uuid.NullUUID) (n int, err error)
	// List names some that are due.
	List func(ctx context.Context) ([]uuid.UUID, error)
	// PutOff lets a row wait for which it failed, longer each time.
	PutOff func(ctx context.Context, id uuid.UUID, cause error) error
}

// Step is a loop's step. Where some fail together each is done by itself, and what fails then is put off: it holds up no other.
// It returns how many it took. One whose time runs out is put off and ends the step: somebody may have locked the table. The
// error of those together is returned where none of them has one by itself.
func (d Due) Step(ctx context.Context) (n int, err error) {
	n, together := d.Do(ctx, uuid.NullUUID{})
	if together == nil || ctx.Err() != nil {
		return n, together
	}
	due, err := d.List(ctx)
	if err != nil {
		return 0, errors.Join(together, err)
	}
	n = 0
	for _, id := range due {
		one, err := d.Do(ctx, uuid.NullUUID{UUID: id, Valid: true})
		if ctx.Err() != nil {
			return n + one, nil
		}
		n += one
		if err == nil {
			continue
		}
		n, together = n+1, nil
		if err := errors.Join(timeOut(err), d.PutOff(ctx, id, err)); err != nil {
			return n, err
		}
	}
	return n, together
}

// NextTry is the SQL of when a row is tried again, by the column that counts its failures so far: after up to a second, twice as
// long each time, up to five minutes, with jitter of half.
func NextTry(failures string) string {
	return `clock_timestamp() + least(power(2, least(` + failures + `, 20)), 300) * (0.5 + random() / 2) * interval '1 second'`
}

// timeOut is the error if it says that the time ran out.
func timeOut(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// NewOverdue makes the gauge of what is due and not done, which is the same for every service. It is a vector so that it can
// show nothing.
func NewOverdue() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "ticketwave_deadline_overdue_seconds", Help: "For how long the first deadline that was not kept has been past.",
	}, nil)
}
