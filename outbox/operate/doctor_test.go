package operate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	schema "github.com/jcp/ticketwave/sql"
)

func (w *town) doctor(o *operate.Operator) []operate.Finding {
	w.t.Helper()
	found, err := o.Doctor(w.context())
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// trouble is what a provocation must make the doctor say.
type trouble struct {
	check    string
	severity operate.Severity
	database string
	subject  string // part of it
	message  string // part of it
	remedy   string // part of it
}

func (tr trouble) is(f operate.Finding) bool {
	return f.Check == tr.check && f.Severity == tr.severity && (tr.database == "" || f.Database == tr.database) &&
		strings.Contains(f.Subject, tr.subject) && strings.Contains(f.Message, tr.message) && tr.remedy != "" && strings.Contains(f.Remedy, tr.remedy)
}

// expect asks the doctor until the trouble is found.
func (w *town) expect(t *testing.T, o *operate.Operator, tr trouble) {
	t.Helper()
	var found []operate.Finding
	var err error
	limit := time.Now().Add(20 * time.Second)
	for time.Now().Before(limit) {
		if found, err = o.Doctor(w.context()); err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(found, tr.is) {
			return
		}
	}
	found = slices.DeleteFunc(found, func(f operate.Finding) bool { return f.Severity == operate.OK && f.Check != tr.check })
	t.Fatalf("no finding like %+v in %s", tr, dump(found))
}

// healthy asks until the doctor finds nothing wrong.
func (w *town) healthy(t *testing.T, o *operate.Operator) {
	t.Helper()
	var bad []operate.Finding
	limit := time.Now().Add(30 * time.Second)
	for time.Now().Before(limit) {
		bad = slices.DeleteFunc(w.doctor(o), func(f operate.Finding) bool { return f.Severity == operate.OK })
		if len(bad) == 0 {
			return
		}
	}
	t.Fatalf("%s", dump(bad))
}

func manage(c *operate.Config, t *testing.T) { c.ManagementURL = outboxtest.Env(t).ManagementURL }

// Every provocation leads to a finding that names it and its remedy, and is undone before the next.
func TestDoctorFindsWhatIsProvoked(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	for _, db := range []*outboxtest.Database{w.billing, w.mail} {
		w.exec(db, `UPDATE outbox.config SET topology = $1::text::jsonb`, get[string](w, w.shop, `SELECT topology::text FROM outbox.config`))
	}
	w.relayAll()
	w.consumeAll()
	o := w.operator(func(c *operate.Config) { manage(c, t) })
	w.quiet(o)
	w.healthy(t, o)
	queue, dead := w.topology.QueueName("mail", 2), rabbitmq.DeadName(w.topology.QueueName("billing", 1))
	day := time.Now().UTC().AddDate(0, 0, -20).Format(time.DateOnly)

	for _, c := range []struct {
		name    string
		provoke func() (undo func())
		want    trouble
	}{
		{"a long transaction", func() func() {
			o.SetLong(time.Millisecond)
			tx := w.begin(w.shop)
			if _, err := tx.Exec(w.context(), `SELECT 1`); err != nil {
				t.Fatal(err)
			}
			return func() { _ = tx.Rollback(w.context()); o.SetLong(time.Minute) }
		}, trouble{"long-transaction", operate.Warning, "shop", "", "idle in transaction for", "SELECT pg_terminate_backend("}},
		{"a prepared transaction", func() func() {
			o.SetLong(time.Millisecond)
			gid := "forgotten '" + w.shop.Name
			w.exec(w.shop, fmt.Sprintf(`BEGIN; INSERT INTO outbox.members (pool, member) VALUES ('x', gen_random_uuid()); PREPARE TRANSACTION '%s'`, strings.ReplaceAll(gid, "'", "''")))
			return func() {
				w.exec(w.shop, fmt.Sprintf(`ROLLBACK PREPARED '%s'`, strings.ReplaceAll(gid, "'", "''")))
				o.SetLong(time.Minute)
			}
		}, trouble{"prepared-transaction", operate.Warning, "shop", "forgotten '" + w.shop.Name, "neither committed nor rolled back", "ROLLBACK PREPARED 'forgotten ''" + w.shop.Name + "'"}},
		{"a clock that is off", func() func() {
			o.SetClock(func() time.Time { return time.Now().Add(-time.Hour) })
			return func() { o.SetClock(time.Now) }
		}, trouble{"clock", operate.Warning, "mail", "1h0m0s", "1h0m0s ahead of", "NTP"}},
		{"a database that does not wait for the disk", func() func() {
			w.exec(w.shop, `ALTER DATABASE `+w.shop.Name+` SET synchronous_commit = off`)
			return func() { w.exec(w.shop, `ALTER DATABASE `+w.shop.Name+` RESET synchronous_commit`) }
		}, trouble{"durability", operate.Critical, "shop", "synchronous_commit", "of database " + w.shop.Name, "ALTER DATABASE " + w.shop.Name + " RESET synchronous_commit"}},
		{"a role that lacks a right", func() func() {
			w.exec(w.shop, `REVOKE DELETE ON outbox.stuck FROM outbox_relay`)
			return func() { w.exec(w.shop, `GRANT DELETE ON outbox.stuck TO outbox_relay`) }
		}, trouble{"permissions", operate.Critical, "shop", "outbox_relay", "may not DELETE outbox.stuck", "GRANT DELETE ON outbox.stuck TO outbox_relay"}},
		{"a role that has too many", func() func() {
			w.exec(w.shop, `GRANT DELETE ON outbox.messages TO outbox_writer`)
			return func() { w.exec(w.shop, `REVOKE DELETE ON outbox.messages FROM outbox_writer`) }
		}, trouble{"permissions", operate.Critical, "shop", "outbox_writer", "must not", "REVOKE DELETE ON outbox.messages FROM outbox_writer"}},
		{"an old schema", func() func() {
			newest := get[int64](w, w.shop, `SELECT max(version_id) FROM outbox.schema_version`)
			w.exec(w.shop, `UPDATE outbox.schema_version SET is_applied = false WHERE version_id = $1`, newest)
			return func() {
				w.exec(w.shop, `UPDATE outbox.schema_version SET is_applied = true WHERE version_id = $1`, newest)
			}
		}, trouble{"migrations", operate.Critical, "shop", "", "schema outbox is at version", "ticketwave migrate"}},
		{"a slot that nobody reads", func() func() {
			slot := "doctor_" + strings.ReplaceAll(uuid.NewString(), "-", "_")
			w.exec(w.shop, `SELECT pg_create_physical_replication_slot($1, true)`, slot)
			return func() { w.exec(w.shop, `SELECT pg_drop_replication_slot($1)`, slot) }
		}, trouble{"replication-slot", operate.Warning, "shop", "doctor_", "MB of its log for it", "SELECT pg_drop_replication_slot('doctor_"}},
		{"another identity", func() func() {
			w.exec(w.billing, `UPDATE outbox.identity SET database_oid = 1`)
			return func() {
				w.exec(w.billing, `UPDATE outbox.identity SET database_oid = (SELECT oid FROM pg_database WHERE datname = current_database())`)
			}
		}, trouble{"identity", operate.Critical, "billing", "", "refuses to guess", "outboxctl cursor rebase --database billing"}},
		{"few partitions ahead", func() func() {
			days := days(2, 10)
			w.exec(w.shop, drop("outbox", days))
			return func() { w.patiently(w.shop, `SELECT outbox.add_partition(d) FROM outbox.missing_partitions(7) AS d`) }
		}, trouble{"partitions-outbox", operate.Warning, "shop", "", "for 1 days after today", "ticketwave migrate"}},
		{"no partitions ahead", func() func() {
			w.exec(w.billing, drop("inbox", days(1, 10)))
			return func() { w.patiently(w.billing, `SELECT inbox.add_partition(d) FROM inbox.missing_partitions(7) AS d`) }
		}, trouble{"partitions-inbox", operate.Critical, "billing", "", "for 0 days after today", "ticketwave migrate"}},
		{"a row outside all days of the outbox", func() func() {
			w.exec(w.shop, `INSERT INTO outbox.messages (uuid, topic, key, payload, created_at) VALUES (gen_random_uuid(), $1, 'k', '{}', now() + interval '300 days')`, paidType)
			return func() { w.exec(w.shop, `TRUNCATE outbox.messages_default`) }
		}, trouble{"default-partition-outbox", operate.Warning, "shop", "outbox.messages_default", "rows of days that have no partition", "set the clocks right"}},
		{"a row outside all days of the inbox", func() func() {
			w.exec(w.mail, `INSERT INTO inbox.messages (message_id, consumer) VALUES (gen_random_uuid(), 'mail')`)
			return func() { w.exec(w.mail, `TRUNCATE inbox.messages_default`) }
		}, trouble{"default-partition-inbox", operate.Warning, "mail", "inbox.messages_default", "rows of days", "set the clocks right"}},
		{"an outbox that keeps old days", func() func() {
			w.patiently(w.shop, `SELECT outbox.add_partition($1::text::date)`, day)
			return func() { w.exec(w.shop, drop("outbox", []string{day})) }
		}, trouble{"retention-outbox", operate.Warning, "shop", day, "has not been dropped", "the log of the relay says why"}},
		{"an inbox that keeps old days", func() func() {
			w.patiently(w.mail, `SELECT inbox.add_partition($1::text::date)`, day)
			return func() { w.exec(w.mail, drop("inbox", []string{day})) }
		}, trouble{"retention-inbox", operate.Warning, "mail", day, "has not been dropped", "the log of the service says why"}},
		{"two topologies", func() func() {
			w.exec(w.mail, `UPDATE outbox.config SET topology = jsonb_set(topology, '{exchange}', '"other.events"')`)
			return func() {
				w.exec(w.mail, `UPDATE outbox.config SET topology = jsonb_set(topology, '{exchange}', '"shop.events"')`)
			}
		}, trouble{"topology", operate.Warning, "", "mail", "differs", "ticketwave topology apply"}},
		{"a lost binding", func() func() {
			w.amqpDo(func(ch *amqp.Channel) error {
				return ch.QueueUnbind(queue, w.topology.RoutingKey(paidType, 2), w.topology.Exchange, nil)
			})
			return w.declare
		}, trouble{"binding", operate.Critical, "", queue, "is not bound to shop.events with orders.paid.v1.2", "ticketwave topology apply, then outboxctl reconcile"}},
		{"a binding that nobody asked for", func() func() {
			w.amqpDo(func(ch *amqp.Channel) error { return ch.QueueBind(queue, "stray.2", w.topology.Exchange, false, nil) })
			return func() {
				w.amqpDo(func(ch *amqp.Channel) error { return ch.QueueUnbind(queue, "stray.2", w.topology.Exchange, nil) })
			}
		}, trouble{"binding", operate.Warning, "", queue, "with stray.2, which the topology does not say", "rabbitmqadmin delete binding"}},
		{"a queue of another kind", func() func() {
			w.amqpDo(func(ch *amqp.Channel) error {
				if _, err := ch.QueueDelete(dead, false, false, false); err != nil {
					return err
				}
				_, err := ch.QueueDeclare(dead, true, false, false, false, nil)
				return err
			})
			return func() {
				w.amqpDo(func(ch *amqp.Channel) error { _, err := ch.QueueDelete(dead, false, false, false); return err })
				w.declare()
			}
		}, trouble{"queue-arguments", operate.Critical, "", dead, "it is a classic queue", "rabbitmqctl delete_queue " + dead}},
		{"a dead letter", func() func() {
			w.amqpDo(func(ch *amqp.Channel) error {
				return ch.PublishWithContext(w.context(), "", dead, false, false, amqp.Publishing{Body: []byte("x")})
			})
			return func() {
				w.amqpDo(func(ch *amqp.Channel) error { _, err := ch.QueuePurge(dead, false); return err })
			}
		}, trouble{"dead-letters", operate.Warning, "", dead, "1 messages are in " + dead, "outboxctl dead list --queue " + dead}},
		{"a queue that is gone", func() func() {
			w.amqpDo(func(ch *amqp.Channel) error { _, err := ch.QueueDelete(dead, false, false, false); return err })
			return w.declare
		}, trouble{"queue", operate.Critical, "", dead, "does not exist", "ticketwave topology apply"}},
		{"an exchange that is gone", func() func() {
			w.amqpDo(func(ch *amqp.Channel) error { return ch.ExchangeDelete(w.topology.DeadExchange(), false, false) })
			return w.declare
		}, trouble{"exchange", operate.Critical, "", "shop.dead", "does not exist", "ticketwave topology apply"}},
		{"an exchange of another kind", func() func() {
			w.amqpDo(func(ch *amqp.Channel) error {
				if err := ch.ExchangeDelete(w.topology.DeadExchange(), false, false); err != nil {
					return err
				}
				return ch.ExchangeDeclare(w.topology.DeadExchange(), amqp.ExchangeFanout, true, false, false, false, nil)
			})
			return func() {
				w.amqpDo(func(ch *amqp.Channel) error { return ch.ExchangeDelete(w.topology.DeadExchange(), false, false) })
				w.declare()
			}
		}, trouble{"exchange", operate.Critical, "", "shop.dead", "it is a fanout exchange and not a direct one", "delete it, then ticketwave topology apply"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer c.provoke()()
			w.expect(t, o, c.want)
		})
	}
	w.healthy(t, o)
}

func days(from, to int) (list []string) {
	for n := from; n <= to; n++ {
		list = append(list, time.Now().UTC().AddDate(0, 0, n).Format(time.DateOnly))
	}
	return list
}

// drop drops the partitions of days.
func drop(schema string, days []string) string {
	var text strings.Builder
	for _, day := range days {
		fmt.Fprintf(&text, "DROP TABLE IF EXISTS %s.messages_%s;", schema, strings.ReplaceAll(day, "-", ""))
	}
	return text.String()
}

func (w *town) begin(db *outboxtest.Database) pgx.Tx {
	w.t.Helper()
	tx, err := db.Begin(w.context())
	if err != nil {
		w.t.Fatal(err)
	}
	return tx
}

// amqpDo does something at the broker on a channel of its own.
func (w *town) amqpDo(do func(ch *amqp.Channel) error) {
	w.t.Helper()
	ch := w.channel()
	if err := do(ch); err != nil {
		w.t.Fatal(err)
	}
	if err := ch.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// What nobody works on, what lags, and what is stuck.
func TestDoctorFindsWhatStandsStill(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator()
	w.write(order{Key: "a"})
	w.exec(w.shop, `UPDATE outbox.messages SET created_at = created_at - interval '3 minutes'`)
	w.expect(t, o, trouble{"no-relay", operate.Critical, "shop", "0,1,2,3", "no relay works on partition 0, 1, 2, 3", "start a relay"})
	w.expect(t, o, trouble{"lag", operate.Critical, "shop", strconv.Itoa(outbox.PartitionOf("a")), "1 messages of partition", "outboxctl why"})
	w.expect(t, o, trouble{"queue-without-consumer", operate.Warning, "", "billing.0", "nobody consumes", "start the service"})
	w.expect(t, o, trouble{"topology", operate.Warning, "", "billing", "differs", "ticketwave topology apply"})
	w.expect(t, o, trouble{"binding", operate.NotChecked, "", "", "no management API", "TW_RABBITMQ_MANAGEMENT_URL"})
	w.relay()
	stop := w.consumeAll()
	w.fail("billing", "bad", inbox.Permanent(errors.New("no")))
	w.write(order{Key: "bad"}, order{Kind: lostType, Key: "nowhere"})
	w.expect(t, o, trouble{"stuck-inbox", operate.Warning, "billing", "billing", "at billing 1 messages are parked", "outboxctl stuck groups --database billing --side inbox"})
	w.expect(t, o, trouble{"stuck-outbox", operate.Warning, "shop", "", "1 fail and are tried again", "outboxctl stuck groups --database shop --side outbox"})
	stop()
	w.expect(t, o, trouble{"no-consumer", operate.Critical, "billing", "billing", "nobody consumes partition 0, 1, 2, 3 of billing", "start service billing"})
}

func TestDoctorWithThingsAway(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	o := w.operator(func(c *operate.Config) {
		c.AMQPURL = "amqp://guest:guest@127.0.0.1:1/"
		c.Databases[1].URL = "postgres://nobody@127.0.0.1:1/nothing"
	})
	w.expect(t, o, trouble{"database-away", operate.Critical, "billing", "", "billing", "start the server"})
	w.expect(t, o, trouble{"broker", operate.Critical, "", "", "connect to the broker", "start RabbitMQ"})
	o = w.operator(func(c *operate.Config) { c.AMQPURL = "" })
	w.expect(t, o, trouble{"broker", operate.NotChecked, "", "", "no broker", "TW_AMQP_URL"})
	w.exec(w.shop, `UPDATE outbox.config SET topology = NULL`)
	w.expect(t, o, trouble{"topology", operate.Critical, "", "", "no database has a topology", "ticketwave topology apply"})
	secret, err := url.Parse(outboxtest.Env(t).ManagementURL)
	if err != nil {
		t.Fatal(err)
	}
	w.store()
	secret.User = url.UserPassword("nobody", "wrong-password")
	o = w.operator(func(c *operate.Config) { c.ManagementURL = secret.String() })
	w.expect(t, o, trouble{"queue-arguments", operate.NotChecked, "", "", "401", "TW_RABBITMQ_MANAGEMENT_URL"})
	if strings.Contains(dump(w.doctor(o)), "wrong-password") {
		t.Error("a password is shown")
	}
}

func TestDoctorJudgesVersions(t *testing.T) {
	t.Parallel()
	for number, want := range map[int]int{130012: 1, 140000: 0, 150003: 0} {
		found := operate.JudgePostgreSQL("shop", number)
		if len(found) != want || want == 1 && (found[0].Severity != operate.Critical || found[0].Remedy == "") {
			t.Errorf("%d: %s", number, dump(found))
		}
	}
	for version, want := range map[string]operate.Severity{
		"3.9.29": operate.Critical, "3.10.8": operate.OK, "4.0.1": operate.OK, "2.8": operate.Critical, "": operate.NotChecked, "x.y": operate.OK,
	} {
		if f := operate.JudgeRabbitMQ(version); f.Severity != want || want != operate.OK && f.Remedy == "" {
			t.Errorf("%q: %s", version, dump(f))
		}
	}
}

// A server of its own, with settings that the shared one must not have.
func TestDoctorFindsABadServer(t *testing.T) {
	t.Parallel()
	p := newServer(t)
	p.start(map[string]string{"fsync": "off", "max_connections": "20", "superuser_reserved_connections": "3"})
	plan := schema.Plan{
		Databases:     []schema.Database{{Name: "lone", Source: "lone", Login: "lone", Schemas: []string{"outbox", "inbox"}}},
		OperatorLogin: "lone_operator", Password: "secret",
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := schema.Migrate(ctx, p.url(""), plan, silent); err != nil {
		t.Fatal(err)
	}
	o := operator(t, operate.Database{Name: "lone", URL: p.url("lone_operator")})
	w := &town{t: t}
	w.expect(t, o, trouble{"durability", operate.Critical, "lone", "fsync = off", "of the server", "ALTER SYSTEM SET fsync = on"})
	var crowd []*pgx.Conn
	for range 15 {
		conn, err := pgx.Connect(ctx, p.url(""))
		if err != nil {
			t.Fatal(err)
		}
		crowd = append(crowd, conn)
	}
	w.expect(t, o, trouble{"connections", operate.Warning, "lone", "", "of 17 connections are in use", "max_connections"})
	for _, conn := range crowd {
		_ = conn.Close(ctx)
	}
	p.stop()
	p.standby()
	p.start(map[string]string{"max_connections": "20"})
	w.expect(t, o, trouble{"server-in-recovery", operate.Critical, "lone", "", "in recovery", "pg_promote"})
}

// server is a private PostgreSQL server.
type server struct {
	t    *testing.T
	dir  string
	port int
	cmd  *exec.Cmd
}

func newServer(t *testing.T) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "doctor") // not below the test's own: the server's user must reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &server{t: t, dir: dir, port: freePort(t)}
	if id := serverUser(); id != nil {
		if err := os.Chown(dir, int(id.Uid), int(id.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := p.command("initdb", "-D", p.data(), "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	t.Cleanup(p.stop)
	return p
}

func (p *server) data() string { return filepath.Join(p.dir, "data") }

// serverUser is whom the server's programs run as: they refuse root.
func serverUser() *syscall.Credential {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if errors.Join(err1, err2) != nil {
		return nil
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func (p *server) command(program string, args ...string) *exec.Cmd {
	p.t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + program)
		if len(found) == 0 {
			p.t.Skipf("%s is not installed", program)
		}
		path = found[len(found)-1]
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: serverUser()}
	return cmd
}

func (p *server) start(settings map[string]string) {
	p.t.Helper()
	args := []string{"-D", p.data(), "-p", strconv.Itoa(p.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	p.cmd = p.command("postgres", args...)
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	outboxtest.Eventually(p.t, 30*time.Second, func() bool {
		conn, err := pgx.Connect(p.t.Context(), p.url(""))
		if err != nil {
			return false
		}
		return conn.Close(p.t.Context()) == nil
	}, "the server answers")
}

func (p *server) stop() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGINT) // fast shutdown
	_ = p.cmd.Wait()
	p.cmd = nil
}

// standby makes it start in recovery.
func (p *server) standby() {
	if err := os.WriteFile(filepath.Join(p.data(), "standby.signal"), nil, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *server) url(login string) string {
	database := "lone"
	if login == "" {
		login, database = "postgres", "postgres"
	}
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s", login, p.port, database)
}

// patiently runs a statement that gives up quickly when a lock is taken.
func (w *town) patiently(db *outboxtest.Database, text string, args ...any) {
	w.t.Helper()
	outboxtest.Eventually(w.t, 30*time.Second, func() bool {
		_, err := db.Exec(w.context(), text, args...)
		var pg *pgconn.PgError
		if err != nil && (!errors.As(err, &pg) || pg.Code != "55P03") { // lock_not_available
			w.t.Fatalf("%s: %v", text, err)
		}
		return err == nil
	}, "%s: its lock is taken", text)
}

// freePort is one below those that are given to whoever asks for any: the server takes it later.
func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err == nil {
			defer l.Close()
			return l.Addr().(*net.TCPAddr).Port
		}
	}
	t.Fatal("no port between 20000 and 32000 is free")
	return 0
}
