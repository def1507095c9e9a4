package catalog

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/web"
)

// Routes adds the catalog's API.
func (s *Service) Routes(r *web.Router) {
	r.Handle(http.MethodPost, "/api/events", s.postEvent)
	r.Handle(http.MethodGet, "/api/events", s.getEvents)
	r.Handle(http.MethodGet, "/api/events/{id}", s.getEvent)
}

// eventRequest is the body of POST /api/events. All fields but EventID are needed.
type eventRequest struct {
	EventID  string `json:"eventId"`
	Name     string `json:"name"`
	StartsAt string `json:"startsAt"`
	Price    string `json:"price"`
	Currency string `json:"currency"`
	Capacity int    `json:"capacity"`
}

// postEvent answers a repeated request as it answered the first one.
func (s *Service) postEvent(w http.ResponseWriter, r *http.Request) error {
	var request eventRequest
	if err := web.Decode(r, &request); err != nil {
		return err
	}
	e, err := request.event()
	if err != nil {
		return err
	}
	stored, err := s.Create(r.Context(), e)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/api/events/"+stored.ID.String())
	return web.WriteJSON(w, http.StatusCreated, stored)
}

func (s *Service) getEvents(w http.ResponseWriter, r *http.Request) error {
	query, err := web.Query(r, "after", "limit")
	if err != nil {
		return err
	}
	page, err := web.ParsePage(query)
	if err != nil {
		return err
	}
	events, err := eventsOn(r.Context(), s.pool, page)
	if err != nil {
		return fmt.Errorf("list events: %w", err)
	}
	return web.WriteJSON(w, http.StatusOK, web.NewList(events, page, func(e Event) string { return e.ID.String() }))
}

func (s *Service) getEvent(w http.ResponseWriter, r *http.Request) error {
	id, err := web.PathID(r, "id")
	if err != nil {
		return err
	}
	e, err := eventByID(r.Context(), s.pool, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return web.NotFound("there is no event %s", id)
	}
	if err != nil {
		return fmt.Errorf("read event %s: %w", id, err)
	}
	return web.WriteJSON(w, http.StatusOK, e)
}

// event is what the request describes, within all limits.
func (r eventRequest) event() (Event, error) {
	e := Event{Name: r.Name, Currency: r.Currency, Capacity: r.Capacity}
	var err error
	if e.ID, err = r.id(); err != nil {
		return e, err
	}
	if e.StartsAt, err = r.startsAt(); err != nil {
		return e, err
	}
	if e.Price, err = r.price(); err != nil {
		return e, err
	}
	switch {
	case !contracts.ValidName(r.Name):
		return e, web.Refused("name", "must be 1 to %d printable characters, without spaces at the ends", contracts.MaxName)
	case !contracts.ValidCurrency(r.Currency):
		return e, web.Refused("currency", "must be an ISO 4217 code of three capital letters")
	case r.Capacity < 1 || r.Capacity > contracts.MaxTickets:
		return e, web.Refused("capacity", "must be from 1 to %d", contracts.MaxTickets)
	}
	return e, nil
}

// id is the one given, or a fresh one.
func (r eventRequest) id() (uuid.UUID, error) {
	if r.EventID == "" {
		return uuid.NewV7()
	}
	id, err := web.ParseID("eventId", r.EventID)
	if err == nil && id == uuid.Nil {
		err = web.Refused("eventId", "must not be the nil UUID")
	}
	return id, err
}

// startsAt is in UTC and whole microseconds, as it is stored.
func (r eventRequest) startsAt() (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, r.StartsAt)
	if err != nil {
		return at, web.Malformed("startsAt", "must be an RFC 3339 time such as 2030-06-01T19:30:00Z")
	}
	at = at.UTC().Truncate(time.Microsecond)
	if at.Year() > lastYear {
		return at, web.Refused("startsAt", "must not be after the year %d", lastYear)
	}
	return at, nil
}

func (r eventRequest) price() (contracts.Amount, error) {
	price, err := contracts.ParseAmount(r.Price)
	if err != nil {
		return price, web.Malformed("price", `must be a decimal string with at most two decimals, such as "25.00"`)
	}
	if price < 1 || price > MaxPrice {
		return price, web.Refused("price", "must be from %s to %s", contracts.Amount(1), MaxPrice)
	}
	return price, nil
}
