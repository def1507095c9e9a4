package operate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	schema "github.com/jcp/ticketwave/sql"
)

func checkMigrations(ctx context.Context, st *store) ([]Finding, error) {
	schemas := []string{"ops"}
	if st.outbox {
		schemas = append(schemas, "outbox")
	}
	if st.inbox {
		schemas = append(schemas, "inbox")
	}
	err := schema.Check(ctx, st.pool, schemas...)
	if errors.Is(err, schema.ErrOld) {
		return []Finding{{Severity: Critical, Message: err.Error(), Remedy: "ticketwave migrate"}}, nil
	}
	return nil, err
}

func value[T any](ctx context.Context, st *store, what, text string, args ...any) (v T, err error) {
	if err = st.pool.QueryRow(ctx, text, args...).Scan(&v); err != nil {
		err = st.failed(what, err)
	}
	return v, err
}

const oldestPostgreSQL = 14

func checkVersion(ctx context.Context, st *store) ([]Finding, error) {
	number, err := value[int](ctx, st, "read the server's version", `SELECT current_setting('server_version_num')::int`)
	if err != nil {
		return nil, err
	}
	return judgePostgreSQL(st.name, number), nil
}

func judgePostgreSQL(database string, number int) []Finding {
	if number >= oldestPostgreSQL*10000 {
		return nil
	}
	return []Finding{{
		Severity: Critical, Message: fmt.Sprintf("PostgreSQL is version %d: the outbox needs %d", number/10000, oldestPostgreSQL),
		Remedy: fmt.Sprintf("pg_upgrade to version %d or newer, then outboxctl cursor rebase --database %s --keep", oldestPostgreSQL, database),
	}}
}

func checkRecovery(ctx context.Context, st *store) ([]Finding, error) {
	standby, err := value[bool](ctx, st, "ask whether it is a standby", `SELECT pg_is_in_recovery()`)
	if err != nil || !standby {
		return nil, err
	}
	return []Finding{{
		Severity: Critical, Message: "the server is in recovery: nothing is relayed from it, and nothing can be changed",
		Remedy: "point the URL at the primary, or promote this server (SELECT pg_promote()) and then outboxctl cursor rebase --database " + st.name,
	}}, nil
}

// checkDurability looks at the server's settings, and at those of the database and of roles in it.
func checkDurability(ctx context.Context, st *store) (found []Finding, err error) {
	type setting struct{ Place, Name, Command string }
	list, err := collect[setting](ctx, st.database, "read the settings", `
		SELECT 'the server' AS place, name || ' = ' || setting AS name, format('ALTER SYSTEM SET %I = on, then SELECT pg_reload_conf()', name) AS command
		FROM pg_settings
		WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'
		   OR name = 'synchronous_commit' AND setting = 'off' AND source NOT IN ('database', 'user', 'database user')
		UNION ALL
		SELECT concat_ws(', ', CASE WHEN s.setdatabase <> 0 THEN 'database ' || current_database() END, CASE WHEN s.setrole <> 0 THEN 'role ' || s.setrole::regrole END),
		       c, format('ALTER %s RESET synchronous_commit', CASE
			WHEN s.setrole = 0 THEN format('DATABASE %I', current_database())
			WHEN s.setdatabase = 0 THEN format('ROLE %s', s.setrole::regrole)
			ELSE format('ROLE %s IN DATABASE %I', s.setrole::regrole, current_database()) END)
		FROM pg_db_role_setting AS s, unnest(s.setconfig) AS c
		WHERE c IN ('synchronous_commit=off', 'synchronous_commit=false', 'synchronous_commit=0', 'synchronous_commit=no')
		  AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))`)
	for _, s := range list {
		found = append(found, Finding{
			Severity: Critical, Subject: s.Name, Message: fmt.Sprintf("%s of %s: a crash may take back what was committed, and what was relayed of it", s.Name, s.Place),
			Remedy: s.Command,
		})
	}
	return found, err
}

