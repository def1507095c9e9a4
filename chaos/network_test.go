package chaos_test

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// mend lets every proxy work again.
func (r *run) mend() {
	r.Helper()
	for _, p := range r.w.proxies.all() {
		p.mend(r.T)
	}
}

func slowAndHalfOpen(r *run) {
	defer r.mend()
	r.begin()
	for _, p := range r.w.proxies.all() {
		p.spoil(r.T, "latency", "downstream", map[string]any{"latency": 60, "jitter": 40})
	}
	r.healed("network") // under the latency
	r.mend()
	ps := r.w.proxies
	for _, half := range [][]*proxy{{ps.relayBroker, ps.servicesBroker}, {ps.relayPostgres, ps.servicesPostgres}} {
		for _, p := range half {
			p.spoil(r.T, "timeout", "downstream", map[string]any{"timeout": 0})
			p.spoil(r.T, "timeout", "upstream", map[string]any{"timeout": 0})
		}
		r.pause(6*time.Second, 7*time.Second)
		r.mend()
		r.healed("network")
	}
	if slowest := time.Duration(r.load.slowest.Load()) * time.Millisecond; slowest >= tryLimit {
		r.Errorf("a request took %s", slowest)
	} else {
		r.note("slowest request %s", slowest.Round(100*time.Millisecond))
	}
}

func midFrame(r *run) {
	defer r.mend()
	r.begin()
	all := r.w.proxies.all()
	for i := range 12 {
		p := all[i%len(all)]
		direction := []string{"downstream", "upstream"}[r.rng.IntN(2)]
		if i%2 == 0 {
			p.spoil(r.T, "limit_data", direction, map[string]any{"bytes": 1 + r.rng.IntN(3000)})
		} else {
			p.spoil(r.T, "reset_peer", direction, map[string]any{"timeout": r.rng.IntN(100)})
		}
		r.pause(200*time.Millisecond, 600*time.Millisecond)
		p.mend(r.T)
	}
	r.healed("network")
}

func partitions(r *run) {
	defer r.mend()
	r.begin()
	for _, p := range r.w.proxies.all() {
		p.cut()
		r.pause(2*time.Second, 4*time.Second)
		p.mend(r.T)
		r.healed("network")
	}
}

// publish sends a message past the outboxes.
func (r *run) publish(key string, p amqp.Publishing) {
	r.Helper()
	id, err := uuid.Parse(p.MessageId)
	if err != nil {
		id = uuid.Nil // as the tap has it
	}
	r.w.foreign[id] = true
	topology := r.w.topology(r.T)
	if err := r.w.mq.with(r.w.vhost, func(ch *amqp.Channel) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		p.DeliveryMode = amqp.Persistent
		ctx, cancel := r.context(10 * time.Second)
		defer cancel()
		confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, topology.Exchange, key, true, false, p)
		if err != nil {
			return err
		}
		_, err = confirm.WaitContext(ctx)
		return err
	}); err != nil {
		r.Fatalf("publish: %v", err)
	}
}

