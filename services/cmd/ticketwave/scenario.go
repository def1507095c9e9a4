package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/booking/life"
	"github.com/jcp/ticketwave/services/cmd/internal/gateways"
)

const (
	demoTickets  = 2
	demoCapacity = 100
	// demoHold is how long tickets are held where the demo waits for the end of that, demoLateness how much later money comes.
	demoHold     = 10 * time.Second
	demoLateness = time.Second
)

// scenario is a way that a booking can go, and how it must end.
type scenario struct {
	name, story string
	// capacity is how many tickets there are.
	capacity int
	// hold is for how long they are held; 0 for as long as is configured.
	hold time.Duration
	// deed is what the person does when the booking can be paid; nil for nothing.
	deed func(ctx context.Context, j *journey) error

	status   life.Status
	payment  string // its status
	captured bool   // money was taken
	refunded bool   // it went back
	letter   contracts.NotificationType
}

// scenarios are all there are; the first is what happens unless another is asked for.
var scenarios = []scenario{
	{
		name: "success", story: "a person books two tickets and pays", capacity: demoCapacity, deed: pay("pay"),
		status: life.Confirmed, payment: "completed", captured: true, letter: contracts.NotificationBookingConfirmed,
	},
	{
		name: "sold-out", story: "a person wants two tickets, and one is left", capacity: demoTickets - 1,
		status: life.Rejected, payment: "cancelled", letter: contracts.NotificationBookingRejected,
	},
	{
		name: "declined", story: "a person's card is declined", capacity: demoCapacity, deed: pay("decline"),
		status: life.PaymentFailed, payment: "failed", letter: contracts.NotificationPaymentFailed,
	},
	{
		name: "expired", story: "a person does not pay in time", capacity: demoCapacity, hold: demoHold, deed: waits,
		status: life.Expired, payment: "expired", letter: contracts.NotificationBookingExpired,
	},
	{
		name: "cancelled", story: "a person gives the booking up", capacity: demoCapacity, deed: cancels,
		status: life.Cancelled, payment: "cancelled", letter: contracts.NotificationBookingCancelled,
	},
	{
		name: "late-payment", story: "a person's money comes too late, and goes back", capacity: demoCapacity, hold: demoHold, deed: pay("late"),
		status: life.Expired, payment: "expired", captured: true, refunded: true, letter: contracts.NotificationBookingExpired,
	},
}

// scenarioNamed is the scenario of that name, or an error of usage that lists them.
func scenarioNamed(name string) (scenario, error) {
	var names []string
	for _, s := range scenarios {
		if s.name == name {
			return s, nil
		}
		names = append(names, s.name)
	}
	return scenario{}, fmt.Errorf("%w: there is no scenario %q: want %s", errUsage, name, strings.Join(names, ", "))
}

// in are the options that a scenario runs with. Its money is the sandbox's, whatever is configured.
func (s scenario) in(opts options) options {
	opts.Payments = gateways.Options{BaseURL: opts.Payments.BaseURL, Lateness: opts.Payments.Lateness}
	if s.hold > 0 {
		opts.Hold, opts.Payments.Lateness = s.hold, demoLateness
	}
	return opts
}

// sold is how many tickets stay with the person.
func (s scenario) sold() int {
	if s.status == life.Confirmed {
		return demoTickets
	}
	return 0
}

// saga is the state in which a coordinator must be done with the booking.
func (s scenario) saga() string {
	if s.status == life.Confirmed {
		return "committed"
	}
	return "compensated"
}

// outcome is what the services know of a booking.
type outcome struct {
	booking  bookingView
	event    eventView
	payments []paymentView
	letters  []letterView
	// saga is nil where no coordinator leads the booking.
	saga *sagaView
}

