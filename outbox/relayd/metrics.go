package relayd

import (
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/jcp/ticketwave/outbox/relay"
)

// metrics are what Prometheus sees of the daemon.
type metrics struct {
	registry *prometheus.Registry
	attempts *prometheus.CounterVec
	delay    *prometheus.HistogramVec
}

func newMetrics(d *Daemon) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "outbox_relay_attempts_total", Help: "Attempts to relay a message, by result.",
		}, []string{"database", "partition", "result"}),
		delay: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "outbox_relay_delay_seconds", Help: "From the row's insertion to the broker's confirm, by two clocks.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"database"}),
	}
	connected := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "outbox_relay_broker_connected", Help: "1 while the broker takes messages.",
	}, d.connected)
	m.registry.MustRegister(m.attempts, m.delay, connected, standing{d}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (d *Daemon) connected() float64 {
	if p := d.running.Load(); p != nil {
		if s := p.publisher.State(); s.Connected && !s.Blocked {
			return 1
		}
	}
	return 0
}

// observe counts attempts.
func (m *metrics) observe(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		produced, err := next(msg)
		delivery, ok := relay.DeliveryFrom(msg.Context())
		if !ok {
			return produced, err
		}
		result := "relayed"
		if err != nil {
			result = "failed"
		} else {
			m.delay.WithLabelValues(delivery.Database).Observe(max(0, time.Since(delivery.CreatedAt).Seconds()))
		}
		m.attempts.WithLabelValues(delivery.Database, strconv.Itoa(delivery.Partition), result).Inc()
		return produced, err
	}
}

// standing shows what was last measured, and what this relay works on. What could not be measured is not shown at all:
// an old figure would look like a good one.
type standing struct{ *Daemon }

var (
	describe = prometheus.NewDesc

	lagMessages = describe("outbox_relay_lag_messages", "Committed messages that no relay has relayed, without stuck ones; about, beyond 1000.", []string{"database", "partition"}, nil)
	lagSeconds  = describe("outbox_relay_lag_seconds", "Age of the oldest of them.", []string{"database", "partition"}, nil)
	oldest      = describe("outbox_relay_oldest_unrelayed_seconds", "Age of the oldest message that is not relayed, stuck ones included.", []string{"database"}, nil)
	stuck       = describe("outbox_relay_stuck_messages", "Messages in outbox.stuck: retrying and parked are the first of their key, behind waits for them.",
		[]string{"database", "partition", "state"}, nil)
	measured       = describe("outbox_relay_measured", "1 if the database answered the last look at lag and stuck messages.", []string{"database"}, nil)
	transactionAge = describe("outbox_relay_oldest_transaction_seconds", "Age of the oldest transaction that is open, or prepared and neither committed nor rolled back.",
		[]string{"database", "kind"}, nil)
	transactions   = describe("outbox_relay_long_transactions", "Open and prepared transactions that are older than a minute.", []string{"database", "kind"}, nil)
	leasesOwned    = describe("outbox_relay_leases_owned", "Partitions whose lease this relay has.", []string{"database"}, nil)
	relaying       = describe("outbox_relay_partition_relaying", "1 while this relay works on the partition.", []string{"database", "partition"}, nil)
	queueExists    = describe("outbox_relay_queue_exists", "1 if the queue or dead-letter queue is there.", []string{"queue"}, nil)
	queueMessages  = describe("outbox_relay_queue_messages", "Messages that are ready in a consumer's queue.", []string{"queue"}, nil)
	queueConsumers = describe("outbox_relay_queue_consumers", "Consumers of a consumer's queue.", []string{"queue"}, nil)
	deadLetters    = describe("outbox_relay_dead_letters", "Messages in a dead-letter queue.", []string{"queue"}, nil)
	queuesMeasured = describe("outbox_relay_queues_measured", "1 if the broker answered the last look at the queues.", nil, nil)
)

// Describe lists the metrics.
func (s standing) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		lagMessages, lagSeconds, oldest, stuck, measured, transactionAge, transactions, leasesOwned, relaying, queueExists, queueMessages, queueConsumers, deadLetters, queuesMeasured,
	} {
		out <- d
	}
}

// Collect asks nobody.
func (s standing) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	p := s.running.Load()
	if p == nil {
		return // nothing has been looked at
	}
	for _, db := range s.cfg.Databases {
		h := p.relay.Holding(db.Name)
		gauge(leasesOwned, float64(h.Leases), db.Name)
		for partition, is := range h.Relaying {
			gauge(relaying, number(is), db.Name, strconv.Itoa(partition))
		}
		if found, looked := s.watch.database(db.Name); looked {
			collectDatabase(gauge, db.Name, found)
		}
	}
	if depths, looked := s.watch.queues(); looked {
		collectQueues(gauge, depths)
	}
}

type gaugeFunc func(d *prometheus.Desc, value float64, labels ...string)

func collectDatabase(gauge gaugeFunc, database string, found *relay.Measurement) {
	gauge(measured, number(found != nil), database)
	if found == nil {
		return
	}
	for _, t := range found.Transactions {
		gauge(transactionAge, t.Oldest.Seconds(), database, t.Kind)
		gauge(transactions, float64(t.Long), database, t.Kind)
	}
	var age time.Duration
	for _, b := range found.Partitions {
		partition := strconv.Itoa(b.Partition)
		gauge(lagMessages, float64(b.Lag), database, partition)
		gauge(lagSeconds, b.LagAge.Seconds(), database, partition)
		gauge(stuck, float64(b.Retrying), database, partition, "retrying")
		gauge(stuck, float64(b.Parked), database, partition, "parked")
		gauge(stuck, float64(b.Behind), database, partition, "behind")
		age = max(age, b.Oldest)
	}
	gauge(oldest, age.Seconds(), database)
}

// collectQueues shows no depth of a queue that does not exist.
func collectQueues(gauge gaugeFunc, depths []queueDepth) {
	gauge(queuesMeasured, number(depths != nil))
	for _, d := range depths {
		gauge(queueExists, number(!d.Missing), d.name)
		switch {
		case d.Missing:
		case d.dead:
			gauge(deadLetters, float64(d.Messages), d.name)
		default:
			gauge(queueMessages, float64(d.Messages), d.name)
			gauge(queueConsumers, float64(d.Consumers), d.name)
		}
	}
}

func number(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
