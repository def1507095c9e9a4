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

// wakeMin and wakeMax bound the time between two hints of one process to one database: it doubles while more than
// crowd transactions share a hint, since a hint is a transaction too.
const (
	wakeMin = 2 * time.Millisecond
	wakeMax = 16 * time.Millisecond
	crowd   = 4
)

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

// dueHint is what the next hint will say, and how many transactions share it.
type dueHint struct {
	partitions
	shared int
}

// hints holds the databases that got a hint just now, and what is due to them next.
var hints = struct {
	sync.Mutex
	due map[DB]*dueHint
}{due: map[DB]*dueHint{}}

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
		due.shared++
		return
	}
	hints.due[db] = new(dueHint)
	go sendHints(db, touched)
}

// sendHint does not wait for the disk: nothing is lost with a hint.
const sendHint = `SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`

func sendHints(db DB, touched partitions) {
	pause := wakeMin
	for next := (dueHint{touched, 1}); next.shared > 0; next = stillDue(db) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, _ = db.Exec(ctx, sendHint, WakeChannel, next.String()) // polling is the fallback
		cancel()
		if next.shared > crowd {
			pause = min(2*pause, wakeMax)
		} else {
			pause = wakeMin
		}
		time.Sleep(pause)
	}
}

// stillDue takes the order for one more hint; when there is none the series has ended.
func stillDue(db DB) dueHint {
	hints.Lock()
	defer hints.Unlock()
	next := *hints.due[db]
	if next.shared == 0 {
		delete(hints.due, db)
		return next
	}
	*hints.due[db] = dueHint{}
	return next
}
