package outbox

import "time"

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
	// HeaderCausationID is the id of the message, or the request, whose handling wrote this one.
	HeaderCausationID = "causationid"
	// HeaderTraceParent is W3C Trace Context.
	HeaderTraceParent = "traceparent"
)

// OwnHeaders are the names of the headers that say what a message is. They are made of the row's columns and the source
// of the outbox, whatever the row's metadata has under these names.
func OwnHeaders() []string {
	return []string{HeaderID, HeaderType, HeaderSource, HeaderSubject, HeaderTime, HeaderSpecVersion}
}

// SetOwnHeaders sets all of [OwnHeaders].
func SetOwnHeaders(headers map[string]string, id, typ, source, key string, written time.Time) {
	headers[HeaderID] = id
	headers[HeaderType] = typ
	headers[HeaderSource] = source
	headers[HeaderSubject] = key
	headers[HeaderTime] = written.UTC().Format(time.RFC3339Nano)
	headers[HeaderSpecVersion] = "1.0"
}
