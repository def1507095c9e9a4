// Package contracts is what the services say to each other: the events, their envelope, and who hears what.
//
// # Events
//
// An event is a plain struct, in the file of the service that publishes it. Its JSON is camelCase; ids are
// lower-case UUIDs; times are RFC 3339, written in UTC and read with any offset; money is a decimal string ([Amount])
// beside an ISO 4217 currency. The JSON schema of each stands in schemas/ and an example in testdata/, and tests hold
// the three together.
//
// Every event has a Validate method. A consumer calls it after decoding; it fails for a missing or impossible
// value and names the field. Nothing that Validate refuses may be published.
//
// # Envelope
//
// Events travel as CloudEvents 1.0 in binary mode: the body is the event alone and the headers carry the rest.
//
//	cloudEvents_id           the message's id, a UUIDv7, the same at every delivery
//	cloudEvents_type         EventType(): "ticketwave.<owner>.<event-name>.v<major>"
//	cloudEvents_source       the service that sent it
//	cloudEvents_subject      EventKey(): events of one key arrive in the order of their commits
//	cloudEvents_time         when it was written, RFC 3339 in UTC
//	cloudEvents_specversion  "1.0"
//	correlationid            the same on every message of one flow
//	causationid              the id of the message whose handling sent this one; of the HTTP request where a flow begins
//	traceparent              W3C Trace Context
//
// The owner in a type is the service whose contract it is, not the sender: the catalog owns the request to update
// an inventory, whoever sends it. The key is the booking's id for everything about a booking, and the event's id
// only for what the catalog says about an event, so that a popular event is not one queue for all its bookings.
//
// # Versions
//
// Within a major version fields are only ever added, and never needed: readers ignore what they do not know. A
// field that is renamed, removed, or changes its meaning, and a new value of an enumeration that readers must
// understand, make a new major version with a type and a struct of its own, published beside the old one until
// nobody is bound to that. What users are told of is no such enumeration: see [NotificationType].
package contracts
