package saga

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/services/internal/web"
)

const path = "/api/sagas"

// maxHistory is how many entries of an instance's history are shown, the newest.
const maxHistory = 500

// Routes adds the coordinator's API.
func (s *Service) Routes(r *web.Router) {
	r.Handle(http.MethodGet, path, s.getSagas)
	r.Handle(http.MethodGet, path+"/{id}", s.getSaga)
	r.Handle(http.MethodPost, path+"/{id}/resume", s.postResume)
	r.Handle(http.MethodPost, path+"/{id}/compensate", s.postCompensate)
}

// sagaView is an instance as operators see it.
type sagaView struct {
	BookingID uuid.UUID `json:"bookingId"`
	Version   int       `json:"version"`
	State     string    `json:"state"`
	// Stuck says what could not be done; absent when nothing is stuck.
	Stuck string `json:"stuck,omitempty"`
	// Outcome is what booking was asked to settle, Decided what it answered.
	Outcome   contracts.SagaOutcome `json:"outcome,omitempty"`
	Decided   string                `json:"decided,omitempty"`
	DueAt     *time.Time            `json:"dueAt"`
	Revision  int64                 `json:"revision"`
	CreatedAt time.Time             `json:"createdAt"`
	UpdatedAt time.Time             `json:"updatedAt"`
}

// stepView is a step that is still to come.
type stepView struct {
	Step string `json:"step"`
	// Action is do or undo.
	Action string `json:"action"`
	// Command is the type of the request; absent for what happens by itself.
	Command string `json:"command,omitempty"`
	// Asked is whether the answer is being waited for.
	Asked bool       `json:"asked"`
	DueAt *time.Time `json:"dueAt"`
}

// detailView is an instance with what was and what is to come.
type detailView struct {
	sagaView
	ToCome  []stepView `json:"toCome"`
	History []entry    `json:"history"`
	// HistoryTruncated is true when there are older entries than those shown.
	HistoryTruncated bool `json:"historyTruncated"`
}

// compensation is what giving a booking up undoes.
type compensation struct {
	sagaView
	DryRun bool       `json:"dryRun"`
	Undo   []stepView `json:"undo"`
}

// view shows an instance of an unknown version as stuck.
func (s *Service) view(r record) (sagaView, Definition, Instance, error) {
	v := sagaView{
		BookingID: r.ID, Version: r.Version, State: r.State, DueAt: r.DueAt, Revision: r.Revision, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
	d, i, err := s.open(r)
	switch {
	case errors.Is(err, errVersion):
		if !Phase(r.State).Ended() {
			v.State, v.Stuck = stuck, errVersion.Error()
		}
		return v, d, i, nil
	case err != nil:
		return v, d, i, err
	}
	v.Outcome, v.Decided = i.Outcome, i.Verdict.Type
	if step := i.Stuck(); step != "" {
		v.Stuck = "step " + step + " was not answered"
	}
	return v, d, i, nil
}

// toCome are the steps that are not done yet, in their order.
func (d Definition) toCome(i Instance) []stepView {
	left := []stepView{}
	forward := func(steps ...Step) {
		for _, s := range steps {
			if p := i.Steps[s.Name]; p.Forward != Done {
				left = append(left, stepView{s.Name, "do", s.Command, p.Forward == Asked, p.Due})
			}
		}
	}
	switch i.Phase {
	case Running:
		forward(d.Steps...)
		forward(d.Decision.step(), d.Notice)
		forward(d.Finish...)
	case Settling:
		forward(d.Decision.step(), d.Notice)
		if i.Outcome == contracts.OutcomeConfirmed {
			forward(d.Finish...)
			break
		}
		left = append(left, d.undoing(i)...)
	case Committing:
		forward(d.Finish...)
	case Compensating:
		left = d.undoing(i)
	case Committed, Compensated:
	}
	return left
}

func (d Definition) undoing(i Instance) []stepView {
	steps := []stepView{}
	for _, s := range d.Undoing(i) {
		p := i.Steps[s.Name]
		v := stepView{Step: s.Name, Action: "undo", Command: s.Undo, Asked: p.Back == Asked}
		if v.Asked {
			v.DueAt = p.Due
		}
		steps = append(steps, v)
	}
	return steps
}

// states are what sagas can be listed by.
var states = []string{string(Running), string(Settling), string(Committing), string(Compensating), string(Committed), string(Compensated), stuck}

// getSagas lists bookings of everybody, so it is for those who have a token.
func (s *Service) getSagas(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.caller(w, r); err != nil {
		return err
	}
	query, err := web.Query(r, "state", "after", "limit")
	if err != nil {
		return err
	}
	state := query.Get("state")
	if query.Has("state") && !slices.Contains(states, state) {
		return web.Malformed("state", "must be one of %v", states)
	}
	page, err := web.ParsePage(query)
	if err != nil {
		return err
	}
	records, err := instances(r.Context(), s.pool, state, s.versions, page)
	if err != nil {
		return fmt.Errorf("list sagas: %w", err)
	}
	views := make([]sagaView, len(records))
	for i, r := range records {
		if views[i], _, _, err = s.view(r); err != nil {
			return err
		}
	}
	return web.WriteJSON(w, http.StatusOK, web.NewList(views, page, func(v sagaView) string { return v.BookingID.String() }))
}

func (s *Service) getSaga(w http.ResponseWriter, r *http.Request) error {
	if _, err := web.Query(r); err != nil {
		return err
	}
	id, err := web.PathID(r, "id")
	if err != nil {
		return err
	}
	record, err := instanceByID(r.Context(), s.pool, id)
	if err != nil {
		return unknown(id, err)
	}
	base, d, i, err := s.view(record)
	if err != nil {
		return err
	}
	v := detailView{sagaView: base, ToCome: d.toCome(i)}
	if v.History, err = historyOf(r.Context(), s.pool, id, maxHistory+1); err != nil {
		return fmt.Errorf("read the history of saga %s: %w", id, err)
	}
	if v.HistoryTruncated = len(v.History) > maxHistory; v.HistoryTruncated {
		v.History = v.History[1:]
	}
	return web.WriteJSON(w, http.StatusOK, v)
}

func unknown(id uuid.UUID, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return web.NotFound("there is no saga of booking %s", id)
	}
	return fmt.Errorf("read saga %s: %w", id, err)
}

