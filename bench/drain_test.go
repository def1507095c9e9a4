package bench

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// drained relays what the outbox holds with so many relay processes, from their start on, in messages per second.
func drained(b *testing.B, br *broker, db *outboxtest.Database, n, relays int) float64 {
	b.Helper()
	br.purge(b)
	start := time.Now()
	running := make([]*process, relays)
	for i := range running {
		running[i] = startRelay(b, br, db)
	}
	br.await(b, n, 10*time.Minute)
	took := time.Since(start)
	for _, p := range running {
		p.stop(b)
	}
	return float64(n) / took.Seconds()
}

// ours fills a fresh outbox and drains it.
func ours(b *testing.B, br *broker, n, relays int, keyOf func(int) int) float64 {
	b.Helper()
	db := newOutbox(b)
	defer db.Close()
	fill(b, db, n, keyOf)
	return drained(b, br, db, n, relays)
}

// handover ends one of two relays under 200 events/s, and returns the longest latency of all events in ms.
func handover(b *testing.B, how syscall.Signal) float64 {
	b.Helper()
	const perSecond = 200
	br := newBroker(b)
	db := newOutbox(b)
	pool := service(b, db.ServiceURL)
	first, second := startRelay(b, br, db), startRelay(b, br, db)
	defer second.stop(b)
	owners := func() (n int) {
		must(b, db.QueryRow(b.Context(), `SELECT count(DISTINCT owner) FROM outbox.leases WHERE pool = 'relay'`).Scan(&n))
		return n
	}
	for end := time.Now().Add(30 * time.Second); owners() < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal("two relays do not share the partitions")
		}
	}
	own := appending(pool, always(made), manyKeys)
	measure(b, br, 100, 100, own)
	stop := time.AfterFunc(2*time.Second, func() { _ = first.cmd.Process.Signal(how) })
	defer stop.Stop()
	return percentile(measure(b, br, 6*perSecond, perSecond, own), 1)
}

func fromMemory(b *testing.B, br *broker, n int) float64 {
	b.Helper()
	br.purge(b)
	return limit(b, br, n, topology.Exchange, true, func(i int) amqp.Publishing { return marshal(b, relayed(keyName(evenly(i)))) })
}

func drain(b *testing.B, r *Row) {
	br := newBroker(b)
	n, few := pick(200_000, 40_000), pick(10_000, 2_000)
	workers := bestRiver(b, r, br, pick(10_000, 3_000))
	var relay, memory, stock, river []float64
	for i := range pick(5, 3) {
		r.say("round %d", i+1)
		relay = append(relay, ours(b, br, n, 1, evenly))
		memory = append(memory, fromMemory(b, br, n))
		if i < pick(3, 1) {
			stock = append(stock, stockDrain(b, br, few, evenly))
			river = append(river, riverDrain(b, br, pick(30_000, 6_000), workers))
		}
	}
	r.add("relay", median(relay), "messages/s")
	r.add("limit: from memory", median(memory), "messages/s")
	r.add("River", median(river), "messages/s")
	r.add("stock forwarder", median(stock), "messages/s")
	r.add("relay / limit", median(relay)/median(memory), "ratio")
	r.add("relay / River", median(relay)/median(river), "ratio")
	r.add("relay / stock", median(relay)/median(stock), "ratio")
	for _, relays := range []int{2, 4} {
		r.add(fmt.Sprintf("%d relay processes", relays), ours(b, br, n, relays, evenly), "messages/s")
	}
	r.say("handing partitions over")
	r.add("longest wait of a message, relay stopped", handover(b, syscall.SIGTERM), "ms")
	r.add("longest wait of a message, relay killed", handover(b, syscall.SIGKILL), "ms")
	r.note("medians of %d rounds, variants in turn; %d messages of 400 bytes, 1,000 keys; stock %d", len(relay), n, few)
	r.note("stock: watermill-sql v3 in batches of 1,000, 10 ms polls, forwarder, watermill-amqp v2 with confirms and 50 pooled channels; it handles one message at a time by design")
	r.note("River: %d workers, 1 ms fetch cooldown, one confirming channel shared by all", workers)
	r.judge(median(relay) >= 0.85*median(memory) && median(relay) >= 2*median(river) && median(relay) >= 20*median(stock))
}

