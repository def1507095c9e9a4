package bench

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillamqp "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver of the stock publisher
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const forwardTopic = "forwarder"

// stock is the pipeline made of Watermill's own parts.
type stock struct {
	db      *sql.DB
	outbox  message.Publisher
	forward *forwarder.Forwarder
}

// newStock builds it on a database of its own. Tuned takes larger batches and shorter polls than the defaults.
func newStock(b *testing.B, br *broker, tuned bool) *stock {
	b.Helper()
	database := outboxtest.NewDatabase(b, "bench")
	db, err := sql.Open("pgx", database.AdminURL)
	must(b, err)
	b.Cleanup(func() { _ = db.Close() })
	logger := watermill.NopLogger{}
	schema, poll := watermillsql.DefaultPostgreSQLSchema{}, time.Duration(0)
	if tuned {
		schema.SubscribeBatchSize, poll = 1000, 10*time.Millisecond
	}
	beginner := db
	subscriber, err := watermillsql.NewSubscriber(beginner, watermillsql.SubscriberConfig{
		SchemaAdapter: schema, OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true, PollInterval: poll,
	}, logger)
	must(b, err)
	must(b, subscriber.SubscribeInitialize(forwardTopic))
	publisher, err := watermillsql.NewPublisher(beginner, watermillsql.PublisherConfig{SchemaAdapter: schema}, logger)
	must(b, err)
	config := watermillamqp.NewDurablePubSubConfig(br.url, nil)
	config.Marshaler = rabbitmq.Marshaler{}
	config.Exchange.Type = "direct"
	config.Exchange.GenerateName = func(string) string { return topology.Exchange }
	config.Publish = watermillamqp.PublishConfig{GenerateRoutingKey: func(topic string) string { return topic }, ConfirmDelivery: true, ChannelPoolSize: 50}
	out, err := watermillamqp.NewPublisher(config, logger)
	must(b, err)
	f, err := forwarder.NewForwarder(subscriber, out, logger, forwarder.Config{ForwarderTopic: forwardTopic, CloseTimeout: 5 * time.Second})
	must(b, err)
	return &stock{db: db, outbox: forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: forwardTopic}), forward: f}
}

// run forwards until stop is called.
func (s *stock) run(b *testing.B) (stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.forward.Run(ctx) // what it does not forward is missed at the queues
	}()
	return func() {
		cancel()
		_ = s.forward.Close()
		<-done
	}
}

func stockDrain(b *testing.B, br *broker, n int, keyOf func(int) int) float64 {
	b.Helper()
	br.purge(b)
	s := newStock(b, br, true)
	for i := range n {
		topic := topology.RoutingKey(made, i%outbox.Partitions)
		must(b, s.outbox.Publish(topic, relayed(keyName(keyOf(i)))))
	}
	start := time.Now()
	stop := s.run(b)
	br.await(b, n, 5*time.Minute)
	took := time.Since(start)
	stop()
	return float64(n) / took.Seconds()
}

// job is a message as a River job.
type job struct {
	Key     string `json:"key"`
	Topic   string `json:"topic"`
	Payload []byte `json:"payload"`
}

// Kind names the job.
func (job) Kind() string { return "publish" }

// publisher is a River worker that publishes with a confirm.
type publisher struct {
	river.WorkerDefaults[job]

	ch *amqp.Channel
}

// Work publishes one job's message and waits for its confirm.
func (p *publisher) Work(ctx context.Context, j *river.Job[job]) error {
	msg := relayed(j.Args.Key)
	msg.Payload = j.Args.Payload
	publishing, err := rabbitmq.Marshaler{}.Marshal(msg)
	if err != nil {
		return err
	}
	confirm, err := p.ch.PublishWithDeferredConfirmWithContext(ctx, topology.Exchange, j.Args.Topic, true, false, publishing)
	if err != nil {
		return err
	}
	if ok, err := confirm.WaitContext(ctx); err != nil || !ok {
		return fmt.Errorf("not confirmed: %w", err)
	}
	return nil
}

func riverDrain(b *testing.B, br *broker, n, workers int) float64 {
	b.Helper()
	br.purge(b)
	database := outboxtest.NewDatabase(b, "bench")
	config, err := pgxpool.ParseConfig(database.AdminURL)
	must(b, err)
	config.MaxConns = 20
	pool, err := pgxpool.NewWithConfig(b.Context(), config)
	must(b, err)
	defer pool.Close()
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	must(b, err)
	_, err = migrator.Migrate(b.Context(), rivermigrate.DirectionUp, nil)
	must(b, err)
	ch := br.channel(b)
	defer func() { _ = ch.Close() }()
	must(b, ch.Confirm(false))
	all := river.NewWorkers()
	river.AddWorker(all, &publisher{ch: ch})
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}}, Workers: all,
		FetchCooldown: time.Millisecond, FetchPollInterval: 10 * time.Millisecond,
	})
	must(b, err)
	for from := 0; from < n; from += 5000 {
		params := make([]river.InsertManyParams, 0, 5000)
		for i := from; i < min(n, from+5000); i++ {
			params = append(params, river.InsertManyParams{Args: job{keyName(evenly(i)), topology.RoutingKey(made, i%outbox.Partitions), payload}})
		}
		_, err := client.InsertManyFast(b.Context(), params)
		must(b, err)
	}
	start := time.Now()
	must(b, client.Start(b.Context()))
	br.await(b, n, 5*time.Minute)
	took := time.Since(start)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.Context()), 20*time.Second)
	defer cancel()
	must(b, client.Stop(ctx))
	return float64(n) / took.Seconds()
}

// bestRiver tries worker counts and returns the fastest.
func bestRiver(b *testing.B, r *Row, br *broker, n int) (workers int) {
	b.Helper()
	best := 0.0
	for _, count := range pick([]int{50, 200, 500, 1000, 2000}, []int{200, 1000}) {
		rate := riverDrain(b, br, n, count)
		r.say("River with %d workers: %.0f messages/s", count, rate)
		if rate > best {
			best, workers = rate, count
		}
	}
	return workers
}
