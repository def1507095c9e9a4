// Package outbox writes messages to PostgreSQL in the transaction that changes the state they speak of.
//
// A service changes its rows and appends its events in one transaction; package relay forwards what was
// committed to a broker; package inbox handles each message once in effect.
//
//	err := outbox.InTx(ctx, pool, func(tx pgx.Tx) error {
//		if err := insertBooking(ctx, tx, b); err != nil {
//			return err
//		}
//		return outbox.Append(ctx, tx, BookingMade{ID: b.ID})
//	})
//
// # What is guaranteed
//
// A committed message reaches every queue bound to its type at least once; one that was not committed never
// does. Messages of one key are published in the order in which their transactions committed, whoever wrote
// them: a trigger locks the key before it draws the row's id, and holds it until the transaction ends. Two
// transactions that write one key therefore wait for each other; a key should be as small as the thing whose
// order matters.
//
// The partition of a key, mod(hash(key), 4), is computed by the database, so that every writer gets the same.
// It is the unit of ownership in the relay and the suffix of the consumer's queue.
package outbox