func keys(b *testing.B, r *Row) {
	br := newBroker(b)
	n, few := pick(200_000, 40_000), pick(5_000, 1_500)
	even := ours(b, br, n, 1, evenly)
	skewed := ours(b, br, pick(50_000, 10_000), 1, zipf())
	var one, stock, turn []float64
	for range 3 {
		one = append(one, ours(b, br, few, 1, single))
		stock = append(stock, stockDrain(b, br, few, single))
		turn = append(turn, byTurns(b, br, few))
	}
	r.add("1,000 keys evenly", even, "messages/s")
	r.add("Zipf(1.2)", skewed, "messages/s")
	r.add("one key", median(one), "messages/s")
	r.add("stock forwarder, one key", median(stock), "messages/s")
	r.add("from memory, each after the confirm of the one before", median(turn), "messages/s")
	r.add("one key / stock", median(one)/median(stock), "ratio")
	r.add("one key / from memory", median(one)/median(turn), "ratio")
	r.note("a key's next message leaves when the broker has confirmed the one before: one key is bound by the confirm's round trip, as anything is that publishes in strict order, Zipf(1.2) by its most frequent key (about a fifth of the messages)")
	r.judge(median(one) >= 1.5*median(stock))
}

// byTurns publishes from memory, each message when the one before is confirmed: the limit of a strictly ordered key.
func byTurns(b *testing.B, br *broker, n int) float64 {
	b.Helper()
	br.purge(b)
	send := straight(b, br)
	start := time.Now()
	for range n {
		_, err := send(b.Context(), 0)
		must(b, err)
	}
	return float64(n) / time.Since(start).Seconds()
}

func messageShapes(b *testing.B, r *Row) {
	br := newBroker(b)
	ch := br.channel(b)
	for _, kind := range []string{"fanout", "direct", "topic"} {
		name := "bench." + kind
		must(b, ch.ExchangeDeclare(name, kind, true, false, false, false, nil))
		for p := range 4 {
			must(b, ch.QueueBind(topology.QueueName("sink", p), topology.RoutingKey(made, p), name, false, nil))
		}
	}
	n := pick(60_000, 15_000)
	headers := func(count int) func(int) amqp.Publishing {
		table := amqp.Table{}
		for i := range count {
			table[fmt.Sprintf("cloudEvents_header%d", i)] = "0190c1f4-0000-7000-8000-000000000000"
		}
		return func(i int) amqp.Publishing {
			return amqp.Publishing{Headers: table, DeliveryMode: amqp.Persistent, ContentType: "application/json", MessageId: keyName(i), Body: payload}
		}
	}
	full := func(i int) amqp.Publishing { return marshal(b, relayed(keyName(i))) }
	shapes := []struct {
		name, exchange string
		mandatory      bool
		make           func(int) amqp.Publishing
	}{
		{"direct, 0 headers", "bench.direct", false, headers(0)},
		{"direct, 2 headers", "bench.direct", false, headers(2)},
		{"direct, 7 headers", "bench.direct", false, headers(7)},
		{"direct, 7 headers, mandatory", "bench.direct", true, headers(7)},
		{"direct, 11 headers, mandatory", "bench.direct", true, headers(11)},
		{"topic, 11 headers, mandatory", "bench.topic", true, headers(11)},
		{"ours: direct, CloudEvents, mandatory", topology.Exchange, true, full},
	}
	rates := make([][]float64, len(shapes))
	for range 3 {
		for i, s := range shapes {
			br.purge(b)
			rates[i] = append(rates[i], limit(b, br, n, s.exchange, s.mandatory, s.make))
		}
	}
	for i, s := range shapes {
		r.add(s.name, median(rates[i]), "messages/s")
	}
	br.purge(b)
	r.note("fanout would put every message into all four queues; its limit is not comparable")
	r.note("chosen: a direct exchange, seven CloudEvents headers and the standard properties: what any CloudEvents reader and the broker's tools need; mandatory, because returns are how the relay learns that nobody is bound")
}
