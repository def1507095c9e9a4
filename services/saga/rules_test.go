package saga

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jcp/ticketwave/contracts"
)

// odd says what is wrong with an instance as it stands, or is empty.
func (d Definition) odd(i Instance) string {
	stuck := i.Stuck()
	decision := i.Steps[d.Decision.Name].Forward
	reason, _ := lookup(d.Decision.Undo, i.Verdict)
	switch {
	case i.Phase.Ended() && (i.Due() != nil || stuck != ""):
		return fmt.Sprintf("%s, and waits for something: %+v", i.Phase, i.Steps)
	case !i.Phase.Ended() && i.Due() == nil && stuck == "":
		return fmt.Sprintf("%s, and waits for nothing: %+v", i.Phase, i.Steps)
	case (i.Verdict.Type != "") != (decision == Done), (i.Verdict.Type == "") != (i.Phase == Running || i.Phase == Settling):
		return fmt.Sprintf("%s with verdict %q and decision %q", i.Phase, i.Verdict.Type, decision)
	case i.Verdict.Type != "" && (i.Verdict.Type == d.Decision.Commit) != (i.Phase == Committing || i.Phase == Committed):
		return fmt.Sprintf("%s after %s", i.Phase, i.Verdict.Type)
	case i.Reason != reason:
		return fmt.Sprintf("the reason is %q after %v", i.Reason, i.Verdict)
	case i.Outcome == "" && i.Phase == Settling:
		return "nobody knows what is to be settled"
	}
	for name, p := range i.Steps {
		if why := d.oddStep(i, name, p); why != "" {
			return fmt.Sprintf("%s in phase %s: %s: %+v", name, i.Phase, why, p)
		}
	}
	return ""
}

// oddStep says what is wrong with the progress of a step, or is empty.
func (d Definition) oddStep(i Instance, name string, p Progress) string {
	step := d.step(name)
	finishes := slices.ContainsFunc(d.Finish, func(s Step) bool { return s.Name == name })
	undone := i.Phase == Compensating || i.Phase == Compensated
	switch {
	case p.Due == nil && p.Tries != 0:
		return "requests are counted that nobody waits for"
	case (p.Forward == Late || p.Forward == Refused) && (p.Outcome == "" || i.Phase == Running):
		return "it has failed, and that is ignored"
	case (p.Back == Asked || p.Back == Stuck) && !undone:
		return "it is undone before the decision"
	case (p.Back == Asked) != (p.Due != nil) && undone:
		return "its undoing is asked for, and not waited for, or the other way round"
	case p.Due == nil:
		return ""
	case p.Tries > max(step.Wait.Retries, step.UndoWait.Retries)+1:
		return "it is asked for too often"
	case i.Phase == Running && (p.Forward != Asked || step.After != "" && i.Steps[step.After].Forward != Done):
		return "it is waited for, and was not asked for"
	case i.Phase == Settling && name != d.Decision.Name, i.Phase == Committing && !finishes:
		return "its answer is waited for, which does not matter any more"
	}
	return ""
}

func (d Definition) step(name string) Step {
	all := d.all()
	return all[slices.IndexFunc(all, func(s Step) bool { return s.Name == name })]
}

// left is whether a step may have been done and not been undone.
func left(s Step, p Progress) bool {
	may := p.Seen || s.Command != "" && (p.Forward == Asked || p.Forward == Late)
	return s.Undo != "" && p.Back != Done && may
}

