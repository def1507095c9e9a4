package relay_test

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// TestRelayForwardsWhatTheStockPublisherWrote moves a team in: watermill-sql writes, as a service's role.
func TestRelayForwardsWhatTheStockPublisherWrote(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "notes")
	rec := newRecorder()
	got := make(chan *message.Message, 10)
	rec.fail = func(msg *message.Message) error { got <- msg; return nil }
	start(t, config(db, rec))
	pool, err := sql.Open("pgx", db.ServiceURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, end := range []func(*sql.Tx) error{(*sql.Tx).Rollback, (*sql.Tx).Commit} {
		publishStock(t, pool, end, "k", 1, 2, 3)
	}
	for _, want := range []string{"1", "2", "3"} {
		select {
		case msg := <-got:
			if string(msg.Payload) != want || msg.Metadata.Get(outbox.HeaderSubject) != "k" || msg.Metadata.Get("mine") != "yes" ||
				msg.Metadata.Get(outbox.HeaderType) != "test.notes.noted.v1" || msg.Metadata.Get(outbox.HeaderSource) != "notes" {
				t.Errorf("message is %s %v, want payload %s", msg.Payload, msg.Metadata, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("message %s does not arrive", want)
		}
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool { n, _ := rec.distinct(); return n == 3 }, "all three are recorded")
	assertCommitOrder(t, db, rec)
}

// publishStock writes one message per number, whose header claims another source; the relay knows better.
func publishStock(t *testing.T, db *sql.DB, end func(*sql.Tx) error, key string, numbers ...byte) {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := watermillsql.NewPublisher(tx, watermillsql.PublisherConfig{SchemaAdapter: outbox.Schema{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var msgs []*message.Message
	for _, n := range numbers {
		msg := message.NewMessage(uuid.Must(uuid.NewV7()).String(), []byte{'0' + n})
		msg.Metadata = message.Metadata{outbox.HeaderSubject: key, outbox.HeaderSource: "somebody else", "mine": "yes"}
		msgs = append(msgs, msg)
	}
	if err := errors.Join(pub.Publish("test.notes.noted.v1", msgs...), end(tx)); err != nil {
		t.Fatal(err)
	}
}
