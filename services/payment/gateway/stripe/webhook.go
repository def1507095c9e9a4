package stripe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"
	api "github.com/stripe/stripe-go/v84"
	"github.com/stripe/stripe-go/v84/webhook"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// Receive verifies the Stripe-Signature and reads what became of a session.
func (g *Gateway) Receive(_ context.Context, header http.Header, body []byte) (gateway.Event, error) {
	event, err := g.construct(header, body)
	if err != nil {
		return gateway.Event{}, err
	}
	return read(event)
}

// construct tries one secret after the other.
func (g *Gateway) construct(header http.Header, body []byte) (event api.Event, err error) {
	given := header.Values("Stripe-Signature")
	if len(given) != 1 {
		return event, fmt.Errorf("%w: want one Stripe-Signature", gateway.ErrSignature)
	}
	// What is read of an event is the same in every version of the API.
	options := webhook.ConstructEventOptions{Tolerance: gateway.ReplayWindow, IgnoreAPIVersionMismatch: true}
	for _, secret := range g.cfg.WebhookSecrets {
		event, err = webhook.ConstructEventWithOptions(body, given[0], secret, options)
		if !errors.Is(err, webhook.ErrNoValidSignature) {
			break
		}
	}
	switch {
	case err == nil:
		return event, nil
	case errors.Is(err, webhook.ErrNoValidSignature), errors.Is(err, webhook.ErrNotSigned), errors.Is(err, webhook.ErrInvalidHeader), errors.Is(err, webhook.ErrTooOld):
		return event, fmt.Errorf("%w: %w", gateway.ErrSignature, err)
	}
	return event, fmt.Errorf("%w: %w", gateway.ErrMalformed, err)
}

// kinds are the events that are of interest. A session that is complete may still wait for its money.
var kinds = map[api.EventType]gateway.Kind{
	api.EventTypeCheckoutSessionCompleted:             gateway.Captured,
	api.EventTypeCheckoutSessionAsyncPaymentSucceeded: gateway.Captured,
	api.EventTypeCheckoutSessionAsyncPaymentFailed:    gateway.Declined,
	api.EventTypeCheckoutSessionExpired:               gateway.Expired,
}

func read(event api.Event) (gateway.Event, error) {
	ignored := gateway.Event{ID: event.ID, Kind: gateway.Ignored}
	kind, ok := kinds[event.Type]
	if !ok {
		return ignored, nil
	}
	if event.Data == nil {
		return ignored, fmt.Errorf("%w: %s without data", gateway.ErrMalformed, event.Type)
	}
	var session api.CheckoutSession
	if err := json.Unmarshal(event.Data.Raw, &session); err != nil {
		return ignored, fmt.Errorf("%w: %w", gateway.ErrMalformed, err)
	}
	mark, ours := session.Metadata[metadataKey]
	if !ours || kind == gateway.Captured && session.PaymentStatus != api.CheckoutSessionPaymentStatusPaid {
		return ignored, nil
	}
	id, err := uuid.Parse(mark)
	if err != nil {
		return ignored, fmt.Errorf("%w: %s names no payment", gateway.ErrMalformed, event.Type)
	}
	e := gateway.Event{
		ID: event.ID, Kind: kind, PaymentID: id,
		Amount: contracts.Amount(session.AmountTotal), Currency: strings.ToUpper(string(session.Currency)),
	}
	if session.PaymentIntent != nil {
		e.Charge = session.PaymentIntent.ID
	}
	return e, e.Check()
}
