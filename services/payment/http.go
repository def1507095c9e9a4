package payment

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/services/internal/web"
)

// Routes adds payment's API.
func (s *Service) Routes(r *web.Router) {
	r.Handle(http.MethodGet, "/api/payments", s.getPayments)
	r.Handle(http.MethodGet, "/api/payments/{id}", s.getPayment)
}

// getPayments lists the payments of one booking: one, or none yet.
func (s *Service) getPayments(w http.ResponseWriter, r *http.Request) error {
	query, err := web.Query(r, "bookingId")
	if err != nil {
		return err
	}
	booking, err := web.ParseID("bookingId", query.Get("bookingId"))
	if err != nil {
		return err
	}
	p, err := paymentOf(r.Context(), s.pool, booking.String())
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read the payment of booking %s: %w", booking, err)
	}
	list := web.List[Payment]{Items: []Payment{}}
	if err == nil {
		list.Items = append(list.Items, p)
	}
	return web.WriteJSON(w, http.StatusOK, list)
}

func (s *Service) getPayment(w http.ResponseWriter, r *http.Request) error {
	id, err := web.PathID(r, "id")
	if err != nil {
		return err
	}
	p, err := paymentByID(r.Context(), s.pool, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return web.NotFound("there is no payment %s", id)
	}
	if err != nil {
		return fmt.Errorf("read payment %s: %w", id, err)
	}
	return web.WriteJSON(w, http.StatusOK, p)
}
