package outbox_test

import (
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

const topic = "shop.orders.placed.v1"

func openSQL(t *testing.T, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// publishStock writes with the stock publisher of watermill-sql in one transaction, and ends it as told.
func publishStock(t *testing.T, db *sql.DB, end func(tx *sql.Tx) error, topic string, msgs ...*message.Message) {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := watermillsql.NewPublisher(tx, watermillsql.PublisherConfig{SchemaAdapter: outbox.Schema{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pub.Publish(topic, msgs...), end(tx)); err != nil {
		t.Fatal(err)
	}
}

// subscribeStock reads as administrator, who may make the table of offsets.
func subscribeStock(t *testing.T, db *outboxtest.Database, group, topic string) <-chan *message.Message {
	t.Helper()
	sub, err := watermillsql.NewSubscriber(openSQL(t, db.AdminURL), watermillsql.SubscriberConfig{
		ConsumerGroup: group, SchemaAdapter: outbox.Schema{BatchSize: 7}, OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true, PollInterval: 10 * time.Millisecond, ResendInterval: 10 * time.Millisecond,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Close() })
	msgs, err := sub.Subscribe(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

// take receives and acknowledges n messages.
func take(t *testing.T, from <-chan *message.Message, n int) []*message.Message {
	t.Helper()
	var got []*message.Message
	// Long: the stock subscriber waits for every write transaction of the cluster, those of other tests too.
	limit := time.After(3 * time.Minute)
	for len(got) < n {
		select {
		case msg := <-from:
			msg.Ack()
			got = append(got, msg)
		case <-limit:
			t.Fatalf("%d messages of %d arrived", len(got), n)
		}
	}
	return got
}

func order(key string, n int) *message.Message {
	msg := message.NewMessage(uuid.Must(uuid.NewV7()).String(), fmt.Appendf(nil, `{"n":%d}`, n))
	msg.Metadata.Set(outbox.HeaderSubject, key)
	msg.Metadata.Set("mine", "ü")
	return msg
}

func TestStockPublisherAndSubscriber(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	service := openSQL(t, db.ServiceURL)
	first, second, keyless := order("b", 1), order("a", 2), order("", 3)
	publishStock(t, service, (*sql.Tx).Commit, topic, first, second)
	publishStock(t, service, (*sql.Tx).Rollback, topic, order("a", 9))
	publishStock(t, service, (*sql.Tx).Commit, "shop.orders.other.v1", order("a", 8))
	publishStock(t, service, (*sql.Tx).Commit, topic, keyless)

	got := take(t, subscribeStock(t, db, "g", topic), 3)
	for i, want := range []struct {
		*message.Message
		key string
	}{{second, "a"}, {first, "b"}, {keyless, keyless.UUID}} {
		m := got[i]
		if m.UUID != want.UUID || string(m.Payload) != string(want.Payload) ||
			m.Metadata.Get("mine") != "ü" || m.Metadata.Get(outbox.HeaderSubject) != want.key || len(m.Metadata) != 2 {
			t.Errorf("message %d is %s %s %v, want %s of key %s", i, m.UUID, m.Payload, m.Metadata, want.UUID, want.key)
		}
	}
	for _, row := range rowsOf(t, db) {
		if len(row.Metadata) != 1 || row.Metadata["mine"] != "ü" {
			t.Errorf("row %d repeats what its columns hold: %v", row.ID, row.Metadata)
		}
	}
}

func TestStockSubscriberGoesOnWhereItsGroupStopped(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	appendN := func(from, to int) {
		for n := from; n < to; n++ {
			appendPlaced(t, db, placed{"k", n})
		}
	}
	appendN(0, 20)
	take(t, subscribeStock(t, db, "one", topic), 20)
	appendN(20, 30)
	again := take(t, subscribeStock(t, db, "one", topic), 10)
	all := take(t, subscribeStock(t, db, "two", topic), 30)
	for i, msg := range append(all, again...) {
		n := i
		if i >= 30 {
			n = i - 10
		}
		if want := fmt.Sprintf(`{"key":"k","n":%d}`, n); string(msg.Payload) != want {
			t.Errorf("message %d is %s, want %s", i, msg.Payload, want)
		}
	}
}

func appendPlaced(t *testing.T, db outbox.DB, events ...outbox.Event) {
	t.Helper()
	err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, events...) })
	if err != nil {
		t.Fatal(err)
	}
}

func TestAppendReachesTheStockSubscriber(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	msgs := subscribeStock(t, db, "g", topic)
	ctx := outbox.WithCausality(t.Context(), outbox.Causality{CorrelationID: "flow"})
	written, err := outbox.Encode(ctx, placed{"k", 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.InTx(ctx, db, func(tx pgx.Tx) error { return outbox.Write(ctx, tx, written...) }); err != nil {
		t.Fatal(err)
	}
	got := take(t, msgs, 1)[0]
	if got.UUID != written[0].ID.String() || string(got.Payload) != `{"key":"k","n":1}` ||
		got.Metadata.Get(outbox.HeaderCorrelationID) != "flow" || got.Metadata.Get(outbox.HeaderSubject) != "k" {
		t.Errorf("message is %s %s %v", got.UUID, got.Payload, got.Metadata)
	}
}

func TestSchemaRefusesWhatAppendRefuses(t *testing.T) {
	t.Parallel()
	for name, msg := range map[string]*message.Message{
		"no UUID":       message.NewMessage("not-a-uuid", nil),
		"nil UUID":      message.NewMessage(uuid.Nil.String(), nil),
		"large payload": message.NewMessage(uuid.NewString(), make([]byte, outbox.MaxPayload+1)),
	} {
		if _, err := (outbox.Schema{}).InsertQuery(topic, message.Messages{msg}); !errors.Is(err, outbox.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}
