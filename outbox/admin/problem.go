package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

// ProblemPrefix begins the type of every problem. What follows is stable; outboxctl and scripts branch on it.
const ProblemPrefix = "urn:outbox:problem:"

// problem is an error that a client may read.
type problem struct {
	status     int
	slug       string // of its type
	detail     string
	field      string
	retryAfter time.Duration
	applied    *api.Applied    // by a replay, before it ended early
	dead       *api.DeadResult // of a redrive or discard, before it ended early
}

// Error is the detail.
func (p *problem) Error() string { return p.slug + ": " + p.detail }

func malformed(field, detail string) error {
	return &problem{status: http.StatusBadRequest, slug: "malformed", field: field, detail: detail}
}

// statusClientGone is what the access log shows when the client did not wait for the answer.
const statusClientGone = 499

// partly is an error before which something was done.
type partly struct {
	error
	applied *api.Applied
	dead    *api.DeadResult
}

// Unwrap is the error.
func (p *partly) Unwrap() error { return p.error }

// explain turns any error into what the client is told, and what was done before it into what the client is told beside it.
func explain(err error) *problem {
	told := explained(err)
	var done *partly
	if errors.As(err, &done) {
		told.applied, told.dead = done.applied, done.dead
	}
	return told
}

// explained is the only place where errors become statuses.
func explained(err error) *problem {
	var told *problem
	if errors.As(err, &told) {
		return told
	}
	text := strings.TrimSpace(err.Error())
	switch {
	case errors.Is(err, operate.ErrNotFound):
		return &problem{status: http.StatusNotFound, slug: "not-found", detail: text}
	case errors.Is(err, operate.ErrInvalid):
		return &problem{status: http.StatusBadRequest, slug: "invalid", detail: text}
	case errors.Is(err, operate.ErrBusy):
		return &problem{status: http.StatusConflict, slug: "busy", detail: text, retryAfter: time.Second}
	case errors.Is(err, operate.ErrRefused):
		return &problem{status: http.StatusConflict, slug: "refused", detail: text}
	case errors.Is(err, operate.ErrChanged):
		return &problem{status: http.StatusConflict, slug: "changed", detail: text}
	case errors.Is(err, context.Canceled):
		return &problem{status: statusClientGone, slug: "client-gone", detail: "the client closed the request"}
	case errors.Is(err, context.DeadlineExceeded):
		return &problem{status: http.StatusServiceUnavailable, slug: "timeout", detail: "it took too long", retryAfter: 5 * time.Second}
	case away(err):
		return &problem{status: http.StatusServiceUnavailable, slug: "unavailable", detail: "a database does not answer", retryAfter: 2 * time.Second}
	case brokerAway(err):
		return &problem{status: http.StatusServiceUnavailable, slug: "unavailable", detail: "the broker does not answer", retryAfter: 2 * time.Second}
	}
	return &problem{status: http.StatusInternalServerError, slug: "internal", detail: "an internal error; the daemon's log has its cause under this request id"}
}

// away reports that a database could not be reached or is shutting down.
func away(err error) bool {
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return true
	}
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "57P"))
}

// brokerAway reports that what is not a database could not be reached, or went away meanwhile.
func brokerAway(err error) bool {
	var said *amqp.Error
	var network *net.OpError
	return errors.Is(err, rabbitmq.ErrUnavailable) || errors.Is(err, rabbitmq.ErrClosed) || errors.As(err, &said) || errors.As(err, &network)
}

// afterReplay keeps with an error what the replay had done.
func afterReplay(err error, done operate.Applied) error {
	if err == nil || len(done.Audit) == 0 { // it had not begun
		return err
	}
	return &partly{error: err, applied: &api.Applied{
		Published: done.Published, Canaries: done.Canaries, Failed: done.Failed, Audit: refs(done.Audit),
	}}
}

// afterDead keeps with an error what had been done to dead letters.
func afterDead(err error, done operate.DeadResult) error {
	if err == nil || len(done.Audit) == 0 {
		return err
	}
	return &partly{error: err, dead: &api.DeadResult{DryRun: done.DryRun, Matched: done.Matched, Changed: done.Changed, Audit: refs(done.Audit)}}
}

func refs(audit []operate.AuditRef) (list []api.AuditRef) {
	for _, ref := range audit {
		list = append(list, api.AuditRef(ref))
	}
	return list
}

func (p *problem) body(requestID string) api.Problem {
	title := http.StatusText(p.status)
	if title == "" {
		title = "Client Closed Request"
	}
	return api.Problem{
		Type: ProblemPrefix + p.slug, Title: title, Status: p.status, Detail: p.detail, Field: p.field, RequestID: requestID,
		Applied: p.applied, Dead: p.dead,
	}
}

// write answers with the problem.
func (p *problem) write(w http.ResponseWriter, requestID string) {
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retryAfter.Seconds()))))
	}
	if p.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="outbox"`)
	}
	send(w, p.status, "application/problem+json", p.body(requestID))
}

// send encodes v before it writes anything.
func send(w http.ResponseWriter, status int, mediaType string, v any) {
	document, err := encode(v)
	if err != nil {
		status, mediaType, document = http.StatusInternalServerError, "application/problem+json", []byte(
			`{"type":"`+ProblemPrefix+`internal","title":"Internal Server Error","status":500,"detail":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(document)))
	w.WriteHeader(status)
	_, _ = w.Write(document) // a client that has gone
}

func encode(v any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(fill(v))
	return out.Bytes(), err
}
