package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	schema "github.com/jcp/ticketwave/sql"
)

// hold opens a transaction in a database of the cluster that has written something.
func (r *run) hold(database string, do func(ctx context.Context, tx pgx.Tx) error) (conn *pgx.Conn, tx pgx.Tx) {
	r.Helper()
	ctx, cancel := r.context(30 * time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.w.pg.url(database))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // it may have broken
	})
	if tx, err = conn.Begin(ctx); err == nil {
		err = do(ctx, tx)
	}
	if err != nil {
		r.Fatal(err)
	}
	return conn, tx
}

// late appends a request about a booking of its own, whose commit is yet to come.
func (r *run) late(o order) func(ctx context.Context, tx pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		return outbox.Append(ctx, tx, contracts.UpdateEventInventory{
			EventID: o.event, BookingID: o.booked.ID, QuantityReduced: o.tickets, RequestedAt: time.Now().UTC(),
		})
	}
}

// flowing wants bookings to go on while something is held: the bound is far below how long it is.
func (r *run) flowing(what string) {
	r.Helper()
	for range 3 {
		began := time.Now()
		if !within(5*time.Second, func() bool {
			fresh := r.w.clients.accepted(began)
			return len(fresh) > 0 && r.w.answered(fresh[0].booked.ID)
		}) {
			r.Errorf("bookings stall behind %s", what)
			return
		}
	}
}

