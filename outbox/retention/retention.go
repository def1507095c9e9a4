package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// Defaults.
const (
	// KeepRelayed is how long an outbox keeps what has been relayed.
	KeepRelayed = 7 * 24 * time.Hour
	// KeepHandled is how long an inbox remembers; longer than any outbox keeps, so that what is replayed from there is
	// known.
	KeepHandled = 14 * 24 * time.Hour
	// MinKeep is the shortest time that the database accepts.
	MinKeep = time.Hour
)

// Config describes the keeper of one schema in one database. Zero values take the defaults.
type Config struct {
	// Connect leads to the database, as a member of outbox_relay or inbox_consumer. Each round has a connection of
	// its own.
	Connect *pgx.ConnConfig
	// Schema is "outbox" or "inbox".
	Schema string
	// Keep is how long a message is kept after it has been relayed, or remembered after it was written. Default
	// KeepRelayed or KeepHandled.
	Keep time.Duration
	// Ahead is for how many days after today partitions are made. Default 7: each costs every query of the relay something.
	Ahead int
	// Interval is the mean time between two rounds, at most 1 h, which is the default.
	Interval time.Duration
	// Logger takes what each round did. Default slog.Default.
	Logger *slog.Logger
	// Observe, if set, is told of every round that took place.
	Observe func(Report)
}

// Report is what one round did and found. Days are written 2006-01-02.
type Report struct {
	// Busy says that another process was at it, and that nothing else is known.
	Busy bool
	// Made, Emptied and Dropped are the days whose partitions were.
	Made, Emptied, Dropped []string
	// Swept counts rows deleted from the default partition.
	Swept int64
	// Postponed says why a day's partition was not made, or not dropped although it is old.
	Postponed map[string]string
	// Refusal is why nothing may be dropped at all, or empty.
	Refusal string
	// Ahead is for how many days after today there are partitions, Oldest the first day that has one.
	Ahead  int
	Oldest string
	// DefaultBytes is the size of what lies outside all days.
	DefaultBytes int64
}

func (c *Config) setDefaults() error {
	keep := KeepRelayed
	switch c.Schema {
	case "outbox":
	case "inbox":
		keep = KeepHandled
	default:
		return fmt.Errorf("retention: schema is %q, not outbox or inbox", c.Schema)
	}
	c.Keep = orDefault(c.Keep, keep)
	c.Ahead = orDefault(c.Ahead, 7)
	c.Interval = orDefault(c.Interval, time.Hour)
	switch {
	case c.Connect == nil:
		return errors.New("retention: config has no Connect")
	case c.Keep < MinKeep:
		return fmt.Errorf("retention: Keep is %s, at least %s is needed", c.Keep, MinKeep)
	case c.Interval > time.Hour:
		return fmt.Errorf("retention: Interval is %s, at most 1 h keeps time", c.Interval)
	case c.Ahead > 400:
		return fmt.Errorf("retention: %d partitions ahead, at most 400", c.Ahead)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Observe == nil {
		c.Observe = func(Report) {}
	}
	return nil
}

func orDefault[T int | time.Duration](value, fallback T) T {
	if value <= 0 {
		return fallback
	}
	return value
}

// Run does a round at once and then one per interval, until ctx ends; then it returns nil. Only a wrong
// configuration is an error. A round that fails, because the database is away say, is logged and soon tried again.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.setDefaults(); err != nil {
		return err
	}
	const soon = 5 * time.Second
	again := soon
	for {
		pause := cfg.Interval
		report, err := once(ctx, cfg)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			pause, again = min(again, pause), 2*min(again, cfg.Interval)
			cfg.Logger.Warn("retention failed, trying again", "schema", cfg.Schema, "pause", pause, "error", err)
		default:
			again = soon
			cfg.tell(report)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause*9/10 + rand.N(pause/5+1)):
		}
	}
}

// Once does one round.
func Once(ctx context.Context, cfg Config) (Report, error) {
	if err := cfg.setDefaults(); err != nil {
		return Report{}, err
	}
	return once(ctx, cfg)
}

// tell logs what a round did and found.
func (c *Config) tell(r Report) {
	if r.Busy {
		c.Logger.Debug("another process keeps the partitions", "schema", c.Schema)
		return
	}
	c.Observe(r)
	level := slog.LevelInfo
	if r.Refusal != "" || r.Ahead < c.Ahead/2 {
		level = slog.LevelWarn
	}
	c.Logger.Log(context.Background(), level, "partitions kept", "schema", c.Schema, "made", r.Made, "emptied", r.Emptied,
		"dropped", r.Dropped, "swept", r.Swept, "postponed", r.Postponed, "refusal", r.Refusal,
		"ahead", r.Ahead, "oldest", r.Oldest, "default_bytes", r.DefaultBytes)
}
