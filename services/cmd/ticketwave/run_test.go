package main

import (
	"strings"
	"testing"

	"github.com/jcp/ticketwave/services/booking"
	schema "github.com/jcp/ticketwave/sql"
)

func TestTheGreetingSaysWhatCanBeDone(t *testing.T) {
	t.Parallel()
	ports := make([]string, len(schema.Services))
	for i := range ports {
		ports[i] = "0"
	}
	listeners, err := listen(options{Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{listeners: listeners}
	defer func() {
		if err := h.hangUp(); err != nil {
			t.Error(err)
		}
	}()
	for style, wants := range map[string]string{booking.Choreography: "TW_SAGA=orchestration", booking.Orchestration: "a coordinator leads"} {
		h.opts.Style = style
		text := h.greeting("")
		for _, want := range []string{
			wants, h.url("saga") + "/api/sagas/ID\n", "action=pay", h.url("booking") + "/api/bookings/ID/cancel ", h.url("booking") + "/api/bookings/ID/timeline ", exampleEvent,
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is missing from:\n%s", style, want, text)
			}
		}
	}
}
