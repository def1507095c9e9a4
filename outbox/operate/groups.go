package operate

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"
)

const (
	mostGroups      = 500
	mostBuildGroups = 5000 // groups by build, of one side of a database
)

// groupRow is a group's messages of one build.
type groupRow struct {
	Consumer, Type, Class, Fingerprint, Build, Error string
	Retrying, Parked, Behind, Keys                   int
	Oldest, Newest                                   time.Time
	Running                                          bool
}

// Groups sums up the stuck heads that a filter chooses by how they fail, the largest group first, at most 500. Databases
// that do not answer are an error beside the groups of the others.
func (o *Operator) Groups(ctx context.Context, f Filter) ([]Group, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	places, err := o.places(ctx, f)
	errs, groups := []error{err}, []Group{}
	for _, p := range places {
		rows, err := p.groups(ctx, matching(f))
		errs, groups = append(errs, err), append(groups, p.fold(rows)...)
	}
	slices.SortStableFunc(groups, func(a, b Group) int { return cmp.Compare(b.Retrying+b.Parked, a.Retrying+a.Parked) })
	return groups[:min(len(groups), mostGroups)], errors.Join(errs...)
}

// groups reads them by build. Live members have told a beat in the last seconds.
func (p place) groups(ctx context.Context, q *query) ([]groupRow, error) {
	members, pool := `outbox.members`, `'relay'`
	if p.side == Inbox {
		members, pool = `inbox.members`, `g.consumer`
	}
	return collect[groupRow](ctx, p.database, "group stuck messages", `
		WITH waiting AS (
			SELECT r.consumer, r.key, count(*) - 1 AS behind FROM `+p.side.rows()+` GROUP BY r.consumer, r.key
		), grouped AS (
			SELECT r.consumer, r.type, coalesce(r.class, '') AS class, coalesce(r.fingerprint, '') AS fingerprint, coalesce(r.build, '') AS build,
			       coalesce((max(ARRAY[to_char(r.stuck_at AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS'), r.error]))[2], '') AS error,
			       count(*) FILTER (WHERE NOT r.parked) AS retrying, count(*) FILTER (WHERE r.parked) AS parked,
			       sum(w.behind)::bigint AS behind, count(*) AS keys, min(r.stuck_at) AS oldest, max(r.stuck_at) AS newest
			FROM `+p.side.rows()+` JOIN waiting AS w ON w.consumer = r.consumer AND w.key = r.key
			WHERE r.head AND `+q.String()+`
			GROUP BY 1, 2, 3, 4, 5
			ORDER BY count(*) DESC LIMIT `+strconv.Itoa(mostBuildGroups)+`
		)
		SELECT g.*, EXISTS (
			SELECT FROM `+members+` AS m WHERE m.pool = `+pool+` AND m.build = g.build AND m.build <> '' AND m.beat_at > clock_timestamp() - interval '5 s'
		) AS running
		FROM grouped AS g`, q.args...)
}

// fold makes groups of their parts by build.
func (p place) fold(rows []groupRow) []Group {
	type cause struct{ consumer, typ, class, fingerprint string }
	groups, at := []Group{}, map[cause]int{}
	for _, r := range rows {
		c := cause{r.Consumer, r.Type, r.Class, r.Fingerprint}
		i, known := at[c]
		if !known {
			i, at[c] = len(groups), len(groups)
			groups = append(groups, Group{
				Database: p.name, Side: p.side, Consumer: r.Consumer, Type: r.Type, Class: r.Class, Fingerprint: r.Fingerprint,
				Error: r.Error, Builds: []Build{}, Oldest: r.Oldest, Newest: r.Newest,
			})
		}
		g := &groups[i]
		g.Retrying, g.Parked, g.Behind, g.Keys = g.Retrying+r.Retrying, g.Parked+r.Parked, g.Behind+r.Behind, g.Keys+r.Keys
		if r.Newest.After(g.Newest) {
			g.Newest, g.Error = r.Newest, r.Error
		}
		if r.Oldest.Before(g.Oldest) {
			g.Oldest = r.Oldest
		}
		g.Builds = append(g.Builds, Build{Build: r.Build, Messages: r.Retrying + r.Parked, Running: r.Running})
	}
	return groups
}
