package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const (
	startBroker = "start RabbitMQ, or mend TW_AMQP_URL; messages wait in the outboxes meanwhile"
	apply       = "ticketwave topology apply"
)

// examineBroker looks at the broker, and at what is declared there.
func (e *examination) examineBroker(ctx context.Context) (found []Finding) {
	t := e.scene.topology
	_, done, err := e.broker.channel(ctx)
	if errors.Is(err, errNoBroker) {
		return []Finding{{Check: "broker", Severity: NotChecked, Message: err.Error(), Remedy: "set TW_AMQP_URL"}}
	}
	if err != nil {
		return []Finding{{Check: "broker", Severity: Critical, Message: err.Error(), Remedy: startBroker}}
	}
	done() // it only showed that the broker answers
	found = append(found, judgeRabbitMQ(e.broker.observer.Version()))
	if t == nil {
		return found
	}
	found = append(found, e.checkExchanges(ctx, t)...)
	depths, err := e.broker.sureDepths(ctx, e.declared())
	if err != nil {
		return append(found, Finding{Check: "queue", Severity: NotChecked, Message: err.Error(), Remedy: startBroker})
	}
	found = append(found, judgeQueues(depths)...)
	return append(found, e.checkDeclared(ctx, t)...)
}

func (e *examination) declared() (names []string) {
	for _, name := range e.scene.queues() {
		names = append(names, name, rabbitmq.DeadName(name))
	}
	return names
}

func judgeRabbitMQ(version string) Finding {
	f := Finding{Check: "rabbitmq-version", Severity: OK, Message: "RabbitMQ " + version + " is new enough"}
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		f.Severity, f.Message, f.Remedy = NotChecked, fmt.Sprintf("the broker says it is version %q", version), "the outbox was made for RabbitMQ 3.10 and newer"
		return f
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	if errors.Join(err1, err2) == nil && (major < 3 || major == 3 && minor < 10) {
		f.Severity, f.Message = Critical, fmt.Sprintf("RabbitMQ is version %s: at-least-once dead-lettering needs 3.10", version)
		f.Remedy = "upgrade RabbitMQ to 3.10 or newer"
	}
	return f
}

// checkExchanges looks for both exchanges, and whether the broker takes messages.
func (e *examination) checkExchanges(ctx context.Context, t *rabbitmq.Topology) (found []Finding) {
	for _, name := range []string{t.Exchange, t.DeadExchange()} {
		f := Finding{Check: "exchange", Severity: OK, Subject: name, Message: "exchange " + name + " is there"}
		var closed *amqp.Error
		switch err := e.broker.hasExchange(ctx, name); {
		case errors.As(err, &closed) && closed.Code == amqp.NotFound:
			f.Severity, f.Message, f.Remedy = Critical, "exchange "+name+" does not exist", apply
		case err != nil:
			f.Severity, f.Message, f.Remedy = Critical, err.Error(), "see that it is a direct, durable exchange: delete it, then "+apply
		}
		found = append(found, f)
	}
	f := Finding{Check: "broker", Severity: OK, Message: "the broker takes messages"}
	if found[0].Severity == OK {
		if err := e.broker.takes(t.Exchange); err != nil {
			f.Severity, f.Message = Critical, err.Error()
			f.Remedy = "rabbitmqctl status shows alarms of memory and disk: free some, or let consumers empty the queues; messages wait in the outboxes meanwhile"
		}
		found = append(found, f)
	}
	return found
}

func (b *broker) hasExchange(ctx context.Context, name string) error {
	ch, done, err := b.channel(ctx)
	if err != nil {
		return err
	}
	defer done()
	return ch.ExchangeDeclarePassive(name, amqp.ExchangeDirect, true, false, false, false, nil)
}

