package contracts_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/jcp/ticketwave/contracts"
)

func TestEveryTypeHasAConsumer(t *testing.T) {
	t.Parallel()
	var bound, published []string
	for _, queue := range contracts.Topology().Queues {
		bound = append(bound, queue.Types...)
		types := slices.Clone(queue.Types)
		slices.Sort(types)
		if len(slices.Compact(types)) != len(queue.Types) {
			t.Errorf("queue %s is bound twice to a type: %v", queue.Name, queue.Types)
		}
	}
	for _, event := range contracts.All() {
		published = append(published, event.EventType())
	}
	slices.Sort(bound)
	slices.Sort(published)
	if bound = slices.Compact(bound); !slices.Equal(bound, published) {
		t.Errorf("bound are %v, published are %v", bound, published)
	}
}

// The coordinator hears what booking hears, but what is none of its business, and what booking says of itself.
func TestTheCoordinatorHearsEveryAnswer(t *testing.T) {
	t.Parallel()
	heard := map[string][]string{}
	for _, queue := range contracts.Topology().Queues {
		heard[queue.Name] = queue.Types
	}
	for _, typ := range heard["booking"] {
		switch typ {
		case contracts.TypeCatalogEventPublished, contracts.TypeNotificationSent, contracts.TypeSettleBooking:
		default:
			if !slices.Contains(heard["saga"], typ) {
				t.Errorf("the coordinator does not hear %s", typ)
			}
		}
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