// postResume asks again for what is stuck.
func (s *Service) postResume(w http.ResponseWriter, r *http.Request) error {
	return s.operate(w, r, Resume)
}

// postCompensate gives a booking up that is not decided yet: booking is asked to cancel it, and all steps are undone when
// it has. With dryRun=true it says what that would be and does nothing.
func (s *Service) postCompensate(w http.ResponseWriter, r *http.Request) error {
	return s.operate(w, r, GiveUp)
}

// operate does what an operator asks for, to the revision that he has seen if he names one.
func (s *Service) operate(w http.ResponseWriter, r *http.Request, verb string) error {
	who, err := s.caller(w, r)
	if err != nil {
		return err
	}
	allowed := []string{"revision"}
	if verb == GiveUp {
		allowed = append(allowed, "dryRun")
	}
	query, err := web.Query(r, allowed...)
	if err != nil {
		return err
	}
	dryRun, revision, err := parameters(query)
	if err != nil {
		return err
	}
	if who.Role != api.Operator && !dryRun {
		return &web.Error{Status: http.StatusForbidden, Detail: "this takes an operator's token; a viewer may try with dryRun=true"}
	}
	id, err := web.PathID(r, "id")
	if err != nil {
		return err
	}
	if r.ContentLength != 0 {
		return web.Malformed("", "the request takes no body")
	}
	var v compensation
	err = outbox.InTx(r.Context(), s.pool, func(tx pgx.Tx) error {
		v, err = s.order(r.Context(), tx, id, verb, who.Name, revision, dryRun)
		return err
	})
	if err != nil {
		return err
	}
	if verb == Resume {
		return web.WriteJSON(w, http.StatusOK, v.sagaView)
	}
	return web.WriteJSON(w, http.StatusOK, v)
}

// order carries an operator's order out, or says what it would bring about.
func (s *Service) order(ctx context.Context, tx pgx.Tx, id uuid.UUID, verb, who string, revision int64, dryRun bool) (v compensation, err error) {
	found, err := locked(ctx, tx, []string{id.String()})
	if err != nil {
		return v, fmt.Errorf("lock saga %s: %w", id, err)
	}
	r, ok := found[id.String()]
	if !ok {
		return v, web.NotFound("there is no saga of booking %s", id)
	}
	if revision != 0 && r.Revision != revision {
		return v, web.Conflict("the saga is at revision %d by now, not at %d", r.Revision, revision)
	}
	d, i, err := s.open(r)
	if errors.Is(err, errVersion) {
		return v, web.Conflict("%s", errVersion)
	}
	if err != nil {
		return v, err
	}
	c, messages, err := s.apply(r.flow(ctx), r, Event{Answer: Answer{Type: verb}, At: r.Now}, kindOperator, uuid.Nil, "by "+who)
	switch {
	case errors.Is(err, ErrNotStuck):
		return v, web.Conflict("%s", ErrNotStuck)
	case errors.Is(err, ErrTooLate):
		return v, web.Conflict("%s", ErrTooLate)
	case err != nil:
		return v, err
	}
	v.DryRun, v.Undo = dryRun, d.undoing(i)
	if !dryRun {
		if err := s.write(ctx, tx, []change{c}, messages); err != nil {
			return v, err
		}
		r = c.record
		r.Revision++
	}
	v.sagaView, _, _, err = s.view(r)
	return v, err
}

// parameters of an order: whether it is a trial, and the revision that it is meant for, 0 for any.
func parameters(query url.Values) (dryRun bool, revision int64, err error) {
	if query.Has("dryRun") {
		switch query.Get("dryRun") {
		case "true":
			dryRun = true
		case "false":
		default:
			return false, 0, web.Malformed("dryRun", "must be true or false")
		}
	}
	if query.Has("revision") {
		revision, err = strconv.ParseInt(query.Get("revision"), 10, 64)
		if err != nil || revision < 1 {
			return false, 0, web.Malformed("revision", "must be a whole number from 1")
		}
	}
	return dryRun, revision, nil
}

// caller is whose token the request carries.
func (s *Service) caller(w http.ResponseWriter, r *http.Request) (admin.Token, error) {
	if s.tokens == nil {
		return admin.Token{}, &web.Error{Status: http.StatusForbidden, Detail: "this coordinator has no token file, and lets nobody do this"}
	}
	token, ok := s.tokens.Lookup(admin.Bearer(r.Header))
	if ok {
		return token, nil
	}
	if err := s.tokens.Check(); err != nil {
		s.log.ErrorContext(r.Context(), "token file not usable, nobody is let in", "error", err)
	}
	w.Header().Set("WWW-Authenticate", "Bearer")
	return admin.Token{}, &web.Error{Status: http.StatusUnauthorized, Detail: "a valid bearer token is needed"}
}
