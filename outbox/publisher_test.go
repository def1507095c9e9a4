package outbox_test

import (
	"context"
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

func TestPublisherWritesAllOrNothing(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	pub := outbox.NewPublisher(outboxtest.NewPool(t, db.ServiceURL))
	first, second, keyless := order("b", 1), order("b", 2), order("", 3)
	if err := pub.Publish(topic, first, order("a", 9), message.NewMessage("not-a-uuid", nil)); !errors.Is(err, outbox.ErrInvalid) {
		t.Errorf("Publish of a message without a UUID = %v, want ErrInvalid", err)
	}
	if err := errors.Join(pub.Publish(topic), pub.Publish(topic, first, second), pub.Publish("other", keyless)); err != nil {
		t.Fatal(err)
	}
	got := rowsOf(t, db)
	if len(got) != 3 {
		t.Fatalf("%d rows, want the 3 that could be written", len(got))
	}
	for i, want := range []struct {
		*message.Message
		topic, key string
	}{{first, topic, "b"}, {second, topic, "b"}, {keyless, "other", keyless.UUID}} {
		if r := got[i]; r.UUID.String() != want.UUID || r.Topic != want.topic || r.Key != want.key || r.Payload != string(want.Payload) ||
			len(r.Metadata) != 1 || r.Metadata["mine"] != "ü" {
			t.Errorf("row %d is %+v, want %s of key %s", i, r, want.UUID, want.key)
		}
	}
}

func TestPublisherTakesTheContextOfItsMessage(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	msg := order("k", 1)
	msg.SetContext(ctx)
	if err := outbox.NewPublisher(db).Publish(topic, msg); !errors.Is(err, context.Canceled) {
		t.Errorf("Publish under a context that has ended = %v", err)
	}
}

func TestTxPublisherIsPartOfTheTransaction(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	rollback := errors.New("changed my mind")
	kept, dropped := order("k", 1), order("k", 2)
	for msg, end := range map[*message.Message]error{kept: nil, dropped: rollback} {
		err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error {
			return errors.Join(outbox.NewTxPublisher(tx).Publish(topic, msg), end)
		})
		if !errors.Is(err, end) {
			t.Errorf("InTx = %v, want %v", err, end)
		}
	}
	if got := rowsOf(t, db); len(got) != 1 || got[0].UUID != uuid.MustParse(kept.UUID) {
		t.Errorf("rows are %+v, want the one that was committed", got)
	}
}

func TestPublisherRefusesOnceClosed(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	pub := outbox.NewPublisher(db)
	if err := errors.Join(pub.Close(), pub.Close()); err != nil {
		t.Error(err)
	}
	if err := pub.Publish(topic, order("k", 1)); err == nil || len(rowsOf(t, db)) != 0 {
		t.Errorf("a closed publisher writes %v and returns %v", rowsOf(t, db), err)
	}
}