// judgeQueues judges by what queues say about themselves.
func judgeQueues(depths map[string]depth) (found []Finding) {
	for _, name := range slices.Sorted(maps.Keys(depths)) {
		d := depths[name]
		dead := strings.HasSuffix(name, rabbitmq.DeadName(""))
		switch {
		case d.missing:
			found = append(found, Finding{
				Check: "queue", Severity: Critical, Subject: name, Message: "queue " + name + " does not exist: what should be in it is lost to its consumer",
				Remedy: apply + ", then outboxctl reconcile, and outboxctl replay plan for what is missing",
			})
		case dead && d.messages > 0:
			found = append(found, Finding{
				Check: "dead-letters", Severity: Warning, Subject: name, Message: fmt.Sprintf("%d messages are in %s", d.messages, name),
				Remedy: fmt.Sprintf("outboxctl dead list --queue %s, then outboxctl dead redrive or discard", name),
			})
		case !dead && d.consumers == 0:
			found = append(found, Finding{
				Check: "queue-without-consumer", Severity: Warning, Subject: name, Message: fmt.Sprintf("nobody consumes queue %s, which holds %d messages", name, d.messages),
				Remedy: "start the service that consumes it",
			})
		}
	}
	for _, check := range []struct{ name, fine string }{
		{"queue", "every queue of the topology is there"}, {"dead-letters", "the dead-letter queues are empty"}, {"queue-without-consumer", "every queue is consumed"},
	} {
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Check == check.name }) {
			found = append(found, Finding{Check: check.name, Severity: OK, Message: check.fine})
		}
	}
	return found
}

// checkDeclared compares bindings and arguments with the topology. AMQP cannot list them.
func (e *examination) checkDeclared(ctx context.Context, t *rabbitmq.Topology) (found []Finding) {
	bindings, queues, exchanges, err := e.readManagement(ctx, t)
	if err != nil {
		for _, name := range []string{"binding", "queue-arguments"} {
			found = append(found, Finding{Check: name, Severity: NotChecked, Message: err.Error(), Remedy: "set TW_RABBITMQ_MANAGEMENT_URL to the management API, with a user that may monitor"})
		}
		return found
	}
	found = slices.Concat(judgeExchanges(t, exchanges), judgeBindings(t, bindings), judgeArguments(t, queues))
	for _, check := range []struct{ name, fine string }{
		{"binding", "every binding of the topology is there, and no other"}, {"queue-arguments", "every queue is of the type and with the arguments of the topology"},
	} {
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Check == check.name }) {
			found = append(found, Finding{Check: check.name, Severity: OK, Message: check.fine})
		}
	}
	return found
}

// binding and queue are what the management API says of them.
type binding struct {
	Source          string `json:"source"`
	Destination     string `json:"destination"`
	DestinationType string `json:"destination_type"`
	RoutingKey      string `json:"routing_key"`
}

type queue struct {
	Name      string         `json:"name"`
	Type      string         `json:"type"`
	Durable   bool           `json:"durable"`
	Arguments map[string]any `json:"arguments"`
}

// exchange is what the management API says of one.
type exchange struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Durable bool   `json:"durable"`
}

func (e *examination) readManagement(ctx context.Context, t *rabbitmq.Topology) (bindings []binding, queues []queue, exchanges []exchange, err error) {
	if e.cfg.ManagementURL == "" {
		return nil, nil, nil, errors.New("no management API is configured, and AMQP itself cannot list bindings and arguments")
	}
	broker, err := amqp.ParseURI(e.broker.url)
	if err != nil {
		return nil, nil, nil, errors.New("bad RabbitMQ URL")
	}
	vhost := url.PathEscape(broker.Vhost)
	for _, exchange := range []string{t.Exchange, t.DeadExchange()} {
		var some []binding
		if err := manage(ctx, e.cfg.ManagementURL, "/api/exchanges/"+vhost+"/"+url.PathEscape(exchange)+"/bindings/source", &some); err != nil {
			return nil, nil, nil, err
		}
		bindings = append(bindings, some...)
	}
	if err := manage(ctx, e.cfg.ManagementURL, "/api/exchanges/"+vhost+"?columns=name,type,durable&disable_stats=true", &exchanges); err != nil {
		return nil, nil, nil, err
	}
	return bindings, queues, exchanges, manage(ctx, e.cfg.ManagementURL, "/api/queues/"+vhost+"?columns=name,type,durable,arguments&disable_stats=true", &queues)
}

const mostAnswer = 64 << 20

// manage reads one document of the management API. Its errors hold no password.
func manage(ctx context.Context, base, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("bad management URL: want http://user:password@host:port")
	}
	user := u.User
	u.User = nil
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(u.String(), "/")+path, nil)
	if err != nil {
		return errors.New("bad management URL")
	}
	password, _ := user.Password()
	req.SetBasicAuth(user.Username(), password)
	resp, err := managementClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the management API: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound { // no such exchange has no bindings
		return nil
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the management API: %s", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, mostAnswer)).Decode(into); err != nil {
		return fmt.Errorf("read the management API's answer: %w", err)
	}
	return nil
}

