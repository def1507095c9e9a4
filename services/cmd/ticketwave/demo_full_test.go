//go:build full

package main

import (
	"testing"

	"github.com/jcp/ticketwave/services/booking"
)

func TestEveryDemo(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		for _, style := range []string{booking.Choreography, booking.Orchestration} {
			t.Run(s.name+" "+style, func(t *testing.T) { play(t, s.name, style) })
		}
	}
}
