//go:build full

package chaos_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	schema "github.com/jcp/ticketwave/sql"
)

// manual is a house that "ticketwave run" keeps, and a shell that was prepared as the runbook says. What it runs stands in
// docs/operations.md.
type manual struct {
	*testing.T
	dir      string
	pg       *postgres
	mq       *broker
	env      []string
	prelude  string
	relay    int // ports
	admin    int
	booking  int
	sections map[string]string
	running  *child // the house

	place, disk, logDisk string // of servers; of this one's data and log, where they can be filled
}

func newManual(t *testing.T) *manual {
	s := raise(t)
	m := &manual{T: t, dir: t.TempDir(), mq: s.mq, relay: port(t), admin: port(t), booking: port(t), sections: sections(t), running: &child{}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	build := exec.Command("go", "build", "-o", s.bin+"/", "./cmd/outboxctl")
	build.Dir = "../outbox"
	if _, err := output(ctx, build); err != nil {
		t.Fatal(err)
	}
	var err error
	wal := m.smallDisks(s.dir)
	if m.pg, err = newPostgres(ctx, s.where["postgres"], filepath.Join(s.dir, "manual-disk", "postgres"), wal); err != nil {
		t.Fatal(err)
	}
	m.pg.settings["max_wal_size"] = "96MB"
	if err := m.pg.start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.pg.crash() })
	_, m.prelude, _ = strings.Cut(operations(t), "in a shell that was prepared like this")
	_, m.prelude, _ = strings.Cut(m.prelude, "\n\n")
	m.prelude, _, _ = strings.Cut(m.prelude, "\n\n**Where to begin")
	ports := []string{strconv.Itoa(m.booking)}
	for range schema.Services[1:] {
		ports = append(ports, strconv.Itoa(port(t)))
	}
	m.env = []string{
		"TW_HTTP_PORTS=" + strings.Join(ports, ","), "TW_RELAY_HTTP_ADDR=" + local(m.relay),
		"TW_ADMIN_ADDR=" + local(m.admin), "TW_ADMIN_URL=http://" + local(m.admin), "PGCONNECT_TIMEOUT=5",
	}
	made := fmt.Sprintf("TW_POSTGRES_URL='%s'\nTW_AMQP_URL='%s'\nTW_RABBITMQ_MANAGEMENT_URL='http://%s:%s@%s'\nTW_SERVICE_PASSWORD=%s\n",
		m.pg.url(""), m.mq.url(""), brokerUser, brokerPassword, local(m.mq.management), servicePassword)
	if err := os.Mkdir(filepath.Join(m.dir, ".run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, ".run", "env"), []byte(made), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(s.bin, filepath.Join(m.dir, "bin")); err != nil {
		t.Fatal(err)
	}
	m.house()
	t.Cleanup(func() { m.running.kill() })
	return m
}

// house runs everything, and waits until all is well.
func (m *manual) house() {
	m.Helper()
	m.enter()
	m.well()
}

