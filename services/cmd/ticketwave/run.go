package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/internal/daemon"
)

// exampleEvent is what the documentation books tickets for.
const exampleEvent = "123e4567-e89b-12d3-a456-426614174000"

// runAll runs everything in the foreground until ctx ends. What is committed then is relayed by the next run.
func runAll(ctx context.Context, opts options) error {
	listeners, err := listen(opts)
	if err != nil {
		return err
	}
	h := &house{opts: opts, logs: os.Stderr, listeners: listeners}
	token, err := h.prepare(ctx)
	if err != nil {
		return errors.Join(err, h.hangUp())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- h.run(ctx)
	}()
	if err := h.welcome(ctx, token); err != nil && ctx.Err() == nil {
		cancel()
		return errors.Join(err, <-ended)
	}
	err = <-ended
	if err == nil {
		fmt.Println("stopped; nothing in flight was lost")
	}
	return err
}

// prepare makes what the house needs: databases, topology, and the ports of the relay and of the administration API, whose
// token is in the file of that name.
func (h *house) prepare(ctx context.Context) (token string, err error) {
	log := daemon.NewLogger(os.Stderr, h.opts.LogLevel, "ticketwave")
	if err := errors.Join(migrateWith(ctx, h.opts, log), applyWith(ctx, h.opts, log)); err != nil {
		return "", err
	}
	if h.opts.RelayAddr != "off" {
		if h.metrics, err = new(net.ListenConfig).Listen(ctx, "tcp", h.opts.RelayAddr); err != nil {
			return "", fmt.Errorf("%w (TW_RELAY_HTTP_ADDR sets another address, or off)", err)
		}
	}
	if h.opts.AdminAddr != "off" {
		h.admin, token, err = offerAdmin(ctx, h.opts)
	}
	if token != "" {
		h.opts.AdminTokens = madeTokens // the coordinator takes the same
	}
	return token, err
}

// hangUp closes the ports of a house that is not going to run.
func (h *house) hangUp() (err error) {
	for _, l := range h.listeners {
		err = errors.Join(err, l.Close())
	}
	if h.metrics != nil {
		err = errors.Join(err, h.metrics.Close())
	}
	return err
}

// welcome makes sure that the documented request works, and shows it.
func (h *house) welcome(ctx context.Context, token string) error {
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	event := map[string]any{
		"eventId": exampleEvent, "name": "TicketWave opening night", "startsAt": "2099-06-01T19:00:00Z",
		"price": "25.00", "currency": "EUR", "capacity": 100_000,
	}
	if err := h.ready(waiting); err != nil {
		return err
	}
	// A conflict means that it was put on sale before with another description, which is as good.
	err := call(waiting, http.MethodPost, h.url("catalog")+"/api/events", event, nil)
	if err != nil && !isStatus(err, http.StatusConflict) {
		return err
	}
	if err := until(waiting, "booking to hear of the example event", func() (bool, error) { return h.knows(waiting, exampleEvent) }); err != nil {
		return err
	}
	fmt.Print(h.greeting(token))
	return nil
}

// leaders say who leads bookings.
var leaders = map[string]string{
	booking.Choreography:  "every service reacts to the others (choreography); with TW_SAGA=orchestration a coordinator leads",
	booking.Orchestration: "a coordinator leads (orchestration)",
}

// greeting says what can be done now.
func (h *house) greeting(token string) string {
	bookings := h.url("booking") + "/api/bookings"
	return fmt.Sprintf(`
TicketWave is running: %s.

  booking       %s
  catalog       %s/api/events
  payment       %s/api/payments?bookingId=
  notification  %s/api/notifications?bookingId=
  saga          %s/api/sagas/ID

Book two tickets:

  curl -i -H 'Content-Type: application/json' \
    -d '{"eventId":"%s","userId":"test-user-123","ticketCount":2}' \
    %s/api/example/create-booking-with-flow

Then, with the id from the answer:

  curl %s/ID              how far it is, and its paymentUrl
  curl -d action=pay PAYMENT_URL                                 pay, as on the page that it is; or decline, or late
  curl -X POST %s/ID/cancel      give it up
  curl %s/ID/timeline     every step: when, why, and who
%s
Ctrl-C stops it.

`, leaders[h.opts.Style], bookings, h.url("catalog"), h.url("payment"), h.url("notification"), h.url("saga"),
		exampleEvent, h.url("booking"), bookings, bookings, bookings, h.operators(token))
}

// ready waits until every service can work.
func (h *house) ready(ctx context.Context) error {
	for service := range h.listeners {
		err := until(ctx, service+" to be ready", func() (bool, error) {
			err := call(ctx, http.MethodGet, h.url(service)+"/readyz?verbose", nil, nil)
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// knows reports whether booking's read model has the event.
func (h *house) knows(ctx context.Context, event string) (found bool, err error) {
	url, err := h.opts.databaseURL("booking", "booking")
	if err != nil {
		return false, err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM booking.events WHERE id = $1::uuid)`, event).Scan(&found)
	return found, err
}
