package payment

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/payment/gateway"
)

// Prepare handles PreparePaymentData: it makes the booking's payment, if there is none yet, and publishes where it stands
// then. A payment that its gateway must be asked for is told when the gateway has answered. A booking whose cancellation came
// first gets PaymentCancelled and no payment. The requests must be of different bookings.
func (s *Service) Prepare(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.PreparePaymentData]) error {
	bookings := make([]string, len(requests))
	for i, r := range requests {
		bookings[i] = r.Event.BookingID
		s.log.InfoContext(r.Context(), logProcessing, "booking_id", r.Event.BookingID, "amount", r.Event.Amount.String(), "currency", r.Event.Currency)
	}
	if err := lockBookings(ctx, tx, bookings); err != nil {
		return fmt.Errorf("lock %d bookings: %w", len(bookings), err)
	}
	made, err := insertPayments(ctx, tx, s.active, requests)
	if err != nil {
		return fmt.Errorf("store the payments of %d bookings: %w", len(requests), err)
	}
	if err := s.open(ctx, tx, requests, made); err != nil {
		return err
	}
	for i, r := range requests {
		if err := s.prepared(r.Context(), tx, r.Event.BookingID, made[i]); err != nil {
			return fmt.Errorf("prepare the payment of booking %s: %w", r.Event.BookingID, err)
		}
	}
	return nil
}

// open opens the sessions of new payments at a local gateway, and leaves a task for any other.
func (s *Service) open(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.PreparePaymentData], made []*Payment) error {
	var here []gateway.Checkout
	var tasks []newTask
	for i, p := range made {
		switch {
		case p != nil && p.Status == Prepared:
			here = append(here, p.checkout())
		case p != nil && p.Status == Preparing:
			tasks = append(tasks, newTask{p.ID, taskOpen, "", outbox.CausalityFrom(requests[i].Context())})
		}
	}
	if local, ok := s.active.(gateway.Local); ok && len(here) > 0 {
		if err := local.OpenIn(ctx, tx, here); err != nil {
			return err
		}
	}
	return s.addTasks(ctx, tx, tasks...)
}

// prepared answers a request with the payment that was made, or else with what the booking has.
func (s *Service) prepared(ctx context.Context, tx pgx.Tx, booking string, made *Payment) error {
	log := s.log.With("booking_id", booking)
	if made != nil {
		word := logPrepared
		if made.Status == Preparing {
			word = logAsking
		}
		log.InfoContext(ctx, word, "payment_id", made.ID.String(), "status", string(made.Status))
		return s.tell(ctx, tx, *made)
	}
	known, err := paymentOf(ctx, tx, booking)
	there, err := found(err)
	if err != nil {
		return err
	}
	if there {
		log.InfoContext(ctx, logRepeated, "payment_id", known.ID.String(), "status", string(known.Status))
		return s.tell(ctx, tx, known)
	}
	return s.cancelledBefore(ctx, tx, booking)
}

// tell publishes where a payment stands. It says nothing while the gateway is asked: the answer follows.
func (s *Service) tell(ctx context.Context, tx pgx.Tx, p Payment) error {
	event := p.told()
	if event == nil {
		return nil
	}
	return s.publish(ctx, tx, event)
}

func (s *Service) publish(ctx context.Context, tx pgx.Tx, event contracts.Event) error {
	if err := outbox.Append(ctx, tx, event); err != nil {
		return fmt.Errorf("tell: %w", err)
	}
	word := logTold
	if event.EventType() == contracts.TypePaymentDataPrepared {
		word = logPublished
	}
	s.log.InfoContext(ctx, word, "booking_id", event.EventKey(), "published", event.EventType())
	return nil
}

// cancelledBefore answers for a booking without a payment, and leaves the mark if there is none.
func (s *Service) cancelledBefore(ctx context.Context, tx pgx.Tx, booking string) error {
	at, err := tombstones(ctx, tx, []string{booking})
	if err != nil {
		return fmt.Errorf("mark booking %s: %w", booking, err)
	}
	if at[0] == nil {
		return fmt.Errorf("booking %s has neither a payment nor a cancellation", booking)
	}
	return s.publish(ctx, tx, contracts.PaymentCancelled{BookingID: booking, CancelledAt: at[0].UTC()})
}