// enter starts everything, until leave or the end of the test.
func (m *manual) enter() {
	m.Helper()
	log, err := os.OpenFile(filepath.Join(logs, "manual.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.Fatal(err)
	}
	defer log.Close() // the house has its own
	cmd := m.shell("exec bin/ticketwave run")
	cmd.Stdout, cmd.Stderr = log, log
	house, err := start("ticketwave run", cmd, syscall.SIGKILL)
	if err != nil {
		m.Fatal(err)
	}
	*m.running = *house
}

func (m *manual) shell(command string) *exec.Cmd {
	cmd := exec.Command("bash", "-c", m.prelude+"\n"+command)
	cmd.Dir, cmd.Env = m.dir, append(append(os.Environ(), m.env...), "PATH="+m.pg.bin+":"+os.Getenv("PATH"))
	return cmd
}

// do runs a command line and wants it to succeed.
func (m *manual) do(command string) string {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
	defer cancel()
	text, err := output(ctx, m.shell(command))
	if err != nil || strings.Contains(command, "mq ") && strings.Contains(text, `"error":`) {
		m.Fatalf("%s: %v: %s", command, err, text)
	}
	return text
}

var quoted = regexp.MustCompile("`([^`]+)`")

// said are the commands of a section's part, which has some.
func (m *manual) said(section, part string, fill ...string) []string {
	m.Helper()
	list := m.commands(section, part, fill...)
	if len(list) == 0 {
		m.Fatalf("no command is in %q of %q", part, section)
	}
	return list
}

// commands are those of a section's part, in order, with placeholders filled. What needs a terminal is left out.
func (m *manual) commands(section, part string, fill ...string) (list []string) {
	m.Helper()
	text, ok := m.sections[section]
	_, text, found := strings.Cut(text, "**"+part+".**")
	if !ok || !found {
		m.Fatalf("the runbook has no %q of %q", part, section)
	}
	text, _, _ = strings.Cut(text, "\n\n")
	here := append([]string{"127.0.0.1:5010", local(m.relay), "127.0.0.1:5011", local(m.admin), "127.0.0.1:5001", local(m.booking)}, fill...)
	for _, found := range quoted.FindAllStringSubmatch(text, -1) {
		command := strings.NewReplacer(here...).Replace(found[1])
		first, _, more := strings.Cut(command, " ")
		switch {
		case !more, !slices.Contains([]string{"db", "mq", "curl", "openssl", "outboxctl", "bin/ticketwave"}, first), command == "outboxctl top":
			continue
		case strings.Contains(command, "--reason"):
			command += " --yes"
		}
		list = append(list, command)
	}
	return list
}

// see runs what a section looks with, which must show each of the texts.
func (m *manual) see(section string, shows ...string) {
	m.Helper()
	m.seeFilled(section, nil, shows...)
}

func (m *manual) seeFilled(section string, fill []string, shows ...string) {
	m.Helper()
	var all string
	for _, command := range m.said(section, "See", fill...) {
		all += m.look(command)
	}
	for _, text := range shows {
		if !strings.Contains(all, text) {
			m.Errorf("what %s says to look at does not show %q: %s", section, text, all)
		}
	}
}

// look runs a command that may find something unhealthy.
func (m *manual) look(command string) string {
	m.Helper()
	for _, judges := range []string{"status", "doctor", "cursor show"} {
		if strings.HasPrefix(command, "outboxctl "+judges) {
			command += " || [ $? = 3 ]"
		}
	}
	return m.do(command)
}

// remedy runs what a section says to do.
func (m *manual) remedy(section string, fill ...string) {
	m.Helper()
	for _, command := range m.said(section, "Do", fill...) {
		m.Logf("%s: %s", section, command)
		m.do(command)
	}
}

// ill waits until the doctor has found it. Some troubles count when they are a minute old.
func (m *manual) ill(check, subject string) {
	m.Helper()
	var text string
	eventually(m.T, 90*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
		defer cancel()
		text, _ = output(ctx, m.shell("outboxctl doctor")) // exit code 3 when something is critical
		return regexp.MustCompile(`(?m)^(critical|warning) +` + check + `( .*)?` + regexp.QuoteMeta(subject)).MatchString(text)
	}, "the doctor does not find %s %s", check, subject)
}

// well waits until the doctor finds nothing.
func (m *manual) well() {
	m.Helper()
	var text string
	if !within(90*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
		defer cancel()
		text, _ = output(ctx, m.shell("outboxctl doctor"))
		return strings.Contains(text, "0 critical, 0 warnings") && strings.Contains(text, "0 not checked")
	}) {
		m.Fatalf("the house is not well: %s", text)
	}
	m.do("outboxctl reconcile --from 24h")
}

