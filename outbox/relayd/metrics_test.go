package relayd_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/outbox/relay"
	"github.com/jcp/ticketwave/outbox/relayd"
)

// note is the event of these tests. Nobody hears of kind lost.
type note struct {
	Kind string `json:"-"`
	Key  string `json:"key"`
}

func (n note) EventType() string { return "shop.notes." + n.Kind + ".v1" }
func (n note) EventKey() string  { return n.Key }

var topology = rabbitmq.Topology{
	Exchange: "shop.events", TypePrefix: "shop.", Partitions: outbox.Partitions,
	Queues: []rabbitmq.Queue{{Name: "mail", Types: []string{"shop.notes.taken.v1"}}},
}

// station is a daemon that reaches its servers by way of proxies, and its metrics.
type station struct {
	t                *testing.T
	db               *outboxtest.Database
	database, broker *outboxtest.Proxy
	amqp, url        string
}

func newStation(t *testing.T) *station {
	t.Helper()
	s := &station{t: t, db: outboxtest.NewDatabase(t, "shop"), amqp: outboxtest.NewVHost(t)}
	s.database, s.broker = outboxtest.NewProxy(t, s.db.RelayURL), outboxtest.NewProxy(t, s.amqp)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := relayd.StoreTopology(ctx, s.db.AdminURL, topology); err != nil {
		t.Fatal(err)
	}
	if err := topology.Apply(ctx, s.amqp); err != nil {
		t.Fatal(err)
	}
	d, err := relayd.New(relayd.Config{
		Databases: []relay.Database{{Name: "shop", URL: s.database.URL}}, AMQPURL: s.broker.URL, Logger: slog.New(slog.DiscardHandler),
		Measure: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(d.Handler())
	t.Cleanup(web.Close)
	s.url = web.URL
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return s
}

// scrape reads /metrics: a value for each series.
func (s *station) scrape() map[string]float64 {
	s.t.Helper()
	resp, err := http.Get(s.url + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("/metrics: %s", resp.Status)
	}
	found := map[string]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		series, text, ok := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); ok && err == nil {
			found[series] = value
		}
	}
	return found
}

// until scrapes until all series have their values; NaN-free, so that -1 can stand for a series that must not be there.
func (s *station) until(want map[string]float64) {
	s.t.Helper()
	var wrong string
	defer func() {
		if s.t.Failed() {
			s.t.Log(wrong)
		}
	}()
	outboxtest.Eventually(s.t, 30*time.Second, func() bool {
		found := s.scrape()
		wrong = ""
		for series, value := range want {
			got, ok := found[series]
			if !ok {
				got = -1
			}
			if got != value {
				wrong += fmt.Sprintf("%s is %v, want %v\n", series, got, value)
			}
		}
		return wrong == ""
	}, "the metrics are not as they should be")
}

func (s *station) write(events ...outbox.Event) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	err := outbox.InTx(ctx, s.db, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, events...) })
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *station) exec(text string) (rows int64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	tag, err := s.db.Exec(ctx, text)
	if err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
	return tag.RowsAffected()
}

func of(partition int, name, more string) string {
	return fmt.Sprintf(`%s{database="shop",partition="%d"%s}`, name, partition, more)
}

func TestMetricsOfAQuietRelay(t *testing.T) {
	t.Parallel()
	s := newStation(t)
	want := map[string]float64{
		"outbox_relay_broker_connected": 1, `outbox_relay_measured{database="shop"}`: 1, "outbox_relay_queues_measured": 1,
		`outbox_relay_leases_owned{database="shop"}`: outbox.Partitions, `outbox_relay_oldest_unrelayed_seconds{database="shop"}`: 0,
	}
	for p := range outbox.Partitions {
		want[of(p, "outbox_relay_partition_relaying", "")] = 1
		want[of(p, "outbox_relay_lag_messages", "")] = 0
		want[of(p, "outbox_relay_lag_seconds", "")] = 0
		for _, state := range []string{"retrying", "parked", "behind"} {
			want[of(p, "outbox_relay_stuck_messages", `,state="`+state+`"`)] = 0
		}
		queue := topology.QueueName("mail", p)
		want[`outbox_relay_queue_messages{queue="`+queue+`"}`] = 0
		want[`outbox_relay_queue_consumers{queue="`+queue+`"}`] = 0
		want[`outbox_relay_dead_letters{queue="`+rabbitmq.DeadName(queue)+`"}`] = 0
	}
	s.until(want)
}

func TestMetricsOfWhatIsStuck(t *testing.T) {
	t.Parallel()
	s := newStation(t)
	s.write(note{"lost", "k"}, note{"taken", "k"}, note{"taken", "other"})
	p := outbox.PartitionOf("k")
	s.until(map[string]float64{
		of(p, "outbox_relay_stuck_messages", `,state="retrying"`):                                                                     1,
		of(p, "outbox_relay_stuck_messages", `,state="behind"`):                                                                       1,
		of(p, "outbox_relay_lag_messages", ""):                                                                                        0,
		of(outbox.PartitionOf("other"), "outbox_relay_lag_messages", ""):                                                              0,
		`outbox_relay_queue_messages{queue="` + topology.QueueName("mail", outbox.PartitionOf("other")) + `"}`:                        1,
		`outbox_relay_attempts_total{database="shop",partition="` + strconv.Itoa(outbox.PartitionOf("other")) + `",result="relayed"}`: 1,
	})
	if age := s.scrape()[`outbox_relay_oldest_unrelayed_seconds{database="shop"}`]; age <= 0 || age > 60 {
		t.Errorf("the oldest that is not relayed is %v s old", age)
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		return s.exec(`UPDATE outbox.stuck SET parked = true WHERE class IS NOT NULL AND claim IS NULL`) > 0
	}, "the relay has the message in hand")
	s.until(map[string]float64{
		of(p, "outbox_relay_stuck_messages", `,state="retrying"`): 0,
		of(p, "outbox_relay_stuck_messages", `,state="parked"`):   1,
		of(p, "outbox_relay_stuck_messages", `,state="behind"`):   1,
	})
}

