package schema_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	schema "github.com/jcp/ticketwave/sql"
)

const (
	denied     = "42501" // insufficient_privilege
	badLogin   = "28P01" // invalid_password
	noDatabase = "3D000" // invalid_catalog_name
)

// code is the error's SQLSTATE, or "".
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func TestLoginsReachTheirOwnDatabasesAlone(t *testing.T) {
	t.Parallel()
	plan := fresh(t)
	migrate(t, plan)
	for _, db := range plan.Databases {
		for _, other := range plan.Databases {
			err := connects(t, other.Name, db.Login, password)
			if db.Name == other.Name && err != nil || db.Name != other.Name && code(err) != denied {
				t.Errorf("%s on %s: %v", db.Login, other.Name, err)
			}
		}
		if err := connects(t, db.Name, plan.RelayLogin, password); err != nil {
			t.Errorf("%s on %s: %v", plan.RelayLogin, db.Name, err)
		}
		if err := connects(t, db.Name, plan.OperatorLogin, password); err != nil {
			t.Errorf("%s on %s: %v", plan.OperatorLogin, db.Name, err)
		}
	}
	t.Run("service", func(t *testing.T) { testServiceRights(t, plan) })
	t.Run("relay", func(t *testing.T) { testRelayRights(t, plan) })
	t.Run("operator", func(t *testing.T) { testOperatorRights(t, plan) })
	t.Run("other service", func(t *testing.T) { testOtherServicesTables(t, plan) })
}

// statements maps a statement to the SQLSTATE that it must end with, "" for success.
type statements map[string]string

func (s statements) run(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for statement, want := range s {
		_, err := pool.Exec(t.Context(), statement)
		if code(err) != want || want == "" && err != nil {
			t.Errorf("%s: %v, want code %q", statement, err, want)
		}
	}
}

// A service appends to the outbox, uses the inbox, works in its schema, and makes nothing.
func testServiceRights(t *testing.T, plan schema.Plan) {
	db := plan.Databases[0]
	statements{
		`INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), 't', 'k', '{}')`: "",
		`INSERT INTO inbox.messages (message_id, consumer) VALUES (gen_random_uuid(), 'c')`:                  "",
		`SELECT count(*) FROM inbox.leases`:                       "",
		`SELECT source FROM outbox.config`:                        "",
		`SELECT version_id FROM outbox.schema_version`:            "",
		`SELECT version_id FROM ` + db.Source + `.schema_version`: "",
		`SELECT count(*) FROM outbox.messages`:                    denied,
		`SELECT count(*) FROM outbox.cursor`:                      denied,
		`SELECT outbox.current_identity()`:                        denied,
		`SELECT outbox.open_transactions()`:                       denied,
		`SELECT outbox.add_partitions(1)`:                         denied,
		`SELECT inbox.add_partitions(1)`:                          denied,
		`DELETE FROM inbox.messages`:                              denied,
		`UPDATE outbox.config SET source = 'x'`:                   denied,
		`UPDATE outbox.schema_version SET version_id = 9`:         denied,
		`CREATE TABLE mine (n int)`:                               denied,
		`CREATE TABLE outbox.mine (n int)`:                        denied,
		`CREATE TABLE ` + db.Source + `.mine (n int)`:             denied,
		`CREATE TEMP TABLE mine (n int)`:                          denied,
		`CREATE SCHEMA mine`:                                      denied,
		`CREATE FUNCTION outbox.f() RETURNS int RETURN 1`:         denied,
		`CREATE DATABASE tw_sql_never_made`:                       denied,
		`CREATE ROLE tw_sql_never_made`:                           denied,
		`ALTER TABLE outbox.messages DISABLE TRIGGER assign_id`:   denied,
		`DROP TABLE inbox.messages`:                               denied,
		`SET SESSION AUTHORIZATION postgres`:                      denied,
		`SET ROLE outbox_relay`:                                   denied,
		`COPY outbox.messages TO '/tmp/never'`:                    denied,
		`SELECT pg_read_file('/etc/hostname')`:                    denied,
	}.run(t, as(t, db.Name, db.Login))
}

