package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// styles are who may lead bookings.
var styles = []string{"choreography", "orchestration"}

// everything is every program of a city.
var everything = []string{"relay", "booking", "catalog", "payment", "notification", "saga"}

const (
	// hasty is a process of booking that holds tickets for hastyHold: long enough to reach the payment's page on a busy machine.
	hasty     = "booking-hasty"
	hastyHold = "30s"
	// priceOfTwo is what the two tickets of a scenario cost.
	priceOfTwo = "50.00"
)

// scenario is a way that a booking of two tickets can go, and how it must end whoever leads it.
type scenario struct {
	name string
	// capacity is that of its event.
	capacity int
	// process is where it is booked.
	process string
	// deed is what the person does when the booking can be paid; nil for nothing.
	deed func(c *city, b booking) error

	status, reason string
	payment        string // its status
	captured       bool   // money was taken
	refunded       bool   // it went back
	letter         contracts.NotificationType
	// steps are those of the timeline between the first and the letters, in the order of their names.
	steps []string
	// settled is whether a coordinator's word ends the booking, where it leads; the user's own comes first.
	settled bool
}

// scenarios begins with those that take longest.
var scenarios = []scenario{
	{
		name: "late-payment", capacity: 100, process: hasty, deed: pressing("late"),
		status: "expired", payment: "expired", captured: true, refunded: true, letter: contracts.NotificationBookingExpired, settled: true,
		steps: []string{"payment_expired", "payment_prepared", "payment_refunded", "tickets_held", "tickets_released"},
	},
	{
		name: "expired", capacity: 100, process: hasty,
		status: "expired", payment: "expired", letter: contracts.NotificationBookingExpired, settled: true,
		steps: []string{"payment_expired", "payment_prepared", "tickets_held", "tickets_released"},
	},
	{
		name: "confirmed", capacity: 100, process: "booking", deed: pressing("pay"),
		status: "confirmed", payment: "completed", captured: true, letter: contracts.NotificationBookingConfirmed, settled: true,
		steps: []string{"payment_completed", "payment_prepared", "tickets_held", "tickets_sold"},
	},
	{
		name: "sold-out", capacity: 1, process: "booking",
		status: "rejected", reason: "sold_out", payment: "cancelled", letter: contracts.NotificationBookingRejected, settled: true,
		steps: []string{"payment_cancelled", "payment_prepared", "tickets_refused"},
	},
	{
		name: "declined", capacity: 100, process: "booking", deed: pressing("decline"),
		status: "payment_failed", reason: "declined", payment: "failed", letter: contracts.NotificationPaymentFailed, settled: true,
		steps: []string{"payment_failed", "payment_prepared", "tickets_held", "tickets_released"},
	},
	{
		name: "cancelled", capacity: 100, process: "booking", deed: cancelling,
		status: "cancelled", payment: "cancelled", letter: contracts.NotificationBookingCancelled,
		steps: []string{"cancel_requested", "payment_cancelled", "payment_prepared", "tickets_held", "tickets_released"},
	},
}

// TestEveryScenarioInBothStyles lets every scenario happen in one city of each style, and wants the same of both.
func TestEveryScenarioInBothStyles(t *testing.T) {
	t.Parallel()
	for _, style := range styles {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			c := newStyledCity(t, style)
			c.start(append(everything, hasty)...)
			bookings, events := map[string]booking{}, map[string]string{}
			for _, s := range scenarios {
				events[s.name] = c.sell(s.capacity)
				bookings[s.name] = c.begin(s, events[s.name])
			}
			for _, s := range scenarios {
				t.Run(s.name, func(t *testing.T) { c.ends(t, s, style, bookings[s.name].ID, events[s.name]) })
			}
			c.rest(3 * time.Minute)
			c.checkBooks()
		})
	}
}

// newStyledCity is a city in which bookings are led in a style.
func newStyledCity(t *testing.T, style string) *city {
	c := newCity(t)
	c.told["booking"] = []string{"TW_SAGA=" + style}
	c.told[hasty] = append(c.told["booking"], "TW_BOOKING_HOLD="+hastyHold)
	c.told["payment"] = []string{"TW_SANDBOX_LATENESS=1s"}
	return c
}