// Cancel handles CancelPayment: a payment that can still be made ends, and where it stands then is published, which may be
// something that ended it before. A booking without a payment keeps a mark. The requests must be of different bookings.
func (s *Service) Cancel(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.CancelPayment]) error {
	bookings := make([]string, len(requests))
	for i, r := range requests {
		bookings[i] = r.Event.BookingID
		s.log.InfoContext(r.Context(), logCancelling, "booking_id", r.Event.BookingID, "reason", string(r.Event.Reason))
	}
	if err := lockBookings(ctx, tx, bookings); err != nil {
		return fmt.Errorf("lock %d bookings: %w", len(bookings), err)
	}
	ended, err := cancelPayments(ctx, tx, bookings)
	if err != nil {
		return fmt.Errorf("cancel the payments of %d bookings: %w", len(bookings), err)
	}
	var tasks []newTask
	for i, p := range ended {
		if p != nil && p.Session != nil {
			tasks = append(tasks, newTask{p.ID, taskClose, "", outbox.CausalityFrom(requests[i].Context())})
		}
	}
	if err := s.addTasks(ctx, tx, tasks...); err != nil {
		return err
	}
	for i, r := range requests {
		if err := s.prepared(r.Context(), tx, bookings[i], ended[i]); err != nil {
			return fmt.Errorf("cancel the payment of booking %s: %w", bookings[i], err)
		}
	}
	return nil
}

// Refund handles RefundPayment: what was captured is given back by a task, and PaymentRefunded is published when that is
// done; at once, if it was done before. Where nothing was captured, the payment ends, and where it stands is published. The
// requests must be of different bookings.
func (s *Service) Refund(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.RefundPayment]) error {
	bookings := make([]string, len(requests))
	for i, r := range requests {
		bookings[i] = r.Event.BookingID
		s.log.InfoContext(r.Context(), logRefunding, "booking_id", r.Event.BookingID, "payment_id", r.Event.PaymentID, "reason", string(r.Event.Reason))
	}
	payments, err := lockPayments(ctx, tx, bookings)
	if err != nil {
		return fmt.Errorf("lock the payments of %d bookings: %w", len(bookings), err)
	}
	for i, r := range requests {
		if payments[i] == nil || payments[i].ID.String() != r.Event.PaymentID {
			return inbox.Permanent(fmt.Errorf("refund: booking %s has no payment %s", r.Event.BookingID, r.Event.PaymentID))
		}
		if err := s.refund(r.Context(), tx, *payments[i]); err != nil {
			return fmt.Errorf("refund payment %s: %w", r.Event.PaymentID, err)
		}
	}
	return nil
}

// refund answers one request about a payment that is locked.
func (s *Service) refund(ctx context.Context, tx pgx.Tx, p Payment) error {
	all, err := charges(ctx, tx, p.ID)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return s.endUnpaid(ctx, tx, p)
	}
	if event, done := p.refunded(all); done {
		return s.publish(ctx, tx, event)
	}
	var tasks []newTask
	for _, c := range all {
		tasks = append(tasks, newTask{p.ID, taskRefund, c.Reference, outbox.CausalityFrom(ctx)})
	}
	return s.addTasks(ctx, tx, tasks...)
}

// endUnpaid ends a payment that is locked and brought no money.
func (s *Service) endUnpaid(ctx context.Context, tx pgx.Tx, p Payment) error {
	if p.Status != Preparing && p.Status != Prepared {
		return s.tell(ctx, tx, p)
	}
	ended, _, err := move(ctx, tx, p.ID, p.Status, Cancelled, "")
	if err != nil {
		return fmt.Errorf("end it: %w", err)
	}
	if ended.Session != nil {
		if err := s.addTasks(ctx, tx, newTask{p.ID, taskClose, "", outbox.CausalityFrom(ctx)}); err != nil {
			return err
		}
	}
	return s.tell(ctx, tx, ended)
}
