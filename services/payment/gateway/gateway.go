// Package gateway is where money is taken and given back. Two gateways are real: the sandbox, which is built in and moves no
// money, and Stripe.
//
// # What a gateway promises
//
// Every call may be repeated under its key, by any process, after any crash, and takes effect once. A call is never made inside
// a transaction of the caller. What becomes of a payment is told by webhook alone, at least once, in any order, and maybe late:
// a session that was closed may still bring money.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
)

// ErrRefused says that the gateway will never do what it was asked for. Every other error of a call may pass.
var ErrRefused = errors.New("the gateway refuses")

// ErrKeySpent says that the gateway failed and will answer the same for ever under this key. The call may be made again under another
// one: a second session is paid by nobody, and no charge can be given back twice.
var ErrKeySpent = errors.New("the gateway failed")

// Errors of Receive.
var (
	// ErrSignature says that a webhook is forged, or too old.
	ErrSignature = errors.New("the webhook's signature does not hold")
	// ErrMalformed says that a webhook is signed and cannot be understood.
	ErrMalformed = errors.New("the webhook cannot be understood")
)

// Checkout is a payment that a person is to make.
type Checkout struct {
	// Key is the idempotency key.
	Key       string
	PaymentID uuid.UUID
	BookingID uuid.UUID
	Amount    contracts.Amount
	Currency  string
	// AskedAt is when the payment was asked for, the same at every repetition.
	AskedAt time.Time
	// ExpiresAt is until when it can be made. A gateway with limits of its own keeps the session open for longer, or shorter.
	ExpiresAt time.Time
}

// Session is a checkout that the gateway has opened.
type Session struct {
	// Ref is the gateway's name of it, 1 to 255 bytes.
	Ref string
	// URL is where the person pays.
	URL string
}

// Refund gives a whole charge back.
type Refund struct {
	// Key is the idempotency key.
	Key string
	// Charge is the gateway's name of what was captured.
	Charge   string
	Amount   contracts.Amount
	Currency string
}

// Kind is what a webhook says.
type Kind string

// The kinds. What is of no interest, or of another application, is Ignored.
const (
	Ignored  Kind = "ignored"
	Captured Kind = "captured"
	Declined Kind = "declined"
	Expired  Kind = "expired"
)

// Event is a webhook that was verified.
type Event struct {
	// ID is the same at every delivery.
	ID        string
	Kind      Kind
	PaymentID uuid.UUID
	// Charge, Amount and Currency say what was captured.
	Charge   string
	Amount   contracts.Amount
	Currency string
}

// Check is ErrMalformed when the event lacks what it is about, or says it in values that cannot be stored.
func (e Event) Check() error {
	switch {
	case e.Kind == Ignored:
		return nil
	case !plainID(e.ID), e.PaymentID == uuid.Nil:
		return fmt.Errorf("%w: it does not say which payment it is about", ErrMalformed)
	case e.Kind != Captured:
		return nil
	case !plainID(e.Charge), e.Amount <= 0, !e.Amount.Valid(), !contracts.ValidCurrency(e.Currency):
		return fmt.Errorf("%w: it does not say what was captured", ErrMalformed)
	}
	return nil
}

// Gateway takes money and gives it back.
type Gateway interface {
	// Name is the gateway's, of its webhook route and in the database.
	Name() string
	// Takes reports whether payments in the currency are possible.
	Takes(currency string) bool
	// Open opens a session, or finds the one that was opened under the key.
	Open(ctx context.Context, c Checkout) (Session, error)
	// Close ends a session. One that has ended, or whose money is on its way, is no error.
	Close(ctx context.Context, session string) error
	// Refund gives a charge back and returns the gateway's name of the refund.
	Refund(ctx context.Context, r Refund) (reference string, err error)
	// Receive verifies a webhook and reads it. Its errors are ErrSignature, ErrMalformed, and others that may pass.
	Receive(ctx context.Context, header http.Header, body []byte) (Event, error)
}

// Clip makes of what went wrong a text of at most 1,000 bytes that PostgreSQL takes.
func Clip(text string) string {
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "")
	if len(text) > 1000 {
		text = strings.ToValidUTF8(text[:1000], "")
	}
	return text
}

// Local is a gateway whose sessions live in the database of the payments: they are opened in the transaction that stores
// a payment, without a call and without a task.
type Local interface {
	Gateway
	// Plan is the session that OpenIn will open.
	Plan(c Checkout) Session
	// OpenIn opens the sessions.
	OpenIn(ctx context.Context, tx pgx.Tx, checkouts []Checkout) error
}
