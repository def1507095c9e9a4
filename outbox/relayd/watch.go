package relayd

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/outbox/relay"
)

// watch keeps what was last measured for the metrics.
type watch struct {
	mu        sync.Mutex
	databases map[string]*relay.Measurement // nil for one that did not answer
	depths    []queueDepth                  // nil when the broker did not answer
	asked     bool                          // the broker was
}

// queueDepth is a queue of the topology.
type queueDepth struct {
	name string
	dead bool
	rabbitmq.Depth
}

func (w *watch) database(name string) (found *relay.Measurement, looked bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	found, looked = w.databases[name]
	return found, looked
}

func (w *watch) queues() (depths []queueDepth, looked bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.depths, w.asked
}

// watchDatabase measures a database again and again until ctx ends.
func (d *Daemon) watchDatabase(ctx context.Context, r *relay.Relay, name string) {
	d.every(ctx, func() {
		found, err := r.Measure(ctx, name)
		if ctx.Err() != nil {
			return
		}
		d.watch.mu.Lock()
		defer d.watch.mu.Unlock()
		if before, looked := d.watch.databases[name]; err != nil && (!looked || before != nil) {
			d.cfg.Logger.Warn("database not measured", "database", name, "error", err)
		}
		if d.watch.databases == nil {
			d.watch.databases = map[string]*relay.Measurement{}
		}
		d.watch.databases[name] = found
	})
}

// watchQueues asks for the depths of the queues again and again until ctx ends.
func (d *Daemon) watchQueues(ctx context.Context, topology rabbitmq.Topology) {
	var names []string
	for _, q := range topology.Queues {
		for p := range topology.Partitions {
			names = append(names, topology.QueueName(q.Name, p), rabbitmq.DeadName(topology.QueueName(q.Name, p)))
		}
	}
	observer := rabbitmq.NewObserver(d.cfg.AMQPURL, "relay queues")
	defer observer.Close()
	d.every(ctx, func() {
		looking, cancel := context.WithTimeout(ctx, measureTimeout)
		defer cancel()
		found, err := observer.Depths(looking, names)
		if ctx.Err() != nil {
			return
		}
		var depths []queueDepth
		if err == nil {
			depths = []queueDepth{}
			for i, name := range names {
				depths = append(depths, queueDepth{name: name, dead: i%2 == 1, Depth: found[name]})
			}
		}
		d.watch.mu.Lock()
		defer d.watch.mu.Unlock()
		if err != nil && (!d.watch.asked || d.watch.depths != nil) {
			d.cfg.Logger.Warn("queues not measured", "error", err)
		}
		d.watch.depths, d.watch.asked = depths, true
	})
}

const measureTimeout = 5 * time.Second

// every calls look at once, and again with pauses of about Config.Measure.
func (d *Daemon) every(ctx context.Context, look func()) {
	for {
		look()
		timer := time.NewTimer(d.cfg.Measure*9/10 + rand.N(d.cfg.Measure/5+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
