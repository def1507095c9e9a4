package saga

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/jcp/ticketwave/contracts"
)

// Definition is one version of a process.
type Definition struct {
	Version int
	// Steps are begun in this order, as soon as what they come after is done, and undone in the reverse order.
	Steps []Step
	// Decision is asked for when all steps are done or one of them will not be.
	Decision Decision
	// Notice follows the decision, whatever it is, at once and once. Nobody waits for it, and nothing undoes it.
	Notice Step
	// Finish is what follows a decision to commit, one after the other. Nothing undoes it.
	Finish []Step
}

// Step is one part of a process. Types are those of contracts.
type Step struct {
	Name string
	// After names the step that must be done before this one begins; empty for none.
	After string
	// Command asks for the step; empty when it happens by itself.
	Command string
	// Done are the answers that it is done; without any it is done when asked for.
	Done []string
	// Refused are the answers that it will not be done, and what then becomes of the booking.
	Refused map[Answer]contracts.SagaOutcome
	// Undo asks to take the step back; empty when there is nothing to take back.
	Undo string
	// Over are the answers after which there is nothing to take back.
	Over []string
	// Wait and UndoWait are for Command and Undo.
	Wait, UndoWait Patience
}

// Decision is the point of no return: somebody else says how the process ends.
type Decision struct {
	Name, Command string
	// Commit is the answer that all is to be kept.
	Commit string
	// Undo are the answers that all is to be undone, and why.
	Undo map[Answer]contracts.UndoReason
	Wait Patience
}

// Answer is a type, and the reason that it gives where that matters.
type Answer struct {
	Type string `json:"type,omitempty"`
	Told string `json:"told,omitempty"`
}

// Patience is how long an answer is waited for.
type Patience struct {
	// Timeout is the wait before the first repetition, which doubles with each, up to maxPause.
	Timeout time.Duration
	// Retries is how often the request is repeated.
	Retries int
	// PastExpiry, if set, is the wait beyond the booking's expiry instead, and nothing is repeated.
	PastExpiry time.Duration
	// Otherwise is what becomes of the booking when a step is not answered. Any other wait that ends makes the instance stuck.
	Otherwise contracts.SagaOutcome
}

const maxPause = 5 * time.Minute

// Phase is how far an instance has come; doc.go has the transitions.
type Phase string

// The phases of an instance.
const (
	Running      Phase = "running"
	Settling     Phase = "settling"
	Committing   Phase = "committing"
	Compensating Phase = "compensating"
	Committed    Phase = "committed"
	Compensated  Phase = "compensated"
)

// Ended reports whether nothing more is to be done.
func (p Phase) Ended() bool { return p == Committed || p == Compensated }

// Mark is how far a step has come, in one direction.
type Mark string

// The marks of a step. The zero Mark is that of one that is not begun.
const (
	Asked   Mark = "asked"
	Done    Mark = "done"
	Refused Mark = "refused"
	// Late: there was no answer in time, and it is taken for a refusal that must be undone.
	Late Mark = "late"
	// Stuck: there was no answer in time, and nothing can be done without one.
	Stuck Mark = "stuck"
)

// Progress is how far one step has come.
type Progress struct {
	// Forward is for doing the step; of the decision too.
	Forward Mark `json:"forward,omitempty"`
	// Seen is whether the step was ever told to be done.
	Seen bool `json:"seen,omitempty"`
	// Back is for undoing it: Done when there is nothing to undo.
	Back Mark `json:"back,omitempty"`
	// Outcome is what becomes of the booking because the step was refused or late.
	Outcome contracts.SagaOutcome `json:"outcome,omitempty"`
	// Tries counts the requests for which an answer is waited for until Due.
	Tries int        `json:"tries,omitempty"`
	Due   *time.Time `json:"due,omitempty"`
}

// Instance is one booking's way through a process. It is a value: Next never changes the one it is given.
type Instance struct {
	Booking   contracts.BookingCreated `json:"booking"`
	PaymentID string                   `json:"paymentId,omitempty"`
	Phase     Phase                    `json:"phase"`
	// Outcome is what was asked for at the decision.
	Outcome contracts.SagaOutcome `json:"outcome,omitempty"`
	// Verdict is what was decided; its type is empty until then.
	Verdict Answer `json:"verdict"`
	// Reason is why the steps are undone.
	Reason contracts.UndoReason `json:"reason,omitempty"`
	// Steps has the progress of everything that was begun, by name.
	Steps map[string]Progress `json:"steps"`
}

// What happens to an instance beside messages.
const (
	// Begin starts the process.
	Begin = "begin"
	// Timeout says that the time is At: what was due by then has not come.
	Timeout = "timeout"
	// Resume asks again for what could not be done.
	Resume = "resume"
	// GiveUp asks for the booking to be cancelled by an operator.
	GiveUp = "give-up"
)

// Event is what happens to an instance: a message of a contract's type, or one of the above.
type Event struct {
	Answer
	// PaymentID is that of a message that names one.
	PaymentID string
	// At is when it is heard.
	At time.Time
}

// Command is a request to send.
type Command struct {
	// Step is who asks.
	Step string
	Type string
	// Try counts from 1.
	Try int
}