// The rights that the promises rest on. A right of a column alone counts for INSERT.
const permissionQuery = `
	WITH want (role, kind, object, privilege, granted) AS (VALUES
		('outbox_writer', 'outbox', 'outbox.messages', 'INSERT', true), ('outbox_writer', 'outbox', 'outbox.messages', 'SELECT', false),
		('outbox_writer', 'outbox', 'outbox.messages', 'UPDATE', false), ('outbox_writer', 'outbox', 'outbox.messages', 'DELETE', false),
		('outbox_writer', 'outbox', 'outbox.messages', 'TRUNCATE', false), ('outbox_writer', 'outbox', 'outbox.cursor', 'INSERT', false),
		('outbox_relay', 'outbox', 'outbox.messages', 'SELECT', true), ('outbox_relay', 'outbox', 'outbox.messages', 'INSERT', false),
		('outbox_relay', 'outbox', 'outbox.messages', 'UPDATE', false), ('outbox_relay', 'outbox', 'outbox.messages', 'DELETE', false),
		('outbox_relay', 'outbox', 'outbox.cursor', 'SELECT', true), ('outbox_relay', 'outbox', 'outbox.cursor', 'INSERT', true), ('outbox_relay', 'outbox', 'outbox.cursor', 'DELETE', true),
		('outbox_relay', 'outbox', 'outbox.identity', 'SELECT', true), ('outbox_relay', 'outbox', 'outbox.identity', 'INSERT', true),
		('outbox_relay', 'outbox', 'outbox.leases', 'UPDATE', true), ('outbox_relay', 'outbox', 'outbox.members', 'UPDATE', true),
		('outbox_relay', 'outbox', 'outbox.stuck', 'SELECT', true), ('outbox_relay', 'outbox', 'outbox.stuck', 'INSERT', true),
		('outbox_relay', 'outbox', 'outbox.stuck', 'UPDATE', true), ('outbox_relay', 'outbox', 'outbox.stuck', 'DELETE', true),
		('outbox_operator', 'outbox', 'outbox.messages', 'INSERT', false), ('outbox_operator', 'outbox', 'outbox.messages', 'UPDATE', false),
		('outbox_operator', 'outbox', 'outbox.messages', 'DELETE', false), ('outbox_operator', 'outbox', 'outbox.stuck', 'DELETE', false),
		('inbox_consumer', 'inbox', 'inbox.messages', 'SELECT', true), ('inbox_consumer', 'inbox', 'inbox.messages', 'INSERT', true),
		('inbox_consumer', 'inbox', 'inbox.messages', 'UPDATE', true), ('inbox_consumer', 'inbox', 'inbox.messages', 'DELETE', false),
		('inbox_consumer', 'inbox', 'inbox.stuck', 'SELECT', true), ('inbox_consumer', 'inbox', 'inbox.stuck', 'INSERT', true),
		('inbox_consumer', 'inbox', 'inbox.stuck', 'UPDATE', true), ('inbox_consumer', 'inbox', 'inbox.stuck', 'DELETE', true),
		('inbox_consumer', 'inbox', 'inbox.leases', 'UPDATE', true), ('inbox_consumer', 'inbox', 'inbox.members', 'UPDATE', true),
		('outbox_operator', 'ops', 'ops.audit', 'SELECT', true), ('outbox_operator', 'ops', 'ops.audit', 'INSERT', false),
		('outbox_operator', 'ops', 'ops.audit', 'UPDATE', false), ('outbox_operator', 'ops', 'ops.audit', 'DELETE', false))
	SELECT w.role, w.object, w.privilege, w.granted FROM want AS w
	WHERE w.kind = ANY ($1) AND to_regclass(w.object) IS NOT NULL AND EXISTS (SELECT FROM pg_roles WHERE rolname = w.role)
	  AND w.granted <> (has_table_privilege(w.role, to_regclass(w.object), w.privilege)
		OR w.privilege IN ('SELECT', 'INSERT', 'UPDATE') AND has_any_column_privilege(w.role, to_regclass(w.object), w.privilege))
	ORDER BY 1, 2, 3`

