package web

import (
	"net/http"
	"regexp"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox"
)

// CorrelationHeader carries the id of the flow. A client may choose it; every answer has it.
const CorrelationHeader = "X-Correlation-ID"

var (
	correlation = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$`)
	traceParent = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)
	zeros       = regexp.MustCompile(`^0+$`)
)

// withCausality puts the request's flow into its context: the client's own correlation id and W3C traceparent
// where they are sane, or a fresh UUIDv7. What the request sets off is caused by the request, which gets an id for that.
func withCausality(w http.ResponseWriter, r *http.Request) *http.Request {
	c := outbox.Causality{
		CorrelationID: correlationID(r.Header), CausationID: uuid.Must(uuid.NewV7()).String(), TraceParent: trace(r.Header),
	}
	w.Header().Set(CorrelationHeader, c.CorrelationID)
	return r.WithContext(outbox.WithCausality(r.Context(), c))
}

func correlationID(h http.Header) string {
	if given := h.Values(CorrelationHeader); len(given) == 1 && correlation.MatchString(given[0]) {
		return given[0]
	}
	return uuid.Must(uuid.NewV7()).String()
}

// trace is the traceparent if it is a valid one of version 00.
func trace(h http.Header) string {
	given := h.Values("traceparent")
	if len(given) != 1 {
		return ""
	}
	parts := traceParent.FindStringSubmatch(given[0])
	if parts == nil || zeros.MatchString(parts[1]) || zeros.MatchString(parts[2]) {
		return ""
	}
	return given[0]
}