func poison(r *run) {
	r.begin()
	topology := r.w.topology(r.T)
	o := r.w.bookOne(r.T, r.load.event)
	request := contracts.UpdateEventInventory{EventID: o.event, BookingID: o.booked.ID, QuantityReduced: o.tickets, RequestedAt: time.Now().UTC()}
	good, err := outbox.Encode(r.Context(), request)
	if err != nil {
		r.Fatal(err)
	}
	partition := outbox.PartitionOf(o.booked.ID)
	route, queue := topology.RoutingKey(request.EventType(), partition), topology.QueueName("catalog", partition)
	id := func() string { return uuid.Must(uuid.NewV7()).String() }
	message := func(id, typ, key string, body []byte, more amqp.Table) amqp.Publishing {
		headers := amqp.Table{outbox.HeaderType: typ}
		if id != "" {
			headers[outbox.HeaderID] = id
		}
		if key != "" {
			headers[outbox.HeaderSubject] = key
		}
		for name, value := range more {
			headers[name] = value
		}
		return amqp.Publishing{Headers: headers, MessageId: id, Body: body}
	}
	odd := amqp.Table{"number": int64(7), "yes": true, "when": time.Now(), "table": amqp.Table{"a": "b"}, "bytes": []byte{0, 255}, "list": []any{int32(1), "x"}, "nothing": nil}
	r.publish(route, message(id(), request.EventType(), o.booked.ID, good[0].Payload, odd)) // is handled
	// What has no readable id or key is dead.
	for _, p := range []amqp.Publishing{
		message("", request.EventType(), o.booked.ID, good[0].Payload, nil), message("no-uuid", request.EventType(), o.booked.ID, good[0].Payload, nil),
		message(id(), request.EventType(), "", good[0].Payload, nil), {Body: []byte{0xff, 0xfe}},
	} {
		r.publish(route, p)
		r.dead[queue+".dead"]++
	}
	// What has both waits in the inbox, and its key behind it.
	key := uuid.NewString()
	for keyPartition := outbox.PartitionOf(key); keyPartition != partition; keyPartition = outbox.PartitionOf(key) {
		key = uuid.NewString()
	}
	first := id()
	r.publish(route, message(first, request.EventType(), key, []byte("no JSON"), nil))
	r.tolerated[uuid.MustParse(first)] = "undecodable"
	r.stuck("catalog", first)
	follower := id()
	r.publish(route, message(follower, request.EventType(), key, good[0].Payload, nil))
	r.tolerated[uuid.MustParse(follower)] = "behind another"
	other := uuid.NewString()
	for outbox.PartitionOf(other) != partition {
		other = uuid.NewString()
	}
	unknown := id()
	r.publish(route, message(unknown, "ticketwave.catalog.update-event-inventory.v9", other, good[0].Payload, nil))
	r.tolerated[uuid.MustParse(unknown)] = "unknown_type"
	r.stuck("catalog", unknown)
	r.healed("consumer") // others flow
	r.reasons(queue+".dead", r.dead[queue+".dead"])
}

// stuck waits until a message is in a consumer's inbox.stuck.
func (r *run) stuck(service, id string) {
	r.Helper()
	eventually(r.T, time.Minute, func() (found bool) {
		r.w.admin(r.T, service, `SELECT EXISTS (SELECT FROM inbox.stuck WHERE message_id = $1)`, []any{id}, &found)
		return found
	}, "message %s is not stuck in %s", id, service)
}

// reasons wants so many dead letters, each with its reason, and leaves them where they are.
func (r *run) reasons(queue string, n int) {
	r.Helper()
	if err := r.w.mq.with(r.w.vhost, func(ch *amqp.Channel) error {
		for i := range n {
			d, ok, err := ch.Get(queue, false)
			if err != nil {
				return err
			}
			if reason, _ := d.Headers["_malformed"].(string); !ok || reason == "" {
				r.Errorf("dead letter %d of %s is there: %v, its reason is %q", i+1, queue, ok, reason)
			}
		}
		return nil // closing gives them back
	}); err != nil {
		r.Fatal(err)
	}
}

// unbind removes a binding of the events' exchange.
func (r *run) unbind(queue, key string) {
	r.Helper()
	topology := r.w.topology(r.T)
	if err := r.w.mq.with(r.w.vhost, func(ch *amqp.Channel) error { return ch.QueueUnbind(queue, key, topology.Exchange, nil) }); err != nil {
		r.Fatal(err)
	}
}

// bound reports that a queue is bound with a key.
func (r *run) bound(queue, key string) bool {
	var bindings []struct {
		Key string `json:"routing_key"`
	}
	ctx, cancel := r.context(10 * time.Second)
	defer cancel()
	if err := r.w.mq.manage(ctx, http.MethodGet, "/api/queues/"+r.w.vhost+"/"+queue+"/bindings", nil, &bindings); err != nil {
		return false
	}
	for _, b := range bindings {
		if b.Key == key {
			return true
		}
	}
	return false
}

