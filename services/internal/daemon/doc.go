// Package daemon is everything around a service in a process: options, logs, the database pool, the HTTP server
// with its probes and metrics, the consumer, and their common end.
//
// A service may be started in any order with its database and its broker, and both may go away at any time:
//
//	             database answers, schema new enough
//	starting ------------------------------------------> running --- ctx ends ---> draining ---> ended (nil)
//	 |    '--- ctx ends ---> ended (nil)                    |
//	 '-------- schema too old ---> ended (error)            '--- HTTP or consumer fails ---> ended (error)
//
// HTTP answers from the first moment. Until the schema has been checked /readyz and every route of the service
// answer 503 with Retry-After, and nothing is consumed. /readyz follows the database alone: while the broker is
// away the service goes on taking work, which is what an outbox is for. /livez looks at nothing.
package daemon
