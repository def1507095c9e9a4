package relay_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// What a session published and did not record is no first version that nobody has: when a later session diverts it, it
// is exposed.
func TestWhatAnEarlierSessionMayHaveSentIsExposed(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	var broken atomic.Bool
	rec.fail = func(msg *message.Message) error {
		switch {
		case broken.Load() && string(msg.Payload) == `{"key":"k3","n":0}`:
			return errOwn
		case !broken.Load() && string(msg.Payload) == `{"key":"slow","n":0}`:
			return errAway // the cursor of the partition, which is that of k3, waits for it
		}
		return nil
	}
	start(t, classified(config(db, rec)))
	appendNotes(t, db, note{"slow", 0}, note{"k3", 0}, note{"k3", 1})
	outboxtest.Eventually(t, 30*time.Second, func() bool { n, _ := rec.distinct(); return n == 2 }, "all but the slow one are published")
	broken.Store(true)
	if _, err := db.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'`); err != nil {
		t.Fatal(err)
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return stuckCount(t, db, `key = 'k3'`) == 2 }, "the next session diverts what the first one published")
	if n := stuckCount(t, db, `key = 'k3' AND NOT exposed`); n != 0 {
		t.Errorf("%d messages are taken for unsent", n)
	}
}
