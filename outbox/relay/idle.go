package relay

import "time"

// idle is the pause between two looks at an empty outbox. It grows while nothing comes; a wake-up ends it.
type idle struct{ least, most, next time.Duration }

func newIdle(least, most time.Duration) *idle { return &idle{least: least, most: most, next: least} }

func (i *idle) reset() { i.next = i.least }

func (i *idle) grow() { i.next = min(2*i.next, i.most) }
