// Package web is how every service speaks HTTP: routing, strict JSON, problems, correlation, and the access log.
//
// A handler returns an error instead of writing one. Whatever a client is told about an error is decided in one
// place, problem.go, and is always RFC 9457 application/problem+json: also for a route that does not exist, a
// panic, and a database that is away (503 with Retry-After). An error that is not meant for clients is logged
// and shown as a bare 500.
//
// The context of a request carries the causality ([outbox.WithCausality]) of the flow it belongs to or begins, with
// the request's own id (request_id in the access log) as the cause, and ends after the router's timeout.
package web
