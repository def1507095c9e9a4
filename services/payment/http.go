package payment

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/internal/web"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// Routes adds payment's API, the endpoint of webhooks, and the sandbox's checkout page.
func (s *Service) Routes(r *web.Router) {
	r.Handle(http.MethodGet, "/api/payments", s.getPayments)
	r.Handle(http.MethodGet, "/api/payments/{id}", s.getPayment)
	r.Handle(http.MethodPost, WebhookPath("{gateway}"), s.postWebhook)
	r.Handle(http.MethodGet, ThanksPath, func(w http.ResponseWriter, _ *http.Request) error { return gateway.Thanks(w) })
	s.sandbox.Routes(r)
}

// ThanksPath is the page for people who come back from another gateway's.
const ThanksPath = "/pay/thanks"

// statement is a payment and its money.
type statement struct {
	Payment
	Captured contracts.Amount `json:"captured"`
	Refunded contracts.Amount `json:"refunded"`
}

// statementOf adds what the books say.
func (s *Service) statementOf(ctx context.Context, p Payment) (statement, error) {
	all, err := charges(ctx, s.pool, p.ID)
	if err != nil {
		return statement{}, fmt.Errorf("read the books of payment %s: %w", p.ID, err)
	}
	st := statement{Payment: p}
	for _, c := range all {
		st.Captured += c.Amount
		if c.RefundedAt != nil {
			st.Refunded += c.Amount
		}
	}
	return st, nil
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
	list := web.List[statement]{Items: []statement{}}
	if err == nil {
		st, err := s.statementOf(r.Context(), p)
		if err != nil {
			return err
		}
		list.Items = append(list.Items, st)
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
	st, err := s.statementOf(r.Context(), p)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, http.StatusOK, st)
}