// begin books two tickets and does the scenario's deed when they can be paid.
func (c *city) begin(s scenario, event string) booking {
	c.t.Helper()
	b := c.bookAt(s.process, event, 2)
	if s.deed == nil {
		return b
	}
	outboxtest.Eventually(c.t, time.Minute, func() bool {
		return c.look("booking", "/api/bookings/"+b.ID, &b) == http.StatusOK && b.Status != "pending"
	}, "%s: the booking stays pending", s.name)
	if err := s.deed(c, b); err != nil {
		c.t.Errorf("%s: booking %s is %s: %v", s.name, b.ID, b.Status, err)
	}
	return b
}

// look gets what a service shows.
func (c *city) look(service, path string, into any) (status int) {
	return call(http.MethodGet, c.proc(service).url()+path, "", nil, into)
}

// pressing presses a button of the payment's page.
func pressing(button string) func(c *city, b booking) error {
	return func(c *city, b booking) error {
		if status := persist(func() int { return c.press(b.PaymentID, button) }); status != http.StatusSeeOther {
			return fmt.Errorf("the payment's page answers %d", status)
		}
		return nil
	}
}

// press is a person at the payment's page. Trouble on the way is status 0.
func (c *city) press(payment, button string) (status int) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	form := strings.NewReader(url.Values{"action": {button}}.Encode())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.proc("payment").url()+"/pay/"+payment, form)
	if err != nil {
		return 0
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultTransport.RoundTrip(req) // follows nothing
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func cancelling(c *city, b booking) error {
	if status := c.cancel(b.ID); status != http.StatusOK {
		return fmt.Errorf("the cancellation is answered with %d", status)
	}
	return nil
}

// cancel gives a booking up and returns the answer's status.
func (c *city) cancel(id string) (status int) {
	return persist(func() int {
		return call(http.MethodPost, c.proc("booking").url()+"/api/bookings/"+id+"/cancel", "", nil, nil)
	})
}

// ends waits until the booking has ended as its scenario says, with everything undone, in what all services show.
func (c *city) ends(t *testing.T, s scenario, style, id, event string) {
	var wrong []string
	limit, tick := time.Now().Add(2*time.Minute), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for wrong = c.wrong(s, style, id, event); len(wrong) > 0 && time.Now().Before(limit); wrong = c.wrong(s, style, id, event) {
		<-tick.C
	}
	if len(wrong) > 0 {
		t.Errorf("booking %s:\n%s\n%s", id, strings.Join(wrong, "\n"), c.story(id))
	}
}

// wrong is what is not as it must be in the end.
func (c *city) wrong(s scenario, style, id, event string) (found []string) {
	differ := func(what string, got, want any) {
		if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
			found = append(found, fmt.Sprintf("%s: %s, want %s", what, g, w))
		}
	}
	var b booking
	differ("booking's answer", c.look("booking", "/api/bookings/"+id, &b), http.StatusOK)
	differ("status and reason", []string{b.Status, b.Reason}, []string{s.status, s.reason})
	found = append(found, c.wrongSeats(s, event)...)
	found = append(found, c.wrongMoney(s, id)...)
	found = append(found, c.wrongLetters(s, id)...)
	steps, status := c.timeline(id)
	differ("the timeline's answer", status, http.StatusOK)
	found = append(found, impossible(steps, s.status)...)
	want := append(slices.Clone(s.steps), "notified")
	if style == "orchestration" && s.settled {
		want = append(want, "settlement_asked")
	}
	slices.Sort(want)
	differ("the timeline's steps", names(steps), want)
	return append(found, c.wrongSaga(s, style, id)...)
}

func (c *city) wrongSeats(s scenario, event string) []string {
	var e struct{ Capacity, Available, Held, Sold int }
	status := c.look("catalog", "/api/events/"+event, &e)
	sold := 0
	if s.status == "confirmed" {
		sold = 2
	}
	if status == http.StatusOK && e.Capacity == s.capacity && e.Available == s.capacity-sold && e.Held == 0 && e.Sold == sold {
		return nil
	}
	return []string{fmt.Sprintf("seats: answer %d, %+v, want %d of %d sold and none held", status, e, sold, s.capacity)}
}

