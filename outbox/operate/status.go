package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jcp/ticketwave/outbox/internal/backlog"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const (
	// countedLag is up to where the lag of a partition is counted; beyond it is estimated.
	countedLag = 10_000
	// statusTimeout bounds each statement of a status.
	statusTimeout = 1500 * time.Millisecond
	// lateLag is from when on a lag is a problem.
	lateLag = time.Minute
)

// Status is how everything stands. It is cheap enough to be asked for every second: what would take longer is estimated
// or marked as not known. What does not answer is among the problems.
func (o *Operator) Status(ctx context.Context) (Status, error) {
	s := o.survey(ctx)
	found, errs := make([][]PartitionStatus, len(s.stores)), make([][]error, len(s.stores))
	var (
		all       sync.WaitGroup
		depths    map[string]depth
		brokerErr error
	)
	for i, st := range s.stores {
		all.Go(func() { found[i], errs[i] = st.status(ctx) })
	}
	all.Go(func() { depths, brokerErr = o.queues(ctx, s) })
	all.Wait()
	status := Status{At: time.Now(), Partitions: append([]PartitionStatus{}, slices.Concat(found...)...)}
	status.Partitions = withQueues(status.Partitions, s, depths)
	for _, err := range slices.Concat(append(errs, s.away)...) {
		status.Problems = append(status.Problems, err.Error())
	}
	status.Problems = append(append([]string{}, status.Problems...), problems(status.Partitions, s, depths, brokerErr)...)
	status.Healthy = len(status.Problems) == 0
	return status, ctx.Err()
}

// queues asks the broker for all queues and their dead-letter queues, and whether it takes messages.
func (o *Operator) queues(ctx context.Context, s *scene) (map[string]depth, error) {
	names := s.queues()
	for _, name := range s.queues() {
		names = append(names, rabbitmq.DeadName(name))
	}
	if len(names) == 0 {
		return nil, nil
	}
	found, err := o.broker.depths(ctx, names)
	if err == nil {
		err = o.broker.takes(s.topology.Exchange)
	}
	return found, err
}

func (st *store) status(ctx context.Context) (found []PartitionStatus, errs []error) {
	if st.outbox {
		list, err := st.outboxStatus(ctx)
		found, errs = append(found, list...), appendError(errs, err)
	}
	if st.inbox {
		list, err := st.inboxStatus(ctx)
		found, errs = append(found, list...), appendError(errs, err)
	}
	return found, errs
}

func appendError(errs []error, err error) []error {
	if err == nil {
		return errs
	}
	return append(errs, err)
}

// counts are the stuck messages of a partition, by state, and who holds its lease.
type counts struct {
	Consumer                 string
	Partition                int
	Owner                    string
	Retrying, Parked, Behind int64
}

func (c counts) status(database string, side Side) PartitionStatus {
	return PartitionStatus{
		Database: database, Side: side, Consumer: c.Consumer, Partition: c.Partition, Owner: c.Owner,
		Retrying: c.Retrying, Parked: c.Parked, Behind: c.Behind, Lag: -1, LagSeconds: -1, Dead: -1,
	}
}

// states is the partition's counts: only the first stuck message of a key is a head.
const states = `
	count(*) FILTER (WHERE r.head AND NOT r.parked) AS retrying, count(*) FILTER (WHERE r.head AND r.parked) AS parked,
	count(*) FILTER (WHERE NOT r.head) AS behind`

