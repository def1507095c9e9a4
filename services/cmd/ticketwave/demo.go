package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/daemon"
	schema "github.com/jcp/ticketwave/sql"
)

const (
	demoTimeout = 2 * time.Minute
	demoTickets = 2
)

// flow is every event of one booking.
var flow = []string{
	contracts.TypeUpdateEventInventory, contracts.TypeSendBookingNotification, contracts.TypePreparePaymentData,
	contracts.TypeInventoryUpdated, contracts.TypePaymentDataPrepared, contracts.TypeNotificationSent,
}

// demo books two tickets in a house of its own and shows their way. It leaves nothing behind but the mail.
func demo(ctx context.Context, opts options) error {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	fmt.Print("TicketWave: a booking on its way from an HTTP request through PostgreSQL, a relay and RabbitMQ to the services.\n\n")
	logs, where := demoLog()
	defer logs.Close()
	opts, leave, err := ownPlace(ctx, opts)
	if err != nil {
		return err
	}
	summary, err := demoIn(ctx, opts, logs, where)
	if err := errors.Join(err, leave()); err != nil {
		return err
	}
	fmt.Printf("\ndemo: ok, %s\n", summary)
	return nil
}

// demoIn runs the story in a place that is ready to be migrated.
func demoIn(ctx context.Context, opts options, logs io.Writer, where string) (summary string, err error) {
	log := daemon.NewLogger(logs, opts.LogLevel, "demo")
	start := time.Now()
	if err := errors.Join(migrateWith(ctx, opts, log), applyWith(ctx, opts, log)); err != nil {
		return "", err
	}
	opts.Ports = slices.Repeat([]string{"0"}, len(schema.Services))
	listeners, err := listen(opts)
	if err != nil {
		return "", err
	}
	watch := newWatcher(os.Stdout)
	h := &house{
		opts: opts, logs: logs, listeners: listeners,
		hooks: hooks{tracer: watch.tracer, relayed: watch.relayed, handled: watch.outcome},
	}
	fmt.Printf("  ready after %.1f s: %d databases %s*, queues in %s%s\n\n", time.Since(start).Seconds(), len(schema.Services), opts.Prefix, brokerName(opts), where)
	err = h.during(ctx, func(ctx context.Context) error {
		summary, err = h.journey(ctx, watch)
		return err
	})
	return summary, err
}

// during runs the house while fn runs, and returns the errors of both.
func (h *house) during(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- h.run(ctx)
	}()
	err := fn(ctx)
	cancel()
	return errors.Join(err, <-ended)
}

// bookingView is what booking's API answers.
type bookingView struct {
	ID          string `json:"id"`
	Status      string `json:"status"`
	TicketCount int    `json:"ticketCount"`
	UnitPrice   string `json:"unitPrice"`
	TotalAmount string `json:"totalAmount"`
	Currency    string `json:"currency"`
}

// journey is the demo's story.
func (h *house) journey(ctx context.Context, watch *watcher) (summary string, err error) {
	if err := h.ready(ctx); err != nil {
		return "", err
	}
	event, err := h.publishEvent(ctx, watch)
	if err != nil {
		return "", err
	}
	fmt.Printf("\nPOST %s/api/bookings   %d tickets\n", h.url("booking"), demoTickets)
	watch.restart()
	var made bookingView
	request := map[string]any{"eventId": event, "userId": uuid.NewString(), "ticketCount": demoTickets}
	if err := call(ctx, http.MethodPost, h.url("booking")+"/api/bookings", request, &made); err != nil {
		return "", err
	}
	watch.note("booking", "answered", "201 Created")
	took, err := h.settled(ctx, watch, made.ID)
	if err != nil {
		return "", err
	}
	if err := h.show(ctx, watch, event, made.ID); err != nil {
		return "", err
	}
	return fmt.Sprintf("booking %s awaiting payment, %d events, %d ms", made.ID, len(flow), took.Milliseconds()), nil
}

// publishEvent puts an event on sale and waits until booking can price it.
func (h *house) publishEvent(ctx context.Context, watch *watcher) (id string, err error) {
	event := map[string]any{
		"eventId": uuid.NewString(), "name": "Night of the relay", "startsAt": time.Now().AddDate(0, 3, 0).UTC().Truncate(time.Hour),
		"price": "25.00", "currency": "EUR", "capacity": 100,
	}
	id = event["eventId"].(string)
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fmt.Printf("POST %s/api/events   100 tickets at 25.00 EUR\n", h.url("catalog"))
	watch.restart()
	if err := call(waiting, http.MethodPost, h.url("catalog")+"/api/events", event, nil); err != nil {
		return id, err
	}
	return id, until(waiting, "booking to hear of the event", func() (bool, error) {
		_, handled := watch.seen(contracts.TypeCatalogEventPublished, id)
		return handled, nil
	})
}

