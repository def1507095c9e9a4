// Package admin serves package operate over HTTP, for outboxctl and for people's own tools.
//
// openapi.yaml is the interface: types, routing and the client in package api are generated from it, and so is the
// role that each operation asks for. A request passes, in this order:
//
//	access log, recovery -> token (401) -> rate (429) -> room (503) -> route (404, 405) -> parameters (400) -> role (403)
//
// Without a valid token nothing is told, not even which paths there are; only /livez and /readyz answer everybody.
// A token is known by its SHA-256 alone, in a file that is read again when it changes. A token file that cannot be
// used lets nobody in.
//
// What an operator does is audited by package operate in the transaction of the deed, under the token's name and with
// the reason given. Logs hold no payloads, keys or tokens. Every error is a [problem]; problem.go alone decides which.
package admin
