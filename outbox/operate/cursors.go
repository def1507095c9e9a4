package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// identity is what transaction ids are relative to.
type identity struct {
	System     string
	Database   int64
	Timeline   string
	InRecovery bool
}

func (i identity) String() string {
	return fmt.Sprintf("system %s, database %d, timeline %s", i.System, i.Database, i.Timeline)
}

// identities are the one that the cursor belongs to, nil before the first relay, and that of the server that answers.
func (d *database) identities(ctx context.Context) (stored *identity, now identity, err error) {
	err = d.pool.QueryRow(ctx, `
		SELECT system_identifier, database_oid::bigint, timeline, in_recovery FROM outbox.current_identity()`,
	).Scan(&now.System, &now.Database, &now.Timeline, &now.InRecovery)
	if err != nil {
		return nil, now, d.failed("read the server's identity", err)
	}
	var known identity
	err = d.pool.QueryRow(ctx, `SELECT system_identifier, database_oid::bigint, timeline FROM outbox.identity`).Scan(&known.System, &known.Database, &known.Timeline)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, now, nil
	}
	if err != nil {
		return nil, now, d.failed("read the cursor's identity", err)
	}
	return &known, now, nil
}

// fits reports whether transaction ids of the stored identity mean something now.
func fits(stored *identity, now identity) bool {
	return stored == nil || now.InRecovery || stored.System == now.System && stored.Database == now.Database && stored.Timeline == now.Timeline
}

// Cursors are the cursors of all partitions of a database's outbox, or of all outboxes. Databases that do not answer are
// an error beside the rest.
func (o *Operator) Cursors(ctx context.Context, database string) ([]Cursor, error) {
	databases, err := o.chosen(database)
	if err != nil {
		return nil, err
	}
	found := []Cursor{}
	var errs []error
	for _, d := range databases {
		cursors, err := d.cursors(ctx)
		found, errs = append(found, cursors...), append(errs, err)
	}
	return found, errors.Join(errs...)
}

func (d *database) cursors(ctx context.Context) ([]Cursor, error) {
	sides, err := d.has(ctx)
	if err != nil || !slices.Contains(sides, Outbox) {
		return nil, err
	}
	stored, now, err := d.identities(ctx)
	if err != nil {
		return nil, err
	}
	type row struct {
		Partition int
		Relayed   string
		Target    string
		LastID    int64
		StoredAt  *time.Time
	}
	rows, err := collect[row](ctx, d, "read the cursors", `
		SELECT p AS partition, coalesce(c.relayed::text, '') AS relayed, coalesce(c.target::text, '') AS target,
		       coalesce(c.last_id, 0) AS last_id, c.stored_at
		FROM generate_series(0, 3) AS p LEFT JOIN LATERAL (
			SELECT * FROM outbox.cursor AS c WHERE c.partition = p ORDER BY c.seq DESC LIMIT 1) AS c ON true
		ORDER BY p`)
	if err != nil {
		return nil, err
	}
	cursors := make([]Cursor, len(rows))
	for i, r := range rows {
		cursors[i] = Cursor{Database: d.name, Partition: r.Partition, Relayed: r.Relayed, Target: r.Target, LastID: r.LastID, IdentityOK: fits(stored, now)}
		if r.StoredAt != nil {
			cursors[i].StoredAt = *r.StoredAt
		}
		if stored != nil {
			cursors[i].Identity = stored.String()
		}
	}
	return cursors, nil
}
