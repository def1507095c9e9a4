package e2e_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// bookAll books from several clients at once, and calls at with the count of answers so far.
func (c *city) bookAll(event string, bookings, clients int) *atomic.Int32 {
	var answered, next atomic.Int32
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for next.Add(1) <= int32(bookings) {
				c.book(event, 1)
				answered.Add(1)
			}
		})
	}
	c.t.Cleanup(wg.Wait)
	return &answered
}

func TestTwoHundredBookingsForAHundredTickets(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	c.start("relay", "booking", "catalog", "payment", "notification")
	event := c.sell(100)
	c.bookAll(event, 200, 50)
	c.settled(200)
	db := c.pool("booking")
	for status, want := range map[string]int{"awaiting_payment": 100, "rejected": 100} {
		if n := count(t, db, `SELECT count(*) FROM booking.bookings WHERE status = $1`, status); n != want {
			t.Errorf("%d bookings are %s, want %d", n, status, want)
		}
	}
	if left := c.available(event); left != 0 {
		t.Errorf("%d tickets left, want none", left)
	}
}

// TestKillsLoseNothing kills the relay, and then each service, while bookings are made.
func TestKillsLoseNothing(t *testing.T) {
	t.Parallel()
	const bookings = 500
	c := newCity(t)
	c.start("relay", "booking", "catalog", "payment", "notification")
	event := c.sell(bookings)
	answered := c.bookAll(event, bookings, 4)
	for i, victim := range []string{"relay", "catalog", "payment", "notification", "booking", "relay"} {
		at := int32((i + 1) * bookings / 8)
		outboxtest.Eventually(t, 2*time.Minute, func() bool { return answered.Load() >= at }, "bookings do not go on before %s is killed", victim)
		c.proc(victim).kill()
		c.start(victim)
	}
	c.settled(bookings)
	if left := c.available(event); left != 0 {
		t.Errorf("%d tickets left, want none", left)
	}
	db := c.pool("booking")
	if n := count(t, db, `SELECT count(*) FROM booking.bookings WHERE status = 'awaiting_payment'`); n != bookings {
		t.Errorf("%d bookings await payment, want %d", n, bookings)
	}
	// One effect and one answer per booking and service, and nothing left behind.
	for service, topic := range map[string]string{"catalog": "inventory-updated", "payment": "payment-data-prepared", "notification": "notification-sent"} {
		pool := c.pool(service)
		if n := count(t, pool, `SELECT count(*) FROM outbox.messages WHERE topic LIKE $1`, fmt.Sprintf("%%.%s.v1", topic)); n != bookings {
			t.Errorf("%s gave %d answers, want %d", service, n, bookings)
		}
		if n := count(t, pool, `SELECT count(*) FROM inbox.stuck`); n != 0 {
			t.Errorf("%d messages are stuck in %s", n, service)
		}
	}
	if n := count(t, db, `SELECT count(*) FROM inbox.messages WHERE state = 'done'`); n != 3*bookings+1 {
		t.Errorf("booking has handled %d messages, want %d", n, 3*bookings+1)
	}
}
