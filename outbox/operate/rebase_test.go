package operate_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// tell appends messages of one key.
func (c *city) tell(n int) {
	c.t.Helper()
	err := outbox.InTx(context.Background(), c, func(tx pgx.Tx) error {
		for range n {
			c.told++
			if err := outbox.Append(context.Background(), tx, told{"a", "k", c.told}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *city) arrivals() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.arrived)
}

// After a restore into another cluster, whose transaction ids are lower than those of before, the relay refuses to guess.
// A rebase tells what was relayed from what was not, including what has been written since the restore.
func TestRebaseAfterARestore(t *testing.T) {
	t.Parallel()
	c := newCity(newBench(t), t)
	c.start()
	c.tell(20)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return c.arrivals() == 20 }, "all are relayed")
	c.stop()
	c.tell(5)
	// As a dump has it: rows made by another transaction than the one that they name, an identity from elsewhere.
	c.exec(`UPDATE outbox.identity SET system_identifier = '1'`)
	c.exec(`UPDATE outbox.messages SET transaction_id = (transaction_id::text::bigint + 1000000000)::text::xid8`)
	c.exec(`INSERT INTO outbox.cursor (partition, relayed, target, last_id, token)
		SELECT partition, format('%s:%s:', pg_snapshot_xmin(relayed)::text::bigint + 1000000000, pg_snapshot_xmax(relayed)::text::bigint + 1000000000)::pg_snapshot, NULL, 0, token
		FROM (SELECT DISTINCT ON (partition) * FROM outbox.cursor ORDER BY partition, seq DESC) AS newest`)
	c.tell(4)
	err := outbox.InTx(t.Context(), c, func(tx pgx.Tx) error { // in a savepoint: the row's xmin is not its transaction
		c.told++
		_, err := tx.Exec(t.Context(), `SELECT pg_current_xact_id()`)
		if err != nil {
			return err
		}
		inner, err := tx.Begin(t.Context())
		if err != nil {
			return err
		}
		_, err = inner.Exec(t.Context(), `INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), 'a', 'k', '{}')`)
		if err != nil {
			return err
		}
		return inner.Commit(t.Context())
	})
	if err != nil {
		t.Fatal(err)
	}
	c.start()
	defer func() { c.stop() }()

	command := operate.RebaseCommand{Database: "shop", DryRun: true}
	found, err := c.Rebase(t.Context(), command)
	if err != nil || found != (operate.Rebased{DryRun: true, Relayed: 20, Pending: 10}) {
		t.Errorf("dry run: %+v, %v; want 20 relayed and 10 pending", found, err)
	}
	if n := c.arrivals(); n != 20 {
		t.Errorf("%d messages have arrived although the cursor does not fit", n)
	}
	command.DryRun = false
	if _, err := c.Rebase(t.Context(), command); !errors.Is(err, operate.ErrInvalid) {
		t.Errorf("nobody rebases: %v", err)
	}
	command.Actor = ann
	found, err = c.Rebase(t.Context(), command)
	if err != nil || found.Relayed != 20 || found.Pending != 10 || found.Audit == nil {
		t.Errorf("rebase: %+v, %v", found, err)
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return c.arrivals() == 30 }, "what was pending is relayed")
	c.tell(5)
	outboxtest.Eventually(t, 30*time.Second, func() bool { return c.arrivals() == 35 }, "and what is written later")
	c.mu.Lock()
	if len(c.again) > 0 {
		t.Errorf("%d messages were relayed again", len(c.again))
	}
	c.mu.Unlock()
	if _, err := c.Rebase(t.Context(), command); !errors.Is(err, operate.ErrRefused) {
		t.Errorf("where the cursor fits: %v", err)
	}
	if n := c.audited(); n != 1 {
		t.Errorf("%d rows of the audit log, want one", n)
	}
}

// What a rebase is forced to do under a working relay loses nothing, and repeats at most what was under way.
func TestRebaseUnderARelay(t *testing.T) {
	t.Parallel()
	c := newCity(newBench(t), t)
	c.start()
	defer func() { c.stop() }()
	for range 5 {
		// A writer that has its transaction id before the rebase, and appends after it.
		late, err := c.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := late.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
		c.tell(40)
		before := c.arrivals()
		outboxtest.Eventually(t, 30*time.Second, func() bool { return c.arrivals() > before || c.arrivals() == c.told }, "relaying goes on")
		if _, err := c.Rebase(t.Context(), operate.RebaseCommand{Database: "shop", Force: true, Actor: ann}); err != nil {
			t.Fatal(err)
		}
		c.told++
		if err := outbox.Append(t.Context(), late, told{"a", "late", c.told}); err != nil {
			t.Fatal(err)
		}
		if err := late.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return c.arrivals() == c.told }, "all are relayed")
}

// A relay that stores its cursor has locks on its lease and on the cursor, in either order; a rebase waits for it and is
// not in its way.
func TestRebaseBesideARelayThatStoresItsCursor(t *testing.T) {
	t.Parallel()
	const (
		lease  = `LOCK TABLE outbox.leases IN ROW SHARE MODE`
		cursor = `LOCK TABLE outbox.cursor IN ROW EXCLUSIVE MODE`
		marks  = `LOCK TABLE outbox.watermarks IN ROW EXCLUSIVE MODE`
	)
	for name, locks := range map[string][]string{
		"the lease first":  {lease, cursor},
		"the cursor first": {cursor, lease},
		"a watermark":      {marks, cursor},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.exec(`INSERT INTO outbox.identity (system_identifier, database_oid, timeline) VALUES ('1', 1, '1')`)
			relay := b.begin()
			if _, err := relay.Exec(t.Context(), locks[0]); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				_, err := b.Rebase(t.Context(), operate.RebaseCommand{Database: "shop", Actor: ann})
				ended <- err
			}()
			outboxtest.Eventually(t, 30*time.Second, func() bool {
				return len(ended) > 0 || one[bool](b, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND database = (
					SELECT oid FROM pg_database WHERE datname = current_database()))`)
			}, "the rebase waits or has ended")
			if _, err := relay.Exec(t.Context(), locks[1]); err != nil {
				t.Errorf("the relay: %v", err)
			}
			_ = relay.Rollback(t.Context())
			if err := <-ended; err != nil {
				t.Errorf("rebase: %v", err)
			}
			if n := one[int](b, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); n != 0 {
				t.Errorf("%d deadlocks", n)
			}
		})
	}
}