// What Next refuses.
var (
	// ErrContradiction says that a decision was made twice, and differently.
	ErrContradiction = errors.New("the booking was decided otherwise before")
	// ErrNotStuck says that there is nothing to resume.
	ErrNotStuck = errors.New("the saga is not stuck")
	// ErrTooLate says that the saga cannot be given up any more.
	ErrTooLate = errors.New("the saga is past the point at which it can be given up")
)

// Next is the whole behaviour of the coordinator: what becomes of an instance by an event, and what is to be sent. It
// reads no clock and does no I/O. Events may come in any order and any number of times; one that says nothing new
// changes nothing.
func Next(d Definition, i Instance, e Event) (Instance, []Command, error) {
	m := machine{d: d, i: i, now: e.At}
	if m.i.Steps = maps.Clone(i.Steps); m.i.Steps == nil {
		m.i.Steps = map[string]Progress{}
	}
	if err := m.take(e); err != nil {
		return i, nil, err
	}
	m.advance()
	return m.i, m.commands, nil
}

// machine is one call of Next.
type machine struct {
	d        Definition
	i        Instance
	now      time.Time
	commands []Command
}

// take notes what the event says.
func (m *machine) take(e Event) error {
	switch e.Type {
	case Begin:
		m.i.Phase = Running
		return nil
	case Timeout:
		m.timeouts()
		return nil
	case Resume:
		return m.resume()
	case GiveUp:
		if m.i.Phase != Running {
			return ErrTooLate
		}
		m.settle(contracts.OutcomeCancelled)
		return nil
	}
	if m.i.PaymentID == "" {
		m.i.PaymentID = e.PaymentID
	}
	for _, s := range slices.Concat(m.d.Steps, m.d.Finish) {
		m.set(s.Name, s.hear(m.i.Steps[s.Name], e.Answer, m.i.Phase))
	}
	return m.decided(e.Answer)
}

// set keeps the progress of steps that were begun or heard of.
func (m *machine) set(name string, p Progress) {
	if _, known := m.i.Steps[name]; known || p != (Progress{}) {
		m.i.Steps[name] = p
	}
}

// hear is the step's progress after an answer. What is told to be done for the first time when it was undone already is
// to be undone again.
func (s Step) hear(p Progress, a Answer, phase Phase) Progress {
	open := p.Forward == "" || p.Forward == Asked || p.Forward == Stuck
	outcome, refused := lookup(s.Refused, a)
	switch {
	case slices.Contains(s.Done, a.Type) && !p.Seen:
		p.Seen = true
		if p.Back == Done {
			p.Back = ""
		}
		if open {
			p.forward(Done)
		}
	case refused && (open || phase == Running && p.Forward == Done):
		p.forward(Refused)
		p.Outcome = outcome
		if !p.Seen && p.Back != "" {
			p.over()
		}
	}
	if slices.Contains(s.Over, a.Type) {
		p.over()
	}
	return p
}

// over notes that there is nothing to undo.
func (p *Progress) over() {
	p.Back = Done
	p.rest()
}

// forward marks the step, and ends the wait for it, but not that for its undoing.
func (p *Progress) forward(mark Mark) {
	p.Forward = mark
	if p.Back == "" {
		p.rest()
	}
}

// rest waits for nothing.
func (p *Progress) rest() { p.Tries, p.Due = 0, nil }

func lookup[T any](of map[Answer]T, a Answer) (T, bool) {
	if found, ok := of[a]; ok {
		return found, true
	}
	found, ok := of[Answer{Type: a.Type}]
	return found, ok
}

// decided takes the verdict, once.
func (m *machine) decided(a Answer) error {
	reason, undo := lookup(m.d.Decision.Undo, a)
	switch {
	case a.Type != m.d.Decision.Commit && !undo, m.i.Verdict.Type == a.Type:
		return nil
	case m.i.Verdict.Type != "":
		return fmt.Errorf("%s after %s: %w", a.Type, m.i.Verdict.Type, ErrContradiction)
	}
	m.restAll()
	p := m.i.Steps[m.d.Decision.Name]
	p.forward(Done)
	m.set(m.d.Decision.Name, p)
	m.i.Verdict, m.i.Reason, m.i.Phase = a, reason, Committing
	if undo {
		m.i.Phase = Compensating
	}
	m.begin(m.d.Notice)
	return nil
}

// settle leaves off waiting for the steps, though what they still answer is heard, and asks for the decision.
func (m *machine) settle(outcome contracts.SagaOutcome) {
	m.restAll()
	m.i.Phase, m.i.Outcome = Settling, outcome
}

func (m *machine) restAll() {
	for name, p := range m.i.Steps {
		p.rest()
		m.i.Steps[name] = p
	}
}

// advance does what is to be done now.
func (m *machine) advance() {
	for before := Phase(""); m.i.Phase != before; {
		before = m.i.Phase
		switch m.i.Phase {
		case Running:
			m.run()
		case Settling:
			m.begin(m.d.Decision.step())
		case Committing:
			m.finish()
		case Compensating, Compensated:
			m.undo()
		case Committed:
		}
	}
}