func checkPermissions(ctx context.Context, st *store) (found []Finding, err error) {
	kinds := []string{"ops"}
	if st.outbox {
		kinds = append(kinds, "outbox")
	}
	if st.inbox {
		kinds = append(kinds, "inbox")
	}
	type right struct {
		Role, Object, Privilege string
		Granted                 bool
	}
	list, err := collect[right](ctx, st.database, "read the roles' rights", permissionQuery, kinds)
	for _, r := range list {
		f := Finding{
			Severity: Critical, Subject: r.Role, Message: fmt.Sprintf("role %s may not %s %s, and needs to", r.Role, r.Privilege, r.Object),
			Remedy: fmt.Sprintf("GRANT %s ON %s TO %s", r.Privilege, r.Object, r.Role),
		}
		if r.Role == "outbox_writer" && r.Privilege == "INSERT" {
			f.Remedy = "GRANT INSERT (uuid, topic, key, payload, metadata) ON outbox.messages TO outbox_writer"
		}
		if !r.Granted {
			f.Message = fmt.Sprintf("role %s may %s %s, and must not: the promises rest on it", r.Role, r.Privilege, r.Object)
			f.Remedy = fmt.Sprintf("REVOKE %s ON %s FROM %s", r.Privilege, r.Object, r.Role)
		}
		found = append(found, f)
	}
	return found, err
}

func checkConnections(ctx context.Context, st *store) ([]Finding, error) {
	var used, most int64
	if err := st.pool.QueryRow(ctx, `SELECT used, most FROM ops.connections()`).Scan(&used, &most); err != nil {
		return nil, st.failed("count the connections", err)
	}
	if used*10 < most*9 {
		return nil, nil
	}
	return []Finding{{
		Severity: Warning, Subject: fmt.Sprint(used), Message: fmt.Sprintf("%d of %d connections are in use", used, most),
		Remedy: "see who has them (SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2), then ALTER SYSTEM SET max_connections and restart, or make the services' pools smaller",
	}}, nil
}

const clockDifference = 5 * time.Second

// checkClock compares clocks by the middle of a round trip.
func (e *examination) checkClock(ctx context.Context, st *store) ([]Finding, error) {
	before := e.now()
	server, err := value[time.Time](ctx, st, "read the server's clock", `SELECT clock_timestamp()`)
	if err != nil {
		return nil, err
	}
	trip := e.now().Sub(before)
	difference := server.Sub(before.Add(trip / 2))
	if difference.Abs() <= clockDifference+trip/2 {
		return nil, nil
	}
	way := "ahead of"
	if difference < 0 {
		way = "behind"
	}
	return []Finding{{
		Severity: Warning, Subject: difference.Round(time.Second).String(),
		Message: fmt.Sprintf("the server's clock is %s %s this program's: times of events, and daily partitions, are wrong by that", difference.Abs().Round(time.Second), way),
		Remedy:  "compare both with NTP (chronyc tracking), and set right the one that is off",
	}}, nil
}

func (e *examination) checkTransactions(ctx context.Context, st *store) (found []Finding, err error) {
	list, err := collect[session](ctx, st.database, "look for open transactions", `
		SELECT pid, login, application, state, age FROM ops.sessions() WHERE database = current_database() AND age > $1 ORDER BY age DESC LIMIT 20`,
		e.long.Seconds())
	for _, s := range list {
		found = append(found, Finding{
			Severity: Warning, Subject: fmt.Sprint(s.PID),
			Message: fmt.Sprintf("%s has had a transaction open for %s: its messages wait, keys that it wrote are locked, and old partitions stay", s, seconds(s.Age)),
			Remedy:  fmt.Sprintf("find out what it does, then SELECT pg_terminate_backend(%d)", s.PID),
		})
	}
	return found, err
}

func (e *examination) checkPrepared(ctx context.Context, st *store) (found []Finding, err error) {
	type prepared struct {
		Gid, Owner, Quoted string
		Age                float64
	}
	list, err := collect[prepared](ctx, st.database, "look for prepared transactions", `
		SELECT gid, owner, quote_literal(gid) AS quoted, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age FROM pg_prepared_xacts
		WHERE database = current_database() AND clock_timestamp() - prepared > make_interval(secs => $1) ORDER BY prepared LIMIT 20`, e.long.Seconds())
	for _, p := range list {
		found = append(found, Finding{
			Severity: Warning, Subject: p.Gid,
			Message: fmt.Sprintf("transaction %q of %s has been prepared for %s and is neither committed nor rolled back: its messages wait, and its locks are held", p.Gid, p.Owner, seconds(p.Age)),
			Remedy:  fmt.Sprintf("ask its transaction manager, then COMMIT PREPARED %s or ROLLBACK PREPARED %[1]s", p.Quoted),
		})
	}
	return found, err
}

