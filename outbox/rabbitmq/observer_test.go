package rabbitmq_test

import (
	"context"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// A queue that says "empty, and nobody consumes" at first is asked again: so does one whose leader is slow.
func TestDepthsThatAreSure(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	queue, dead := topology.QueueName("billing", 0), rabbitmq.DeadName(topology.QueueName("billing", 0))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o := rabbitmq.NewObserver(url, "test")
	t.Cleanup(o.Close)
	ch, done, err := o.Channel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() { // between the first two answers
		confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, true, false, amqp.Publishing{Body: []byte("late")})
		if err == nil {
			_, err = confirm.WaitContext(ctx)
		}
		sent <- err
	})
	began := time.Now()
	found, err := o.SureDepths(ctx, []string{queue, dead, "nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	want := map[string]rabbitmq.Depth{queue: {Messages: 1}, dead: {}, "nowhere": {Missing: true}}
	for name, d := range want {
		if found[name] != d {
			t.Errorf("%s: %+v, want %+v", name, found[name], d)
		}
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("believed after %s that %s is empty", took, dead)
	}
	began = time.Now()
	if found, err = o.SureDepths(ctx, []string{queue, "nowhere"}); err != nil || found[queue].Messages != 1 {
		t.Errorf("%+v, %v", found, err)
	}
	if took := time.Since(began); took >= 900*time.Millisecond {
		t.Errorf("asked for %s what was sure at once", took)
	}
}

// Who gives up waiting is not held, and the next question is asked over a new connection.
func TestAnObserverConnectsAgain(t *testing.T) {
	t.Parallel()
	url := newBroker(t)
	o := rabbitmq.NewObserver(url, "test")
	t.Cleanup(o.Close)
	ctx, cancel := context.WithCancel(t.Context())
	if _, _, err := o.Channel(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var err error
	for ctx.Err() == nil { // the first connection may be closing
		var found map[string]rabbitmq.Depth
		if found, err = o.Depths(ctx, []string{topology.QueueName("billing", 1)}); err == nil {
			if len(found) != 1 {
				t.Errorf("found %v", found)
			}
			return
		}
	}
	t.Fatal(err)
}
