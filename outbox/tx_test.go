package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// accounts is a database with two rows to fight for.
func accounts(t *testing.T) *outboxtest.Database {
	t.Helper()
	db := outboxtest.NewDatabase(t, "shop")
	if _, err := db.Exec(t.Context(), `
		CREATE TABLE accounts (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
		INSERT INTO accounts (id) VALUES (1), (2)`); err != nil {
		t.Fatal(err)
	}
	return db
}

func add(ctx context.Context, tx pgx.Tx, id int) error {
	_, err := tx.Exec(ctx, `UPDATE accounts SET n = n + 1 WHERE id = $1`, id)
	return err
}

func total(t *testing.T, db *outboxtest.Database) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT sum(n) FROM accounts`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestInTxRetriesDeadlocks(t *testing.T) {
	t.Parallel()
	db := accounts(t)
	var both, runs sync.WaitGroup
	both.Add(2)
	tries := make(chan int, 20)
	for _, ids := range [][2]int{{1, 2}, {2, 1}} {
		runs.Go(func() {
			try := 0
			err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
				try++
				tries <- try
				if err := add(t.Context(), tx, ids[0]); err != nil {
					return err
				}
				if try == 1 { // each holds its first row before either asks for its second
					both.Done()
					both.Wait()
				}
				return add(t.Context(), tx, ids[1])
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	runs.Wait()
	if len(tries) < 3 {
		t.Errorf("%d tries of two transactions: there was no deadlock", len(tries))
	}
	if n := total(t, db); n != 4 {
		t.Errorf("rows were changed %d times, want 4", n)
	}
}

func TestInTxRetriesSerializationFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		level pgx.TxIsoLevel
		read  string
	}{
		"at the statement": {pgx.RepeatableRead, `SELECT n FROM accounts WHERE id = 1`},
		"at the commit":    {pgx.Serializable, `SELECT n FROM accounts WHERE id = 2`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := accounts(t)
			tries := 0
			err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
				tries++
				if _, err := tx.Exec(t.Context(), `SET TRANSACTION ISOLATION LEVEL `+string(c.level)); err != nil {
					return err
				}
				if _, err := tx.Exec(t.Context(), c.read); err != nil {
					return err
				}
				if tries == 1 {
					interfere(t, db, c.level)
				}
				return add(t.Context(), tx, 1)
			})
			if err != nil || tries != 2 {
				t.Errorf("%d tries, %v, want 2", tries, err)
			}
			if n := total(t, db); n != 2 {
				t.Errorf("rows were changed %d times, want 2", n)
			}
		})
	}
}

// interfere commits a change that no serial order allows: of the row that was read, or crosswise.
func interfere(t *testing.T, db *outboxtest.Database, level pgx.TxIsoLevel) {
	t.Helper()
	id := 1
	if level == pgx.Serializable {
		id = 2
	}
	err := pgx.BeginTxFunc(t.Context(), db, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SELECT n FROM accounts WHERE id = 1`); err != nil {
			return err
		}
		return add(t.Context(), tx, id)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestInTxGivesUp(t *testing.T) {
	t.Parallel()
	db := accounts(t)
	raise := func(code string) func(tx pgx.Tx) error {
		return func(tx pgx.Tx) error {
			return errors.Join(add(t.Context(), tx, 1), func() error {
				_, err := tx.Exec(t.Context(), `DO $$ BEGIN RAISE 'no' USING ERRCODE = '`+code+`'; END $$`)
				return err
			}())
		}
	}
	for name, c := range map[string]struct {
		fn    func(tx pgx.Tx) error
		tries int
	}{
		"serialization failures without end": {raise("40001"), 5},
		"deadlocks without end":              {raise("40P01"), 5},
		"another error":                      {raise("23505"), 1},
		"an error that was swallowed":        {func(tx pgx.Tx) error { _ = raise("23505")(tx); return nil }, 1},
		"no SQL error":                       {func(tx pgx.Tx) error { return errors.Join(add(t.Context(), tx, 1), errors.New("no")) }, 1},
	} {
		tries := 0
		err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error { tries++; return c.fn(tx) })
		if err == nil || errors.Is(err, outbox.ErrCommitUnknown) || tries != c.tries {
			t.Errorf("%s: %d tries, %v, want %d and an error", name, tries, err, c.tries)
		}
	}
	if n := total(t, db); n != 0 {
		t.Errorf("%d changes are left", n)
	}
}

func TestInTxRollsBackWhenFnPanics(t *testing.T) {
	t.Parallel()
	db := accounts(t)
	func() {
		defer func() {
			if r := recover(); r != "oops" {
				t.Errorf("recovered %v, want the function's panic", r)
			}
		}()
		_ = outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
			if err := add(t.Context(), tx, 1); err != nil {
				t.Error(err)
			}
			panic("oops")
		})
	}()
	if n := db.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections were not given back", n)
	}
	if n := total(t, db); n != 0 {
		t.Errorf("%d changes are left", n)
	}
}

