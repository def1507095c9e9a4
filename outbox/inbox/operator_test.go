package inbox_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// waiting puts messages into inbox.stuck whose attempt is due, in order.
func (b *bench) waiting(key string, attempts int, payload string) uuid.UUID {
	b.t.Helper()
	id := uuid.Must(uuid.NewV7())
	_, err := b.Exec(b.t.Context(), `
		WITH m AS (INSERT INTO inbox.messages (message_id, consumer, state) VALUES ($1, 'billing', 'stuck'))
		INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, attempts, class, next_attempt)
		VALUES ('billing', $1, $2, $3, $4, $5, '{}', $6, 'handler', clock_timestamp())`,
		id, int(key[len(key)-1])%topology.Partitions, typ, key, []byte(payload), attempts)
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// A message that an operator replayed or edited after the consumer looked, and before its turn came, is handled as it is.
func TestARetryTakesTheMessageAsItIs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.config()
	cfg.RetryMin, cfg.RetryMax, cfg.MaxAttempts = time.Hour, time.Hour, 5
	first := b.waiting("a0", 1, `{"n":1}`)
	second := b.waiting("b0", cfg.MaxAttempts-1, `{"n":2}`)
	reached, go1 := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var seen []int
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
		meta, _ := inbox.MetaFrom(ctx)
		if meta.ID == first {
			close(reached)
			<-go1
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, e.N)
		return errors.New("no")
	})
	<-reached
	if _, err := b.Exec(t.Context(), `UPDATE inbox.stuck SET payload = '{"n":3}', attempts = 0 WHERE message_id = $1`, second); err != nil {
		t.Fatal(err)
	}
	close(go1)
	outboxtest.Eventually(t, 20*time.Second, func() bool { return b.count(`SELECT count(*) FROM inbox.stuck WHERE attempts > 0 AND key = 'b0'`) == 1 }, "the second message is tried")
	if n := b.count(`SELECT count(*) FROM inbox.stuck WHERE attempts = 1 AND NOT parked`); n != 1 {
		t.Error("its attempts are not counted from zero")
	}
	mu.Lock()
	defer mu.Unlock()
	if slices.Contains(seen, 2) || len(seen) == 0 {
		t.Errorf("the handler saw %v, want the new payload alone", seen)
	}
}

// A failure that comes after an operator's replay does not undo it.
func TestAReplayDuringAnAttemptStands(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.config()
	cfg.MaxAttempts = 2
	id := b.waiting("a0", 1, `{"n":1}`)
	var once sync.Once
	tries := 0
	b.start(cfg, func(ctx context.Context, tx pgx.Tx, e placed) error {
		if tries++; tries > 1 {
			return nil
		}
		// The replay waits for this attempt's row lock and comes before the failure is recorded, or is overtaken by it.
		once.Do(func() {
			go func() {
				_, err := b.Exec(context.Background(), `UPDATE inbox.stuck SET attempts = 0, parked = false, next_attempt = clock_timestamp() WHERE message_id = $1`, id)
				if err != nil {
					t.Error(err)
				}
			}()
			outboxtest.Eventually(t, 10*time.Second, func() bool {
				return b.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
			}, "the replay waits")
		})
		return inbox.Permanent(errors.New("no"))
	})
	outboxtest.Eventually(t, 20*time.Second, func() bool { return b.count(`SELECT count(*) FROM inbox.stuck`) == 0 }, "it is tried again")
}
