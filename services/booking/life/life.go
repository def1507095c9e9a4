package life

import (
	"slices"

	"github.com/jcp/ticketwave/contracts"
)

// Status is how far a booking has come.
type Status string

// The statuses of a booking; doc.go has the transitions.
const (
	Pending         Status = "pending"
	AwaitingPayment Status = "awaiting_payment"
	Confirmed       Status = "confirmed"
	Rejected        Status = "rejected"
	Expired         Status = "expired"
	PaymentFailed   Status = "payment_failed"
	Cancelled       Status = "cancelled"
)

// Final reports whether the status never changes again.
func (s Status) Final() bool { return s != Pending && s != AwaitingPayment }

// Inventory is what the catalog has said of the booking's tickets.
type Inventory string

// What there is to know of the tickets.
const (
	InventoryAsked    Inventory = "asked"
	InventoryHeld     Inventory = "held"
	InventoryRefused  Inventory = "refused"
	InventoryReleased Inventory = "released"
	InventorySold     Inventory = "sold"
)

// Payment is what the payment service has said of the booking's payment.
type Payment string

// What there is to know of the payment.
const (
	PaymentAsked       Payment = "asked"
	PaymentPrepared    Payment = "prepared"
	PaymentUnavailable Payment = "unavailable"
	PaymentRefused     Payment = "failed"
	PaymentExpired     Payment = "expired"
	PaymentCancelled   Payment = "cancelled"
	PaymentCompleted   Payment = "completed"
	PaymentRefunded    Payment = "refunded"
)

// State is all of a booking that its life depends on.
type State struct {
	// Led is whether a coordinator leads the booking.
	Led    bool
	Status Status
	// Reason is why a booking was rejected or its payment failed. Where a coordinator leads, the latter is known before the end.
	Reason    string
	Inventory Inventory
	Payment   Payment
	// Settling is whether the coordinator has said that the booking is confirmed, and the booking has not heard why.
	Settling bool
}

// Begin is the state of a new booking.
func Begin(led bool) State {
	return State{Led: led, Status: Pending, Inventory: InventoryAsked, Payment: PaymentAsked}
}

// Kind says what happened.
type Kind string

// What can happen to a booking.
const (
	TicketsHeld       Kind = "tickets_held"
	TicketsRefused    Kind = "tickets_refused"
	TicketsReleased   Kind = "tickets_released"
	TicketsSold       Kind = "tickets_sold"
	MoneyPrepared     Kind = "payment_prepared"
	MoneyUnavailable  Kind = "payment_unavailable"
	MoneyCompleted    Kind = "payment_completed"
	MoneyFailed       Kind = "payment_failed"
	MoneyExpired      Kind = "payment_expired"
	MoneyCancelled    Kind = "payment_cancelled"
	MoneyRefunded     Kind = "payment_refunded"
	DeadlinePassed    Kind = "deadline_passed"
	CancelRequested   Kind = "cancel_requested"
	SettlementArrived Kind = "settlement_asked"
)

// Event is something that happened.
type Event struct {
	Kind Kind
	// Reason is that of TicketsRefused and MoneyFailed.
	Reason string
	// Outcome is that of SettlementArrived.
	Outcome contracts.SagaOutcome
}

// Effect is something to send.
type Effect string

// What a booking sends.
const (
	// Tell says how the booking ended.
	Tell           Effect = "tell"
	ReleaseTickets Effect = "release_tickets"
	CommitTickets  Effect = "commit_tickets"
	CancelPayment  Effect = "cancel_payment"
	RefundPayment  Effect = "refund_payment"
	NotifyOfTheEnd Effect = "notify"
)

// Next is the state after the event, and what must be sent. An event that says nothing new changes nothing.
func Next(s State, e Event) (State, []Effect) {
	next := s.noted(e)
	switch {
	case s.Status.Final():
		return next, next.late(e, s)
	case s.Led:
		next = next.led(e)
	default:
		next = next.alone(e)
	}
	if !next.Status.Final() {
		return next, nil
	}
	next.Settling = false
	return next, next.ending()
}

// noted is the state that knows what the event says. What ended something is not taken back by what was said before it.
func (s State) noted(e Event) State {
	switch e.Kind {
	case TicketsHeld:
		s.Inventory = after(s.Inventory, InventoryHeld, InventoryAsked)
	case TicketsRefused:
		s.Inventory = after(s.Inventory, InventoryRefused, InventoryAsked)
	case TicketsReleased:
		s.Inventory = after(s.Inventory, InventoryReleased, InventoryAsked, InventoryHeld, InventoryRefused)
	case TicketsSold:
		s.Inventory = after(s.Inventory, InventorySold, InventoryHeld)
	case MoneyPrepared:
		s.Payment = after(s.Payment, PaymentPrepared, PaymentAsked)
	case MoneyUnavailable:
		s.Payment = after(s.Payment, PaymentUnavailable, PaymentAsked)
	case MoneyFailed:
		s.Payment = after(s.Payment, PaymentRefused, PaymentAsked, PaymentPrepared)
		if !s.Status.Final() && s.Payment != PaymentCompleted {
			s.Reason = e.Reason
		}
	case MoneyExpired:
		s.Payment = after(s.Payment, PaymentExpired, PaymentAsked, PaymentPrepared)
	case MoneyCancelled:
		s.Payment = after(s.Payment, PaymentCancelled, PaymentAsked, PaymentPrepared)
	case MoneyCompleted:
		if s.Payment != PaymentRefunded {
			s.Payment = PaymentCompleted
		}
	case MoneyRefunded:
		s.Payment = PaymentRefunded
	}
	return s
}

