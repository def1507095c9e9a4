// Package loop repeats a step that takes what is due from the database.
package loop

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	// soon is the first look after a wake-up: the transaction that it announces may not be committed yet.
	soon     = 5 * time.Millisecond
	pauseMin = 100 * time.Millisecond
	pauseMax = 10 * time.Second
)

// Config describes a loop. All fields but Wake are required.
type Config struct {
	// Name says in the log which loop it is.
	Name string
	// Logger is told when the step begins to fail, and when it works again.
	Logger *slog.Logger
	// Wake, if set, makes the loop look at once and then less and less often.
	Wake Bell
	// Idle is how often it looks when nothing happens.
	Idle time.Duration
	// Step does what is due and returns how much it was. It bounds its own time.
	Step func(ctx context.Context) (n int, err error)
}

// Bell wakes one loop. Ring never blocks; rings that nobody has heard yet are one.
type Bell chan struct{}

// NewBell makes a Bell.
func NewBell() Bell { return make(Bell, 1) }

// Ring wakes the loop.
func (b Bell) Ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// Run repeats the step until ctx ends: at once while there is something due, after a pause that grows while it fails.
func Run(ctx context.Context, cfg Config) {
	pause, failing := cfg.Idle, false
	for ctx.Err() == nil {
		n, err := cfg.Step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failing {
				cfg.Logger.ErrorContext(ctx, "a loop fails and tries on", "loop", cfg.Name, "error", err)
				pause = pauseMin
			}
			failing = true
		case failing:
			cfg.Logger.InfoContext(ctx, "a loop works again", "loop", cfg.Name)
			pause, failing = cfg.Idle, false
		}
		if err == nil && n > 0 {
			pause = soon
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-cfg.Wake:
			if !failing {
				pause = soon
			}
		case <-time.After(pause/2 + rand.N(pause)):
		}
		if failing {
			pause = min(2*pause, pauseMax)
		} else {
			pause = min(2*pause, cfg.Idle)
		}
	}
}
