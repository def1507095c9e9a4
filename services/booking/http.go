package booking

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/booking/life"
	"github.com/jcp/ticketwave/services/internal/web"
)

const (
	bookingsPath = "/api/bookings"
	examplePath  = "/api/example/create-booking-with-flow"
)

// Routes adds booking's API.
func (s *Service) Routes(r *web.Router) {
	r.Handle(http.MethodPost, bookingsPath, s.postBooking)
	r.Handle(http.MethodGet, bookingsPath, s.getBookings)
	r.Handle(http.MethodGet, bookingsPath+"/{id}", s.getBooking)
	r.Handle(http.MethodPost, bookingsPath+"/{id}/cancel", s.postCancel)
	r.Handle(http.MethodGet, bookingsPath+"/{id}/timeline", s.getTimeline)
	r.Handle(http.MethodPost, examplePath, s.postExample)
}

// bookingRequest is the body of both POSTs. All fields are needed.
type bookingRequest struct {
	EventID     string `json:"eventId"`
	UserID      string `json:"userId"`
	TicketCount int    `json:"ticketCount"`
}

// bookingView is a booking as clients see it. Null is what is not known yet.
type bookingView struct {
	ID                uuid.UUID        `json:"id"`
	EventID           uuid.UUID        `json:"eventId"`
	UserID            uuid.UUID        `json:"userId"`
	TicketCount       int              `json:"ticketCount"`
	UnitPrice         contracts.Amount `json:"unitPrice"`
	TotalAmount       contracts.Amount `json:"totalAmount"`
	Currency          string           `json:"currency"`
	Status            life.Status      `json:"status"`
	Reason            *string          `json:"reason"`
	TicketsReserved   bool             `json:"ticketsReserved"`
	Inventory         life.Inventory   `json:"inventory"`
	Payment           life.Payment     `json:"payment"`
	PaymentID         *uuid.UUID       `json:"paymentId"`
	PaymentURL        *string          `json:"paymentUrl"`
	ExpiresAt         time.Time        `json:"expiresAt"`
	Notified          *bool            `json:"notified"`
	NotificationError *string          `json:"notificationError"`
	CreatedAt         time.Time        `json:"createdAt"`
	UpdatedAt         time.Time        `json:"updatedAt"`
}

// view leaves out the payment URL of a booking that must not be paid, or is, and the reason of an end that is yet to come. Tickets are reserved while they are held or sold.
func (b *Booking) view() bookingView {
	v := bookingView{
		ID: b.ID, EventID: b.EventID, UserID: b.UserID, TicketCount: b.TicketCount, UnitPrice: b.UnitPrice, TotalAmount: b.TotalAmount,
		Currency: b.Currency, Status: b.Status, Reason: b.Reason, TicketsReserved: b.Inventory == life.InventoryHeld || b.Inventory == life.InventorySold,
		Inventory: b.Inventory, Payment: b.Payment, PaymentID: b.PaymentID,
		PaymentURL: b.PaymentURL, ExpiresAt: b.ExpiresAt, Notified: b.Notified, NotificationError: b.NotificationError,
		CreatedAt: b.CreatedAt, UpdatedAt: b.UpdatedAt,
	}
	if b.Status.Final() || b.Payment == life.PaymentCompleted {
		v.PaymentURL = nil
	}
	if !b.Status.Final() {
		v.Reason = nil
	}
	return v
}

// flowView is the answer of the example endpoint.
type flowView struct {
	Booking bookingView `json:"booking"`
	Events  []eventView `json:"events"`
	// GivenUserID and UserIDNote are there when the request's user id was no UUID.
	GivenUserID string `json:"givenUserId,omitempty"`
	UserIDNote  string `json:"userIdNote,omitempty"`
}

// eventView is an integration event that the booking set off.
type eventView struct {
	ID   uuid.UUID `json:"id"`
	Type string    `json:"type"`
}

func (s *Service) postBooking(w http.ResponseWriter, r *http.Request) error {
	request, err := readRequest(r)
	if err != nil {
		return err
	}
	o, err := request.order()
	if err != nil {
		return err
	}
	return s.answer(w, r, bookingsPath, request, func(ctx context.Context, tx pgx.Tx) (answer, error) {
		b, _, err := s.book(ctx, tx, o)
		if err != nil {
			return answer{}, err
		}
		return created(b, b.view())
	})
}

// postExample is postBooking for a demonstration: it takes any user id, logs the start, and answers with the events.
func (s *Service) postExample(w http.ResponseWriter, r *http.Request) error {
	request, err := readRequest(r)
	if err != nil {
		return err
	}
	o, note, err := request.exampleOrder()
	if err != nil {
		return err
	}
	return s.answer(w, r, examplePath, request, func(ctx context.Context, tx pgx.Tx) (answer, error) {
		s.log.InfoContext(ctx, logStarting, "event_type", typeCreated, "booking_id", o.bookingID.String(), "event_id", o.eventID.String(), "user_id", o.userID.String())
		b, messages, err := s.book(ctx, tx, o)
		if err != nil {
			return answer{}, err
		}
		v := flowView{Booking: b.view(), Events: eventViews(messages)}
		if note != "" {
			v.GivenUserID, v.UserIDNote = request.UserID, note
		}
		return created(b, v)
	})
}

