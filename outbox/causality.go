package outbox

import "context"

// Causality ties a message to its flow and to what caused it. Empty fields are not written.
type Causality struct {
	// CorrelationID is the same for everything that one request set off.
	CorrelationID string
	// CausationID is the id of the message being handled, or of the request with which a flow begins.
	CausationID string
	// TraceParent is W3C Trace Context.
	TraceParent string
}

type causalityKey struct{}

// WithCausality returns a context under which appended events carry c.
func WithCausality(ctx context.Context, c Causality) context.Context {
	return context.WithValue(ctx, causalityKey{}, c)
}

// CausalityFrom returns what WithCausality put in, or the zero value.
func CausalityFrom(ctx context.Context) Causality {
	c, _ := ctx.Value(causalityKey{}).(Causality)
	return c
}

func (c Causality) metadata() map[string]string {
	metadata := map[string]string{}
	for name, value := range map[string]string{
		HeaderCorrelationID: c.CorrelationID, HeaderCausationID: c.CausationID, HeaderTraceParent: c.TraceParent,
	} {
		if value != "" {
			metadata[name] = value
		}
	}
	return metadata
}
