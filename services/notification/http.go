package notification

import (
	"fmt"
	"net/http"

	"github.com/jcp/ticketwave/services/internal/web"
)

// Routes adds notification's API.
func (s *Service) Routes(r *web.Router) {
	r.Handle(http.MethodGet, "/api/notifications", s.getNotifications)
}

// getNotifications lists what was sent about one booking.
func (s *Service) getNotifications(w http.ResponseWriter, r *http.Request) error {
	query, err := web.Query(r, "bookingId", "after", "limit")
	if err != nil {
		return err
	}
	booking, err := web.ParseID("bookingId", query.Get("bookingId"))
	if err != nil {
		return err
	}
	page, err := web.ParsePage(query)
	if err != nil {
		return err
	}
	found, err := notificationsOf(r.Context(), s.pool, booking, page)
	if err != nil {
		return fmt.Errorf("list the notifications of booking %s: %w", booking, err)
	}
	return web.WriteJSON(w, http.StatusOK, web.NewList(found, page, func(n Notification) string { return n.ID.String() }))
}
