//go:build full

package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	schema "github.com/jcp/ticketwave/sql"
)

// smallDisks make the server's data and its log lie on disks that can be filled, where the harness may mount.
func (m *manual) smallDisks(place string) (walDir string) {
	m.Helper()
	m.place, m.disk, m.logDisk = place, filepath.Join(place, "manual-disk"), filepath.Join(place, "manual-log")
	if tmpfs(m.disk, "400m", 0) != nil || tmpfs(m.logDisk, smallLog, 0) != nil {
		m.disk, m.logDisk = "", ""
		return ""
	}
	return m.logDisk
}

const smallLog = "256m"

// fails is what a command line says that must not succeed.
func (m *manual) fails(command string) string {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
	defer cancel()
	text, err := output(ctx, m.shell(command))
	if err == nil {
		m.Errorf("%s succeeds: %s", command, text)
	}
	return text
}

// leave stops the house.
func (m *manual) leave() {
	m.Helper()
	m.running.signal(syscall.SIGTERM)
	if !m.running.await(time.Minute) {
		m.Fatal("the house does not stop")
	}
}

// logged waits until the house's log has a line.
func (m *manual) logged(pattern string) {
	m.Helper()
	line := regexp.MustCompile(pattern)
	eventually(m.T, time.Minute, func() bool {
		text, err := os.ReadFile(filepath.Join(logs, "manual.log"))
		return err == nil && line.Match(text)
	}, "the log does not say %s", pattern)
}

