package outbox

import (
	"context"
	"reflect"
	"sync"
	"time"
)

// WakeChannel is the NOTIFY channel on which the relay hears that something was committed. A hint only: what
// it misses it finds by polling.
const WakeChannel = "outbox_wake"

// wakeEvery is the shortest time between two hints of one process to one database.
const wakeEvery = 5 * time.Millisecond

// hints holds the databases that got a hint within wakeEvery, and whether they are due another.
var hints = struct {
	sync.Mutex
	due map[DB]bool
}{due: map[DB]bool{}}

// hint tells the relay, without waiting, on a connection of its own: a NOTIFY in the business transaction
// would take an instance-wide lock at every commit. Hints of one process run together, the last one never
// gets lost.
func hint(db DB) {
	if !reflect.TypeOf(db).Comparable() {
		return
	}
	hints.Lock()
	defer hints.Unlock()
	if _, busy := hints.due[db]; busy {
		hints.due[db] = true
		return
	}
	hints.due[db] = false
	go sendHints(db)
}

func sendHints(db DB) {
	for more := true; more; more = stillDue(db) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, _ = db.Exec(ctx, `SELECT pg_notify($1, '')`, WakeChannel) // polling is the fallback
		cancel()
		time.Sleep(wakeEvery)
	}
}

// stillDue takes the order for one more hint, or ends the series.
func stillDue(db DB) bool {
	hints.Lock()
	defer hints.Unlock()
	if hints.due[db] {
		hints.due[db] = false
		return true
	}
	delete(hints.due, db)
	return false
}