// untap keeps messages of a type from the tap, for a returned message is one that reaches no queue at all.
func (r *run) untap(typ string) {
	r.Helper()
	topology := r.w.topology(r.T)
	for p := range topology.Partitions {
		r.unbind(tapName, topology.RoutingKey(typ, p))
	}
	r.untapped[typ] = true
}

// waiting waits until messages of a type wait in booking's outbox.stuck for a reason.
func (r *run) waiting(typ, class string) {
	r.Helper()
	eventually(r.T, time.Minute, func() (found bool) {
		r.w.admin(r.T, "booking", `SELECT EXISTS (SELECT FROM outbox.stuck WHERE topic = $1 AND class = $2)`, []any{typ, class}, &found)
		return found
	}, "no message of type %s waits as %s", typ, class)
}

func queueDeleted(r *run) {
	r.begin()
	r.load.stop()
	if !r.w.quiet(r.T, time.Minute, nil, nil) { // what is in a queue is lost with it
		return
	}
	r.untap(contracts.TypeUpdateEventInventory)
	if err := r.w.mq.with(r.w.vhost, func(ch *amqp.Channel) error { _, err := ch.QueueDelete("catalog.1", false, false, false); return err }); err != nil {
		r.Fatal(err)
	}
	r.load = r.w.startLoad(r.T, r.seed)
	r.waiting(contracts.TypeUpdateEventInventory, "unroutable")
	eventually(r.T, 30*time.Second, func() bool { return r.w.procs["catalog"].log.says(`catalog\.1.*(deleted|not_found|NOT_FOUND)`) }, "the catalog does not say that its queue is gone")
	eventually(r.T, 30*time.Second, func() bool { return r.w.procs["relay"].log.says(`wait in outbox.stuck`) }, "the relay does not say that messages wait")
	r.w.ticketwave(r.T, "topology", "apply")
	r.healed("broker")
}

func bindingsLost(r *run) {
	r.begin()
	topology := r.w.topology(r.T)
	r.untap(contracts.TypePreparePaymentData)
	for p := range topology.Partitions {
		r.unbind(topology.QueueName("payment", p), topology.RoutingKey(contracts.TypePreparePaymentData, p))
	}
	r.waiting(contracts.TypePreparePaymentData, "unroutable")
	r.load.await(r.T, 20)
	r.w.ticketwave(r.T, "topology", "apply")
	r.healed("broker")
	for _, q := range topology.Queues {
		for _, typ := range q.Types {
			r.untapped[typ] = true // the exchange takes the tap's bindings with it
		}
	}
	if err := r.w.mq.with(r.w.vhost, func(ch *amqp.Channel) error { return ch.ExchangeDelete(topology.Exchange, false, false) }); err != nil {
		r.Fatal(err)
	}
	r.load.await(r.T, 40)
	r.w.ticketwave(r.T, "topology", "apply")
	r.healed("broker")
	r.oneOfSeveral(topology)
}

// oneOfSeveral unbinds a queue while another one is bound with the same key: the broker says nothing, and the messages
// are gone for the first. The relay binds it again by itself, and replay fills the gap.
func (r *run) oneOfSeveral(topology rabbitmq.Topology) {
	r.Helper()
	const other = "chaos.other"
	keys := map[string]string{}
	for p := range topology.Partitions {
		keys[topology.RoutingKey(contracts.TypePreparePaymentData, p)] = topology.QueueName("payment", p)
	}
	if err := r.w.mq.with(r.w.vhost, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(other, false, false, false, false, amqp.Table{"x-max-length": int32(10)})
		for key := range keys {
			err = errors.Join(err, ch.QueueBind(other, key, topology.Exchange, false, nil))
		}
		return err
	}); err != nil {
		r.Fatal(err)
	}
	since := r.began // what is committed before the binding goes may be relayed after
	for key, queue := range keys {
		r.unbind(queue, key)
	}
	r.load.await(r.T, 20)
	eventually(r.T, 2*time.Minute, func() bool { // the relay declares what it needs every minute
		for key, queue := range keys {
			if !r.bound(queue, key) {
				return false
			}
		}
		return true
	}, "the relay does not bind the queue again")
	r.healed("broker")
	r.load.stop()
	if err := r.w.mq.with(r.w.vhost, func(ch *amqp.Channel) error { _, err := ch.QueueDelete(other, false, false, false); return err }); err != nil {
		r.Fatal(err)
	}
	o := r.operator()
	defer o.Close()
	r.mended(o, since, "booking", "payment")
	r.mendedRest(o, since) // an exchange loses its bindings one by one, and meanwhile some queues miss what others get
	if r.w.quiet(r.T, time.Minute, nil, nil) {
		r.whole(o, since)
	}
}