// slowCommit makes the commit of a change to accounts wait in the server, and says in which backend.
func slowCommit(t *testing.T, db *outboxtest.Database, seconds string) (waiting func() int32) {
	t.Helper()
	if _, err := db.Exec(t.Context(), `
		CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(`+seconds+`); RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER wait AFTER UPDATE ON accounts DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION wait()`); err != nil {
		t.Fatal(err)
	}
	return func() (pid int32) {
		err := db.QueryRow(t.Context(), `
			SELECT coalesce(max(pid), 0) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event = 'PgSleep' AND query ILIKE 'commit%'`).Scan(&pid)
		if err != nil {
			t.Error(err)
		}
		return pid
	}
}

func lives(t *testing.T, db *outboxtest.Database, pid int32) (yes bool) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid).Scan(&yes); err != nil {
		t.Error(err)
	}
	return yes
}

func TestInTxDoesNotRepeatACommitOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		seconds string
		cut     func(t *testing.T, db *outboxtest.Database, pid int32, conn *cuttable, cancel func())
		takes   bool // whether the transaction takes effect all the same
	}{
		"backend killed": {"60", func(t *testing.T, db *outboxtest.Database, pid int32, _ *cuttable, _ func()) {
			if _, err := db.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, pid); err != nil {
				t.Error(err)
			}
		}, false},
		"connection lost": {"1", func(_ *testing.T, _ *outboxtest.Database, _ int32, conn *cuttable, _ func()) { conn.cut() }, true},
		"context ended":   {"60", func(_ *testing.T, _ *outboxtest.Database, _ int32, _ *cuttable, cancel func()) { cancel() }, false},
	} {
		for _, events := range []int{0, 2} {
			t.Run(fmt.Sprintf("%s, %d events", name, events), func(t *testing.T) {
				t.Parallel()
				db := accounts(t)
				waiting := slowCommit(t, db, c.seconds)
				pool, conn := cuttablePool(t, db.AdminURL)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended, tries := make(chan error, 1), 0
				go func() {
					ended <- outbox.InTx(ctx, pool, func(tx pgx.Tx) error {
						tries++
						return errors.Join(add(ctx, tx, 1), appendN(ctx, tx, events))
					})
				}()
				var pid int32
				outboxtest.Eventually(t, 20*time.Second, func() bool { pid = waiting(); return pid != 0 }, "the commit waits")
				c.cut(t, db, pid, conn, cancel)
				if err := <-ended; !errors.Is(err, outbox.ErrCommitUnknown) || tries != 1 {
					t.Errorf("%d tries, %v, want one and ErrCommitUnknown", tries, err)
				}
				outboxtest.Eventually(t, 20*time.Second, func() bool { return !lives(t, db, pid) }, "the backend is done")
				if n := total(t, db); (n == 1) != c.takes {
					t.Errorf("%d changes, want that it took effect: %v", n, c.takes)
				}
				if n := len(written(t, db)); (n == events) != c.takes && events > 0 {
					t.Errorf("%d events, want that they took effect: %v", n, c.takes)
				}
			})
		}
	}
}

func appendN(ctx context.Context, tx pgx.Tx, n int) error {
	for i := range n {
		if err := outbox.Append(ctx, tx, placed{"k", i}); err != nil {
			return err
		}
	}
	return nil
}