func longTransaction(r *run) {
	r.begin()
	o := r.w.bookOne(r.T, r.load.event)
	_, same := r.hold(r.w.prefix+"booking", r.late(o))
	_, other := r.hold("", func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TEMPORARY TABLE held AS SELECT pg_current_xact_id()`)
		return err
	})
	r.flowing("a long transaction")
	ctx, cancel := r.context(10 * time.Second)
	defer cancel()
	if err := errors.Join(same.Commit(ctx), other.Rollback(ctx)); err != nil {
		r.Fatal(err)
	}
}

func forgottenTransaction(r *run) {
	r.begin()
	o := r.w.bookOne(r.T, r.load.event)
	conn, _ := r.hold(r.w.prefix+"booking", func(ctx context.Context, tx pgx.Tx) error {
		if err := r.late(o)(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `PREPARE TRANSACTION 'forgotten'`)
		return err
	})
	r.flowing("a prepared transaction")
	r.named("prepared-transaction", "forgotten")
	long := func() float64 {
		n, _ := r.w.procs["relay"].metric("outbox_relay_long_transactions", `database="booking",kind="prepared"`)
		return n
	}
	eventually(r.T, time.Minute, func() bool { return long() == 1 }, "the relay's metrics do not count the prepared transaction")
	ctx, cancel := r.context(10 * time.Second)
	defer cancel()
	if _, err := conn.Exec(ctx, `COMMIT PREPARED 'forgotten'`); err != nil {
		r.Fatal(err)
	}
	eventually(r.T, time.Minute, func() bool { return long() == 0 }, "the relay's metrics still count it")
}

// conflicts makes the catalog's transactions deadlock with others, and then fail to serialize among themselves.
func conflicts(r *run) {
	r.begin()
	deadlocks := func() (n int) {
		r.w.admin(r.T, "catalog", `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`, nil, &n)
		return n
	}
	before := deadlocks()
	for range 3 {
		r.deadlock()
	}
	eventually(r.T, 20*time.Second, func() bool { return deadlocks() >= before+3 }, "there were not three deadlocks")
	role := r.w.prefix + "catalog"
	r.w.do(r.T, "catalog", `ALTER ROLE `+role+` SET default_transaction_isolation = 'repeatable read'`)
	defer r.w.do(r.T, "catalog", `ALTER ROLE `+role+` RESET default_transaction_isolation`)
	r.w.stop(r.T, "catalog")
	r.again("catalog")
	r.load.await(r.T, 60)
	r.w.do(r.T, "catalog", `ALTER ROLE `+role+` RESET default_transaction_isolation`)
	r.w.stop(r.T, "catalog")
	r.again("catalog")
	r.healed("PostgreSQL")
}

// deadlock locks the row of the load's event until the catalog waits for it, and then records the messages that the
// catalog may be recording: the catalog's transaction is the one that finds the circle, and the victim.
func (r *run) deadlock() {
	r.Helper()
	ctx, cancel := r.context(30 * time.Second)
	defer cancel()
	conn, tx := r.hold(r.w.prefix+"catalog", func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SET LOCAL deadlock_timeout = '1h'`)
		if err == nil {
			_, err = tx.Exec(ctx, `SELECT FROM catalog.events WHERE id = $1 FOR UPDATE`, r.load.event)
		}
		return err
	})
	var waits bool
	eventually(r.T, 10*time.Second, func() bool {
		err := r.w.pools["catalog"].QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM pg_stat_activity WHERE usename = $1 AND $2 = ANY (pg_blocking_pids(pid)))`,
			r.w.prefix+"catalog", int32(conn.PgConn().PID())).Scan(&waits)
		return err == nil && waits
	}, "the catalog does not wait for a locked event")
	asked, err := collect[struct{ ID string }](ctx, r.w, "booking", `
		SELECT uuid::text FROM outbox.messages WHERE topic = ANY ($1) ORDER BY id DESC LIMIT 1000`,
		[]string{contracts.TypeUpdateEventInventory, contracts.TypeReleaseEventInventory, contracts.TypeCommitEventInventory}) // what locks an event
	if err != nil {
		r.Fatal(err)
	}
	ids := make([]string, len(asked))
	for i, a := range asked {
		ids[i] = a.ID
	}
	if _, err := tx.Exec(ctx, `
		INSERT INTO inbox.messages (message_id, consumer) SELECT id, 'catalog' FROM unnest($1::text[]::uuid[]) AS id ORDER BY id
		ON CONFLICT DO NOTHING`, ids); err != nil {
		r.Errorf("the harness is the victim of its deadlock: %v", err)
	}
	if err := tx.Rollback(ctx); err != nil {
		r.Fatal(err)
	}
}

// smallDisk is a stage whose PostgreSQL has its data directory on a small tmpfs.
func smallDisk(t *testing.T, s *stage) *stage {
	t.Helper()
	dir := filepath.Join(s.dir, "small")
	if err := tmpfs(dir, "600m", 0); err != nil {
		t.Skipf("no small disk to fill: mount a tmpfs: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pg, err := newPostgres(ctx, s.where["postgres"], filepath.Join(dir, "postgres"), filepath.Join(s.dir, "small-wal"))
	if err == nil {
		err = pg.start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pg.crash)
	return s.on(pg)
}

// tmpfs mounts a disk of a size, until the harness ends.
func tmpfs(dir, size string, flags uintptr) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := syscall.Mount("none", dir, "tmpfs", flags, "size="+size+",mode=711"); err != nil {
		return err
	}
	mountsMu.Lock()
	defer mountsMu.Unlock()
	if !slices.Contains(mounts, dir) {
		mounts = append(mounts, dir)
	}
	return nil
}

func diskFull(r *run) {
	r.begin()
	filler := filepath.Join(r.w.dir, "small", "filler")
	refused := r.w.clients.refused.Load()
	if err := fill(filepath.Dir(filler), filler); err != nil {
		r.Fatal(err)
	}
	eventually(r.T, time.Minute, func() bool { return r.w.clients.refused.Load() >= refused+5 }, "writes go on although the disk is full")
	r.note("%d requests refused", r.w.clients.refused.Load()-refused)
	if err := os.Remove(filler); err != nil {
		r.Fatal(err)
	}
	if !r.w.pg.proc.alive() {
		r.note("the server had given up and was started again")
		r.postgresBack()
		return
	}
	r.healed("PostgreSQL")
}

// fill leaves a few pages.
func fill(dir, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := make([]byte, 64<<10)
	for {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err != nil {
			return err
		}
		if int64(fs.Bavail)*fs.Bsize <= 256<<10 {
			return nil
		}
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
}

func connectionsExhausted(r *run) {
	r.begin()
	pg := r.w.pg
	most := pg.settings["max_connections"]
	refused := r.w.clients.refused.Load()
	pg.settings["max_connections"] = "10"
	defer func() {
		if pg.settings["max_connections"] != most { // others use the server after this row
			pg.settings["max_connections"] = most
			r.restartPostgres()
		}
	}()
	r.restartPostgres()
	eventually(r.T, time.Minute, func() bool { return r.w.clients.refused.Load() >= refused+5 }, "nobody is refused although connections are few")
	r.note("%d requests refused", r.w.clients.refused.Load()-refused)
	pg.settings["max_connections"] = most
	r.restartPostgres()
	r.healed("PostgreSQL")
}

func (r *run) restartPostgres() {
	r.Helper()
	if err := r.w.pg.stop(syscall.SIGINT); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := r.context(time.Minute)
	defer cancel()
	if err := r.w.pg.restart(ctx); err != nil {
		r.Fatal(err)
	}
}

// strangeServer runs a relay on a copy of the databases and wants it to refuse.
func (r *run) strangeServer(pg *postgres) {
	r.Helper()
	own := r.w.stage
	r.w.stage = own.on(pg)
	p := r.w.launch(r.T, "relay9")
	r.w.stage = own
	eventually(r.T, time.Minute, func() bool { return p.log.says(`belongs to another cluster, database or timeline`) }, "the relay does not refuse")
	before := len(r.w.tapped)
	p.kill()
	delete(r.w.procs, "relay9")
	if err := r.w.drainTap(); err != nil {
		r.Fatal(err)
	}
	if n := len(r.w.tapped) - before; n > 0 {
		r.Errorf("the relay has published %d messages of a copy", n)
	}
}

// gather stops the relay, lets messages gather, and empties the tap.
func (r *run) gather() {
	r.Helper()
	r.w.stop(r.T, "relay")
	r.load.await(r.T, 20)
	r.load.stop()
	if err := r.w.drainTap(); err != nil {
		r.Fatal(err)
	}
}

func restored(r *run) {
	r.begin()
	since := r.began
	r.gather()
	for _, service := range schema.Services {
		r.w.stop(r.T, service)
	}
	ctx, cancel := r.context(3 * time.Minute)
	defer cancel()
	pg, err := newPostgres(ctx, r.w.where["postgres"], filepath.Join(r.w.dir, "restored"), "")
	if err == nil {
		err = pg.start(ctx)
	}
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(pg.crash)
	host := func(p *postgres) []string {
		return []string{"-h", "127.0.0.1", "-p", fmt.Sprint(p.port), "-U", "postgres"}
	}
	copyOver := func(dump *exec.Cmd) {
		file := filepath.Join(pg.dir, "dump.sql")
		dump.Args = append(dump.Args, "-f", file)
		if _, err := output(ctx, dump); err != nil {
			r.Fatal(err)
		}
		if _, err := output(ctx, pg.command("psql", append(host(pg), "-q", "-f", file, "postgres")...)); err != nil {
			r.Fatal(err)
		}
	}
	copyOver(r.w.pg.command("pg_dumpall", append(host(r.w.pg), "--globals-only")...))
	for _, service := range schema.Services {
		copyOver(r.w.pg.command("pg_dump", append(host(r.w.pg), "-C", r.w.prefix+service)...))
	}
	r.strangeServer(pg)
	r.moveTo(pg)
	r.rebased()
	r.resumed(since)
}

// resumed starts every program, and wants everything that is committed to arrive.
func (r *run) resumed(since time.Time) {
	r.Helper()
	for _, name := range house {
		r.again(name)
	}
	r.load = r.w.startLoad(r.T, r.seed+1)
	r.healed("PostgreSQL")
	r.load.stop()
	if !r.w.quiet(r.T, time.Minute, nil, nil) {
		return
	}
	o := r.operator()
	defer o.Close()
	r.whole(o, since)
}

// tailLost promotes an asynchronous standby that has not received the last commits: messages that nobody relayed yet, which
// nobody can get back, and all that the catalog did with messages that it has acknowledged, which it must be given again.
func tailLost(r *run) {
	r.begin()
	since := r.began
	ctx, cancel := r.context(5 * time.Minute)
	defer cancel()
	wire, err := newProxy("replication", r.w.pg.port)
	if err != nil {
		r.Fatal(err)
	}
	defer wire.Stop()
	standby := r.standby(ctx, wire)
	r.w.stop(r.T, "catalog")
	r.load.await(r.T, 20) // their requests gather in the catalog's queues
	r.load.stop()
	eventually(r.T, time.Minute, func() bool {
		waits := r.w.outstanding(nil, nil) // for the catalog alone, and no deadline passes behind the standby's back
		return r.relayed(ctx) && !regexp.MustCompile(`queue (booking|payment|notification|saga)\.|payment: |saga: inst`).MatchString(waits) && r.w.ended()
	}, "not everything but what is for the catalog comes to its end")
	r.caughtUp(ctx, standby)
	wire.cut()
	before := r.w.clients.accepted(time.Time{})
	r.again("catalog")
	r.lost(len(before))
	for _, name := range house {
		r.w.stop(r.T, name)
	}
	if err := r.w.drainTap(); err != nil {
		r.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, standby.url(""))
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing hangs on it
	if _, err := conn.Exec(ctx, `SELECT pg_promote()`); err != nil {
		r.Fatal(err)
	}
	r.strangeServer(standby)
	r.moveTo(standby)
	r.forget()
	r.rebased()
	for _, name := range house {
		r.again(name)
	}
	eventually(r.T, time.Minute, func() bool { return r.relayed(ctx) }, "not everything is relayed") // what the catalog lacks is waited for
	o := r.operator()
	defer o.Close()
	r.mended(o, since, "booking", "catalog")
	r.load = r.w.startLoad(r.T, r.seed+1)
	r.healed("PostgreSQL")
}

// relayed reports whether the relay has nothing left to publish.
func (r *run) relayed(ctx context.Context) bool {
	for _, service := range schema.Services {
		if n, err := r.w.backlog(ctx, service); n > 0 || err != nil {
			return false
		}
	}
	return true
}

// ended reports whether no booking waits for anything but what undoes it.
func (w *world) ended() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var open int
	err := w.pools["booking"].QueryRow(ctx, `SELECT count(*) FROM booking.bookings WHERE deadline_at IS NOT NULL`).Scan(&open)
	return err == nil && open == 0
}

// standby follows the world's server by way of a wire that can be cut.
func (r *run) standby(ctx context.Context, wire *proxy) *postgres {
	r.Helper()
	standby := &postgres{bin: r.w.pg.bin, dir: filepath.Join(r.w.dir, "standby"), password: r.w.pg.password, settings: r.w.pg.settings, port: port(r.T)}
	if err := ownedByServer(standby.dir); err != nil {
		r.Fatal(err)
	}
	dsn := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres password=%s", wire.port, standby.password)
	if _, err := output(ctx, standby.command("pg_basebackup", "-D", standby.data(), "-d", dsn, "-R", "-X", "stream", "-c", "fast", "--no-sync")); err != nil {
		r.Fatal(err)
	}
	if err := standby.start(ctx); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(standby.crash)
	return standby
}

// caughtUp waits until the standby has what the server has now.
func (r *run) caughtUp(ctx context.Context, standby *postgres) {
	r.Helper()
	var now string
	r.w.admin(r.T, "booking", `SELECT pg_current_wal_lsn()::text`, nil, &now)
	conn, err := pgx.Connect(ctx, standby.url(""))
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing hangs on it
	eventually(r.T, time.Minute, func() (there bool) {
		return conn.QueryRow(ctx, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, now).Scan(&there) == nil && there
	}, "the standby does not catch up")
}

// lost lets the catalog handle what has gathered, and its answers be relayed and handled, all of which the standby never
// hears of.
func (r *run) lost(booked int) {
	r.Helper()
	if !r.w.quiet(r.T, time.Minute, nil, nil) {
		r.FailNow()
	}
	if n := len(r.w.clients.accepted(time.Time{})); n != booked {
		r.Fatalf("%d bookings were accepted, and then %d", booked, n)
	}
	if _, err := r.w.look(r.T); err != nil { // what is published from here on is known
		r.Fatal(err)
	}
}

// forget drops from what is known of the world what its new server never heard of. It was published, and went nowhere else.
func (r *run) forget() {
	r.Helper()
	gone := r.w.known
	r.w.known = map[uuid.UUID]*stored{}
	if _, err := r.w.look(r.T); err != nil {
		r.Fatal(err)
	}
	n := 0
	for id := range gone {
		if r.w.known[id] == nil {
			r.w.foreign[id] = true
			n++
		}
	}
	if n == 0 {
		r.Fatal("the standby has everything")
	}
	r.note("%d messages lost with the tail", n)
}

func retentionDuringLag(r *run) {
	r.begin()
	r.w.killed("relay")
	r.load.await(r.T, 20)
	refusals := 0
	for _, service := range schema.Services {
		refusals += r.retain(service)
	}
	if refusals == 0 {
		r.Error("retention has found nothing old and undelivered: the row shows nothing")
	}
	r.again("relay")
	r.healed("relay")
}

// retain lets two days go by in a database and does what the relay does hourly. It returns how often that was refused
// because messages are not relayed.
func (r *run) retain(service string) (refusals int) {
	r.Helper()
	r.w.do(r.T, service, `
		CREATE OR REPLACE FUNCTION outbox.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp() + current_setting(''chaos.ahead'')::interval'`)
	defer r.w.do(r.T, service, `CREATE OR REPLACE FUNCTION outbox.clock() RETURNS timestamptz LANGUAGE sql VOLATILE RETURN clock_timestamp()`)
	ctx, cancel := r.context(time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.w.databaseURL(r.T, local(r.w.pg.port), service, "relay"))
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing hangs on it
	for hours := 0; hours <= 60; hours += 2 {
		if _, err := conn.Exec(ctx, fmt.Sprintf(`SET chaos.ahead = '%d hours'; SELECT outbox.mark('1 hour')`, hours)); err != nil {
			r.Fatal(err)
		}
	}
	rows, err := conn.Query(ctx, `SELECT d::text FROM outbox.old_partitions('1 hour') AS d`)
	if err != nil {
		r.Fatal(err)
	}
	days, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.Fatal(err)
	}
	for _, day := range days {
		for _, verb := range []string{"empty_partition", "drop_partition"} {
			var reason *string
			err := conn.QueryRow(ctx, `SELECT outbox.`+verb+`($1::text::date, '1 hour')`, day).Scan(&reason)
			if reason != nil && strings.Contains(*reason, "not relayed") {
				refusals++
			}
			if state := code(err); err != nil && state != "55P03" && state != "22023" { // the lock is taken, or the day is gone
				r.Errorf("%s of %s: %v", verb, service, err)
			}
		}
	}
	return refusals
}

