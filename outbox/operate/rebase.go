package operate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jcp/ticketwave/outbox"
)

// rebaseTimeout bounds a rebase, which writes every row of the outbox again.
const rebaseTimeout = 30 * time.Minute

// RebaseCommand makes the cursors of a database fit the server that answers.
type RebaseCommand struct {
	Database string
	// Keep says that transaction ids go on, as after pg_upgrade: the identity alone is replaced.
	Keep bool
	// Force does it although the cursors fit.
	Force  bool
	DryRun bool
	Actor  Actor
}

// Rebased says what a rebase found: messages that count as relayed, and those that will be relayed.
type Rebased struct {
	DryRun  bool      `json:"dryRun"`
	Relayed int64     `json:"relayed"`
	Pending int64     `json:"pending"`
	Audit   *AuditRef `json:"audit,omitempty"`
}

// Rebase is for after a restore or a failover, when the relay refuses to run because the cursor belongs to another
// cluster, database or timeline. What was relayed before counts as relayed, everything else is relayed again. It keeps
// writers waiting while it works, and takes effect whole or not at all. It is ErrRefused where the cursor fits, unless
// forced, and on a standby, and ErrBusy when writers could not be locked out within 10 s.
func (o *Operator) Rebase(ctx context.Context, c RebaseCommand) (Rebased, error) {
	done := Rebased{DryRun: c.DryRun}
	if err := c.Actor.check(); err != nil && !c.DryRun {
		return done, err
	}
	d, err := o.named(c.Database)
	if err != nil {
		return done, err
	}
	ctx, cancel := context.WithTimeout(ctx, rebaseTimeout)
	defer cancel()
	var audit *int64
	err = outbox.InTx(ctx, d.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`, rebaseTimeout.Milliseconds())); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT relayed, pending, audit_id FROM outbox.rebase($1, $2, $3, $4, $5)`,
			c.Keep, c.Force, c.DryRun, c.Actor.Name, c.Actor.Reason).Scan(&done.Relayed, &done.Pending, &audit)
	})
	if audit != nil {
		done.Audit = &AuditRef{Database: d.name, ID: *audit}
	}
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return done, nil
	case !errors.As(err, &pg):
	case pg.Code == "55000": // object_not_in_prerequisite_state
		text := pg.Message
		if strings.HasSuffix(text, "nothing to rebase") {
			text += " (force does it all the same)"
		}
		return done, fmt.Errorf("%w: %s", ErrRefused, text)
	case pg.Code == "55P03": // lock_not_available
		return done, fmt.Errorf("%w: writers could not be locked out within 10 s: see which transactions are open and try again", ErrBusy)
	case pg.Code == "40P01": // deadlock_detected
		return done, fmt.Errorf("%w: other transactions were in the way: try again", ErrBusy)
	}
	return done, d.failed("rebase", err)
}
