package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/booking/life"
)

// journey is a booking on its way through a scenario.
type journey struct {
	*house
	scenario
	watch *watcher

	event   string
	booking bookingView
}

// run plays the story and returns its summary, or an error when it does not end as it must.
func (j *journey) run(ctx context.Context) (summary string, err error) {
	if err := j.ready(ctx); err != nil {
		return "", err
	}
	if err := j.publish(ctx); err != nil {
		return "", err
	}
	if err := j.book(ctx); err != nil {
		return "", err
	}
	if j.deed != nil {
		if err := j.payable(ctx); err != nil {
			return "", err
		}
		if err := j.deed(ctx, j); err != nil {
			return "", err
		}
	}
	found, err := j.end(ctx)
	if err != nil {
		return "", err
	}
	events, _ := j.watch.count(j.booking.ID)
	j.watch.say("\n%s", strings.Join(found.lines(j.mailed), "\n"))
	return fmt.Sprintf("booking %s %s, %d events, %d ms", j.booking.ID, words(found.booking.Status), events, j.watch.took().Milliseconds()), nil
}

// publish puts an event on sale and waits until booking can price it.
func (j *journey) publish(ctx context.Context) error {
	j.event = uuid.NewString()
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	j.watch.say("POST %s/api/events   %d at 25.00 EUR", j.url("catalog"), j.capacity)
	j.watch.restart()
	err := call(waiting, http.MethodPost, j.url("catalog")+"/api/events", map[string]any{
		"eventId": j.event, "name": "Night of the relay", "startsAt": time.Now().AddDate(0, 3, 0).UTC().Truncate(time.Hour),
		"price": "25.00", "currency": "EUR", "capacity": j.capacity,
	}, nil)
	if err != nil {
		return err
	}
	return j.until(waiting, "booking to hear of the event", j.event, func() (bool, error) { return true, nil })
}

// book asks for tickets.
func (j *journey) book(ctx context.Context) error {
	j.watch.say("\nPOST %s/api/bookings   %d tickets", j.url("booking"), demoTickets)
	j.watch.restart()
	request := map[string]any{"eventId": j.event, "userId": uuid.NewString(), "ticketCount": demoTickets}
	if err := call(ctx, http.MethodPost, j.url("booking")+"/api/bookings", request, &j.booking); err != nil {
		return err
	}
	j.watch.note("booking", "answered", "201 Created")
	return nil
}

// payable waits until the booking can be paid and the person has a mail.
func (j *journey) payable(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, j.patience())
	defer cancel()
	return j.until(waiting, "the booking to await its payment", j.booking.ID, func() (bool, error) {
		err := j.look(waiting, "booking", "/api/bookings/"+j.booking.ID, &j.booking)
		if err == nil && j.booking.Status != life.AwaitingPayment {
			err = fmt.Errorf("booking %s is %s", j.booking.ID, words(j.booking.Status))
		}
		return err == nil && j.booking.PaymentURL != "", err
	})
}

// pay does what a person does at the payment's page: one of its buttons is pressed.
func pay(button string) func(context.Context, *journey) error {
	return func(ctx context.Context, j *journey) error {
		j.watch.say("\nPOST %s   action=%s", j.booking.PaymentURL, button)
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		form := strings.NewReader(url.Values{"action": {button}}.Encode())
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, j.booking.PaymentURL, form)
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusSeeOther {
			return fmt.Errorf("the payment's page answers %s", resp.Status)
		}
		j.watch.note("payment", "answered", resp.Status)
		if button == "late" {
			j.watch.say("           ...  the money arrives %s after the end of the hold, which is in %s", j.opts.Payments.Lateness, j.left())
		}
		return nil
	}
}

// waits does not pay.
func waits(_ context.Context, j *journey) error {
	j.watch.say("\nnobody pays at %s", j.booking.PaymentURL)
	j.watch.say("           ...  the hold ends in %s", j.left())
	return nil
}

// left is how long the tickets are held yet.
func (j *journey) left() time.Duration {
	return max(0, time.Until(j.booking.ExpiresAt).Round(100*time.Millisecond))
}

// cancels gives the booking up.
func cancels(ctx context.Context, j *journey) error {
	address := j.url("booking") + "/api/bookings/" + j.booking.ID + "/cancel"
	j.watch.say("\nPOST %s", address)
	if err := call(ctx, http.MethodPost, address, nil, nil); err != nil {
		return err
	}
	j.watch.note("booking", "answered", "200 OK")
	return nil
}

// end waits until everything is as it must be in the end, and every message has been handled.
func (j *journey) end(ctx context.Context) (found outcome, err error) {
	waiting, cancel := context.WithTimeout(ctx, j.patience())
	defer cancel()
	err = j.until(waiting, "the booking's end", j.booking.ID, func() (bool, error) {
		var err error
		if found, err = j.known(waiting); err != nil {
			return false, err
		}
		if wrong := j.differences(found, j.opts.Style); len(wrong) > 0 {
			return false, errors.New(strings.Join(wrong, "\n"))
		}
		return true, nil
	})
	return found, err
}

// known asks every service what it knows of the booking.
func (j *journey) known(ctx context.Context) (o outcome, err error) {
	id := j.booking.ID
	if err := j.look(ctx, "booking", "/api/bookings/"+id, &o.booking); err != nil || !o.booking.Status.Final() {
		return o, err
	}
	var payments struct{ Items []paymentView }
	var letters struct{ Items []letterView }
	err = errors.Join(
		j.look(ctx, "catalog", "/api/events/"+j.event, &o.event),
		j.look(ctx, "payment", "/api/payments?bookingId="+id, &payments),
		j.look(ctx, "notification", "/api/notifications?bookingId="+id, &letters),
	)
	o.payments, o.letters = payments.Items, letters.Items
	if err != nil {
		return o, err
	}
	o.saga = &sagaView{}
	err = j.look(ctx, "saga", "/api/sagas/"+id, o.saga)
	if isStatus(err, http.StatusNotFound) && j.opts.Style == booking.Choreography {
		o.saga, err = nil, nil
	}
	return o, err
}

func (j *journey) look(ctx context.Context, service, path string, into any) error {
	return call(ctx, http.MethodGet, j.url(service)+path, nil, into)
}

// until waits until no message of the key is under way and look says yes. It looks when something has happened, and now and
// then all the same. A message that nobody will handle is an error at once.
func (j *journey) until(ctx context.Context, what, key string, look func() (bool, error)) error {
	var trouble, reason error
	seen, looked := 0, time.Time{}
	err := until(ctx, what, func() (bool, error) {
		var changes int
		if changes, trouble = j.watch.state(); trouble != nil {
			return true, nil
		}
		committed, underWay := j.watch.count(key)
		if committed == 0 || len(underWay) > 0 {
			reason = fmt.Errorf("under way: %s", strings.Join(underWay, ", "))
			return false, nil
		}
		if changes == seen && time.Since(looked) < 250*time.Millisecond {
			return false, nil
		}
		var ok bool
		seen, looked = changes, time.Now()
		if ok, reason = look(); !ok {
			return false, nil
		}
		_, underWay = j.watch.count(key) // what look has seen may have sent something
		return len(underWay) == 0, nil
	})
	switch {
	case trouble != nil:
		return trouble
	case err != nil:
		return errors.Join(err, reason)
	}
	return nil
}

// mailed says where a mail went.
func (j *journey) mailed(l letterView) string {
	if j.opts.SMTPAddr != "" {
		return "to " + l.Recipient + " through " + j.opts.SMTPAddr
	}
	return filepath.Join(j.opts.MailDir, l.MessageID+".eml")
}
