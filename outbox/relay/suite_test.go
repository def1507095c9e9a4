package relay_test

import (
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/relay"
)

// payloadKeys publishes every message under its payload as the key.
type payloadKeys struct{ message.Publisher }

func (p payloadKeys) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		msg.Metadata.Set(outbox.HeaderSubject, string(msg.Payload))
	}
	return p.Publisher.Publish(topic, msgs...)
}

// suite makes what Watermill's suite asks for: each of its tests has a database, since all subscribers of a database
// must subscribe to the same topics.
type suite struct {
	wrap func(message.Publisher) message.Publisher

	mu    sync.Mutex
	homes map[string]home // by the test's name
}

type home struct {
	cfg  relay.Config
	pool outbox.DB
}

func newSuite(wrap func(message.Publisher) message.Publisher) *suite {
	return &suite{wrap: wrap, homes: map[string]home{}}
}

func (s *suite) open(t *testing.T) (message.Publisher, message.Subscriber) {
	t.Helper()
	at := s.home(t)
	return s.wrap(outbox.NewPublisher(at.pool)), newSubscriber(t, at.cfg)
}

func (s *suite) home(t *testing.T) home {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.homes[t.Name()]
	if !ok {
		db := outboxtest.NewDatabase(t, "notes")
		at = home{cfg: subscriberConfig(db), pool: outboxtest.NewPool(t, db.ServiceURL)}
		at.cfg.Grace = 100 * time.Millisecond // the suite closes with a message in hand
		at.cfg.LeaseInterval = 0              // the default: the suite has up to fifty subscribers on a database
		s.homes[t.Name()] = at
	}
	return at
}

// Watermill's own suite for every publisher and subscriber, over [outbox.Publisher] and [relay.Subscriber].
func TestWatermillSuite(t *testing.T) {
	promised := tests.Features{
		// The members of a database share its one cursor.
		ConsumerGroups: false,
		// What a crash keeps the cursor from recording is given out again.
		ExactlyOnceDelivery: false,
		// Order is per key: what has no key of its own follows nothing. See below.
		GuaranteedOrder: false,
		// Nor does one subscriber alone change that: messages of different keys are out together.
		GuaranteedOrderWithSingleSubscriber: false,
		// Messages are rows; they outlive publisher and subscriber.
		Persistent: true,
		// Any number of instances share a database.
		RequireSingleInstance: false,
		// The cursor has passed what was acknowledged.
		NewSubscriberReceivesOldMessages: false,
		// A context is not stored.
		ContextPreserved: false,
		ForceShort:       shortSuite,
	}
	t.Run("a key for each message", func(t *testing.T) {
		s := newSuite(func(p message.Publisher) message.Publisher { return p })
		tests.TestPubSub(t, promised, s.open, nil)
	})
	t.Run("a key for each payload", func(t *testing.T) {
		// The messages of a key are given out in order, each after the acknowledgement of the one before, whoever takes them.
		promised.GuaranteedOrder = true
		promised.ForceShort = true // one key is serial
		s := newSuite(func(p message.Publisher) message.Publisher { return payloadKeys{p} })
		tests.TestPubSub(t, promised, s.open, nil)
	})
}
