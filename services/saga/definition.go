package saga

import (
	"time"

	"github.com/jcp/ticketwave/contracts"
)

// firm is for what must be done: it is asked for over half an hour, and then by an operator.
var firm = Patience{Timeout: 30 * time.Second, Retries: 9}

// first is the process of a booking. It reads from top to bottom; what is undone is undone from bottom to top. It never
// changes: another process is another version, and instances go on under the one that they began with.
var first = Definition{
	Version: 1,
	Steps: []Step{
		{
			Name:    "tickets",
			Command: contracts.TypeUpdateEventInventory,
			Done:    []string{contracts.TypeInventoryUpdated},
			Refused: map[Answer]contracts.SagaOutcome{
				{contracts.TypeInventoryUpdateRejected, string(contracts.RejectSoldOut)}:      contracts.OutcomeSoldOut,
				{contracts.TypeInventoryUpdateRejected, string(contracts.RejectUnknownEvent)}: contracts.OutcomeUnknownEvent,
				{Type: contracts.TypeInventoryReleased}:                                       contracts.OutcomeExpired,
			},
			Undo:     contracts.TypeReleaseEventInventory,
			Over:     []string{contracts.TypeInventoryReleased},
			Wait:     Patience{Timeout: 30 * time.Second, Retries: 4, Otherwise: contracts.OutcomeExpired},
			UndoWait: firm,
		},
		{
			Name:    "first letter", // nobody waits for it, and nothing undoes it
			Command: contracts.TypeSendBookingNotification,
		},
		{
			Name:    "payment",
			Command: contracts.TypePreparePaymentData,
			Done:    []string{contracts.TypePaymentDataPrepared, contracts.TypePaymentCompleted},
			Refused: map[Answer]contracts.SagaOutcome{
				{Type: contracts.TypePaymentPreparationFailed}: contracts.OutcomePaymentUnavailable,
				{Type: contracts.TypePaymentCancelled}:         contracts.OutcomePaymentUnavailable,
			},
			Undo: contracts.TypeCancelPayment,
			Over: []string{ // whatever ends a payment leaves nothing to cancel
				contracts.TypePaymentCancelled, contracts.TypePaymentPreparationFailed, contracts.TypePaymentCompleted,
				contracts.TypePaymentFailed, contracts.TypePaymentExpired, contracts.TypePaymentRefunded,
			},
			Wait:     Patience{Timeout: 30 * time.Second, Retries: 4, Otherwise: contracts.OutcomePaymentUnavailable},
			UndoWait: firm,
		},
		{
			Name:  "money", // the user pays; nobody asks for it again
			After: "payment",
			Done:  []string{contracts.TypePaymentCompleted},
			Refused: map[Answer]contracts.SagaOutcome{
				{Type: contracts.TypePaymentFailed}:    contracts.OutcomePaymentFailed,
				{Type: contracts.TypePaymentExpired}:   contracts.OutcomeExpired,
				{Type: contracts.TypePaymentCancelled}: contracts.OutcomePaymentUnavailable,
				{Type: contracts.TypePaymentRefunded}:  contracts.OutcomeExpired,
			},
			Undo: contracts.TypeRefundPayment,
			Over: []string{contracts.TypePaymentRefunded},
			// The payment expires by itself, and says so.
			Wait:     Patience{PastExpiry: 2 * time.Minute, Otherwise: contracts.OutcomeExpired},
			UndoWait: firm,
		},
	},
	Decision: Decision{
		Name:    "decision",
		Command: contracts.TypeSettleBooking,
		Commit:  contracts.TypeBookingConfirmed,
		Undo: map[Answer]contracts.UndoReason{
			{Type: contracts.TypeBookingRejected}:                                   contracts.UndoBookingRejected,
			{contracts.TypeBookingRejected, string(contracts.BookingPaymentFailed)}: contracts.UndoPaymentFailed,
			{Type: contracts.TypeBookingCancelled}:                                  contracts.UndoBookingCancelled,
			{Type: contracts.TypeBookingExpired}:                                    contracts.UndoBookingExpired,
		},
		Wait: firm,
	},
	Notice: Step{
		Name:    "last letter",
		Command: contracts.TypeSendBookingNotification,
	},
	Finish: []Step{
		{
			Name:    "sale",
			Command: contracts.TypeCommitEventInventory,
			Done:    []string{contracts.TypeInventoryCommitted},
			Wait:    firm,
		},
	},
}

// Definitions are all processes that instances may still be under, the newest last: with it new ones begin.
func Definitions() []Definition { return []Definition{first} }
