package daemon

import (
	"context"
	"io"
	"log/slog"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// NewLogger writes JSON lines that carry the service, and from the context of each: correlation_id of the flow,
// and event_type and message_id of the message being handled. A line that names one of these itself keeps its own.
func NewLogger(w io.Writer, level slog.Level, service string) *slog.Logger {
	json := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	return slog.New(flowHandler{json}).With("service", service)
}

// flowHandler adds what the context knows.
type flowHandler struct{ slog.Handler }

// Handle adds the attributes and passes the record on.
func (h flowHandler) Handle(ctx context.Context, record slog.Record) error {
	meta, _ := inbox.MetaFrom(ctx)
	id := ""
	if meta.Type != "" {
		id = meta.ID.String()
	}
	known := map[string]string{"correlation_id": outbox.CausalityFrom(ctx).CorrelationID, "event_type": meta.Type, "message_id": id}
	record.Attrs(func(a slog.Attr) bool {
		delete(known, a.Key)
		return true
	})
	record = record.Clone()
	for _, key := range []string{"correlation_id", "event_type", "message_id"} {
		if value := known[key]; value != "" {
			record.AddAttrs(slog.String(key, value))
		}
	}
	return h.Handler.Handle(ctx, record)
}

// WithAttrs keeps the wrapping.
func (h flowHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return flowHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup keeps the wrapping.
func (h flowHandler) WithGroup(name string) slog.Handler {
	return flowHandler{h.Handler.WithGroup(name)}
}