// astray says what is wrong with what an event has made of an instance, or is empty.
func (d Definition) astray(before Instance, q question, after Instance, commands []Command, err error) string {
	if why, refused := d.refuses(before, q.typ); refused != nil || err != nil {
		if !errors.Is(err, refused) || refused == nil {
			return fmt.Sprintf("%s in phase %s: %v, want %v since %s", q.typ.Type, before.Phase, err, refused, why)
		}
		return ""
	}
	for _, s := range d.all() {
		if why := d.astrayStep(before, q, after, s); why != "" {
			return fmt.Sprintf("%s after %v in phase %s: %s: %+v, then %+v", s.Name, q, before.Phase, why, before.Steps[s.Name], after.Steps[s.Name])
		}
	}
	if why := d.astrayTalk(before, q, after, commands); why != "" {
		return fmt.Sprintf("after %v in phase %s: %s: %v", q, before.Phase, why, commands)
	}
	switch {
	case before.Verdict.Type != "" && after.Verdict != before.Verdict:
		return "a decision is changed"
	case before.Outcome != "" && after.Outcome != before.Outcome:
		return "what is asked for is changed"
	case after.Phase == Compensated && slices.ContainsFunc(d.Steps, func(s Step) bool { return left(s, after.Steps[s.Name]) }):
		return "all is said to be undone, and is not"
	case q.typ.Type == Resume && after.Stuck() != "":
		return "it is stuck although it was resumed"
	case q.typ.Type == GiveUp && (after.Phase != Settling || after.Outcome != contracts.OutcomeCancelled):
		return "an operator has given it up, and it is not to be cancelled"
	case before.PaymentID != "" && after.PaymentID != before.PaymentID:
		return "its payment is forgotten"
	}
	return ""
}

// refuses is the error of what cannot be.
func (d Definition) refuses(i Instance, a Answer) (why string, err error) {
	_, undo := lookup(d.Decision.Undo, a)
	switch {
	case a.Type == Resume && i.Stuck() == "":
		return "nothing is stuck", ErrNotStuck
	case a.Type == GiveUp && i.Phase != Running:
		return "it is past that", ErrTooLate
	case (undo || a.Type == d.Decision.Commit) && i.Verdict.Type != "" && i.Verdict.Type != a.Type:
		return "it was decided otherwise", ErrContradiction
	}
	return "nothing speaks against it", nil
}

// astrayStep is about one step.
func (d Definition) astrayStep(before Instance, q question, after Instance, s Step) string {
	was, is := before.Steps[s.Name], after.Steps[s.Name]
	_, refusal := lookup(s.Refused, q.typ)
	done, over := slices.Contains(s.Done, q.typ.Type), slices.Contains(s.Over, q.typ.Type)
	reversible := s.Undo != ""
	final := was.Forward == Done || was.Forward == Refused || was.Forward == Late
	gone := was.Forward == Done && is.Forward == Refused && before.Phase == Running
	undone := after.Phase == Compensating || after.Phase == Compensated
	given := is.Forward == Late || is.Forward == Stuck
	switch {
	case final && is.Forward != was.Forward && !gone:
		return "what was final is changed"
	case was.Seen && !is.Seen:
		return "it is forgotten that it was done"
	case done && s.Name != d.Decision.Name && !is.Seen:
		return "it is told to be done, and that is not noted"
	case done && !final && s.Name != d.Decision.Name && is.Forward != Done:
		return "it is told to be done, and is not"
	case done && !was.Seen && reversible && undone && !over && is.Back == Done:
		return "it is told to be done after it was undone, and stays"
	case over && reversible && is.Back != Done:
		return "it is told to be undone, and is not"
	case refusal && before.Phase == Running && after.Phase == Running:
		return "it is refused, and all goes on"
	case refusal && !final && is.Forward != Refused:
		return "its refusal is not noted"
	case was.Back == Done && is.Back != Done && (was.Seen || !is.Seen):
		return "it is undone twice"
	case given && is.Forward != was.Forward && (q.late != s.Name || was.Tries <= s.Wait.Retries):
		return "it is given up too early"
	case is.Back == Stuck && was.Back != Stuck && (q.late != s.Name || was.Tries <= s.UndoWait.Retries):
		return "its undoing is given up too early"
	case q.late != "" && q.late != s.Name && was.Due != nil && is.Due != nil && is.Tries != was.Tries:
		return "it is asked for again before its time"
	case q.late == s.Name && was.Due != nil && is.Due != nil && is.Tries != was.Tries+1:
		return "it is asked for again, and that is not counted"
	case q.late == s.Name && was.Back == Asked && is.Back != Asked && is.Back != Stuck:
		return "its undoing is late, and is not asked for again or given up"
	}
	return ""
}