func queueFull(r *run) {
	r.begin()
	o := r.w.bookOne(r.T, r.load.event)
	ctx, cancel := r.context(2 * time.Minute)
	defer cancel()
	policy := "/api/policies/" + r.w.vhost + "/full"
	if err := r.w.mq.manage(ctx, http.MethodPut, policy, map[string]any{
		"pattern": `^catalog\.[0-3]$`, "apply-to": "queues", "definition": map[string]any{"max-length": 20, "overflow": "reject-publish"},
	}, nil); err != nil {
		r.Fatal(err)
	}
	r.w.stop(r.T, "catalog")
	r.waiting(contracts.TypeUpdateEventInventory, "refused")
	// Bookings wait now, for the catalog's request is the first of each. Another key goes by another route.
	id := r.ask(contracts.PreparePaymentData{
		BookingID: o.booked.ID, Amount: o.booked.TotalAmount, Currency: o.booked.Currency, UserID: o.user, ExpiresAt: o.booked.ExpiresAt, RequestedAt: time.Now().UTC(),
	})
	eventually(r.T, time.Minute, func() (handled bool) {
		r.w.admin(r.T, "payment", `SELECT EXISTS (SELECT FROM inbox.messages WHERE message_id = $1)`, []any{id}, &handled)
		return handled
	}, "the others do not flow while a queue is full")
	// The queue must run low before its limit goes: RabbitMQ 3.10 would go on refusing what comes through the channels
	// that it has told to stop, for it tells them to go on only where there is a limit to be below.
	r.again("catalog")
	r.healed("broker")
	if err := r.w.mq.manage(ctx, http.MethodDelete, policy, nil, nil); err != nil {
		r.Fatal(err)
	}
	r.healed("broker")
}

// ask appends one message to booking's outbox.
func (r *run) ask(event outbox.Event) uuid.UUID {
	r.Helper()
	messages, err := outbox.Encode(r.Context(), event)
	if err != nil {
		r.Fatal(err)
	}
	_, tx := r.hold(r.w.prefix+"booking", func(ctx context.Context, tx pgx.Tx) error { return outbox.Write(ctx, tx, messages...) })
	if err := tx.Commit(r.Context()); err != nil {
		r.Fatal(err)
	}
	return messages[0].ID
}

// ackTimeout keeps a handler waiting for longer than the broker lets a message be out.
func ackTimeout(r *run) {
	r.begin()
	restore := func() {
		r.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
		r.closeConnections() // channels keep what they began with
	}
	defer restore()
	r.ctl("eval", "application:set_env(rabbit, consumer_timeout, 2000).")
	r.closeConnections()
	r.healed("broker")
	ctx, cancel := r.context(30 * time.Second)
	defer cancel()
	tx, err := r.w.pools["catalog"].Begin(ctx)
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }() // gives the lock back
	if _, err := tx.Exec(ctx, `SELECT FROM catalog.events WHERE id = $1 FOR UPDATE`, r.load.event); err != nil {
		r.Fatal(err)
	}
	eventually(r.T, 25*time.Second, r.w.mq.timedOut, "the broker does not take the message back")
	if err := tx.Commit(ctx); err != nil {
		r.Fatal(err)
	}
	r.healed("consumer")
}