func TestMetricsOfTheBroker(t *testing.T) {
	t.Parallel()
	s := newStation(t)
	queue := topology.QueueName("mail", 3)
	dead := `outbox_relay_dead_letters{queue="` + rabbitmq.DeadName(queue) + `"}`
	s.until(map[string]float64{dead: 0, "outbox_relay_broker_connected": 1})
	conn, err := amqp.Dial(s.amqp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.PublishWithContext(t.Context(), topology.DeadExchange(), queue, true, false, amqp.Publishing{Body: []byte("?")}); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.Consume(queue, "", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	s.until(map[string]float64{dead: 1, `outbox_relay_queue_consumers{queue="` + queue + `"}`: 1})

	gone := topology.QueueName("mail", 0)
	if _, err := ch.QueueDelete(gone, false, false, false); err != nil {
		t.Fatal(err)
	}
	s.until(map[string]float64{
		`outbox_relay_queue_exists{queue="` + gone + `"}`: 0, `outbox_relay_queue_messages{queue="` + gone + `"}`: -1,
		`outbox_relay_queue_exists{queue="` + queue + `"}`: 1,
	})
	s.broker.Down()
	s.write(note{"taken", "k"})
	p := outbox.PartitionOf("k")
	s.until(map[string]float64{
		"outbox_relay_broker_connected": 0, "outbox_relay_queues_measured": 0, dead: -1,
		of(p, "outbox_relay_lag_messages", ""): 1, of(p, "outbox_relay_stuck_messages", `,state="retrying"`): 0,
	})
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		found := s.scrape()
		return found[of(p, "outbox_relay_lag_seconds", "")] > 0.2 && found[`outbox_relay_oldest_unrelayed_seconds{database="shop"}`] > 0.2
	}, "the lag has no age")
	var many []outbox.Event
	for i := range 1500 * outbox.Partitions {
		many = append(many, note{"taken", "k" + strconv.Itoa(i%500)})
	}
	s.write(many...)
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		var lag float64
		found := s.scrape()
		for p := range outbox.Partitions {
			lag += found[of(p, "outbox_relay_lag_messages", "")]
		}
		return lag > float64(len(many))/2 && lag < float64(len(many))*2
	}, "the lag is not about %d", len(many))
	s.broker.Up()
	s.until(map[string]float64{"outbox_relay_queues_measured": 1, dead: 1, of(p, "outbox_relay_lag_messages", ""): 0})
}

func TestMetricsWhileTheDatabaseIsAwayOrForeign(t *testing.T) {
	t.Parallel()
	s := newStation(t)
	s.until(map[string]float64{`outbox_relay_leases_owned{database="shop"}`: 4, `outbox_relay_measured{database="shop"}`: 1})
	s.database.Down()
	s.until(map[string]float64{
		`outbox_relay_measured{database="shop"}`: 0, `outbox_relay_leases_owned{database="shop"}`: 0, of(0, "outbox_relay_lag_messages", ""): -1,
		of(0, "outbox_relay_partition_relaying", ""): 0, `outbox_relay_oldest_unrelayed_seconds{database="shop"}`: -1,
	})
	s.exec(`UPDATE outbox.identity SET timeline = 'FFFFFFFF'`)
	s.database.Up()
	want := map[string]float64{`outbox_relay_measured{database="shop"}`: 1, `outbox_relay_leases_owned{database="shop"}`: 4}
	for p := range outbox.Partitions {
		want[of(p, "outbox_relay_partition_relaying", "")] = 0
	}
	s.until(want)
}

func TestMetricsOfTransactionsThatStayOpen(t *testing.T) {
	t.Parallel()
	s := newStation(t)
	open, prepared := `{database="shop",kind="open"}`, `{database="shop",kind="prepared"}`
	s.until(map[string]float64{"outbox_relay_oldest_transaction_seconds" + prepared: 0, "outbox_relay_long_transactions" + prepared: 0, "outbox_relay_long_transactions" + open: 0})
	older := func(series string, than float64) {
		t.Helper()
		outboxtest.Eventually(t, 30*time.Second, func() bool { return s.scrape()[series] > than }, "%s is not above %v", series, than)
	}
	tx, err := s.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	older("outbox_relay_oldest_transaction_seconds"+open, 0.5)
	if _, err := tx.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `PREPARE TRANSACTION 'forgotten `+s.db.Name+`'`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.db.Exec(context.Background(), `ROLLBACK PREPARED 'forgotten `+s.db.Name+`'`); err != nil {
			t.Error(err)
		}
	})
	_ = tx.Rollback(t.Context()) // it is no longer this session's
	older("outbox_relay_oldest_transaction_seconds"+prepared, 0.5)
	if n := s.scrape()["outbox_relay_long_transactions"+prepared]; n != 0 {
		t.Errorf("%v transactions are older than a minute after some seconds", n)
	}
}