func (c *city) wrongMoney(s scenario, id string) []string {
	var payments struct {
		Items []struct{ Status, Amount, Captured, Refunded string }
	}
	status := c.look("payment", "/api/payments?bookingId="+id, &payments)
	want := struct{ Status, Amount, Captured, Refunded string }{s.payment, priceOfTwo, "0.00", "0.00"}
	if s.captured {
		want.Captured = priceOfTwo
	}
	if s.refunded {
		want.Refunded = priceOfTwo
	}
	if len(payments.Items) == 1 && payments.Items[0] == want {
		return nil
	}
	return []string{fmt.Sprintf("payments: answer %d, %+v, want %+v", status, payments.Items, want)}
}

// wrongLetters wants one letter at the beginning and one at the end, and their files.
func (c *city) wrongLetters(s scenario, id string) (found []string) {
	var letters struct {
		Items []struct {
			MessageID string
			Type      contracts.NotificationType
			Success   bool
		}
	}
	status := c.look("notification", "/api/notifications?bookingId="+id, &letters)
	var types []string
	for _, l := range letters.Items {
		types = append(types, string(l.Type))
		if _, err := os.Stat(filepath.Join(c.mailDir, l.MessageID+".eml")); err != nil || !l.Success {
			found = append(found, fmt.Sprintf("letter %s: success %v: %v", l.Type, l.Success, err))
		}
	}
	slices.Sort(types)
	want := []string{string(contracts.NotificationBookingCreated), string(s.letter)}
	slices.Sort(want)
	if !slices.Equal(types, want) {
		found = append(found, fmt.Sprintf("letters: answer %d, %v, want %v", status, types, want))
	}
	return found
}

// saga is what the coordinator shows.
type saga struct {
	State, Stuck string
	ToCome       []struct{ Step string }
	History      []struct{ Kind, Step, Type string }
}

// wrongSaga wants an instance that has come to its end where a coordinator leads, and none where it does not.
func (c *city) wrongSaga(s scenario, style, id string) []string {
	var i saga
	status := c.look("saga", "/api/sagas/"+id, &i)
	if style != "orchestration" {
		if status != http.StatusNotFound {
			return []string{fmt.Sprintf("the coordinator answers %d for a booking that it does not lead", status)}
		}
		return nil
	}
	want := "compensated"
	if s.status == "confirmed" {
		want = "committed"
	}
	if status == http.StatusOK && i.State == want && i.Stuck == "" && len(i.ToCome) == 0 && len(i.History) > 0 {
		return nil
	}
	return []string{fmt.Sprintf("saga: answer %d, %s, stuck %q, to come %v, want %s", status, i.State, i.Stuck, i.ToCome, want)}
}

// step is a line of a booking's timeline.
type step struct {
	At            time.Time
	Step, Service string
	Cause         *string
	CorrelationID *string
	Detail        *string
	Status        string
}

func (c *city) timeline(id string) (steps []step, status int) {
	var list struct{ Items []step }
	status = c.look("booking", "/api/bookings/"+id+"/timeline", &list)
	return list.Items, status
}

// names are those of the steps after the first, each once, sorted.
func names(steps []step) (list []string) {
	for _, s := range steps[min(1, len(steps)):] {
		list = append(list, s.Step)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// origins are whose word a step is, by how it begins; others are booking's own and have no message for a cause.
var origins = map[string]string{"tickets_": "catalog", "payment_": "payment", "notified": "notification", "settlement_": "saga"}

// impossible is what no timeline of a booking that has ended so may show.
func impossible(steps []step, ended string) (found []string) {
	if len(steps) == 0 || steps[0].Step != "created" || steps[len(steps)-1].Status != ended {
		found = append(found, "the timeline does not lead from the booking's making to its end as "+ended)
	}
	for i, s := range steps {
		origin := "booking"
		for prefix, service := range origins {
			if strings.HasPrefix(s.Step, prefix) {
				origin = service
			}
		}
		switch {
		case s.At.IsZero() || i > 0 && s.At.Before(steps[i-1].At):
			found = append(found, fmt.Sprintf("step %s has the time %s", s.Step, s.At))
		case s.Service != origin:
			found = append(found, fmt.Sprintf("step %s is said to be of %q, want %s", s.Step, s.Service, origin))
		case (s.Cause != nil) != (origin != "booking"):
			found = append(found, fmt.Sprintf("step %s has the cause %v", s.Step, s.Cause))
		case s.CorrelationID == nil || *s.CorrelationID == "":
			found = append(found, fmt.Sprintf("step %s belongs to no flow", s.Step))
		}
	}
	return found
}
