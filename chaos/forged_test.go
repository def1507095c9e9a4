package chaos_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
)

// forged tries to put rows and messages where they do not belong: as a service, whose rights refuse it, and as the relay,
// whose rights do not, and then reconcile names it.
func forged(r *run) {
	r.begin()
	r.forgedRows()
	r.forgedMessages()
	since := time.Now()
	o := r.w.bookOne(r.T, r.load.event)
	request := contracts.UpdateEventInventory{EventID: o.event, BookingID: o.booked.ID, QuantityReduced: o.tickets, RequestedAt: time.Now().UTC()}
	body, err := json.Marshal(request)
	if err != nil {
		r.Fatal(err)
	}
	id := uuid.Must(uuid.NewV7())
	route := r.w.topology(r.T).RoutingKey(request.EventType(), outbox.PartitionOf(request.EventKey()))
	r.publish(route, amqp.Publishing{MessageId: id.String(), Body: body, Headers: amqp.Table{
		outbox.HeaderID: id.String(), outbox.HeaderType: request.EventType(), outbox.HeaderSubject: request.EventKey(),
	}})
	operator := r.operator()
	defer operator.Close()
	eventually(r.T, time.Minute, func() bool {
		report := r.reconciled(operator, since)
		return !report.Clean && report.Unknown == 1
	}, "reconcile does not name the message that is in no outbox")
	r.note("a message that only the relay's rights can forge changes nothing, and reconcile names it")
	r.healed("consumer")
}

// rights are a broker user's, as they are deployed.
type rights struct {
	User      string `json:"user"`
	Configure string `json:"configure"`
	Write     string `json:"write"`
	Read      string `json:"read"`
}

// deployedRights are those of one user in deploy/.
func (r *run) deployedRights(name string) rights {
	r.Helper()
	document, err := os.ReadFile("../deploy/rabbitmq/definitions.json")
	if err != nil {
		r.Fatal(err)
	}
	var deployed struct{ Permissions []rights }
	if err := json.Unmarshal(document, &deployed); err != nil {
		r.Fatal(err)
	}
	for _, each := range deployed.Permissions {
		if each.User == name {
			return each
		}
	}
	r.Fatalf("deploy/rabbitmq/definitions.json gives %s no rights", name)
	return rights{}
}

// forgedMessages tries with booking's broker rights what only others may do.
func (r *run) forgedMessages() {
	r.Helper()
	ctx, cancel := r.context(time.Minute)
	defer cancel()
	rights, user := r.deployedRights("ticketwave-booking"), r.w.vhost+"-forger"
	if err := errors.Join(
		r.w.mq.manage(ctx, http.MethodPut, "/api/users/"+user, map[string]string{"password": user, "tags": ""}, nil),
		r.w.mq.manage(ctx, http.MethodPut, "/api/permissions/"+r.w.vhost+"/"+user, rights, nil),
	); err != nil {
		r.Fatal(err)
	}
	defer func() {
		if err := r.w.mq.manage(ctx, http.MethodDelete, "/api/users/"+user, nil, nil); err != nil {
			r.Error(err)
		}
	}()
	address, err := url.Parse(r.w.mq.url(r.w.vhost))
	if err != nil {
		r.Fatal(err)
	}
	address.User = url.UserPassword(user, user)
	conn, err := amqp.DialConfig(address.String(), amqp.Config{Dial: amqp.DefaultDial(10 * time.Second)})
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // nothing hangs on it
	topology := r.w.topology(r.T)
	own, others := topology.QueueName("booking", 0), topology.QueueName("catalog", 0)
	publish := func(exchange, key string) func(ch *amqp.Channel) error {
		return func(ch *amqp.Channel) error {
			if err := ch.Confirm(false); err != nil {
				return err
			}
			closed := ch.NotifyClose(make(chan *amqp.Error, 1))
			confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, amqp.Publishing{Body: []byte("forged")})
			if err != nil {
				return err
			}
			select {
			case err := <-closed:
				return err
			case <-confirm.Done():
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	for what, attempt := range map[string]struct {
		do      func(ch *amqp.Channel) error
		allowed bool
	}{
		"publish an event":         {do: publish(topology.Exchange, topology.RoutingKey(contracts.TypeUpdateEventInventory, 0))},
		"write to another's queue": {do: publish("", others)},
		"write to its own queue":   {do: publish("", own)},
		"read another's queue":     {do: func(ch *amqp.Channel) error { _, _, err := ch.Get(others, false); return err }},
		"empty another's queue":    {do: func(ch *amqp.Channel) error { _, err := ch.QueuePurge(others, false); return err }},
		"delete its own queue":     {do: func(ch *amqp.Channel) error { _, err := ch.QueueDelete(own, false, false, false); return err }},
		"declare a queue": {do: func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare("forged", true, false, false, false, nil)
			return err
		}},
		"bind its own queue to all events": {do: func(ch *amqp.Channel) error { return ch.QueueBind(own, "#", topology.Exchange, false, nil) }},
		"look at its own queue": {do: func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclarePassive(own, true, false, false, false, nil)
			return err
		}, allowed: true},
	} {
		ch, err := conn.Channel()
		if err != nil {
			r.Fatal(err)
		}
		err = attempt.do(ch)
		var refusal *amqp.Error
		refused := errors.As(err, &refusal) && refusal.Code == amqp.AccessRefused && strings.Contains(refusal.Reason, user)
		if attempt.allowed && err != nil || !attempt.allowed && !refused {
			r.Errorf("a service's broker user may %s: %t wanted, %v", what, attempt.allowed, err)
		}
		if err == nil {
			_ = ch.Close() // what was refused has closed it
		}
	}
}
