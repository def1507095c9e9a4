package saga

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/contracts"
)

var noon = time.Date(2100, 1, 1, 12, 0, 0, 0, time.UTC)

// life is an instance and what it has sent last.
type life struct {
	t    *testing.T
	d    Definition
	i    Instance
	sent []string
}

func begun(t *testing.T) *life {
	t.Helper()
	l := &life{t: t, d: first, i: Instance{Booking: contracts.BookingCreated{BookingID: "b", ExpiresAt: noon.Add(15 * time.Minute)}}}
	l.at(noon, Begin)
	return l
}

// at is an event at a time; after a space of its type may stand what it tells.
func (l *life) at(when time.Time, typ string) {
	l.t.Helper()
	before := l.i
	copied := Instance{Steps: map[string]Progress{}}
	for name, p := range before.Steps {
		copied.Steps[name] = p
	}
	typ, told, _ := strings.Cut(typ, " ")
	after, commands, err := Next(l.d, before, Event{Answer: Answer{typ, told}, At: when})
	if err != nil {
		l.t.Fatal(err)
	}
	if len(copied.Steps) > 0 && !reflect.DeepEqual(copied.Steps, before.Steps) {
		l.t.Fatal("Next has changed what it was given")
	}
	l.i, l.sent = after, nil
	for _, c := range commands {
		l.sent = append(l.sent, c.Type)
	}
}

func TestPausesDoubleAndAreSpread(t *testing.T) {
	t.Parallel()
	l := begun(t)
	l.at(noon, contracts.TypeInventoryUpdated)
	now, last := noon, time.Duration(0)
	for range first.Steps[2].Wait.Retries {
		due := l.i.Due()
		pause := due.Sub(now)
		if pause <= last || pause > maxPause+maxPause/8 {
			t.Errorf("a pause of %s after one of %s", pause, last)
		}
		if l.at(due.Add(-time.Nanosecond), Timeout); len(l.sent) > 0 {
			t.Fatalf("%v before the time", l.sent)
		}
		if l.at(*due, Timeout); !slices.Equal(l.sent, []string{contracts.TypePreparePaymentData}) {
			t.Fatalf("sent %v", l.sent)
		}
		now, last = *due, pause
	}
	now = *l.i.Due()
	if l.at(now, Timeout); l.i.Phase != Settling || l.i.Outcome != contracts.OutcomePaymentUnavailable {
		t.Errorf("%s for %s", l.i.Phase, l.i.Outcome)
	}
	for l.i.Due() != nil {
		due := *l.i.Due()
		if pause := due.Sub(now); pause > maxPause+maxPause/8 {
			t.Errorf("a pause of %s", pause)
		}
		l.at(due, Timeout)
		now = due
	}
	if l.i.Stuck() != first.Decision.Name {
		t.Errorf("stuck at %q", l.i.Stuck())
	}
}

func TestTheMoneyIsWaitedForUntilAfterTheExpiry(t *testing.T) {
	t.Parallel()
	l := begun(t)
	l.at(noon, contracts.TypeInventoryUpdated)
	l.at(noon, contracts.TypePaymentDataPrepared)
	if due := l.i.Due(); due == nil || !due.Equal(l.i.Booking.ExpiresAt.Add(2*time.Minute)) {
		t.Fatalf("due at %v", due)
	}
	if l.at(*l.i.Due(), Timeout); l.i.Outcome != contracts.OutcomeExpired || !slices.Equal(l.sent, []string{contracts.TypeSettleBooking}) {
		t.Errorf("%s, sent %v", l.i.Outcome, l.sent)
	}
}

// What is held comes back in the reverse order, one after the other, and for the reason that booking gives.
func TestUndoingIsInReverse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		verdict Answer
		reason  contracts.UndoReason
	}{
		{Answer{Type: contracts.TypeBookingCancelled}, contracts.UndoBookingCancelled},
		{Answer{Type: contracts.TypeBookingExpired}, contracts.UndoBookingExpired},
		{Answer{contracts.TypeBookingRejected, "sold_out"}, contracts.UndoBookingRejected},
		{Answer{contracts.TypeBookingRejected, "payment_failed"}, contracts.UndoPaymentFailed},
	} {
		l := begun(t)
		l.at(noon, contracts.TypeInventoryUpdated)
		l.at(noon, contracts.TypePaymentDataPrepared)
		i, commands, err := Next(l.d, l.i, Event{Answer: c.verdict, At: noon})
		if err != nil || len(commands) != 2 || commands[0].Type != contracts.TypeSendBookingNotification ||
			commands[1].Type != contracts.TypeCancelPayment || i.Reason != c.reason {
			t.Errorf("%v: %v for %s, %v", c.verdict, commands, i.Reason, err)
		}
	}
}

// A hold that is told of only after it was undone is undone again.
func TestWhatComesAfterItsUndoingIsUndoneAgain(t *testing.T) {
	t.Parallel()
	l := begun(t)
	for _, typ := range []string{contracts.TypeBookingCancelled, contracts.TypePaymentCancelled, contracts.TypeInventoryReleased} {
		l.at(noon, typ)
	}
	if l.i.Phase != Compensated {
		t.Fatal(l.i.Phase)
	}
	if l.at(noon, contracts.TypeInventoryUpdated); l.i.Phase != Compensating || !slices.Equal(l.sent, []string{contracts.TypeReleaseEventInventory}) {
		t.Errorf("%s, sent %v", l.i.Phase, l.sent)
	}
	if l.at(noon, contracts.TypeInventoryUpdated); len(l.sent) > 0 {
		t.Errorf("sent %v", l.sent)
	}
	if l.at(noon, contracts.TypeInventoryReleased); l.i.Phase != Compensated || l.i.Due() != nil {
		t.Errorf("%s, due at %v", l.i.Phase, l.i.Due())
	}
}

// What is being released and then told to be refused is not waited for any more, stuck or not.
func TestARefusalEndsTheUndoing(t *testing.T) {
	t.Parallel()
	for _, stuck := range []bool{false, true} {
		l := begun(t)
		for _, typ := range []string{contracts.TypeBookingCancelled, contracts.TypePaymentCancelled} {
			l.at(noon, typ)
		}
		for stuck && l.i.Due() != nil {
			l.at(*l.i.Due(), Timeout)
		}
		if got := l.i.Stuck() != ""; got != stuck {
			t.Fatalf("stuck at %q", l.i.Stuck())
		}
		if l.at(noon, contracts.TypeInventoryUpdateRejected+" sold_out"); l.i.Phase != Compensated || l.i.Stuck() != "" || l.i.Due() != nil {
			t.Errorf("%s, stuck at %q, due at %v", l.i.Phase, l.i.Stuck(), l.i.Due())
		}
	}
}

func TestTheNextDeadlineIsTheFirst(t *testing.T) {
	t.Parallel()
	l := begun(t)
	next := *l.i.Due()
	for name, p := range l.i.Steps {
		if p.Due != nil && p.Due.Before(next) {
			t.Errorf("%s is due at %v, before %v", name, p.Due, next)
		}
	}
	if l.i.Steps["tickets"].Due.Equal(*l.i.Steps["payment"].Due) {
		t.Error("two steps are due at the same moment")
	}
}
