package admin

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/operate"
)

// listing is a list of the specification: items, the next page, and why the answer is not whole.
type listing[T any] struct {
	Items    []T      `json:"items"`
	Next     string   `json:"next,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// partial answers with what was found. An error beside it, a database that is away for example, is a warning.
func partial[T any](s *Server, w http.ResponseWriter, r *http.Request, items []T, next string, err error) {
	if err != nil && len(items) == 0 {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, listing[T]{Items: items, Next: next, Warnings: s.warnings(r, err)}, nil)
}

// warnings are what a client is told of the errors beside an answer; the log has them whole.
func (s *Server) warnings(r *http.Request, err error) (texts []string) {
	if err == nil {
		return nil
	}
	s.cfg.Logger.Warn("partial answer", "route", r.Pattern, "request", requestID(r.Context()), "error", err)
	errs := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		errs = joined.Unwrap()
	}
	for _, e := range errs {
		texts = append(texts, s.named(e)+explain(e).detail)
	}
	return texts
}

// named is the database that an error names first, if it does.
func (s *Server) named(err error) string {
	for _, name := range s.cfg.Operator.Databases() {
		if strings.HasPrefix(err.Error(), "database "+name+": ") {
			return name + ": "
		}
	}
	return ""
}

// actor is the caller with its reason.
func actor(ctx context.Context, why string) operate.Actor {
	return operate.Actor{Name: caller(ctx).Name, Reason: strings.TrimSpace(why)}
}

// Status answers how everything stands.
func (s *Server) Status(w http.ResponseWriter, r *http.Request) {
	status, err := s.cfg.Operator.Status(r.Context())
	s.answer(w, r, status, err)
}

// Why answers where a message came to.
func (s *Server) Why(w http.ResponseWriter, r *http.Request, id string) {
	found, err := s.cfg.Operator.Why(r.Context(), id)
	partial(s, w, r, found, "", err)
}

// Doctor answers with the findings.
func (s *Server) Doctor(w http.ResponseWriter, r *http.Request) {
	findings, err := s.cfg.Operator.Doctor(r.Context())
	if err != nil && len(findings) == 0 {
		s.fail(w, r, err)
		return
	}
	healthy := err == nil
	for _, f := range findings {
		healthy = healthy && f.Severity != operate.Critical
	}
	s.answer(w, r, struct {
		Healthy  bool              `json:"healthy"`
		Findings []operate.Finding `json:"findings"`
		Warnings []string          `json:"warnings,omitempty"`
	}{healthy, findings, s.warnings(r, err)}, nil)
}

// Reconcile compares outboxes with inboxes.
func (s *Server) Reconcile(w http.ResponseWriter, r *http.Request, params api.ReconcileParams) {
	from, to := params.From, params.To
	if to.IsZero() {
		to = time.Now()
	}
	if from.IsZero() {
		from = to.Add(-time.Hour)
	}
	switch {
	case !from.Before(to):
		s.fail(w, r, malformed("from", "must be before to"))
		return
	case params.Grace < 0 || params.Grace > maxAge:
		s.fail(w, r, malformed("grace", "must be from 0 to 315360000 seconds"))
		return
	}
	found, err := s.cfg.Operator.Reconcile(r.Context(), from, to, time.Duration(params.Grace)*time.Second)
	s.answer(w, r, found, err)
}

// filterOf is a filter in the words of package operate.
func filterOf(f api.Filter) operate.Filter {
	return operate.Filter{
		Database: f.Database, Side: operate.Side(f.Side), Consumer: f.Consumer, Type: f.Type, Key: f.Key, Fingerprint: f.Fingerprint,
		Class: f.Class, State: operate.State(f.State), MessageID: f.MessageID, OlderThan: time.Duration(f.OlderThan) * time.Second,
	}
}

// maxAge keeps a number of seconds within a time.Duration: ten years.
const maxAge = 315_360_000

func checkFilter(f api.Filter) error {
	switch {
	case f.Side != "" && !f.Side.Valid():
		return malformed("side", "must be outbox or inbox")
	case f.State != "" && !f.State.Valid():
		return malformed("state", "must be retrying, parked or behind")
	case f.OlderThan < 0 || f.OlderThan > maxAge:
		return malformed("olderThan", "must be from 0 to 315360000 seconds")
	}
	for name, value := range map[string]string{
		"database": f.Database, "consumer": f.Consumer, "type": f.Type, "key": f.Key, "fingerprint": f.Fingerprint, "class": f.Class,
	} {
		if len(value) > 255 || strings.ContainsRune(value, 0) {
			return malformed(name, "must be at most 255 bytes, without a zero byte")
		}
	}
	return nil
}

func page(after string, limit int) (operate.Page, error) {
	if limit < 0 || limit > 500 {
		return operate.Page{}, malformed("limit", "must be from 1 to 500")
	}
	return operate.Page{After: after, Limit: limit}, nil
}

// ListStuck answers with a page of stuck messages.
func (s *Server) ListStuck(w http.ResponseWriter, r *http.Request, p api.ListStuckParams) {
	f := api.Filter{
		Database: p.Database, Side: p.Side, Consumer: p.Consumer, Type: p.Type, Key: p.Key, Fingerprint: p.Fingerprint,
		Class: p.Class, State: p.State, MessageID: p.MessageID, OlderThan: p.OlderThan,
	}
	pg, err := page(p.After, p.Limit)
	if err == nil {
		err = checkFilter(f)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	items, next, err := s.cfg.Operator.List(r.Context(), filterOf(f), pg)
	partial(s, w, r, items, next, err)
}

// StuckGroups answers with the ways to fail.
func (s *Server) StuckGroups(w http.ResponseWriter, r *http.Request, p api.StuckGroupsParams) {
	f := api.Filter{
		Database: p.Database, Side: p.Side, Consumer: p.Consumer, Type: p.Type, Key: p.Key, Fingerprint: p.Fingerprint,
		Class: p.Class, State: p.State, MessageID: p.MessageID, OlderThan: p.OlderThan,
	}
	if err := checkFilter(f); err != nil {
		s.fail(w, r, err)
		return
	}
	items, err := s.cfg.Operator.Groups(r.Context(), filterOf(f))
	partial(s, w, r, items, "", err)
}

// ShowStuck answers with one stuck message.
func (s *Server) ShowStuck(w http.ResponseWriter, r *http.Request, id uuid.UUID, p api.ShowStuckParams) {
	f := api.Filter{Database: p.Database, Side: p.Side, Consumer: p.Consumer, MessageID: id}
	if err := checkFilter(f); err != nil {
		s.fail(w, r, err)
		return
	}
	detail, err := s.cfg.Operator.Show(r.Context(), filterOf(f))
	s.answer(w, r, detail, err)
}

// ReplayStuck lets heads be tried again.
func (s *Server) ReplayStuck(w http.ResponseWriter, r *http.Request, _ api.ReplayStuckParams) {
	s.command(w, r, operate.VerbReplay)
}

// SkipStuck gives messages up.
func (s *Server) SkipStuck(w http.ResponseWriter, r *http.Request, _ api.SkipStuckParams) {
	s.command(w, r, operate.VerbSkip)
}

// ParkStuck lets heads wait for an operator.
func (s *Server) ParkStuck(w http.ResponseWriter, r *http.Request, _ api.ParkStuckParams) {
	s.command(w, r, operate.VerbPark)
}

func (s *Server) command(w http.ResponseWriter, r *http.Request, verb operate.Verb) {
	var body api.Command
	err := decode(w, r, maxBody, &body)
	switch {
	case err != nil:
	case body.Limit < 0 || body.Limit > 10_000:
		err = malformed("limit", "must be from 1 to 10000")
	case len(body.After) > 255:
		err = malformed("after", "must be the next of a command before")
	default:
		err = checkFilter(body.Filter)
	}
	if err == nil {
		err = reason(body.Reason)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	result, err := s.cfg.Operator.Do(r.Context(), operate.Command{
		Verb: verb, Filter: filterOf(body.Filter), Limit: body.Limit, After: body.After, Within: s.cfg.Limits.Timeout / 3,
		DryRun: dryRun(r), Actor: actor(r.Context(), body.Reason),
	})
	if err != nil && (result.Matched == 0 || body.Filter.MessageID != uuid.Nil && result.Changed == 0) {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, struct {
		operate.Result
		Warnings []string `json:"warnings,omitempty"`
	}{result, s.warnings(r, err)}, nil) // what was done, whatever could not be
}

// EditStuck replaces what a parked message says.
func (s *Server) EditStuck(w http.ResponseWriter, r *http.Request, _ api.EditStuckParams) {
	var body api.Edit
	err := decode(w, r, maxEditBody, &body)
	if err == nil {
		err = checkFilter(body.Filter)
	}
	if err == nil {
		err = reason(body.Reason)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	result, err := s.cfg.Operator.Do(r.Context(), operate.Command{
		Verb: operate.VerbEdit, Filter: filterOf(body.Filter), Payload: body.Payload, Headers: body.Headers,
		DryRun: dryRun(r), Actor: actor(r.Context(), body.Reason),
	})
	s.answer(w, r, result, err)
}

// Cursors answers with the cursors.
func (s *Server) Cursors(w http.ResponseWriter, r *http.Request, p api.CursorsParams) {
	items, err := s.cfg.Operator.Cursors(r.Context(), p.Database)
	partial(s, w, r, items, "", err)
}

// Rebase makes a database's cursors fit.
func (s *Server) Rebase(w http.ResponseWriter, r *http.Request, _ api.RebaseParams) {
	var body api.Rebase
	err := decode(w, r, maxBody, &body)
	if err == nil {
		err = reason(body.Reason)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	done, err := s.cfg.Operator.Rebase(r.Context(), operate.RebaseCommand{
		Database: body.Database, Keep: body.Keep, Force: body.Force, DryRun: dryRun(r), Actor: actor(r.Context(), body.Reason),
	})
	s.answer(w, r, done, err)
}

// ListAudit answers with a page of the audit log.
func (s *Server) ListAudit(w http.ResponseWriter, r *http.Request, p api.ListAuditParams) {
	pg, err := page(p.After, p.Limit)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	f := operate.AuditFilter{Database: p.Database, Actor: p.Actor, Action: p.Action, MessageID: p.MessageID}
	items, next, err := s.cfg.Operator.Audit(r.Context(), f, pg)
	partial(s, w, r, items, next, err)
}

// VerifyAudit checks the hash chains.
func (s *Server) VerifyAudit(w http.ResponseWriter, r *http.Request, p api.VerifyAuditParams) {
	databases := s.cfg.Operator.Databases()
	if p.Database != "" {
		databases = []string{p.Database}
	} else if p.Head != "" {
		s.fail(w, r, malformed("head", "needs the database that it was read from"))
		return
	}
	var reports []operate.AuditReport
	var warnings []string
	for _, name := range databases {
		report, err := s.cfg.Operator.VerifyAudit(r.Context(), name, p.Head)
		switch {
		case err == nil:
			reports = append(reports, report)
		case len(databases) == 1:
			s.fail(w, r, err)
			return
		default:
			warnings = append(warnings, s.warnings(r, err)...)
		}
	}
	s.answer(w, r, listing[operate.AuditReport]{Items: reports, Warnings: warnings}, nil)
}

// ListDead answers with dead letters, without their payloads.
func (s *Server) ListDead(w http.ResponseWriter, r *http.Request, p api.ListDeadParams) {
	pg, err := page("", p.Limit)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	items, err := s.cfg.Operator.Dead(r.Context(), p.Queue, pg.Limit)
	for i := range items {
		items[i].Payload = nil
	}
	partial(s, w, r, items, "", err)
}

// ShowDead answers with one dead letter.
func (s *Server) ShowDead(w http.ResponseWriter, r *http.Request, queue, fingerprint string) {
	found, err := s.cfg.Operator.DeadShow(r.Context(), queue, fingerprint)
	s.answer(w, r, found, err)
}

// RedriveDead sends dead letters back.
func (s *Server) RedriveDead(w http.ResponseWriter, r *http.Request, _ api.RedriveDeadParams) {
	s.dead(w, r, s.cfg.Operator.DeadRedrive)
}

// DiscardDead removes dead letters.
func (s *Server) DiscardDead(w http.ResponseWriter, r *http.Request, _ api.DiscardDeadParams) {
	s.dead(w, r, s.cfg.Operator.DeadDiscard)
}

func (s *Server) dead(w http.ResponseWriter, r *http.Request, do func(context.Context, operate.DeadCommand) (operate.DeadResult, error)) {
	var body api.DeadCommand
	err := decode(w, r, maxEditBody, &body)
	switch {
	case err != nil:
	case body.Queue == "":
		err = malformed("queue", "must name one queue")
	case body.Limit < 0 || body.Limit > 10_000:
		err = malformed("limit", "must be from 1 to 10000")
	case len(body.Fingerprints) > 1000:
		err = malformed("fingerprints", "must be at most 1000")
	default:
		err = reason(body.Reason)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	result, err := do(r.Context(), operate.DeadCommand{
		Queue: body.Queue, Fingerprints: body.Fingerprints, Limit: body.Limit, DryRun: dryRun(r), Actor: actor(r.Context(), body.Reason),
	})
	s.answer(w, r, result, afterDead(err, result))
}