func checkSlots(ctx context.Context, st *store) (found []Finding, err error) {
	type slot struct {
		Name, Quoted string
		Bytes        int64
	}
	list, err := collect[slot](ctx, st.database, "look for replication slots", `
		SELECT slot_name AS name, quote_literal(slot_name) AS quoted, coalesce(CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() - restart_lsn END, 0)::bigint AS bytes
		FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL AND (database IS NULL OR database = current_database()) ORDER BY 3 DESC LIMIT 20`)
	for _, s := range list {
		found = append(found, Finding{
			Severity: Warning, Subject: s.Name, Message: fmt.Sprintf("nobody reads replication slot %s, and the server keeps %d MB of its log for it", s.Name, s.Bytes>>20),
			Remedy: fmt.Sprintf("start its standby, or SELECT pg_drop_replication_slot(%s)", s.Quoted),
		})
	}
	return found, err
}

func checkIdentity(ctx context.Context, st *store) ([]Finding, error) {
	stored, now, err := st.identities(ctx)
	if err != nil || fits(stored, now) {
		return nil, err
	}
	return []Finding{{
		Severity: Critical, Subject: now.String(),
		Message: fmt.Sprintf("the cursor belongs to %s, and %s answers: the database was restored, copied or failed over, and the relay refuses to guess what was relayed", stored, now),
		Remedy:  fmt.Sprintf("see that the old server is gone for good, then outboxctl cursor rebase --database %s (--keep after pg_upgrade)", st.name),
	}}, nil
}

func checkRelays(ctx context.Context, st *store) (found []Finding, err error) {
	owners, err := st.owners(ctx)
	if err != nil {
		return nil, err
	}
	var free []string
	for p := range 4 {
		if owners[p] == "" {
			free = append(free, fmt.Sprint(p))
		}
	}
	if len(free) == 0 {
		return nil, nil
	}
	return []Finding{{
		Severity: Critical, Subject: strings.Join(free, ","), Message: "no relay works on partition " + strings.Join(free, ", "),
		Remedy: fmt.Sprintf("start a relay whose TW_RELAY_DATABASES has %s, or read in the log of the one that runs why it does not", st.name),
	}}, nil
}

func checkLag(ctx context.Context, st *store) (found []Finding, err error) {
	list, err := st.outboxStatus(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		if p.LagSeconds <= lateLag.Seconds() && p.Lag >= 0 {
			continue
		}
		f := Finding{
			Severity: Critical, Subject: fmt.Sprint(p.Partition),
			Message: fmt.Sprintf("%d messages of partition %d are not relayed, the oldest is %s old", p.Lag, p.Partition, seconds(p.LagSeconds)),
			Remedy:  "outboxctl why on one of them; if a relay and the broker run, it is behind: outboxctl top shows whether it catches up",
		}
		if p.Lag < 0 {
			f.Severity, f.Message = Warning, fmt.Sprintf("what is not relayed of partition %d could not be counted in time", p.Partition)
		}
		found = append(found, f)
	}
	return found, nil
}

func checkStuck(side Side) func(ctx context.Context, st *store) ([]Finding, error) {
	return func(ctx context.Context, st *store) (found []Finding, err error) {
		type row struct {
			Consumer                 string
			Retrying, Parked, Behind int64
		}
		list, err := collect[row](ctx, st.database, "count what is stuck", `SELECT r.consumer, `+states+` FROM `+side.rows()+` GROUP BY 1 ORDER BY 1`)
		for _, r := range list {
			f := Finding{
				Severity: Warning, Subject: r.Consumer, Message: fmt.Sprintf("%d messages are parked, %d fail and are tried again, %d wait behind them", r.Parked, r.Retrying, r.Behind),
				Remedy: fmt.Sprintf("outboxctl stuck groups --database %s --side %s, then outboxctl stuck replay, edit or skip", st.name, side),
			}
			if r.Consumer != "" {
				f.Message = "at " + r.Consumer + " " + f.Message
			}
			found = append(found, f)
		}
		return found, err
	}
}