// beside starts a relay of some databases beside the house, which offers an administration API over all of them. What is
// returned is a shell that talks to it.
func (m *manual) beside(scheme string, relayed []string, env ...string) (*manual, *child) {
	m.Helper()
	other := *m
	other.admin, other.relay = port(m.T), port(m.T)
	list := func(role string, names []string) string {
		var all []string
		for _, name := range names {
			all = append(all, fmt.Sprintf("%s=postgres://ticketwave_%s:%s@%s/ticketwave_%[1]s?sslmode=disable", name, role, servicePassword, local(m.pg.port)))
		}
		return strings.Join(all, ",")
	}
	other.env = append(slices.Clone(m.env), "TW_ADMIN_ADDR="+local(other.admin), "TW_ADMIN_URL="+scheme+"://"+local(other.admin),
		"TW_ADMIN_TOKENS=.run/admin-tokens", "TW_HTTP_ADDR="+local(other.relay), "TW_RELAY_DATABASES="+list("relay", relayed),
		"TW_ADMIN_DATABASES="+list("operator", schema.Services))
	other.env = append(other.env, env...)
	log, err := os.OpenFile(filepath.Join(logs, "manual-relay.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.Fatal(err)
	}
	defer log.Close() // the relay has its own
	cmd := other.shell("exec bin/relay")
	cmd.Stdout, cmd.Stderr = log, log
	relay, err := start("relay", cmd, syscall.SIGKILL)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(relay.kill)
	return &other, relay
}

func (m *manual) stops(relay *child) {
	m.Helper()
	relay.signal(syscall.SIGTERM)
	if !relay.await(30 * time.Second) {
		m.Error("the relay does not stop")
	}
}

// nobody works: no relay, then one that has another database, then one and no service.
func (m *manual) nobody() {
	id, key := uuid.Must(uuid.NewV7()).String(), uuid.NewString()
	m.leave()
	if text := m.fails(m.one("OutboxNoRelay", "See", "outboxctl status")); !strings.Contains(text, "refused") {
		m.Errorf("outboxctl does not say that nobody answers: %s", text)
	}
	m.fails(m.one("OutboxNoRelay", "See", "readyz"))
	m.do(published(id, key, m.event(key)))
	m.do(`db catalog "UPDATE outbox.messages SET created_at = created_at - interval '20 minutes' WHERE uuid = '` + id + `'"`)

	one, relay := m.beside("http", []string{"payment"})
	fill := []string{"MESSAGE-ID", id, "db booking", "db catalog"}
	one.ill("no-relay", "catalog")
	one.see("no-relay", "catalog")
	one.see("OutboxPartitionNotRelayed", "no-relay")
	one.ill("lag", "catalog")
	one.seeFilled("lag", fill, "no relay")
	one.seeFilled("OutboxLag", fill, id)
	one.look(one.one("OutboxLag", "Do", "outboxctl doctor"))
	one.see("OutboxOldestUnrelayed", "20m")
	one.ill("no-consumer", "booking")
	one.see("no-consumer", "booking")
	one.ill("queue-without-consumer", "booking.0")
	one.see("queue-without-consumer", `"consumers":0`)
	for _, command := range one.said("OutboxQueueNotConsumed", "See") {
		if strings.HasPrefix(command, "curl") {
			one.fails(command)
		} else {
			one.look(command)
		}
	}
	m.stops(relay)

	one, relay = m.beside("http", schema.Services) // "start a relay whose TW_RELAY_DATABASES has the database"
	one.until("! outboxctl doctor | grep -E '^(critical|warning) +(no-relay|lag) '")
	one.first(`(booking[.][0-3])`, "outboxctl why "+id)
	m.house() // "start the service"
	m.stops(relay)
	m.well()
}

// brokerAway is a broker that has crashed.
func (m *manual) brokerAway() {
	ctx, cancel := context.WithTimeout(m.Context(), 3*time.Minute)
	defer cancel()
	if err := m.mq.crash(); err != nil {
		m.Fatal(err)
	}
	m.ill("broker", "")
	for _, section := range []string{"broker", "OutboxBrokerAway", "OutboxQueuesNotMeasured"} {
		if text := m.fails(m.one(section, "See", "mq ")); !strings.Contains(text, "connect") {
			m.Errorf("%s: the management API does not look away: %s", section, text)
		}
	}
	m.first(`("connected": ?false)`, m.one("OutboxBrokerAway", "See", "curl")+" | tr -d ' '")
	m.first(`(?i)(broker)`, m.one("ServiceBrokerAway", "See", "curl"))
	m.logged("queues not measured")
	if err := m.mq.start(ctx); err != nil { // "start it"
		m.Fatal(err)
	}
	m.well()
}

// databaseAway is a server that has been stopped.
func (m *manual) databaseAway() {
	ctx, cancel := context.WithTimeout(m.Context(), 2*time.Minute)
	defer cancel()
	if err := m.pg.stop(syscall.SIGINT); err != nil {
		m.Fatal(err)
	}
	m.ill("database-away", "booking")
	if text := m.fails(m.one("database-away", "See", "db ")); !strings.Contains(text, "refused") {
		m.Errorf("the server does not look away: %s", text)
	}
	m.see("OutboxNotMeasured", "booking")
	m.logged("database not measured")
	m.see("InboxNotMeasured", "database")
	m.logged("backlog not measured")
	m.do("curl -s " + local(m.booking) + "/api/bookings/" + uuid.NewString())
	m.see("ServiceErrors", `status="503"`)
	if err := m.pg.start(ctx); err != nil { // "start the server"
		m.Fatal(err)
	}
	m.well()
}

// poolExhausted is a table that somebody has locked.
func (m *manual) poolExhausted() {
	conn := m.connect("booking")
	ctx, cancel := context.WithTimeout(m.Context(), 30*time.Second)
	defer cancel()
	var pid string
	if _, err := conn.Exec(ctx, `BEGIN; LOCK TABLE booking.bookings IN ACCESS EXCLUSIVE MODE`); err != nil {
		m.Fatal(err)
	}
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()::text`).Scan(&pid); err != nil {
		m.Fatal(err)
	}
	crowd, err := start("curl", m.shell("for i in $(seq 40); do curl -s -m 30 "+local(m.booking)+"/api/bookings/"+uuid.NewString()+" & done; wait"), syscall.SIGKILL)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(crowd.kill)
	m.first(`(?m)^ticketwave_pool_connections_in_use(?:\{.*\})? (16)$`, m.one("ServicePoolExhausted", "See", "curl"))
	m.see("ServicePoolExhausted", "Lock")
	m.see("ServiceSlow", "ticketwave_pool_wait")
	m.first("("+pid+")", m.one("ServicePoolExhausted", "Do", "pg_blocking_pids"))
	m.do(m.one("long-transaction", "Do", "pg_terminate_backend", "PID", pid))
	if !crowd.await(30 * time.Second) {
		m.Error("requests hang although nobody holds the lock")
	}
	m.well()
}

// clock lets the server tell operators another time than it has.
func (m *manual) clock() {
	again := `db booking "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ticketwave_operator'"`
	m.do(`db booking "CREATE SCHEMA ahead; GRANT USAGE ON SCHEMA ahead TO PUBLIC;
		CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT pg_catalog.clock_timestamp() + interval ''1 hour'''"`)
	for _, role := range []string{"postgres", "ticketwave_operator"} {
		m.do(`db booking "ALTER ROLE ` + role + ` IN DATABASE ticketwave_booking SET search_path = ahead, pg_catalog"`)
	}
	m.do(again)
	m.ill("clock", "1h0m0s")
	found := regexp.MustCompile(`(?s)(\d\d):(\d\d):\d\d\.\d+.* (\d\d):(\d\d):\d\d`).FindStringSubmatch(m.do("export TZ=UTC PGTZ=UTC; " + m.said("clock", "See")[0]))
	if found == nil || found[1] == found[3] {
		m.Errorf("what clock says to look at shows no difference: %q", found)
	}
	for _, role := range []string{"postgres", "ticketwave_operator"} { // "set right the one that is off"
		m.do(`db booking "ALTER ROLE ` + role + ` IN DATABASE ticketwave_booking RESET search_path"`)
	}
	m.do(`db booking "DROP SCHEMA ahead CASCADE"`)
	m.do(again)
	m.well()
}

// retention lets days pass while a transaction uses the tables.
func (m *manual) retention() {
	day := time.Now().UTC().AddDate(0, 0, -20)
	m.do(`db booking "INSERT INTO outbox.watermarks (age, relayed) SELECT max(age) + interval '8 days', outbox.relayed() FROM outbox.watermarks"`)
	m.do(`db booking "INSERT INTO inbox.watermarks (age) SELECT max(age) + interval '15 days' FROM inbox.watermarks"`)
	for _, schema := range []string{"outbox", "inbox"} {
		m.do(fmt.Sprintf(`db booking "SELECT %s.add_partition('%s')"`, schema, day.Format(time.DateOnly)))
	}
	conn := m.connect("booking")
	ctx, cancel := context.WithTimeout(m.Context(), 10*time.Second)
	defer cancel()
	var pid string
	if _, err := conn.Exec(ctx, `BEGIN; SELECT count(*) FROM outbox.messages; SELECT count(*) FROM inbox.messages`); err != nil {
		m.Fatal(err)
	}
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()::text`).Scan(&pid); err != nil {
		m.Fatal(err)
	}
	again := func() { m.leave(); m.enter() } // "start it again"
	again()
	for _, schema := range []string{"outbox", "inbox"} {
		m.ill("retention-"+schema, day.Format(time.DateOnly))
		m.see("retention-"+schema, day.Format(time.DateOnly))
		m.logged(`"msg":"partitions kept".*"schema":"` + schema + `".*"postponed":\{"` + day.Format(time.DateOnly) + `"`)
		for _, command := range m.commands("retention-"+schema, "Do") {
			m.look(command)
		}
	}
	m.ill("long-transaction", pid)
	m.remedy("long-transaction", "PID", pid)
	again()
	m.well()
}

// bindingLost is a binding that goes while another queue takes the same messages: the broker says nothing of it.
func (m *manual) bindingLost() {
	const other = "runbook.other"
	key := uuid.NewString()
	partition := outbox.PartitionOf(key)
	route := fmt.Sprintf("%s.%d", strings.TrimPrefix(contracts.TypeCatalogEventPublished, contracts.TypePrefix), partition)
	queue := fmt.Sprintf("booking.%d", partition)
	m.do(fmt.Sprintf(`mq queues/%%2F/%s -X PUT -H 'content-type: application/json' -d '{"durable":true}'`, other))
	m.do(fmt.Sprintf(`mq bindings/%%2F/e/ticketwave.events/q/%s -X POST -H 'content-type: application/json' -d '{"routing_key":"%s"}'`, other, route))
	id := uuid.Must(uuid.NewV7()).String()
	unbind := fmt.Sprintf("mq bindings/%%2F/e/ticketwave.events/q/%s/%s -X DELETE", queue, route)
	m.do(unbind)
	m.do(published(id, key, m.event(key)))
	m.first(`("messages": ?1\b)`, "mq queues/%2F/"+other)
	m.until(unbind + "; outboxctl doctor | grep -E '^critical +binding +" + queue + "'") // the relay binds it again every minute
	m.see("binding", other)
	fill := []string{"--database booking", "--database catalog", "--to-queue catalog", "--to-queue booking"}
	m.do(m.one("binding", "Do", "topology apply"))
	if text := m.fails(m.one("binding", "Do", "reconcile")); !strings.Contains(text, id) {
		m.Errorf("reconcile does not name what is missing: %s", text)
	}
	hash := m.first(`"hash": ?"([^"]+)"`, m.one("binding", "Do", "replay plan", fill...)+" -o json")
	m.do(m.one("binding", "Do", "replay apply", "HASH", hash))
	m.do("mq queues/%2F/" + other + " -X DELETE") // and its binding
	m.well()
}

// book sends a booking of the example event, and returns the status.
func (m *manual) book() string {
	body, err := json.Marshal(map[string]any{"eventId": "123e4567-e89b-12d3-a456-426614174000", "userId": "test-user-123", "ticketCount": 1})
	if err != nil {
		m.Fatal(err)
	}
	return m.do(fmt.Sprintf(`curl -s -o answer -w '%%{http_code}' -m 30 -H 'Content-Type: application/json' -d '%s' %s/api/example/create-booking-with-flow`, body, local(m.booking)))
}

// diskFull fills the disk of the server's data, and then lets a forgotten slot fill that of its log.
func (m *manual) diskFull() {
	if m.disk == "" {
		m.Skip("no small disk to fill: a tmpfs cannot be mounted here")
	}
	filler := filepath.Join(m.disk, "filler")
	m.Cleanup(func() { _ = os.Remove(filler) }) // if it is there still
	if err := fill(m.disk, filler); err != nil {
		m.Fatal(err)
	}
	status := ""
	eventually(m.T, time.Minute, func() bool { status = m.book(); return strings.HasPrefix(status, "50") }, "bookings are taken although the disk is full: %s", &status)
	if status != "503" && status != "500" {
		m.Errorf("a booking is answered with %s", status)
	}
	m.logged("No space left on device")
	m.seeFull()
	if err := os.Remove(filler); err != nil { // "remove what does not belong on that disk"
		m.Fatal(err)
	}
	m.revived()
	for _, command := range m.said("disk-full", "Do") {
		m.look(command)
	}
	m.logFull()
}

// seeFull looks as the section says, which also says that there may be no room for a connection.
func (m *manual) seeFull() {
	m.Helper()
	for i, command := range m.said("disk-full", "See") {
		ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
		text, err := output(ctx, m.shell(command))
		cancel()
		switch shows := []string{"ticketwave_booking", "log", "pg_proc"}[i]; {
		case err != nil && strings.Contains(text, "could not write init file"):
			m.Log("there is no room for a connection")
		case err != nil || !strings.Contains(text, shows):
			m.Errorf("%s: %v: want %q in %s", command, err, shows, text)
		}
	}
}

// revived wants the house to go on, and starts a server that has given up.
func (m *manual) revived() {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), 2*time.Minute)
	defer cancel()
	if !m.pg.proc.alive() {
		m.Log("the server had given up")
		if err := m.pg.restart(ctx); err != nil {
			m.Fatal(err)
		}
	}
	m.well()
}

func (m *manual) logFull() {
	m.do(`db booking "SELECT pg_create_physical_replication_slot('forgotten', true)"`)
	gone := func() bool {
		ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
		defer cancel()
		_, err := output(ctx, m.shell(`db booking "SELECT pg_logical_emit_message(true, 'runbook', repeat('x', 8000000)), pg_switch_wal()"`))
		return err != nil && m.pg.proc.await(20*time.Second)
	}
	eventually(m.T, 2*time.Minute, gone, "the server does not stop although its log has no room")
	m.ill("database-away", "booking")
	if err := tmpfs(m.logDisk, "512m", syscall.MS_REMOUNT); err != nil { // "or make it larger"
		m.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(m.Context(), 2*time.Minute)
	defer cancel()
	if err := m.pg.restart(ctx); err != nil {
		m.Fatal(err)
	}
	m.first("(forgotten)", m.one("disk-full", "Do", "pg_replication_slots"))
	m.ill("replication-slot", "forgotten")
	m.remedy("replication-slot", "NAME", "forgotten")
	m.well()
}

// upgraded goes through pg_upgrade, from a version to the same one: no older server is here.
func (m *manual) upgraded() {
	ctx, cancel := context.WithTimeout(m.Context(), 5*time.Minute)
	defer cancel()
	m.see("postgresql-version", "server_version")
	m.leave()
	fresh, err := newPostgres(ctx, m.pg.bin, filepath.Join(m.place, "manual-upgraded"), "")
	if err != nil {
		m.Fatal(err)
	}
	if err := m.pg.stop(syscall.SIGINT); err != nil {
		m.Fatal(err)
	}
	cmd := fresh.command("pg_upgrade", "-U", "postgres", "-b", m.pg.bin, "-B", m.pg.bin, "-d", m.pg.data(), "-D", fresh.data())
	cmd.Dir = fresh.dir
	if _, err := output(ctx, cmd); err != nil {
		m.Fatal(err)
	}
	fresh.port, fresh.settings = m.pg.port, m.pg.settings
	*m.pg = *fresh
	if err := m.pg.start(ctx); err != nil {
		m.Fatal(err)
	}
	one, relay := m.beside("http", schema.Services)
	one.ill("identity", "booking")
	rebase := one.one("postgresql-version", "Do", "cursor rebase")
	for _, database := range schema.Services {
		one.do(strings.ReplaceAll(rebase, "booking", database))
	}
	m.house()
	m.stops(relay)
	m.well()
}