type bookingView struct {
	ID          string      `json:"id"`
	Status      life.Status `json:"status"`
	Reason      string      `json:"reason"`
	TicketCount int         `json:"ticketCount"`
	UnitPrice   string      `json:"unitPrice"`
	TotalAmount string      `json:"totalAmount"`
	Currency    string      `json:"currency"`
	PaymentURL  string      `json:"paymentUrl"`
	ExpiresAt   time.Time   `json:"expiresAt"`
}

type eventView struct{ Capacity, Available, Held, Sold int }

type paymentView struct{ ID, Status, Amount, Currency, Captured, Refunded string }

type letterView struct {
	MessageID, Recipient string
	Type                 contracts.NotificationType
	Success              bool
}

type sagaView struct {
	State   string
	ToCome  []struct{ Step string }
	History []struct{ Kind string }
}

// differences are what is not as it must be in the end; without one nothing is left to be undone.
func (s scenario) differences(o outcome, style string) (found []string) {
	differs := func(what string, got, want any) {
		if got != want {
			found = append(found, fmt.Sprintf("%s: %v, want %v", what, got, want))
		}
	}
	differs("the booking", o.booking.Status, s.status)
	differs("tickets available, held and sold", [3]int{o.event.Available, o.event.Held, o.event.Sold}, [3]int{s.capacity - s.sold(), 0, s.sold()})
	differs("payments", len(o.payments), 1)
	for _, p := range o.payments {
		nothing := contracts.Amount(0).String()
		captured, refunded := nothing, nothing
		if s.captured {
			captured = o.booking.TotalAmount
		}
		if s.refunded {
			refunded = captured
		}
		differs("the payment", p.Status, s.payment)
		differs("money captured", p.Captured, captured)
		differs("money given back", p.Refunded, refunded)
	}
	for _, typ := range []contracts.NotificationType{contracts.NotificationBookingCreated, s.letter} {
		told := slices.ContainsFunc(o.letters, func(l letterView) bool { return l.Type == typ && l.Success })
		differs("an e-mail of "+string(typ), told, true)
	}
	differs("e-mails", len(o.letters), 2)
	differs("a coordinator leads", o.saga != nil, style == booking.Orchestration)
	if o.saga != nil {
		differs("the saga", o.saga.State, s.saga())
		differs("its steps to come", len(o.saga.ToCome), 0)
	}
	return found
}

// words are a status for people.
func words[S ~string](status S) string { return strings.ReplaceAll(string(status), "_", " ") }

// lines are the outcome for people.
func (o outcome) lines(letter func(letterView) string) (lines []string) {
	add := func(what, format string, args ...any) {
		lines = append(lines, fmt.Sprintf("  %-9s  "+format, append([]any{what}, args...)...))
	}
	b, e := o.booking, o.event
	why := ""
	if b.Reason != "" {
		why = " (" + words(b.Reason) + ")"
	}
	add("booking", "%s: %s%s, %d x %s = %s %s", b.ID, words(b.Status), why, b.TicketCount, b.UnitPrice, b.TotalAmount, b.Currency)
	add("tickets", "%d available, %d held, %d sold, of %d", e.Available, e.Held, e.Sold, e.Capacity)
	for _, p := range o.payments {
		add("payment", "%s: %s, %s of %s %s captured, %s given back", p.ID, words(p.Status), p.Captured, p.Amount, p.Currency, p.Refunded)
	}
	for _, l := range o.letters {
		add("e-mail", "%s, %s", words(l.Type), letter(l))
	}
	if s := o.saga; s != nil {
		add("saga", "%s, %d entries in its history", words(s.State), len(s.History))
	}
	return lines
}

// title is the first line of a demo.
func (s scenario) title(style string) string {
	leads := "the services react to each other (choreography)"
	if style == booking.Orchestration {
		leads = "a coordinator leads (orchestration)"
	}
	return fmt.Sprintf("TicketWave: %s; %s.", s.story, leads)
}

// patience is for how long a scenario may go on.
func (s scenario) patience() time.Duration { return 45*time.Second + 2*cmp.Or(s.hold, time.Second) }
