package bench

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/outbox/relayd"
)

const (
	made    = "bench.made.v1" // the type that is bound
	nowhere = "bench.lost.v1" // the type that no queue is bound to
	keyed   = 1000            // keys of an even load
)

var topology = rabbitmq.Topology{
	Exchange: "bench.events", TypePrefix: "bench.", Partitions: outbox.Partitions,
	Queues: []rabbitmq.Queue{{Name: "sink", Types: []string{made}}},
}

// payload is 400 bytes of JSON.
var payload = []byte(`{"text":"` + strings.Repeat("x", 400-len(`{"text":""}`)) + `"}`)

// broker is a vhost with the topology.
type broker struct {
	url  string
	conn *amqp.Connection
}

func newBroker(b *testing.B) *broker {
	b.Helper()
	br := &broker{url: outboxtest.NewVHost(b)}
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	must(b, topology.Apply(ctx, br.url))
	var err error
	br.conn, err = amqp.Dial(br.url)
	must(b, err)
	b.Cleanup(func() { _ = br.conn.Close() })
	return br
}

func (br *broker) channel(b *testing.B) *amqp.Channel {
	b.Helper()
	ch, err := br.conn.Channel()
	must(b, err)
	return ch
}

func (br *broker) purge(b *testing.B) {
	b.Helper()
	ch := br.channel(b)
	defer func() { _ = ch.Close() }()
	for p := range outbox.Partitions {
		_, err := ch.QueuePurge(topology.QueueName("sink", p), false)
		must(b, err)
	}
}

// await waits until the queues hold n messages, and fails when they come to hold more.
func (br *broker) await(b *testing.B, n int, limit time.Duration) {
	b.Helper()
	if depth := br.atLeast(b, n, limit); depth > n {
		b.Fatalf("the queues hold %d messages, want %d", depth, n)
	}
}

// atLeast waits until the queues hold n messages, and returns how many they hold.
func (br *broker) atLeast(b *testing.B, n int, limit time.Duration) (depth int) {
	b.Helper()
	ch := br.channel(b)
	defer func() { _ = ch.Close() }()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		depth = 0
		for p := range outbox.Partitions {
			q, err := ch.QueueDeclarePassive(topology.QueueName("sink", p), true, false, false, false, nil)
			must(b, err)
			depth += q.Messages
		}
		switch {
		case depth >= n:
			return depth
		case time.Now().After(end):
			b.Fatalf("the queues hold %d messages of %d after %v", depth, n, limit)
		}
	}
}

// newOutbox is a database whose relay knows the topology.
func newOutbox(b *testing.B) *outboxtest.Database {
	b.Helper()
	db := outboxtest.NewDatabase(b, "bench")
	must(b, relayd.StoreTopology(b.Context(), db.AdminURL, topology))
	return db
}

// fill writes n committed messages with the keys that keyOf gives.
func fill(b *testing.B, db *outboxtest.Database, n int, keyOf func(i int) int) {
	b.Helper()
	const chunk = 50_000
	for from := 0; from < n; from += chunk {
		keys := make([]int32, min(chunk, n-from))
		for i := range keys {
			keys[i] = int32(keyOf(from + i))
		}
		_, err := db.Exec(b.Context(), `
			INSERT INTO outbox.messages (id, uuid, topic, key, payload, metadata)
			SELECT nextval('outbox.message_id'), gen_random_uuid(), $1, 'key-' || k, $2, jsonb_build_object('correlationid', gen_random_uuid())
			FROM unnest($3::int[]) WITH ORDINALITY AS u (k, n) ORDER BY n`, made, payload, keys)
		must(b, err)
	}
	_, err := db.Exec(b.Context(), `VACUUM ANALYZE outbox.messages`)
	must(b, err)
	_, err = db.Exec(b.Context(), `CHECKPOINT`)
	must(b, err)
}

func evenly(i int) int { return i % keyed }

func single(int) int { return 0 }

// zipf draws from Zipf(1.2) over the keys, the same at every run.
func zipf() func(int) int {
	z := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.2, 1, keyed-1)
	return func(int) int { return int(z.Uint64()) }
}