// managementClient keeps no connection: it is asked rarely.
var managementClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: brokerTimeout}, Timeout: 2 * brokerTimeout}

// judgeExchanges compares kinds, which a passive declaration does not.
func judgeExchanges(t *rabbitmq.Topology, have []exchange) (found []Finding) {
	for _, x := range have {
		if x.Name != t.Exchange && x.Name != t.DeadExchange() || x.Type == amqp.ExchangeDirect && x.Durable {
			continue
		}
		text := "it is a " + x.Type + " exchange and not a direct one"
		if x.Type == amqp.ExchangeDirect {
			text = "it does not survive a restart of the broker"
		}
		found = append(found, Finding{
			Check: "exchange", Severity: Critical, Subject: x.Name, Message: "exchange " + x.Name + ": " + text,
			Remedy: "when it is quiet, delete it, then " + apply + ", and outboxctl reconcile",
		})
	}
	return found
}

func judgeBindings(t *rabbitmq.Topology, have []binding) (found []Finding) {
	want := map[binding]bool{}
	for _, q := range t.Queues {
		for p := range t.Partitions {
			name := t.QueueName(q.Name, p)
			want[binding{t.DeadExchange(), rabbitmq.DeadName(name), "queue", name}] = true
			for _, typ := range q.Types {
				want[binding{t.Exchange, name, "queue", t.RoutingKey(typ, p)}] = true
			}
		}
	}
	for _, b := range have {
		if want[b] {
			delete(want, b)
			continue
		}
		found = append(found, Finding{
			Check: "binding", Severity: Warning, Subject: b.Destination,
			Message: fmt.Sprintf("%s %s is bound to %s with %s, which the topology does not say", b.DestinationType, b.Destination, b.Source, b.RoutingKey),
			Remedy:  fmt.Sprintf("if nobody needs it: rabbitmqadmin delete binding source=%s destination=%s destination_type=%s properties_key=%s", b.Source, b.Destination, b.DestinationType, b.RoutingKey),
		})
	}
	for b := range want {
		found = append(found, Finding{
			Check: "binding", Severity: Critical, Subject: b.Destination,
			Message: fmt.Sprintf("queue %s is not bound to %s with %s: its consumer has missed what came meanwhile", b.Destination, b.Source, b.RoutingKey),
			Remedy:  apply + ", then outboxctl reconcile, and outboxctl replay plan --to-queue for what is missing",
		})
	}
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.Message, b.Message) })
	return found
}

func judgeArguments(t *rabbitmq.Topology, have []queue) (found []Finding) {
	for _, q := range t.Queues {
		for p := range t.Partitions {
			name := t.QueueName(q.Name, p)
			found = append(found, judgeQueue(name, t.QueueArguments(name), have)...)
			found = append(found, judgeQueue(rabbitmq.DeadName(name), rabbitmq.DeadArguments(), have)...)
		}
	}
	return found
}

func judgeQueue(name string, want amqp.Table, have []queue) []Finding {
	i := slices.IndexFunc(have, func(q queue) bool { return q.Name == name })
	if i < 0 {
		return nil // said elsewhere
	}
	var wrong []string
	if have[i].Type != "quorum" {
		wrong = append(wrong, "it is a "+have[i].Type+" queue and not a quorum queue")
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if got, ok := have[i].Arguments[key]; key != "x-queue-type" && (!ok || fmt.Sprint(got) != fmt.Sprint(want[key]) && (number(got) < 0 || number(got) != number(want[key]))) {
			wrong = append(wrong, fmt.Sprintf("%s is %v and not %v", key, got, want[key]))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return []Finding{{
		Check: "queue-arguments", Severity: Critical, Subject: name, Message: "queue " + name + ": " + strings.Join(wrong, ", "),
		Remedy: fmt.Sprintf("let it run empty, rabbitmqctl delete_queue %s, then %s", name, apply),
	}}
}

// number is a JSON number as an integer, or -1.
func number(v any) int64 {
	switch n := v.(type) {
	case float64:
		return int64(n)
	case int64:
		return n
	}
	return -1
}