// The relay reads the outbox and keeps its own books; state and inbox are not its business.
func testRelayRights(t *testing.T, plan schema.Plan) {
	db := plan.Databases[0]
	statements{
		`SELECT count(*) FROM outbox.messages`:           "",
		`SELECT topology FROM outbox.config`:             "",
		`SELECT outbox.current_identity()`:               "",
		`SELECT outbox.open_transactions()`:              "",
		`LISTEN outbox_wake`:                             "",
		`SELECT version_id FROM outbox.schema_version`:   "",
		`SELECT count(*) FROM inbox.messages`:            denied,
		`SELECT * FROM ` + db.Source + `.schema_version`: denied,
		`DELETE FROM outbox.messages`:                    denied,
		`UPDATE outbox.cursor SET token = 0`:             denied,
		`UPDATE outbox.config SET topology = NULL`:       denied,
		`INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), 't', 'k', '{}')`: denied,
		`CREATE TABLE mine (n int)`: denied,
	}.run(t, as(t, db.Name, plan.RelayLogin))
}

// An operator sees, and changes only what the verbs change, with an entry in the log that nobody can take back.
func testOperatorRights(t *testing.T, plan schema.Plan) {
	db := plan.Databases[0]
	statements{
		`SELECT count(*) FROM outbox.messages`:                                                               "",
		`SELECT count(*) FROM outbox.stuck, outbox.cursor, outbox.leases`:                                    "",
		`SELECT build, beat_at FROM outbox.members`:                                                          "",
		`SELECT count(*) FROM inbox.messages, inbox.stuck, inbox.leases`:                                     "",
		`SELECT topology FROM outbox.config`:                                                                 "",
		`SELECT outbox.current_identity()`:                                                                   "",
		`SELECT version_id FROM ops.schema_version`:                                                          "",
		`SELECT ops.append('ann', 'why', 'test.entry', '{}')`:                                                "",
		`SELECT count(*) FROM ops.audit`:                                                                     "",
		`SELECT outbox.operate('skip', '{1}', '{0}', '{f}', '{}', NULL, NULL, false, 'ann', 'why', '{}')`:    "",
		`SELECT inbox.operate('skip', '{1}', '{0}', '{f}', NULL, NULL, false, 'ann', 'why', '{}')`:           "",
		`UPDATE outbox.stuck SET parked = false`:                                                             denied,
		`DELETE FROM outbox.stuck`:                                                                           denied,
		`SELECT FROM outbox.stuck FOR UPDATE`:                                                                denied,
		`INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), 't', 'k', '{}')`: denied,
		`UPDATE outbox.leases SET token = 0`:                                                                 denied,
		`UPDATE outbox.config SET topology = NULL`:                                                           denied,
		`UPDATE inbox.stuck SET parked = false`:                                                              denied,
		`DELETE FROM inbox.stuck`:                                                                            denied,
		`UPDATE inbox.messages SET state = 'done'`:                                                           denied,
		`INSERT INTO ops.audit VALUES (9, now(), 'a', 'b', 'c', '{}', '', '')`:                               denied,
		`UPDATE ops.audit SET actor = 'bob'`:                                                                 denied,
		`DELETE FROM ops.audit`:                                                                              denied,
		`TRUNCATE ops.audit`:                                                                                 denied,
		`ALTER TABLE ops.audit DISABLE TRIGGER append_only`:                                                  denied,
		`SELECT ops.check_verb('skip', '{1}', '{0}', '{f}', NULL, NULL)`:                                     denied,
		`SELECT outbox.add_partitions(1)`:                                                                    denied,
		`SELECT * FROM ` + db.Source + `.schema_version`:                                                     denied,
		`CREATE TABLE mine (n int)`:                                                                          denied,
	}.run(t, as(t, db.Name, plan.OperatorLogin))
	statements{
		`UPDATE ops.audit SET actor = 'bob'`: denied,
		`DELETE FROM ops.audit`:              denied,
		`TRUNCATE ops.audit`:                 denied,
	}.run(t, as(t, db.Name, ""))
	for _, login := range []string{db.Login, plan.RelayLogin} {
		statements{
			`SELECT count(*) FROM ops.audit`:                                                                  denied,
			`SELECT ops.append('ann', 'why', 'test.entry', '{}')`:                                             denied,
			`SELECT outbox.operate('skip', '{1}', '{0}', '{f}', '{}', NULL, NULL, false, 'ann', 'why', '{}')`: denied,
			`SELECT inbox.operate('skip', '{1}', '{0}', '{f}', NULL, NULL, false, 'ann', 'why', '{}')`:        denied,
		}.run(t, as(t, db.Name, login))
	}
}

