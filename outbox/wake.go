package outbox

import (
	"context"
	"sync"
	"time"
)

// WakeChannel is the NOTIFY channel on which the relay hears that something was committed. A hint only: what
// it misses it finds by polling.
const WakeChannel = "outbox_wake"

// wakeEvery is the shortest time between two hints of one process to one database.
const wakeEvery = 5 * time.Millisecond

// pending holds the databases with a hint on its way. Its size is bounded by the number of pools.
var pending sync.Map

// hint tells the relay soon, at most once per wakeEvery, on a connection of its own: a NOTIFY in the business
// transaction would take an instance-wide lock at every commit.
func hint(db DB) {
	if _, busy := pending.LoadOrStore(db, struct{}{}); busy {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		// What commits while the statement runs must get a hint of its own.
		pending.Store(db, struct{}{})
		time.AfterFunc(wakeEvery, func() { pending.Delete(db) })
		_, _ = db.Exec(ctx, `SELECT pg_notify($1, '')`, WakeChannel) // polling is the fallback
	}()
}