// after is what follows, if what is known is one of those it can follow.
func after[K comparable](known, follows K, on ...K) K {
	if slices.Contains(on, known) {
		return follows
	}
	return known
}

// alone decides where the booking goes by what it hears.
func (s State) alone(e Event) State {
	ended := s.Payment == PaymentRefunded // whose end may be heard of after the refund
	switch {
	case e.Kind == CancelRequested:
		return s.end(Cancelled, "")
	case e.Kind == DeadlinePassed:
		return s.end(Expired, "")
	case s.Inventory == InventoryRefused:
		return s.end(Rejected, e.Reason)
	case s.Payment == PaymentUnavailable:
		return s.end(Rejected, string(contracts.BookingPaymentUnavailable))
	case s.Payment == PaymentRefused, ended && e.Kind == MoneyFailed:
		return s.end(PaymentFailed, e.Reason)
	case s.Payment == PaymentExpired, ended && e.Kind == MoneyExpired:
		return s.end(Expired, "")
	case s.Inventory == InventoryHeld && s.Payment == PaymentCompleted:
		return s.end(Confirmed, "")
	}
	return s.waiting()
}

// led decides where a coordinator leads.
func (s State) led(e Event) State {
	switch {
	case e.Kind == CancelRequested:
		return s.end(Cancelled, "")
	case e.Kind == DeadlinePassed:
		return s.end(Expired, "")
	case e.Kind == SettlementArrived && e.Outcome != contracts.OutcomeConfirmed:
		return s.settled(e.Outcome)
	case e.Kind == SettlementArrived:
		s.Settling = true
	}
	if s.Settling && s.Inventory == InventoryHeld && s.Payment == PaymentCompleted {
		return s.end(Confirmed, "")
	}
	return s.waiting()
}

// settled is the end that the coordinator wants.
func (s State) settled(outcome contracts.SagaOutcome) State {
	switch outcome {
	case contracts.OutcomeExpired:
		return s.end(Expired, "")
	case contracts.OutcomeCancelled:
		return s.end(Cancelled, "")
	case contracts.OutcomePaymentFailed:
		return s.end(PaymentFailed, s.Reason)
	}
	return s.end(Rejected, string(outcome))
}

func (s State) end(status Status, reason string) State {
	s.Status, s.Reason = status, reason
	return s
}

func (s State) waiting() State {
	if s.Inventory == InventoryHeld && (s.Payment == PaymentPrepared || s.Payment == PaymentCompleted) {
		s.Status = AwaitingPayment
	}
	return s
}

// ending is what a booking sends when it ends.
func (s State) ending() []Effect {
	if s.Led {
		return []Effect{Tell}
	}
	if s.Status == Confirmed {
		return []Effect{Tell, CommitTickets, NotifyOfTheEnd}
	}
	effects := []Effect{Tell}
	if s.Inventory == InventoryAsked || s.Inventory == InventoryHeld {
		effects = append(effects, ReleaseTickets)
	}
	switch s.Payment {
	case PaymentAsked, PaymentPrepared:
		effects = append(effects, CancelPayment)
	case PaymentCompleted:
		effects = append(effects, RefundPayment)
	}
	return append(effects, NotifyOfTheEnd)
}

// late is what a booking sends that has ended before.
func (s State) late(e Event, before State) []Effect {
	switch {
	case s.Led && e.Kind == SettlementArrived:
		return []Effect{Tell}
	case !s.Led && s.Status != Confirmed && s.Payment == PaymentCompleted && before.Payment != PaymentCompleted:
		return []Effect{RefundPayment}
	}
	return nil
}

// Contradiction says why the event cannot be true of a booking in this state, or is empty. It never is while the
// participants keep their promises.
func Contradiction(s State, e Event) string {
	switch e.Kind {
	case SettlementArrived:
		if !s.Led {
			return "no coordinator leads it"
		}
	case TicketsSold:
		if s.Status != Confirmed {
			return "its tickets are sold although it is not confirmed"
		}
	case TicketsReleased, TicketsRefused, MoneyUnavailable, MoneyFailed, MoneyExpired, MoneyCancelled, MoneyRefunded:
		if s.Status == Confirmed {
			return "it is confirmed"
		}
	}
	return ""
}
