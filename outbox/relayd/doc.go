// Package relayd runs a relay as a daemon: topology, publisher, relay, probes and metrics in one piece.
//
// The exchange, the queues and their bindings are not its own idea: they stand in outbox.config of the databases
// it relays from, where whoever owns the contracts has stored them. The daemon waits until one database has
// them, declares them before the first message goes out, and again on a timer, so that what somebody deletes at
// the broker comes back.
package relayd