func eventViews(messages []outbox.Message) []eventView {
	views := make([]eventView, len(messages))
	for i, m := range messages {
		views[i] = eventView{ID: m.ID, Type: m.Topic}
	}
	return views
}

func created(b *Booking, v any) (answer, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return answer{}, fmt.Errorf("encode booking %s: %w", b.ID, err)
	}
	return answer{Status: http.StatusCreated, Location: bookingsPath + "/" + b.ID.String(), Body: body}, nil
}

func (s *Service) getBooking(w http.ResponseWriter, r *http.Request) error {
	id, err := web.PathID(r, "id")
	if err != nil {
		return err
	}
	b, err := bookingByID(r.Context(), s.pool, id.String())
	if errors.Is(err, pgx.ErrNoRows) {
		return web.NotFound("there is no booking %s", id)
	}
	if err != nil {
		return fmt.Errorf("read booking %s: %w", id, err)
	}
	return web.WriteJSON(w, http.StatusOK, b.view())
}

// postCancel gives a booking up. One that is cancelled already is answered as it is; one that has ended otherwise is a conflict.
func (s *Service) postCancel(w http.ResponseWriter, r *http.Request) error {
	id, err := web.PathID(r, "id")
	if err != nil {
		return err
	}
	var b *locked
	err = outbox.InTx(r.Context(), s.pool, func(tx pgx.Tx) (err error) {
		b, err = s.cancel(r.Context(), tx, id)
		return err
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, http.StatusOK, b.view())
}

func (s *Service) cancel(ctx context.Context, tx pgx.Tx, id uuid.UUID) (*locked, error) {
	found, err := lockBookings(ctx, tx, []uuid.UUID{id})
	switch {
	case err != nil:
		return nil, fmt.Errorf("lock booking %s: %w", id, err)
	case len(found) == 0:
		return nil, web.NotFound("there is no booking %s", id)
	}
	b, c := found[0], s.course(tx)
	if err := c.goOn(ctx, b, life.Event{Kind: life.CancelRequested}, false); err != nil {
		return nil, fmt.Errorf("cancel booking %s: %w", id, err)
	}
	if b.Status != life.Cancelled {
		return nil, web.Conflict("booking %s can no longer be cancelled: %s", id, endings[b.Status])
	}
	return b, c.write(ctx)
}

// endings say why a booking cannot be cancelled.
var endings = map[life.Status]string{
	life.Confirmed:     "it is confirmed, and its tickets are paid for",
	life.Rejected:      "it was rejected",
	life.Expired:       "it has expired, because it was not paid in time",
	life.PaymentFailed: "its payment has failed",
}

func (s *Service) getBookings(w http.ResponseWriter, r *http.Request) error {
	query, err := web.Query(r, "userId", "after", "limit")
	if err != nil {
		return err
	}
	user, err := web.ParseID("userId", query.Get("userId"))
	if err != nil {
		return err
	}
	page, err := web.ParsePage(query)
	if err != nil {
		return err
	}
	bookings, err := bookingsOf(r.Context(), s.pool, user, page)
	if err != nil {
		return fmt.Errorf("list bookings of user %s: %w", user, err)
	}
	views := make([]bookingView, len(bookings))
	for i, b := range bookings {
		views[i] = b.view()
	}
	return web.WriteJSON(w, http.StatusOK, web.NewList(views, page, func(v bookingView) string { return v.ID.String() }))
}

func readRequest(r *http.Request) (bookingRequest, error) {
	var request bookingRequest
	err := web.Decode(r, &request)
	return request, err
}

// order is what the request asks for. How many tickets are allowed is decided with the booking.
func (r bookingRequest) order() (order, error) {
	event, err := web.ParseID("eventId", r.EventID)
	if err != nil {
		return order{}, err
	}
	user, err := web.ParseID("userId", r.UserID)
	if err != nil {
		return order{}, err
	}
	if user == uuid.Nil {
		return order{}, web.Refused("userId", "must not be the nil UUID")
	}
	id, err := uuid.NewV7()
	if err != nil {
		return order{}, fmt.Errorf("draw a booking id: %w", err)
	}
	return order{bookingID: id, eventID: event, userID: user, tickets: r.TicketCount}, nil
}

// userNamespace is that of user ids that are no UUIDs.
var userNamespace = uuid.MustParse("9d1f6a0e-51a4-4f0c-8b57-3c0d7f1f6f6b")

const maxUserID = 255 // bytes

// exampleOrder is order, where a user id that is no UUID is mapped to a UUIDv5; the note says so.
func (r bookingRequest) exampleOrder() (o order, note string, err error) {
	if _, err := web.ParseID("userId", r.UserID); err == nil || r.UserID == "" {
		o, err = r.order()
		return o, "", err
	}
	if len(r.UserID) > maxUserID {
		return o, "", web.Malformed("userId", "must have 1 to %d bytes", maxUserID)
	}
	user := uuid.NewSHA1(userNamespace, []byte(r.UserID))
	mapped := r
	mapped.UserID = user.String()
	o, err = mapped.order()
	return o, "givenUserId is no UUID; the events carry the UUIDv5 " + user.String() + ", the same for the same name", err
}
