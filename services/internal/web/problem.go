package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/jcp/ticketwave/outbox"
)

// Error is an error that a client may read. Any layer of a service may return one.
type Error struct {
	// Status is the HTTP status.
	Status int
	// Detail says what is wrong with this request.
	Detail string
	// Field is the body field, query parameter or header at fault, if there is one.
	Field string
	// RetryAfter, when positive, tells the client when to try again.
	RetryAfter time.Duration
}

// Error is the status, the field and the detail on one line.
func (e *Error) Error() string {
	text := strconv.Itoa(e.Status) + " "
	if e.Field != "" {
		text += e.Field + ": "
	}
	return text + e.Detail
}

// NotFound is a 404.
func NotFound(format string, args ...any) error {
	return &Error{Status: http.StatusNotFound, Detail: fmt.Sprintf(format, args...)}
}

// Malformed is a 400: the field cannot be understood.
func Malformed(field, format string, args ...any) error {
	return &Error{Status: http.StatusBadRequest, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// Refused is a 422: the field is understood, and not allowed.
func Refused(field, format string, args ...any) error {
	return &Error{Status: http.StatusUnprocessableEntity, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// Conflict is a 409: the request does not fit the state of what it is about.
func Conflict(format string, args ...any) error {
	return &Error{Status: http.StatusConflict, Detail: fmt.Sprintf(format, args...)}
}

// retryAfter is what clients are told while the database is away.
const retryAfter = 2 * time.Second

// statusClientGone is what the access log shows when the client did not wait for the answer.
const statusClientGone = 499

// explain turns any error into what the client is told. It is the only place where errors become statuses.
func explain(err error) *Error {
	var told *Error
	switch {
	case errors.As(err, &told):
		return told
	case errors.Is(err, outbox.ErrCommitUnknown):
		return unavailable("the database went away during the commit: the request may or may not have taken effect; " +
			"repeat it with the same Idempotency-Key or look before you repeat it")
	case errors.Is(err, context.Canceled):
		return &Error{Status: statusClientGone, Detail: "the client closed the request"}
	case databaseAway(err):
		return unavailable("the database does not answer; nothing was done")
	case errors.Is(err, context.DeadlineExceeded):
		return unavailable("the request took too long; nothing was done")
	}
	return &Error{Status: http.StatusInternalServerError, Detail: "an internal error; the log has the cause under this correlation id"}
}

func unavailable(detail string) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Detail: detail, RetryAfter: retryAfter}
}

// databaseAway reports an error that speaks of the database's state and not of the statement. A connection that was
// refused is such a state, whatever the reason.
func databaseAway(err error) bool {
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return true
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return awayCode(pg.Code)
	}
	var network net.Error
	return errors.As(err, &network) && !errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, puddle.ErrClosedPool) || pgconn.SafeToRetry(err)
}

// awayCode reports SQLSTATEs under which the same request may succeed a little later: connection exceptions (08),
// insufficient resources (53, with too many connections), shutdown and recovery (57P), a timeout of a lock, a statement or a
// transaction, conflicts that outlived their retries, and a primary that has become a standby.
func awayCode(code string) bool {
	switch code {
	case "25006", "25P03", "25P04", "40001", "40P01", "55P03", "57014":
		return true
	}
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "53") || strings.HasPrefix(code, "57P")
}

// problem is the body, RFC 9457. Types are about:blank: the status says it, and detail and field say the rest.
type problem struct {
	Type          string `json:"type"`
	Title         string `json:"title"`
	Status        int    `json:"status"`
	Detail        string `json:"detail,omitempty"`
	Field         string `json:"field,omitempty"`
	CorrelationID string `json:"correlationId,omitempty"`
}

func writeProblem(w http.ResponseWriter, r *http.Request, e *Error) {
	title := http.StatusText(e.Status)
	if title == "" {
		title = "Client Closed Request"
	}
	body, err := json.Marshal(problem{
		Type: "about:blank", Title: title, Status: e.Status, Detail: e.Detail, Field: e.Field,
		CorrelationID: outbox.CausalityFrom(r.Context()).CorrelationID,
	})
	if err != nil {
		body = []byte(`{"type":"about:blank"}`)
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	send(w, e.Status, "application/problem+json", body)
}
