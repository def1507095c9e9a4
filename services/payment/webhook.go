package payment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/internal/web"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// postWebhook takes what a gateway tells: 204 when it has taken effect, now or before. Every other answer asks the gateway to
// send it again.
func (s *Service) postWebhook(w http.ResponseWriter, r *http.Request) error {
	name := mux.Vars(r)["gateway"]
	g, ok := s.gateways[name]
	if !ok {
		return web.NotFound("there is no such gateway")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, web.MaxBody+1))
	if err != nil {
		return web.Malformed("", "the body could not be read to its end")
	}
	if len(body) > web.MaxBody {
		return &web.Error{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", web.MaxBody)}
	}
	event, err := g.Receive(r.Context(), r.Header, body)
	if err != nil {
		return s.refuseWebhook(r.Context(), name, err)
	}
	if err := s.settle(r.Context(), g, event); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// refuseWebhook logs why, and says little to who may be a stranger.
func (s *Service) refuseWebhook(ctx context.Context, name string, err error) error {
	s.log.WarnContext(ctx, logWebhook, "gateway", name, "error", err)
	switch {
	case errors.Is(err, gateway.ErrSignature):
		return &web.Error{Status: http.StatusUnauthorized, Detail: "the signature does not hold, or is too old"}
	case errors.Is(err, gateway.ErrMalformed):
		return web.Malformed("", "the webhook cannot be understood")
	}
	return fmt.Errorf("receive a webhook of %s: %w", name, err)
}

// settle lets a verified webhook take effect, once.
func (s *Service) settle(ctx context.Context, g gateway.Gateway, e gateway.Event) error {
	if e.Kind == gateway.Ignored {
		return nil
	}
	return outbox.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		isNew, err := seen(ctx, tx, g.Name(), e.ID)
		if err != nil || !isNew {
			return err
		}
		p, err := lockPayment(ctx, tx, e.PaymentID)
		switch {
		case errors.Is(err, pgx.ErrNoRows), err == nil && p.Gateway != g.Name():
			return web.NotFound("there is no payment %s", e.PaymentID)
		case err != nil:
			return fmt.Errorf("lock payment %s: %w", e.PaymentID, err)
		case p.Status == Preparing:
			// The session is open and not recorded yet, which is under way.
			return &web.Error{Status: http.StatusServiceUnavailable, Detail: "the payment is still being prepared", RetryAfter: time.Second}
		}
		return s.apply(p.flow(ctx), tx, p, e)
	})
}

// apply changes a payment that is locked.
func (s *Service) apply(ctx context.Context, tx pgx.Tx, p Payment, e gateway.Event) error {
	switch e.Kind {
	case gateway.Captured:
		return s.captured(ctx, tx, p, e)
	case gateway.Declined:
		return s.end(ctx, tx, p, Failed, string(contracts.PaymentDeclined))
	case gateway.Expired:
		return s.end(ctx, tx, p, Expired, "")
	case gateway.Ignored:
	}
	return nil
}

// end ends a payment that can still be made. Nothing happens to any other.
func (s *Service) end(ctx context.Context, tx pgx.Tx, p Payment, to Status, reason string) error {
	ended, ok, err := move(ctx, tx, p.ID, Prepared, to, reason)
	if err != nil || !ok {
		return err
	}
	return s.tell(ctx, tx, ended)
}

// captured enters money that has come. It completes a payment that can still be made, if it is what was asked for and comes in
// time; all other money is given back.
func (s *Service) captured(ctx context.Context, tx pgx.Tx, p Payment, e gateway.Event) error {
	isNew, err := capture(ctx, tx, p, e)
	if err != nil || !isNew {
		return err
	}
	s.log.InfoContext(ctx, logCaptured, "booking_id", p.BookingID.String(), "payment_id", p.ID.String(), "status", string(p.Status),
		"amount", e.Amount.String(), "currency", e.Currency)
	to, reason := Failed, string(contracts.PaymentRefused) // the wrong amount
	if e.Amount == p.Amount && e.Currency == p.Currency {
		done, inTime, err := complete(ctx, tx, p.ID)
		if err != nil {
			return err
		}
		if inTime {
			return s.tell(ctx, tx, done)
		}
		to, reason = Expired, ""
	}
	if err := s.end(ctx, tx, p, to, reason); err != nil {
		return err
	}
	return s.addTasks(ctx, tx, newTask{p.ID, taskRefund, e.Charge, outbox.CausalityFrom(ctx)})
}
