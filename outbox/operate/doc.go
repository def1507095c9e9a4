// Package operate is what an operator sees and does: where a message is, what is stuck and why, and the verbs that
// move it. It works on the databases and the broker directly; package admin serves it over HTTP, and outboxctl is the
// client.
//
// A verb either happens whole, with a row of the audit log in the same transaction, or not at all. It works whether
// relays and services run or not, and never on a message that a relay or a handler has in hand: such a message is
// waited for a moment and then reported as busy. With DryRun a verb says what it would do and changes nothing.
//
// Both sides speak the same words. On the outbox's side a message is stuck when the broker or its route will not take
// it, on the inbox's when its handler fails. The oldest stuck message of a key is its head; those behind it wait for
// it, and nothing of another key does.
package operate