// written is the outbox in order of id.
func written(t *testing.T, db *outboxtest.Database) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), `SELECT key || ' ' || convert_from(payload, 'UTF8') FROM outbox.messages ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var errNo = errors.New("no")

// What is appended goes with the transaction or the savepoint in which it was appended, whatever happens to others.
func TestInTxWritesWhatWasNotRolledBack(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	put := func(tx pgx.Tx, key string, n int) error { return outbox.Append(t.Context(), tx, placed{key, n}) }
	err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
		inner := func(tx pgx.Tx) error {
			return errors.Join(put(tx, "b", 3), pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error { return put(tx, "a", 4) }))
		}
		kept := errors.Join(put(tx, "b", 1), pgx.BeginFunc(t.Context(), tx, inner))
		dropped := pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error { return errors.Join(inner(tx), put(tx, "c", 5), errNo) })
		if !errors.Is(dropped, errNo) {
			return dropped
		}
		return errors.Join(kept, put(tx, "b", 6))
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{placedRow("a", 4), placedRow("b", 1), placedRow("b", 3), placedRow("b", 6)}
	if got := written(t, db); !slices.Equal(got, want) {
		t.Errorf("the outbox holds\n%q, want\n%q", got, want)
	}
}

func placedRow(key string, n int) string {
	body, _ := json.Marshal(placed{key, n})
	return key + " " + string(body)
}

// The function cannot end the transaction: InTx would not know.
func TestInTxEndsItsTransactionItself(t *testing.T) {
	t.Parallel()
	db := accounts(t)
	err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
		if err := add(t.Context(), tx, 1); err != nil {
			return err
		}
		if tx.Commit(t.Context()) == nil || tx.Rollback(t.Context()) == nil {
			t.Error("the function may end the transaction")
		}
		return nil
	})
	if n := total(t, db); err != nil || n != 1 {
		t.Errorf("%d changes, %v", n, err)
	}
}

// A savepoint that nobody ends would keep its rows and lose its events.
func TestInTxRefusesAnOpenSavepoint(t *testing.T) {
	t.Parallel()
	db := accounts(t)
	err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
		inner, err := tx.Begin(t.Context())
		if err != nil {
			return err
		}
		return errors.Join(add(t.Context(), inner, 1), outbox.Append(t.Context(), inner, placed{"k", 1}))
	})
	if n := total(t, db) + len(written(t, db)); err == nil || n != 0 {
		t.Errorf("%d things are left, error is %v", n, err)
	}
}

// A statement that the database refuses at the very end leaves nothing, and its connection is good for the next.
func TestInTxRollsBackWhenTheEventsAreRefused(t *testing.T) {
	t.Parallel()
	db := accounts(t)
	if _, err := db.Exec(t.Context(), `ALTER TABLE outbox.messages ADD CONSTRAINT refuse CHECK (key <> 'refused')`); err != nil {
		t.Fatal(err)
	}
	err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
		return errors.Join(add(t.Context(), tx, 1), outbox.Append(t.Context(), tx, placed{"good", 1}, placed{"refused", 2}))
	})
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.ConstraintName != "refuse" || errors.Is(err, outbox.ErrCommitUnknown) {
		t.Errorf("error is %v, want the constraint's", err)
	}
	if n := total(t, db) + len(written(t, db)); n != 0 {
		t.Errorf("%d things are left", n)
	}
}

// cuttable is a pool's connection that the test can lose.
type cuttable struct {
	mu   sync.Mutex
	conn net.Conn
	gone bool
}

// cut closes the connection and lets no other through: the server is not asked to cancel.
func (c *cuttable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	_ = c.conn.Close()
}

func (c *cuttable) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil, net.ErrClosed
	}
	var err error
	c.conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
	return c.conn, err
}

func cuttablePool(t *testing.T, url string) (*pgxpool.Pool, *cuttable) {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	c := &cuttable{}
	config.MaxConns = 1
	config.ConnConfig.DialFunc = c.dial
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, c
}

// A context that ends before the commit is sent leaves nothing unknown.
func TestInTxKnowsWhatItDidNotSend(t *testing.T) {
	t.Parallel()
	db := accounts(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := outbox.InTx(ctx, db, func(tx pgx.Tx) error {
		defer cancel()
		return add(ctx, tx, 1)
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, outbox.ErrCommitUnknown) {
		t.Errorf("error is %v, want the context's and not ErrCommitUnknown", err)
	}
	if n := total(t, db); n != 0 {
		t.Errorf("%d changes are left", n)
	}
}

// listen counts wake-ups: it waits for those that must come, and then until none has come for a while.
func listen(t *testing.T, db *outboxtest.Database) (count func(least int) int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), "LISTEN "+outbox.WakeChannel); err != nil {
		t.Fatal(err)
	}
	return func(least int) (n int) {
		for {
			patience := 300 * time.Millisecond
			if n < least {
				patience = 20 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			_, err := conn.WaitForNotification(ctx)
			cancel()
			if err != nil {
				return n
			}
			n++
		}
	}
}

func TestInTxWakesTheRelayAfterTheCommit(t *testing.T) {
	t.Parallel()
	rollback := errors.New("rolled back")
	for name, c := range map[string]struct {
		fn   func(ctx context.Context, tx pgx.Tx) error
		want int
	}{
		"appended": {func(ctx context.Context, tx pgx.Tx) error { return outbox.Append(ctx, tx, placed{"k", 1}) }, 1},
		"appended in a savepoint": {func(ctx context.Context, tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, placed{"k", 1}) })
		}, 1},
		"rolled back": {func(ctx context.Context, tx pgx.Tx) error {
			return errors.Join(outbox.Append(ctx, tx, placed{"k", 1}), rollback)
		}, 0},
		"nothing appended": {func(ctx context.Context, tx pgx.Tx) error { return outbox.Append(ctx, tx) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := outboxtest.NewDatabase(t, "shop")
			wakeups := listen(t, db)
			err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error { return c.fn(t.Context(), tx) })
			if err != nil && !errors.Is(err, rollback) {
				t.Fatal(err)
			}
			if n := wakeups(c.want); n != c.want {
				t.Errorf("%d wake-ups, want %d", n, c.want)
			}
		})
	}
}

func TestWakeUpsAreFewerThanCommits(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	wakeups := listen(t, db)
	start := time.Now()
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for n := range 25 {
				if err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
					return outbox.Append(t.Context(), tx, placed{"k", n})
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	most := int(time.Since(start)/(2*time.Millisecond)) + 2
	if n := wakeups(1); n < 1 || n > most {
		t.Errorf("%d wake-ups, want 1 to %d", n, most)
	}
}
