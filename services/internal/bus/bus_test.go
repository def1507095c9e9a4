package bus_test

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/bus"
)

func TestTopologyIsTheContracts(t *testing.T) {
	t.Parallel()
	topology := bus.Topology()
	if err := topology.Validate(); err != nil {
		t.Fatal(err)
	}
	ours, err := json.Marshal(topology)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := json.Marshal(contracts.Topology())
	if err != nil {
		t.Fatal(err)
	}
	if string(ours) != string(theirs) {
		t.Errorf("declared is %s, contracts have %s", ours, theirs)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	if _, err := bus.Open(bus.Config{Name: "booking", URL: "http://guest:geheim@host", Logger: log}); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("a URL of another kind: %v", err)
	}
	if _, err := bus.Open(bus.Config{Name: "booking", URL: "amqp://guest:guest@127.0.0.1:1/", Logger: log}); err == nil {
		t.Error("no pool, no error")
	}
}
