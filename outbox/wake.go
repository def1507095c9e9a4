package outbox

import (
	"context"
	"reflect"
	"sync"
	"time"
)

// WakeChannel is the NOTIFY channel on which the relay hears that something was committed. Its payload is the
// partitions concerned, a digit each; empty stands for all. A hint only: what the relay misses it finds by polling.
const WakeChannel = "outbox_wake"

// wakeEvery is the shortest time between two hints of one process to one database.
const wakeEvery = 2 * time.Millisecond

// partitions is a set of them.
type partitions [Partitions]bool

func (p *partitions) add(more partitions) {
	for i, in := range more {
		p[i] = p[i] || in
	}
}

func (p *partitions) String() string {
	var digits []byte
	for i, in := range p {
		if in {
			digits = append(digits, byte('0'+i))
		}
	}
	return string(digits)
}

// hints holds the databases that got a hint within wakeEvery, and the partitions that are due another.
var hints = struct {
	sync.Mutex
	due map[DB]*partitions
}{due: map[DB]*partitions{}}

// hint tells the relay, without waiting, on a connection of its own: a NOTIFY in the business transaction
// would take an instance-wide lock at every commit. Hints of one process run together, the last one never
// gets lost.
func hint(db DB, touched partitions) {
	if !reflect.TypeOf(db).Comparable() {
		return
	}
	hints.Lock()
	defer hints.Unlock()
	if due, busy := hints.due[db]; busy {
		due.add(touched)
		return
	}
	hints.due[db] = new(partitions)
	go sendHints(db, touched)
}

// sendHint does not wait for the disk: nothing is lost with a hint.
const sendHint = `SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`

func sendHints(db DB, touched partitions) {
	for more := true; more; touched, more = stillDue(db) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, _ = db.Exec(ctx, sendHint, WakeChannel, touched.String()) // polling is the fallback
		cancel()
		time.Sleep(wakeEvery)
	}
}

// stillDue takes the order for one more hint, or ends the series.
func stillDue(db DB) (touched partitions, more bool) {
	hints.Lock()
	defer hints.Unlock()
	touched = *hints.due[db]
	if touched != (partitions{}) {
		*hints.due[db] = partitions{}
		return touched, true
	}
	delete(hints.due, db)
	return touched, false
}
