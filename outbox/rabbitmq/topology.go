package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Topology is one direct exchange and the queues behind it: for each consumer one quorum queue per partition, bound
// to the types it handles, and a dead-letter queue beside each.
type Topology struct {
	// Exchange takes all messages. The dead-letter exchange has its name with the last word replaced by "dead".
	Exchange string `json:"exchange"`
	// TypePrefix is cut from an event's type to make its routing key.
	TypePrefix string `json:"typePrefix"`
	// Partitions is how many queues each consumer has.
	Partitions int `json:"partitions"`
	// Queues are the consumers.
	Queues []Queue `json:"queues"`
}

// Queue is one consumer: its queues are named Name.0, Name.1 and so on.
type Queue struct {
	Name string `json:"name"`
	// Types are the full event types that it is bound to.
	Types []string `json:"types"`
}

// RoutingKey is the type without the prefix, and the partition: "catalog.inventory-updated.v1.2".
func (t Topology) RoutingKey(typ string, partition int) string {
	return strings.TrimPrefix(typ, t.TypePrefix) + "." + strconv.Itoa(partition)
}

// QueueName is the queue of a consumer's partition: "catalog.2".
func (t Topology) QueueName(queue string, partition int) string {
	return queue + "." + strconv.Itoa(partition)
}

// DeadExchange routes what no consumer can read, by the name of the queue it came from.
func (t Topology) DeadExchange() string {
	if i := strings.LastIndexByte(t.Exchange, '.'); i > 0 {
		return t.Exchange[:i] + ".dead"
	}
	return t.Exchange + ".dead"
}

// DeadName is the dead-letter queue of a queue.
func DeadName(queue string) string { return queue + ".dead" }

var queueName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// Validate returns an error that names what is wrong.
func (t Topology) Validate() error {
	switch {
	case t.Exchange == "" || len(t.Exchange) > 200 || strings.HasPrefix(t.Exchange, "amq."):
		return fmt.Errorf("topology: exchange %q: want a name of 1 to 200 bytes that does not begin with amq", t.Exchange)
	case t.Partitions < 1 || t.Partitions > 64:
		return fmt.Errorf("topology: %d partitions: want 1 to 64", t.Partitions)
	}
	seen := map[string]bool{}
	for _, q := range t.Queues {
		if !queueName.MatchString(q.Name) || seen[q.Name] {
			return fmt.Errorf("topology: queue %q: want distinct names of lower-case letters, digits and dashes", q.Name)
		}
		seen[q.Name] = true
		for _, typ := range q.Types {
			if !strings.HasPrefix(typ, t.TypePrefix) || len(typ) == len(t.TypePrefix) || len(typ) > 250 {
				return fmt.Errorf("topology: queue %q: type %q: want one of at most 250 bytes that begins with %q", q.Name, typ, t.TypePrefix)
			}
		}
	}
	return nil
}

// Apply declares everything. It may be repeated, and run by several processes at once; it deletes nothing. Where
// something exists with other arguments the error says what and how to mend it.
func (t Topology) Apply(ctx context.Context, url string) error {
	if err := t.Validate(); err != nil {
		return err
	}
	conn, err := dial(ctx, url, "topology")
	if err != nil {
		return err
	}
	defer hangUp(conn)
	stop := context.AfterFunc(ctx, func() { hangUp(conn) })
	defer stop()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	if err := t.declare(ch); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("declare the topology: %w", ctx.Err())
		}
		return err
	}
	return nil
}

// declare has the bindings last, and those of one routing key one after the other: from the first of them on messages come, and
// the others' queues miss what comes before theirs.
func (t Topology) declare(ch *amqp.Channel) error {
	if err := t.declareExchange(ch, t.DeadExchange()); err != nil {
		return err
	}
	hearers := map[string][]Queue{}
	var types []string
	for _, q := range t.Queues {
		for p := range t.Partitions {
			if err := t.declareQueue(ch, q, p); err != nil {
				return err
			}
		}
		for _, typ := range q.Types {
			if hearers[typ] == nil {
				types = append(types, typ)
			}
			hearers[typ] = append(hearers[typ], q)
		}
	}
	if err := t.declareExchange(ch, t.Exchange); err != nil {
		return err
	}
	for _, typ := range types {
		for p := range t.Partitions {
			for _, q := range hearers[typ] {
				if err := t.bind(ch, q, typ, p); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (t Topology) declareExchange(ch *amqp.Channel, name string) error {
	if err := ch.ExchangeDeclare(name, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
		return explain("exchange", name, err)
	}
	return nil
}

func (t Topology) bind(ch *amqp.Channel, q Queue, typ string, partition int) error {
	name := t.QueueName(q.Name, partition)
	if err := ch.QueueBind(name, t.RoutingKey(typ, partition), t.Exchange, false, nil); err != nil {
		return explain("binding of", name, err)
	}
	return nil
}

// deliveryLimit: RabbitMQ 4 drops a message after 20 deliveries, and every return of a prefetched one counts.
const deliveryLimit = 1_000_000

// QueueArguments are those that a consumer's queue of that name is declared with.
func (t Topology) QueueArguments(name string) amqp.Table {
	return amqp.Table{
		"x-queue-type":              "quorum",
		"x-single-active-consumer":  true,
		"x-delivery-limit":          int64(deliveryLimit),
		"x-dead-letter-exchange":    t.DeadExchange(),
		"x-dead-letter-routing-key": name,
		"x-dead-letter-strategy":    "at-least-once",
		"x-overflow":                "reject-publish",
	}
}

// DeadArguments are those that the dead-letter queues are declared with. Looking at a message returns it, which counts as a
// delivery.
func DeadArguments() amqp.Table {
	return amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int64(deliveryLimit)}
}

func (t Topology) declareQueue(ch *amqp.Channel, q Queue, partition int) error {
	name := t.QueueName(q.Name, partition)
	_, err := ch.QueueDeclare(name, true, false, false, false, t.QueueArguments(name))
	if err != nil {
		return explain("queue", name, err)
	}
	if _, err := ch.QueueDeclare(DeadName(name), true, false, false, false, DeadArguments()); err != nil {
		return explain("queue", DeadName(name), err)
	}
	if err := ch.QueueBind(DeadName(name), name, t.DeadExchange(), false, nil); err != nil {
		return explain("binding of", DeadName(name), err)
	}
	return nil
}

// explain says what to do about a refused declaration.
func explain(kind, name string, err error) error {
	var refused *amqp.Error
	if errors.As(err, &refused) {
		switch refused.Code {
		case amqp.PreconditionFailed:
			return fmt.Errorf("%s %s exists with other arguments: let it run empty, delete it, and apply again: %w", kind, name, err)
		case amqp.AccessRefused:
			return fmt.Errorf("%s %s: this user may not configure it: %w", kind, name, err)
		}
	}
	return fmt.Errorf("declare %s %s: %w", kind, name, err)
}
