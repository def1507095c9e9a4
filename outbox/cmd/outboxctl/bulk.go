package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

const (
	pieceSize  = 1000 // messages of one request
	pieceTries = 6    // of one request while the API is busy or away
	pieceWait  = 10 * time.Second
	mostLeft   = 1000 // messages that are told one by one
	shownLeft  = 100
)

// bulk is a verb over stuck messages. It is done in pieces, for each of which the API has time, and tells how far it is.
// Ctrl-C ends it behind the piece that is under way, so that what was done is known; a second one ends it at once.
type bulk struct {
	*app
	past  string // replayed, for example
	body  api.Command
	limit int // 0 is none
	send  func(ctx context.Context, c *api.Client, dry bool, body api.Command) (*http.Response, error)
}

// run does all pieces, and sums up their results.
func (b *bulk) run(ctx context.Context, dry bool) (api.Result, error) {
	sum := api.Result{DryRun: dry, Left: []api.Left{}, AuditIds: []api.AuditRef{}}
	body := b.body
	body.Reason = b.because(dry)
	progress := &bar{a: b.app}
	defer progress.end()
	for {
		if body.Limit = pieceSize; b.limit > 0 {
			body.Limit = min(pieceSize, b.limit-sum.Matched)
		}
		r, err := b.piece(ctx, dry, body, sum.Matched > 0)
		if err != nil {
			return sum, b.stopped(sum, body.After, err)
		}
		total := b.add(&sum, r)
		switch {
		case !r.More || len(r.Warnings) > 0 || b.limit > 0 && sum.Matched >= b.limit:
			return sum, nil
		case ctx.Err() != nil:
			return sum, b.stopped(sum, r.Next, errors.New("interrupted"))
		}
		progress.draw(int64(sum.Matched), total)
		body.After = r.Next
	}
}

// add adds a piece, and says how many there are in all, as far as it is known.
func (b *bulk) add(sum *api.Result, r api.Result) (total int64) {
	sum.Matched, sum.Changed = sum.Matched+r.Matched, sum.Changed+r.Changed
	sum.Left = append(sum.Left, r.Left[:min(len(r.Left), mostLeft-len(sum.Left))]...)
	sum.AuditIds = append(sum.AuditIds, r.AuditIds...)
	sum.More, sum.Next, sum.Warnings = r.More, r.Next, r.Warnings
	if r.Total > 0 {
		sum.Total = r.Total
	}
	if b.limit > 0 {
		return int64(min(b.limit, sum.Total))
	}
	return int64(sum.Total)
}

// piece asks for one piece, again with growing pauses while the API says that it is busy; once something has been done,
// also while it does not answer. A piece that is done twice does no harm.
func (b *bulk) piece(ctx context.Context, dry bool, body api.Command, begun bool) (api.Result, error) {
	asking := ctx
	if !dry {
		asking = context.WithoutCancel(ctx)
	}
	pause := 500 * time.Millisecond
	for try := 1; ; try++ {
		r, err := call[api.Result](asking, b.app, func(ctx context.Context, c *api.Client) (*http.Response, error) { return b.send(ctx, c, dry, body) })
		var usage *usageError
		var told *apiError
		again := errors.As(err, &told) && told.busy() || told == nil && begun && !errors.As(err, &usage)
		if err == nil || !again || try == pieceTries {
			return r, err
		}
		wait := pause/2 + rand.N(pause)
		if told != nil {
			wait = min(max(wait, told.retryAfter), pieceWait)
		}
		pause = min(2*pause, pieceWait)
		select {
		case <-ctx.Done():
			return r, err
		case <-time.After(wait):
		}
	}
}

// stopped says what was done before an error, and how to go on.
func (b *bulk) stopped(sum api.Result, after string, err error) error {
	if sum.Matched == 0 {
		return err
	}
	if sum.DryRun {
		return fmt.Errorf("%w, after %s; nothing was done", err, plural(int64(sum.Matched), "message", "messages"))
	}
	of := ""
	if sum.Total > 0 {
		of = fmt.Sprintf(" of %d", sum.Total)
	}
	return fmt.Errorf("%w, after %d%s, %d of which were %s; to go on, say the same with --after %s", err, sum.Matched, of, sum.Changed, b.past, after)
}