func checkConsumers(ctx context.Context, st *store) (found []Finding, err error) {
	type row struct {
		Consumer   string
		Partitions string
	}
	list, err := collect[row](ctx, st.database, "look who consumes", `
		SELECT l.pool AS consumer, string_agg(l.partition::text, ', ' ORDER BY l.partition) AS partitions
		FROM inbox.leases AS l LEFT JOIN inbox.members AS m ON m.pool = l.pool AND m.member = l.owner AND m.beat_at > clock_timestamp() - interval '5 s'
		WHERE m.member IS NULL GROUP BY 1 ORDER BY 1`)
	for _, r := range list {
		found = append(found, Finding{
			Severity: Critical, Subject: r.Consumer, Message: fmt.Sprintf("nobody consumes partition %s of %s", r.Partitions, r.Consumer),
			Remedy: fmt.Sprintf("start service %s, or read in its log why it does not", r.Consumer),
		})
	}
	return found, err
}

// partitions is what partition_state tells.
type partitions struct {
	Ahead        int
	Oldest       *time.Time
	DefaultBytes int64
	Refusal      string
	Today        time.Time
}

func (st *store) partitions(ctx context.Context, schema string) (p partitions, err error) {
	rows, err := st.pool.Query(ctx, `
		SELECT ahead, oldest::timestamptz AS oldest, default_bytes, coalesce(refusal, '') AS refusal, clock_timestamp() AS today FROM `+schema+`.partition_state()`)
	if err == nil {
		p, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[partitions])
	}
	if err != nil {
		return p, st.failed("look at the partitions", err)
	}
	return p, nil
}

func keeperOf(schema string) string {
	if schema == "inbox" {
		return "the service"
	}
	return "the relay"
}

func checkPartitions(schema string) func(ctx context.Context, st *store) ([]Finding, error) {
	return func(ctx context.Context, st *store) ([]Finding, error) {
		p, err := st.partitions(ctx, schema)
		if err != nil || p.Ahead >= 2 {
			return nil, err
		}
		severity := Warning
		if p.Ahead == 0 {
			severity = Critical
		}
		return []Finding{{
			Severity: severity, Subject: schema + ".messages", Message: fmt.Sprintf("%s.messages has partitions for %d days after today", schema, p.Ahead),
			Remedy: "ticketwave migrate makes them now; " + keeperOf(schema) + " makes them hourly: its log says why it does not",
		}}, nil
	}
}

func checkDefault(schema string) func(ctx context.Context, st *store) ([]Finding, error) {
	return func(ctx context.Context, st *store) ([]Finding, error) {
		p, err := st.partitions(ctx, schema)
		if err != nil || p.DefaultBytes == 0 {
			return nil, err
		}
		return []Finding{{
			Severity: Warning, Subject: schema + ".messages_default",
			Message: fmt.Sprintf("%s.messages_default holds %d KB: rows of days that have no partition, which a wrong clock or missing partitions put there", schema, p.DefaultBytes>>10),
			Remedy:  fmt.Sprintf("set the clocks right, then ticketwave migrate; %s removes what is old (VACUUM %s.messages_default when nothing is left)", keeperOf(schema), schema),
		}}, nil
	}
}

// late is how many days beyond the longest default retention a partition may stay.
const late = 3

func checkRetention(schema string) func(ctx context.Context, st *store) ([]Finding, error) {
	keep := map[string]int{"outbox": 7, "inbox": 14}[schema]
	return func(ctx context.Context, st *store) (found []Finding, err error) {
		p, err := st.partitions(ctx, schema)
		if err != nil {
			return nil, err
		}
		if p.Oldest == nil || p.Today.Sub(*p.Oldest) < time.Duration(keep+late)*24*time.Hour {
			return nil, nil
		}
		f := Finding{
			Severity: Warning, Subject: p.Oldest.Format(time.DateOnly),
			Message: fmt.Sprintf("the partition of %s has not been dropped", p.Oldest.Format(time.DateOnly)),
			Remedy: fmt.Sprintf("the log of %s says why it was postponed; what is not relayed stays (outboxctl status), and so does what a long transaction uses. With a longer TW_RELAY_KEEP nothing is wrong",
				keeperOf(schema)),
		}
		if p.Refusal != "" {
			f.Message += ": " + p.Refusal
		}
		return []Finding{f}, nil
	}
}
