package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/booking"
)

// done is how a scenario ends when all is well.
func done(s scenario, style string) outcome {
	o := outcome{
		booking: bookingView{ID: "b", Status: s.status, TicketCount: demoTickets, UnitPrice: "25.00", TotalAmount: "50.00", Currency: "EUR"},
		event:   eventView{Capacity: s.capacity, Available: s.capacity - s.sold(), Sold: s.sold()},
		letters: []letterView{{Type: contracts.NotificationBookingCreated, Success: true}, {Type: s.letter, Success: true}},
	}
	p := paymentView{ID: "p", Status: s.payment, Amount: "50.00", Currency: "EUR", Captured: "0.00", Refunded: "0.00"}
	if s.captured {
		p.Captured = "50.00"
	}
	if s.refunded {
		p.Refunded = "50.00"
	}
	o.payments = []paymentView{p}
	if style == booking.Orchestration {
		o.saga = &sagaView{State: s.saga()}
	}
	return o
}

func TestAScenarioEndsOneWayOnly(t *testing.T) {
	t.Parallel()
	wrongs := map[string]func(o *outcome){
		"the booking:":         func(o *outcome) { o.booking.Status = "awaiting_payment" },
		"tickets available":    func(o *outcome) { o.event.Available, o.event.Held = o.event.Available-2, 2 },
		"payments:":            func(o *outcome) { o.payments = nil },
		"the payment:":         func(o *outcome) { o.payments[0].Status = "prepared" },
		"money captured:":      func(o *outcome) { o.payments[0].Captured = "49.99" },
		"money given back:":    func(o *outcome) { o.payments[0].Refunded = "49.99" },
		"an e-mail of":         func(o *outcome) { o.letters[1].Success = false },
		"e-mails:":             func(o *outcome) { o.letters = append(o.letters, o.letters[1]) },
		"a coordinator leads:": func(o *outcome) { o.saga = map[bool]*sagaView{true: nil, false: {}}[o.saga != nil] },
	}
	for _, s := range scenarios {
		for _, style := range []string{booking.Choreography, booking.Orchestration} {
			if found := s.differences(done(s, style), style); len(found) > 0 {
				t.Errorf("%s, %s: %v", s.name, style, found)
			}
			for want, spoil := range wrongs {
				o := done(s, style)
				spoil(&o)
				if found := s.differences(o, style); !strings.Contains(strings.Join(found, "\n"), want) {
					t.Errorf("%s, %s: %q is not found: %v", s.name, style, want, found)
				}
			}
		}
		o := done(s, booking.Orchestration)
		o.saga.State, o.saga.ToCome = "stuck", make([]struct{ Step string }, 1)
		if found := s.differences(o, booking.Orchestration); len(found) != 2 {
			t.Errorf("%s: a stuck saga is %v", s.name, found)
		}
	}
}

// The Makefile refuses what is no scenario before it starts servers.
func TestTheMakefileHasEveryScenario(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile("../../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	for variable, want := range map[string]string{"SCENARIOS": strings.Join(names, " "), "STYLES": booking.Choreography + " " + booking.Orchestration} {
		found := regexp.MustCompile(`(?m)^` + variable + ` +:= (.*)$`).FindSubmatch(makefile)
		if found == nil || string(found[1]) != want {
			t.Errorf("%s is %q, want %s", variable, found, want)
		}
	}
}