// step is the decision as a step that is asked for.
func (d Decision) step() Step {
	return Step{Name: d.Name, Command: d.Command, Done: []string{d.Commit}, Wait: d.Wait}
}

// run begins the steps whose time has come, until one of them fails or all are done.
func (m *machine) run() {
	done := 0
	for _, s := range m.d.Steps {
		if s.After == "" || m.i.Steps[s.After].Forward == Done {
			m.begin(s)
		}
		switch p := m.i.Steps[s.Name]; p.Forward {
		case Done:
			done++
		case Refused, Late:
			m.settle(p.Outcome)
			return
		}
	}
	if done == len(m.d.Steps) {
		m.settle(contracts.OutcomeConfirmed)
	}
}

// finish does the last steps one after the other.
func (m *machine) finish() {
	for _, s := range m.d.Finish {
		m.begin(s)
		if m.i.Steps[s.Name].Forward != Done {
			return
		}
	}
	m.i.Phase = Committed
}

// undo asks for the last step that is not undone to be undone, and for nothing before that.
func (m *machine) undo() {
	left := m.d.Undoing(m.i)
	if len(left) == 0 {
		m.i.Phase = Compensated
		return
	}
	m.i.Phase = Compensating
	if s := left[0]; m.i.Steps[s.Name].Back == "" {
		m.ask(s, true)
	}
}

// begin asks for the step, unless that was done before.
func (m *machine) begin(s Step) {
	if m.i.Steps[s.Name].Forward == "" {
		m.ask(s, false)
	}
}

// ask asks for a step, or for it to be undone, once more.
func (m *machine) ask(s Step, back bool) {
	p, typ, wait := m.i.Steps[s.Name], s.Command, s.Wait
	if back {
		typ, wait, p.Back = s.Undo, s.UndoWait, Asked
	} else {
		p.Forward = Asked
	}
	p.Tries++
	due := m.due(s.Name, wait, p.Tries)
	p.Due = &due
	if typ != "" {
		m.commands = append(m.commands, Command{Step: s.Name, Type: typ, Try: p.Tries})
	}
	if !back && len(s.Done) == 0 {
		p.forward(Done)
	}
	m.i.Steps[s.Name] = p
}

// due is until when an answer is waited for. Repetitions of different instances spread out.
func (m *machine) due(step string, wait Patience, try int) time.Time {
	if wait.PastExpiry > 0 {
		return m.i.Booking.ExpiresAt.Add(wait.PastExpiry)
	}
	pause := wait.Timeout
	for range try - 1 {
		pause = min(2*pause, max(maxPause, wait.Timeout))
	}
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, m.i.Booking.BookingID, step, try) // never fails
	return m.now.Add(pause + pause/8*time.Duration(h.Sum32()%1024)/1024).Truncate(time.Microsecond)
}

// timeouts asks again for what has not come in time, and gives up what was asked for often enough.
func (m *machine) timeouts() {
	for _, s := range m.d.all() {
		p := m.i.Steps[s.Name]
		if p.Due == nil || p.Due.After(m.now) {
			continue
		}
		back, wait := p.Back == Asked, s.Wait
		if back {
			wait = s.UndoWait
		}
		if p.Tries <= wait.Retries {
			m.ask(s, back)
			continue
		}
		p.rest()
		switch {
		case back:
			p.Back = Stuck
		case wait.Otherwise == "":
			p.Forward = Stuck
		default:
			p.Forward, p.Outcome = Late, wait.Otherwise
		}
		m.i.Steps[s.Name] = p
	}
}

// all is everything that is asked for.
func (d Definition) all() []Step {
	return slices.Concat(d.Steps, []Step{d.Decision.step(), d.Notice}, d.Finish)
}

// resume asks again for what is stuck.
func (m *machine) resume() error {
	if m.i.Stuck() == "" {
		return ErrNotStuck
	}
	for _, s := range m.d.all() {
		switch p := m.i.Steps[s.Name]; Stuck {
		case p.Forward:
			m.ask(s, false)
		case p.Back:
			m.ask(s, true)
		}
	}
	return nil
}

// Stuck names what could not be done, or is empty.
func (i Instance) Stuck() string {
	for _, name := range slices.Sorted(maps.Keys(i.Steps)) {
		if p := i.Steps[name]; p.Forward == Stuck || p.Back == Stuck {
			return name
		}
	}
	return ""
}

// Due is the next deadline, or nil.
func (i Instance) Due() (next *time.Time) {
	for _, p := range i.Steps {
		if p.Due != nil && (next == nil || p.Due.Before(*next)) {
			next = p.Due
		}
	}
	return next
}

// Undoing are the steps that are to be undone, in that order. What was asked for and not refused may have been done.
func (d Definition) Undoing(i Instance) (steps []Step) {
	for _, s := range slices.Backward(d.Steps) {
		p := i.Steps[s.Name]
		open := s.Command != "" && (p.Forward == Asked || p.Forward == Late)
		if s.Undo != "" && p.Back != Done && (p.Seen || open) {
			steps = append(steps, s)
		}
	}
	return steps
}
