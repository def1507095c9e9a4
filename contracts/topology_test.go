package contracts_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/jcp/ticketwave/contracts"
)

// What a booking tells of itself is for the coordinator, whose queue comes with it.
var unheard = []string{
	contracts.TypeBookingCreated, contracts.TypeBookingConfirmed, contracts.TypeBookingRejected,
	contracts.TypeBookingCancelled, contracts.TypeBookingExpired,
}

func TestEveryTypeHasOneConsumer(t *testing.T) {
	t.Parallel()
	var bound, published []string
	for _, queue := range contracts.Topology().Queues {
		bound = append(bound, queue.Types...)
	}
	for _, event := range contracts.All() {
		if !slices.Contains(unheard, event.EventType()) {
			published = append(published, event.EventType())
		}
	}
	slices.Sort(bound)
	slices.Sort(published)
	if !slices.Equal(bound, published) {
		t.Errorf("bound are %v, published are %v", bound, published)
	}
}

// The table is stored and read by other programs under these names.
func TestTopologyAsJSON(t *testing.T) {
	t.Parallel()
	table := contracts.Topology()
	table.Queues = []contracts.Queue{table.Queues[1]}
	body, err := json.Marshal(table)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"exchange":"ticketwave.events","typePrefix":"ticketwave.","partitions":4,` +
		`"queues":[{"name":"catalog","types":["ticketwave.catalog.update-event-inventory.v1",` +
		`"ticketwave.catalog.release-event-inventory.v1","ticketwave.catalog.commit-event-inventory.v1"]}]}`
	if string(body) != want {
		t.Errorf("got  %s\nwant %s", body, want)
	}
}