// Each section breaks the house, finds that with the runbook, and mends it with the runbook's own commands.
func TestRunbook(t *testing.T) {
	m := newManual(t)
	stray := fmt.Sprintf("mq bindings/%%2F/e/ticketwave.events/q/catalog.0 -X POST -H 'content-type: application/json' -d '%s'", `{"routing_key":"stray.1"}`)
	classic := `mq queues/%2F/catalog.0.dead -X DELETE && mq queues/%2F/catalog.0.dead -X PUT -H 'content-type: application/json' -d '{"durable":true}'`
	fanout := `mq exchanges/%2F/ticketwave.events -X DELETE && mq exchanges/%2F/ticketwave.events -X PUT -H 'content-type: application/json' -d '{"type":"fanout","durable":true}'`
	for _, c := range []struct {
		check, subject string
		breaks         string
		shows          []string
		fill           []string
	}{
		{"durability", "fsync = off", `db booking "ALTER SYSTEM SET fsync = off" && db booking "SELECT pg_reload_conf()"`, []string{"fsync              | off"}, nil},
		{"permissions", "outbox_relay", `db booking "REVOKE SELECT ON outbox.messages FROM outbox_relay"`, []string{"outbox_operator=r"}, nil},
		{"replication-slot", "lost", `db booking "SELECT pg_create_physical_replication_slot('lost', true)"`, []string{"lost"}, []string{"NAME", "lost"}},
		{"exchange", "ticketwave.events", fanout, []string{"fanout"}, nil},
		{"queue-arguments", "catalog.0.dead", classic, []string{"classic"}, []string{"QUEUE", "catalog.0.dead"}},
		{"topology", "saga", `db saga "UPDATE outbox.config SET topology = jsonb_set(topology, '{exchange}', to_jsonb('other'::text))"`, []string{"ticketwave.events"}, nil},
		{"migrations", "booking", `db booking "DELETE FROM outbox.schema_version WHERE version_id = (SELECT max(version_id) FROM outbox.schema_version)"`, []string{"max"}, nil},
		{"partitions-outbox", "booking", days("outbox"), []string{"ahead"}, nil},
		{"partitions-inbox", "booking", days("inbox"), []string{"ahead"}, nil},
		{"default-partition-outbox", "outbox.messages_default", `db booking "BEGIN; INSERT INTO outbox.messages (uuid, topic, key, payload, created_at) VALUES (gen_random_uuid(), 't', 'k', '', now() + interval '300 days'); ROLLBACK"`, []string{"created_at"}, nil},
		{"default-partition-inbox", "inbox.messages_default", `db booking "BEGIN; INSERT INTO inbox.messages (message_id, consumer) VALUES (gen_random_uuid(), 'booking'); ROLLBACK"`, []string{"count"}, nil},
	} {
		if !t.Run(c.check, func(t *testing.T) {
			m := *m
			m.T = t
			m.do(c.breaks)
			m.ill(c.check, c.subject)
			m.see(c.check, c.shows...)
			m.remedy(c.check, c.fill...)
			m.well()
		}) {
			return
		}
	}
	t.Run("binding", func(t *testing.T) {
		m := *m
		m.T = t
		m.do(stray)
		m.ill("binding", "catalog.0")
		m.see("binding", "stray.1")
		list := m.said("binding", "Do", "QUEUE", "catalog.0", "ROUTING-KEY", "stray.1")
		m.do(list[len(list)-1])
		m.well()
	})
	for _, c := range []struct {
		name string
		try  func(m *manual)
	}{
		{"queue", (*manual).queueLost}, {"route", (*manual).routeLost}, {"bad messages", (*manual).bad}, {"connections", (*manual).connections},
		{"broker", (*manual).blocked}, {"broker away", (*manual).brokerAway}, {"database away", (*manual).databaseAway},
		{"transactions", (*manual).transactions}, {"pool", (*manual).poolExhausted}, {"clock", (*manual).clock},
		{"retention", (*manual).retention}, {"nobody", (*manual).nobody}, {"binding lost", (*manual).bindingLost},
		{"certificate", (*manual).certificate}, {"disk full", (*manual).diskFull}, {"upgrade", (*manual).upgraded}, {"failover", failover},
	} {
		if !t.Run(c.name, func(t *testing.T) {
			m := *m
			m.T = t
			c.try(&m)
		}) {
			return // a house that is not well says nothing about the next
		}
	}
}

// days is a command line that drops most of the days ahead.
func days(schema string) string {
	var list []string
	for n := 2; n <= 10; n++ {
		list = append(list, schema+".messages_"+time.Now().UTC().AddDate(0, 0, n).Format("20060102"))
	}
	return `db booking "DROP TABLE IF EXISTS ` + strings.Join(list, ", ") + `"`
}

// failover lets a standby take the place of the server, at its address, under the house that runs.
func failover(m *manual) {
	ctx, cancel := context.WithTimeout(m.Context(), 3*time.Minute)
	defer cancel()
	standby := &postgres{bin: m.pg.bin, dir: filepath.Join(m.place, "manual-standby"), password: m.pg.password, settings: m.pg.settings, port: m.pg.port}
	if err := ownedByServer(standby.dir); err != nil {
		m.Fatal(err)
	}
	dsn := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres password=%s", m.pg.port, m.pg.password)
	if _, err := output(ctx, standby.command("pg_basebackup", "-D", standby.data(), "-d", dsn, "-R", "-X", "stream", "-c", "fast", "--no-sync")); err != nil {
		m.Fatal(err)
	}
	if err := m.pg.stop(syscall.SIGINT); err != nil {
		m.Fatal(err)
	}
	if err := standby.start(ctx); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(standby.crash)
	m.ill("server-in-recovery", "booking")
	m.see("server-in-recovery", " t")
	list := m.said("server-in-recovery", "Do")
	m.do(list[0])
	m.ill("identity", "booking")
	m.see("identity", "ANOTHER")
	m.see("OutboxRelayCannotWork", "identity")
	m.logged("work on a partition ended, starting it again")
	m.remedy("identity")
	for _, database := range schema.Services[1:] {
		m.do(strings.ReplaceAll(list[len(list)-1], "booking", database))
	}
	m.well()
}