func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func migratedTogether(r *run) {
	r.begin()
	r.healed("PostgreSQL")
}

// migrateTogether runs the migration in several processes at once.
func (w *world) migrateTogether(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var group sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		group.Go(func() { _, errs[i] = output(ctx, w.ticketwaveCommand("migrate")) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// forgedRows tries with a service's database role what only others may do.
func (r *run) forgedRows() {
	r.Helper()
	ctx, cancel := r.context(time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.w.databaseURL(r.T, local(r.w.pg.port), "booking", "booking"))
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing hangs on it
	const columns = `INSERT INTO outbox.messages (uuid, topic, key, payload, `
	for what, statement := range map[string]string{
		"choose an id":           columns + `id) VALUES (gen_random_uuid(), 't', 'k', '', 1)`,
		"choose a partition":     columns + `partition) VALUES (gen_random_uuid(), 't', 'k', '', 1)`,
		"choose a transaction":   columns + `transaction_id) VALUES (gen_random_uuid(), 't', 'k', '', '3')`,
		"choose a time":          columns + `created_at) VALUES (gen_random_uuid(), 't', 'k', '', '2000-01-01')`,
		"change a message":       `UPDATE outbox.messages SET payload = ''`,
		"delete a message":       `DELETE FROM outbox.messages`,
		"read messages":          `SELECT FROM outbox.messages`,
		"move the cursor":        `INSERT INTO outbox.cursor (partition, relayed, token) VALUES (0, pg_current_snapshot(), 1)`,
		"take a lease":           `UPDATE outbox.leases SET token = token + 1`,
		"forget what it has had": `DELETE FROM inbox.messages`,
	} {
		if _, err := conn.Exec(ctx, statement); code(err) != "42501" {
			r.Errorf("the service's role may %s: %v", what, err)
		}
	}
	for what, values := range map[string]string{
		"a key of nothing":         `(gen_random_uuid(), 't', '', '', '{}')`,
		"metadata that is no text": `(gen_random_uuid(), 't', 'k', '', '{"a": 1}')`,
		"a topic that is too long": `(gen_random_uuid(), repeat('t', 251), 'k', '', '{}')`,
	} {
		if _, err := conn.Exec(ctx, columns+`metadata) VALUES `+values); code(err) != "23514" {
			r.Errorf("the outbox takes %s: %v", what, err)
		}
	}
	if other, err := pgx.Connect(ctx, r.w.databaseURL(r.T, local(r.w.pg.port), "catalog", "booking")); err == nil {
		_ = other.Close(ctx)
		r.Error("booking may connect to the catalog's database")
	}
}