// astrayTalk is about what is sent.
func (d Definition) astrayTalk(before Instance, q question, after Instance, commands []Command) string {
	decided := before.Verdict.Type == "" && after.Verdict.Type != ""
	letters := []contracts.NotificationType{}
	for _, c := range commands {
		s, was := d.step(c.Step), before.Steps[c.Step]
		back := c.Type == s.Undo
		repeated := q.typ.Type == Timeout && q.late == c.Step && c.Try == was.Tries+1
		resumed := q.typ.Type == Resume && c.Try == 1 && (back && was.Back == Stuck || !back && was.Forward == Stuck)
		again := repeated || resumed
		made, ok := requests[c.Type](after, past).(contracts.Event)
		if !ok || made.Validate() != nil {
			return fmt.Sprintf("%s: %+v is not valid", c.Type, made)
		}
		if letter, ok := made.(contracts.SendBookingNotification); ok {
			letters = append(letters, letter.NotificationType)
		}
		switch {
		case !again && c.Try != 1:
			return c.Type + " is repeated without need"
		case !back && !again && was.Forward != "":
			return c.Type + " is asked for twice"
		case back && !again && (was.Back == Asked || was.Back == Stuck):
			return c.Type + " is asked for twice"
		case back && !again && d.later(c.Step, func(s Step) bool { return left(s, after.Steps[s.Name]) }):
			return c.Type + " is asked for before what came after it is undone"
		}
	}
	want := []contracts.NotificationType{}
	if q.typ.Type == Begin {
		want = append(want, contracts.NotificationBookingCreated)
	}
	if decided {
		letter, _ := lookup(told, after.Verdict)
		want = append(want, letter)
	}
	if !slices.Equal(letters, want) {
		return fmt.Sprintf("the letters are %v, not %v", letters, want)
	}
	return ""
}

// told is what users must be told of a decision.
var told = map[Answer]contracts.NotificationType{
	{Type: contracts.TypeBookingConfirmed}:            "booking_confirmed",
	{Type: contracts.TypeBookingRejected}:             "booking_rejected",
	{contracts.TypeBookingRejected, "payment_failed"}: "payment_failed",
	{Type: contracts.TypeBookingCancelled}:            "booking_cancelled",
	{Type: contracts.TypeBookingExpired}:              "booking_expired",
}

// later reports whether something is true of a step after the named one.
func (d Definition) later(name string, is func(s Step) bool) bool {
	at := slices.IndexFunc(d.Steps, func(s Step) bool { return s.Name == name })
	return slices.ContainsFunc(d.Steps[at+1:], is)
}

// unruly asks an instance everything that there is, whether or not the participants would ever say it now, and says what
// is wrong with what becomes of it, or is empty.
func (x *explorer) unruly(i Instance) string {
	for _, a := range x.d.answers() {
		q := question{typ: a}
		after, commands, err := x.next(x.d, i, q.event())
		if why := x.d.astray(i, q, after, commands, err); why != "" {
			return why
		}
	}
	// Nothing is due before its time.
	after, commands, err := x.next(x.d, i, Event{Answer: Answer{Type: Timeout}, At: past.Add(-time.Nanosecond)})
	if err != nil || len(commands) > 0 || !maps.EqualFunc(i.Steps, after.Steps, sameMarks) {
		return fmt.Sprintf("before any time is up %v are sent: %+v, then %+v, %v", commands, i.Steps, after.Steps, err)
	}
	return ""
}

func sameMarks(p, q Progress) bool {
	return p.Forward == q.Forward && p.Back == q.Back && p.Tries == q.Tries
}

// answers is everything that a process can be told.
func (d Definition) answers() (all []Answer) {
	for _, s := range slices.Concat(d.Steps, d.Finish) {
		for _, typ := range slices.Concat(s.Done, s.Over) {
			all = append(all, Answer{Type: typ})
		}
		all = slices.AppendSeq(all, maps.Keys(s.Refused))
	}
	all = slices.AppendSeq(append(all, Answer{Type: d.Decision.Commit}), maps.Keys(d.Decision.Undo))
	return append(all, Answer{Type: Resume}, Answer{Type: GiveUp})
}