// testOtherServicesTables opens a database to another service's login: its tables stay closed.
func testOtherServicesTables(t *testing.T, plan schema.Plan) {
	db, other := plan.Databases[0], plan.Databases[1]
	owner := as(t, db.Name, "")
	if _, err := owner.Exec(t.Context(), `GRANT CONNECT ON DATABASE `+db.Name+` TO `+other.Login); err != nil {
		t.Fatal(err)
	}
	tables := query[[]string](t, owner, `SELECT array_agg(tablename::text) FROM pg_tables WHERE schemaname = $1`, db.Source)
	if len(tables) < 2 {
		t.Fatalf("schema %s has tables %v, want its own and the version table", db.Source, tables)
	}
	forbidden := statements{}
	for _, table := range tables {
		forbidden[`SELECT * FROM `+db.Source+`.`+table] = denied
		forbidden[`INSERT INTO `+db.Source+`.`+table+` DEFAULT VALUES`] = denied
		forbidden[`DELETE FROM `+db.Source+`.`+table] = denied
	}
	forbidden.run(t, as(t, db.Name, other.Login))
}

func TestMigrateSetsThePassword(t *testing.T) {
	t.Parallel()
	plan := small(t)
	migrate(t, plan)
	db := plan.Databases[0]
	if err := connects(t, db.Name, db.Login, password); err != nil {
		t.Errorf("with the password: %v", err)
	}
	plan.Password = "another"
	migrate(t, plan)
	if err := connects(t, db.Name, db.Login, "another"); err != nil {
		t.Errorf("with the new password: %v", err)
	}
	if err := connects(t, db.Name, db.Login, password); code(err) != badLogin {
		t.Errorf("with the old password: %v", err)
	}
}

func TestDropLeavesNothing(t *testing.T) {
	t.Parallel()
	plan := small(t)
	migrate(t, plan)
	db := plan.Databases[0]
	held := as(t, db.Name, db.Login)
	if err := held.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := schema.Drop(t.Context(), admin(t), plan); err != nil {
			t.Fatal(err)
		}
	}
	if err := connects(t, db.Name, "", ""); code(err) != noDatabase {
		t.Errorf("connecting to the dropped database: %v", err)
	}
	server := as(t, "postgres", "")
	if query[bool](t, server, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, db.Login) {
		t.Error("the login role is still there")
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ database, login, want string }{
		{"shop", "", "postgres://boss:secret@db:5433/shop?sslmode=require"},
		{"shop", "me", "postgres://me:p%40ss%2F%3A@db:5433/shop?sslmode=require"},
	} {
		got, err := schema.URL("postgres://boss:secret@db:5433/postgres?sslmode=require", c.database, c.login, "p@ss/:")
		if err != nil || got != c.want {
			t.Errorf("URL = %q, %v, want %q", got, err, c.want)
		}
	}
	for _, bad := range []string{"", "host=db password=secret", "mysql://boss:secret@db", "postgres://boss:secret@db:port"} {
		got, err := schema.URL(bad, "shop", "", "")
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("URL(%q) = %q, %v, want an error that tells no secret", bad, got, err)
		}
	}
}