// settled waits until every event of the booking has been handled and the booking awaits its payment.
func (h *house) settled(ctx context.Context, watch *watcher, id string) (time.Duration, error) {
	waiting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, typ := range flow {
		err := until(waiting, eventName(typ)+" to be handled", func() (bool, error) {
			_, handled := watch.seen(typ, id)
			return handled, nil
		})
		if err != nil {
			return 0, err
		}
	}
	took := watch.elapsed()
	var now bookingView
	if err := call(ctx, http.MethodGet, h.url("booking")+"/api/bookings/"+id, nil, &now); err != nil {
		return 0, err
	}
	if now.Status != "awaiting_payment" {
		return 0, fmt.Errorf("booking %s is %s, not awaiting_payment", id, now.Status)
	}
	return took, nil
}

// show prints what the four services know now.
func (h *house) show(ctx context.Context, watch *watcher, event, id string) error {
	var (
		b    bookingView
		e    struct{ Available, Capacity int }
		pays struct {
			Items []struct{ ID, Amount, Currency, URL, Status string }
		}
		notes struct {
			Items []struct {
				Channel, Recipient string
				Success            bool
			}
		}
	)
	err := errors.Join(
		call(ctx, http.MethodGet, h.url("booking")+"/api/bookings/"+id, nil, &b),
		call(ctx, http.MethodGet, h.url("catalog")+"/api/events/"+event, nil, &e),
		call(ctx, http.MethodGet, h.url("payment")+"/api/payments?bookingId="+id, nil, &pays),
		call(ctx, http.MethodGet, h.url("notification")+"/api/notifications?bookingId="+id, nil, &notes),
	)
	if err != nil {
		return err
	}
	if len(pays.Items) != 1 || len(notes.Items) != 1 {
		return fmt.Errorf("%d payments and %d notifications, want one of each", len(pays.Items), len(notes.Items))
	}
	pay, note := pays.Items[0], notes.Items[0]
	fmt.Printf("\n  booking    %s: %s, %d x %s = %s %s\n", b.ID, b.Status, b.TicketCount, b.UnitPrice, b.TotalAmount, b.Currency)
	fmt.Printf("  inventory  %d of %d tickets left\n", e.Available, e.Capacity)
	fmt.Printf("  payment    %s: %s, %s %s, to be paid at %s\n", pay.ID, pay.Status, pay.Amount, pay.Currency, pay.URL)
	fmt.Printf("  e-mail     to %s, %s\n", note.Recipient, h.mail(watch, id))
	if e.Available != e.Capacity-demoTickets || !note.Success {
		return errors.New("the figures do not add up")
	}
	return nil
}

// mail says where the mail is.
func (h *house) mail(watch *watcher, id string) string {
	if h.opts.SMTPAddr != "" {
		return "sent through " + h.opts.SMTPAddr
	}
	message, _ := watch.seen(contracts.TypeSendBookingNotification, id)
	return filepath.Join(h.opts.MailDir, message+".eml")
}

// demoLog is the file that the services' logs go to, in .run if there is one.
func demoLog() (io.WriteCloser, string) {
	path := filepath.Join(".run", "demo.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nopCloser{io.Discard}, ""
	}
	return f, ", logs in " + path
}

type nopCloser struct{ io.Writer }

// Close does nothing.
func (nopCloser) Close() error { return nil }

// ownPlace gives the demo databases and, where the management API lets it, a virtual host of its own, so that it
// neither sees nor disturbs a TicketWave that runs on the same servers. leave removes them.
func ownPlace(ctx context.Context, opts options) (options, func() error, error) {
	if opts.ManagementURL == "" {
		return opts, func() error { return nil }, nil
	}
	name := fmt.Sprintf("%sdemo%d", opts.Prefix, os.Getpid())
	m := management{url: opts.ManagementURL}
	amqp, err := m.makeVHost(ctx, name, opts.AMQPURL)
	if err != nil {
		return opts, nil, err
	}
	opts.AMQPURL, opts.Prefix = amqp, name+"_"
	leave := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return errors.Join(m.dropVHost(ctx, name), schema.Drop(ctx, opts.PostgresURL, opts.plan()))
	}
	return opts, leave, nil
}
