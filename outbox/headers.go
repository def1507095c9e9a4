package outbox

// Header names of a message on its way: CloudEvents 1.0 in binary mode over AMQP, and its extensions for
// tracing a flow. They are the metadata of the Watermill message at the relay and at the consumer.
const (
	// HeaderID is the message id, a UUIDv7: the same at every delivery.
	HeaderID = "cloudEvents_id"
	// HeaderType is the event's type and major version.
	HeaderType = "cloudEvents_type"
	// HeaderSource is the service that wrote the message.
	HeaderSource = "cloudEvents_source"
	// HeaderSubject is the key: messages of one key arrive in the order of their commits.
	HeaderSubject = "cloudEvents_subject"
	// HeaderTime is when the message was written, RFC 3339 in UTC.
	HeaderTime = "cloudEvents_time"
	// HeaderSpecVersion is "1.0".
	HeaderSpecVersion = "cloudEvents_specversion"
	// HeaderCorrelationID is the same on every message of one flow.
	HeaderCorrelationID = "correlationid"
	// HeaderCausationID is the id of the message whose handling wrote this one.
	HeaderCausationID = "causationid"
	// HeaderTraceParent is W3C Trace Context.
	HeaderTraceParent = "traceparent"
)