func (st *store) outboxStatus(ctx context.Context) ([]PartitionStatus, error) {
	var (
		list []counts
		lags []lag
		late bool
	)
	err := st.look(ctx, "read the status", statusTimeout, func(tx pgx.Tx) (err error) {
		list, err = rowsOf[counts](ctx, tx, `
			SELECT '' AS consumer, p::int AS partition, coalesce((
				SELECT coalesce(nullif(m.label, ''), l.owner::text) FROM outbox.leases AS l LEFT JOIN outbox.members AS m ON m.pool = l.pool AND m.member = l.owner
				WHERE l.pool = 'relay' AND l.partition = p AND m.beat_at > clock_timestamp() - interval '5 s'), '') AS owner, c.*
			FROM generate_series(0, 3) AS p, LATERAL (
				SELECT `+states+` FROM `+outboxRows+` WHERE r.partition = p) AS c ORDER BY p`)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = st.look(ctx, "count what is not relayed", statusTimeout, func(tx pgx.Tx) (err error) {
		lags, err = rowsOf[lag](ctx, tx, lagQuery, countedLag+1)
		return err
	})
	if err != nil && canceled(err) {
		late, err = true, nil
	}
	found := make([]PartitionStatus, len(list))
	for i, c := range list {
		found[i] = c.status(st.name, Outbox)
		if !late && err == nil {
			found[i].Lag, found[i].LagExact = lags[i].Messages(countedLag)
			found[i].LagSeconds = max(0, lags[i].Seconds)
		}
	}
	return found, err
}

// canceled reports that the database gave up a statement that took too long.
func canceled(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "57014" // query_canceled
}

// lag and the SQL of it are shared with the relay, which counts it for its metrics.
type lag = backlog.Lag

const (
	lagQuery  = backlog.Query
	passed    = backlog.Passed
	isRelayed = backlog.IsRelayed
)

func (st *store) inboxStatus(ctx context.Context) (found []PartitionStatus, err error) {
	var list []counts
	err = st.look(ctx, "read the status", statusTimeout, func(tx pgx.Tx) (err error) {
		list, err = rowsOf[counts](ctx, tx, `
			SELECT l.pool AS consumer, l.partition::int AS partition, CASE WHEN m.member IS NULL THEN '' ELSE coalesce(nullif(m.label, ''), l.owner::text) END AS owner,
			       coalesce(c.retrying, 0) AS retrying, coalesce(c.parked, 0) AS parked, coalesce(c.behind, 0) AS behind
			FROM inbox.leases AS l
			LEFT JOIN inbox.members AS m ON m.pool = l.pool AND m.member = l.owner AND m.beat_at > clock_timestamp() - interval '5 s'
			LEFT JOIN (SELECT r.consumer, r.partition, `+states+` FROM `+inboxRows+` GROUP BY 1, 2) AS c ON c.consumer = l.pool AND c.partition = l.partition
			ORDER BY 1, 2`)
		return err
	})
	for _, c := range list {
		found = append(found, c.status(st.name, Inbox))
	}
	return found, err
}

// withQueues adds what the broker says of the consumers' queues, and consumers that have never run.
func withQueues(partitions []PartitionStatus, s *scene, depths map[string]depth) []PartitionStatus {
	if s.topology == nil {
		return partitions
	}
	for _, q := range s.topology.Queues {
		for p := range s.topology.Partitions {
			i := slices.IndexFunc(partitions, func(st PartitionStatus) bool {
				return st.Side == Inbox && st.Consumer == q.Name && st.Partition == p
			})
			if i < 0 {
				partitions = append(partitions, counts{Consumer: q.Name, Partition: p}.status("", Inbox))
				i = len(partitions) - 1
				if home := s.home(q.Name); home != nil {
					partitions[i].Database = home.name
				}
			}
			name := s.topology.QueueName(q.Name, p)
			if d, ok := depths[name]; ok && !d.missing {
				partitions[i].Lag, partitions[i].LagExact = d.messages, true
				if d.messages == 0 {
					partitions[i].LagSeconds = 0
				}
			}
			if d, ok := depths[rabbitmq.DeadName(name)]; ok && !d.missing {
				partitions[i].Dead = d.messages
			}
		}
	}
	return partitions
}

// problems are one sentence each for what an operator should know.
func problems(partitions []PartitionStatus, s *scene, depths map[string]depth, brokerErr error) (list []string) {
	if s.topology == nil {
		list = append(list, `no database has a topology: run "ticketwave topology apply"`)
	}
	if brokerErr != nil {
		list = append(list, "broker: "+brokerErr.Error())
	}
	for _, name := range s.queues() {
		for _, name := range []string{name, rabbitmq.DeadName(name)} {
			if depths[name].missing {
				list = append(list, fmt.Sprintf("queue %s does not exist", name))
			}
		}
	}
	for _, p := range partitions {
		list = append(list, p.problems()...)
	}
	return list
}

func (p PartitionStatus) problems() (list []string) {
	where := fmt.Sprintf("%s outbox, partition %d", p.Database, p.Partition)
	worker := "relay"
	if p.Side == Inbox {
		where, worker = fmt.Sprintf("consumer %s, partition %d", p.Consumer, p.Partition), "consumer"
	}
	say := func(is bool, format string, args ...any) {
		if is {
			list = append(list, where+": "+fmt.Sprintf(format, args...))
		}
	}
	say(p.Owner == "", "no %s works on it", worker)
	say(p.Side == Outbox && p.Lag < 0, "the lag could not be counted in time")
	say(p.LagSeconds > lateLag.Seconds(), "the oldest message that is not relayed is %s old", seconds(p.LagSeconds))
	say(p.Parked > 0, "%d parked, waiting for an operator", p.Parked)
	say(p.Retrying > 0, "%d failing and tried again", p.Retrying)
	say(p.Behind > 0, "%d waiting behind them", p.Behind)
	say(p.Dead > 0, "%d in the dead-letter queue", p.Dead)
	return list
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
