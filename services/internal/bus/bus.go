// Package bus is where a service meets RabbitMQ: a subscriber for its queues, a publisher for what nobody can
// read, and the inbox consumer between them and the service's database.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// Topology is the contracts' table in the form that declares it.
func Topology() rabbitmq.Topology {
	table := contracts.Topology()
	t := rabbitmq.Topology{Exchange: table.Exchange, TypePrefix: table.TypePrefix, Partitions: table.Partitions}
	for _, q := range table.Queues {
		t.Queues = append(t.Queues, rabbitmq.Queue{Name: q.Name, Types: q.Types})
	}
	return t
}

// Config describes a bus. All fields but Observe are required.
type Config struct {
	// Name is the service's: its consumer and its queues are called so.
	Name string
	// URL is the broker's.
	URL string
	// Pool is the service's database, with its inbox.
	Pool *pgxpool.Pool
	// Batch is how many messages one transaction may handle: 1 for a service whose handlers have effects outside.
	Batch int
	// Logger takes what people need to know.
	Logger *slog.Logger
	// Observe, if set, is told what became of every message. It must not block.
	Observe func(inbox.Outcome)
}

// Bus is the open ends of one service.
type Bus struct {
	// Consumer takes the service's handlers, before Run.
	Consumer *inbox.Consumer

	subscriber *rabbitmq.Subscriber
	dead       *rabbitmq.Publisher
}

// State is what this process sees of the broker. The two connections come and go separately.
type State struct {
	Consuming   rabbitmq.State `json:"consuming"`
	DeadLetters rabbitmq.State `json:"deadLetters"`
}

// maxDead is the largest message that RabbitMQ 3 takes: whatever came can be put aside.
const maxDead = 128 << 20

// Open begins to connect and returns at once: the broker may be away now and at any time later. Nothing is
// consumed before Run.
func Open(cfg Config) (*Bus, error) {
	topology := Topology()
	subscriber, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{URL: cfg.URL, Name: cfg.Name, Outstanding: cfg.Batch}, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("subscriber of %s: %w", cfg.Name, err)
	}
	dead, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{
		URL: cfg.URL, Exchange: topology.DeadExchange(), Name: cfg.Name + " dead letters", Channels: 1, MaxBody: maxDead,
	}, cfg.Logger)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dead letters of %s: %w", cfg.Name, err), subscriber.Close())
	}
	b := &Bus{subscriber: subscriber, dead: dead}
	b.Consumer, err = inbox.New(inbox.Config{
		Name: cfg.Name, Pool: cfg.Pool, Subscriber: subscriber, Dead: dead,
		Topology: topology, Batch: cfg.Batch, Logger: cfg.Logger, Observe: cfg.Observe,
	})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Run handles messages until ctx ends and those in hand are finished.
func (b *Bus) Run(ctx context.Context) error { return b.Consumer.Run(ctx) }

// State is that of this moment.
func (b *Bus) State() State {
	return State{Consuming: b.subscriber.State(), DeadLetters: b.dead.State()}
}

// Close hangs up. Run must have returned.
func (b *Bus) Close() error { return errors.Join(b.subscriber.Close(), b.dead.Close()) }