// process is a program of this repository that runs beside the benchmark.
type process struct {
	cmd *exec.Cmd
	out bytes.Buffer
	end chan struct{}
}

func startProcess(b *testing.B, name string, env ...string) *process {
	b.Helper()
	path, err := filepath.Abs(filepath.Join("..", "bin", name))
	must(b, err)
	p := &process{cmd: exec.Command(path), end: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), append([]string{"TW_HTTP_ADDR=127.0.0.1:0", "TW_LOG_LEVEL=warn"}, env...)...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	must(b, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.end) }()
	b.Cleanup(func() { p.stop(b) })
	return p
}

func (p *process) stop(b *testing.B) {
	b.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.end:
	case <-time.After(40 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.end
		b.Error("a process does not stop")
	}
}

// statusKB reads a field of /proc/<pid>/status, in KiB.
func (p *process) statusKB(name string) float64 {
	var kb float64
	_, _ = fmt.Sscan(field(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), name), &kb)
	return kb
}

func startRelay(b *testing.B, br *broker, db *outboxtest.Database) *process {
	b.Helper()
	return startProcess(b, "relay", "TW_RELAY_DATABASES=bench="+db.RelayURL, "TW_AMQP_URL="+br.url)
}

// relayed is the message that the relay makes of a row.
func relayed(key string) *message.Message {
	id := uuid.NewString()
	msg := message.NewMessage(id, payload)
	msg.Metadata = message.Metadata{
		outbox.HeaderID: id, outbox.HeaderType: made, outbox.HeaderSource: "bench", outbox.HeaderSubject: key,
		outbox.HeaderTime: time.Now().UTC().Format(time.RFC3339Nano), outbox.HeaderSpecVersion: "1.0", outbox.HeaderCorrelationID: id,
	}
	return msg
}

func marshal(b *testing.B, msg *message.Message) amqp.Publishing {
	b.Helper()
	p, err := rabbitmq.Marshaler{}.Marshal(msg)
	must(b, err)
	return p
}

// limit publishes n messages from memory with pipelined confirms, on two channels with a thousand in flight each,
// which was the best of 1, 2 and 4 channels with 250, 500, 1000 and 2000. It returns messages per second.
func limit(b *testing.B, br *broker, n int, exchange string, mandatory bool, make func(i int) amqp.Publishing) float64 {
	b.Helper()
	const channels, inFlight = 2, 1000
	conn, err := amqp.Dial(br.url)
	must(b, err)
	defer func() { _ = conn.Close() }()
	failed := newFailure()
	start := time.Now()
	var wg sync.WaitGroup
	for c := range channels {
		ch, err := conn.Channel()
		must(b, err)
		must(b, ch.Confirm(false))
		confirms := ch.NotifyPublish(newConfirms(inFlight))
		slots := newSlots(inFlight)
		wg.Go(func() {
			for i := c; i < n; i += channels {
				if confirm, ok := <-confirms; !ok || !confirm.Ack {
					failed.set("a message was not confirmed")
				}
				<-slots
			}
		})
		wg.Go(func() {
			for i := c; i < n; i += channels {
				slots <- struct{}{}
				if err := ch.Publish(exchange, topology.RoutingKey(made, i%outbox.Partitions), mandatory, false, make(i)); err != nil {
					failed.set(err.Error())
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	failed.check(b)
	return float64(n) / took.Seconds()
}

func newConfirms(n int) chan amqp.Confirmation { return make(chan amqp.Confirmation, n) }
func newSlots(n int) chan struct{}             { return make(chan struct{}, n) }

// failure keeps the first thing that went wrong in a goroutine.
type failure struct {
	once sync.Once
	text string
}

func newFailure() *failure { return &failure{} }

func (f *failure) set(text string) { f.once.Do(func() { f.text = text }) }

func (f *failure) check(b *testing.B) {
	b.Helper()
	if f.text != "" {
		b.Fatal(f.text)
	}
}

func keyName(i int) string { return "key-" + strconv.Itoa(i) }
