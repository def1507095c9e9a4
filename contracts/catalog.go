package contracts

import "time"

// Types of what the catalog publishes.
const (
	TypeInventoryUpdated        = "ticketwave.catalog.inventory-updated.v1"
	TypeInventoryUpdateRejected = "ticketwave.catalog.inventory-update-rejected.v1"
	TypeCatalogEventPublished   = "ticketwave.catalog.catalog-event-published.v1"
	TypeInventoryReleased       = "ticketwave.catalog.inventory-released.v1"
	TypeInventoryCommitted      = "ticketwave.catalog.inventory-committed.v1"
)

// UpdateType is what was done to an inventory.
type UpdateType string

// The update types.
const (
	// UpdateReserved took tickets for a booking.
	UpdateReserved UpdateType = "reserved"
	// UpdateReleased gave a booking's tickets back.
	UpdateReleased UpdateType = "released"
)

// Valid reports whether this version knows the type.
func (t UpdateType) Valid() bool { return t == UpdateReserved || t == UpdateReleased }

// InventoryUpdated (InventoryUpdatedIntegrationEvent) says that a booking's tickets were taken or given back.
type InventoryUpdated struct {
	EventID   string `json:"eventId"`
	BookingID string `json:"bookingId"`
	// PreviousAvailableTickets and CurrentAvailableTickets are the counts just before and just after.
	PreviousAvailableTickets int        `json:"previousAvailableTickets"`
	CurrentAvailableTickets  int        `json:"currentAvailableTickets"`
	UpdateType               UpdateType `json:"updateType"`
	// Version counts the changes of the event: of two answers about one event the higher is the later, whatever
	// the order in which they arrive.
	Version   int64     `json:"version"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// EventType is TypeInventoryUpdated.
func (InventoryUpdated) EventType() string { return TypeInventoryUpdated }

// EventKey is the booking.
func (e InventoryUpdated) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e InventoryUpdated) Validate() error {
	return first(
		checkID("eventId", e.EventID),
		checkID("bookingId", e.BookingID),
		checkCount("previousAvailableTickets", e.PreviousAvailableTickets, 0),
		checkCount("currentAvailableTickets", e.CurrentAvailableTickets, 0),
		checkKnown("updateType", e.UpdateType),
		e.checkDirection(),
		checkVersion("version", e.Version),
		checkTime("updatedAt", e.UpdatedAt),
	)
}

func (e InventoryUpdated) checkDirection() error {
	if e.UpdateType == UpdateReserved {
		return check(e.CurrentAvailableTickets < e.PreviousAvailableTickets, "currentAvailableTickets", "less than before")
	}
	return check(e.CurrentAvailableTickets > e.PreviousAvailableTickets, "currentAvailableTickets", "more than before")
}

// RejectReason is why an inventory was not updated.
type RejectReason string

// The reasons.
const (
	// RejectSoldOut: fewer tickets are left than were asked for.
	RejectSoldOut RejectReason = "sold_out"
	// RejectUnknownEvent: the catalog has no such event.
	RejectUnknownEvent RejectReason = "unknown_event"
)

// Valid reports whether this version knows the reason.
func (r RejectReason) Valid() bool { return r == RejectSoldOut || r == RejectUnknownEvent }

// InventoryUpdateRejected says that a booking gets no tickets. Nothing was changed, and nothing will be for it.
type InventoryUpdateRejected struct {
	EventID   string `json:"eventId"`
	BookingID string `json:"bookingId"`
	// QuantityRequested is how many tickets the booking asked for.
	QuantityRequested int `json:"quantityRequested"`
	// AvailableTickets is how many were left; 0 for an unknown event.
	AvailableTickets int          `json:"availableTickets"`
	Reason           RejectReason `json:"reason"`
	RejectedAt       time.Time    `json:"rejectedAt"`
}

// EventType is TypeInventoryUpdateRejected.
func (InventoryUpdateRejected) EventType() string { return TypeInventoryUpdateRejected }

// EventKey is the booking.
func (e InventoryUpdateRejected) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e InventoryUpdateRejected) Validate() error {
	return first(
		checkID("eventId", e.EventID),
		checkID("bookingId", e.BookingID),
		checkCount("quantityRequested", e.QuantityRequested, 1),
		checkCount("availableTickets", e.AvailableTickets, 0),
		checkKnown("reason", e.Reason),
		checkTime("rejectedAt", e.RejectedAt),
	)
}

// CatalogEventPublished says that an event is on sale, at which price. Other services price bookings from it.
type CatalogEventPublished struct {
	EventID  string    `json:"eventId"`
	Name     string    `json:"name"`
	StartsAt time.Time `json:"startsAt"`
	// Price is that of one ticket.
	Price Amount `json:"price"`
	// Currency is an ISO 4217 code.
	Currency string `json:"currency"`
	// Capacity is how many tickets there are in all.
	Capacity int `json:"capacity"`
	// Version counts the changes of the event, from 1.
	Version     int64     `json:"version"`
	PublishedAt time.Time `json:"publishedAt"`
}

// EventType is TypeCatalogEventPublished.
func (CatalogEventPublished) EventType() string { return TypeCatalogEventPublished }

// EventKey is the event.
func (e CatalogEventPublished) EventKey() string { return e.EventID }

// Validate names the first field without a possible value.
func (e CatalogEventPublished) Validate() error {
	return first(
		checkID("eventId", e.EventID),
		checkName("name", e.Name),
		checkTime("startsAt", e.StartsAt),
		checkAmount("price", e.Price),
		checkCurrency("currency", e.Currency),
		checkCount("capacity", e.Capacity, 1),
		checkVersion("version", e.Version),
		checkTime("publishedAt", e.PublishedAt),
	)
}

// InventoryReleased says that the catalog holds nothing for a booking, and never will. It answers ReleaseEventInventory, and an
// UpdateEventInventory that comes after one.
type InventoryReleased struct {
	EventID   string `json:"eventId"`
	BookingID string `json:"bookingId"`
	// QuantityReleased is how many tickets were given back for the booking in all; 0 when none were held.
	QuantityReleased int       `json:"quantityReleased"`
	ReleasedAt       time.Time `json:"releasedAt"`
}

// EventType is TypeInventoryReleased.
func (InventoryReleased) EventType() string { return TypeInventoryReleased }

// EventKey is the booking.
func (e InventoryReleased) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e InventoryReleased) Validate() error {
	return first(
		checkID("eventId", e.EventID),
		checkID("bookingId", e.BookingID),
		checkCount("quantityReleased", e.QuantityReleased, 0),
		checkTime("releasedAt", e.ReleasedAt),
	)
}

// InventoryCommitted says that the tickets held for a booking are sold.
type InventoryCommitted struct {
	EventID   string `json:"eventId"`
	BookingID string `json:"bookingId"`
	// QuantityCommitted is how many tickets, 1 or more.
	QuantityCommitted int       `json:"quantityCommitted"`
	CommittedAt       time.Time `json:"committedAt"`
}

// EventType is TypeInventoryCommitted.
func (InventoryCommitted) EventType() string { return TypeInventoryCommitted }

// EventKey is the booking.
func (e InventoryCommitted) EventKey() string { return e.BookingID }

// Validate names the first field without a possible value.
func (e InventoryCommitted) Validate() error {
	return first(
		checkID("eventId", e.EventID),
		checkID("bookingId", e.BookingID),
		checkCount("quantityCommitted", e.QuantityCommitted, 1),
		checkTime("committedAt", e.CommittedAt),
	)
}
