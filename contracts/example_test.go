package contracts_test

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jcp/ticketwave/contracts"
)

func ExampleParseAmount() {
	price, err := contracts.ParseAmount("12.5")
	if err != nil {
		fmt.Println(err)
		return
	}
	total, err := price.Times(3)
	fmt.Println(price, total, int64(total), err)
	// Output: 12.50 37.50 3750 <nil>
}

func ExampleUpdateEventInventory() {
	request := contracts.UpdateEventInventory{
		EventID:         "123e4567-e89b-12d3-a456-426614174000",
		BookingID:       "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b",
		QuantityReduced: 0,
		RequestedAt:     time.Date(2026, 5, 4, 18, 30, 0, 0, time.UTC),
	}
	fmt.Println(request.Validate())
	request.QuantityReduced = 2
	body, _ := json.MarshalIndent(request, "", "  ")
	fmt.Println(request.Validate(), string(body))
	// Output:
	// quantityReduced: must be from 1 to 1000000
	// <nil> {
	//   "eventId": "123e4567-e89b-12d3-a456-426614174000",
	//   "bookingId": "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b",
	//   "quantityReduced": 2,
	//   "requestedAt": "2026-05-04T18:30:00Z"
	// }
}
