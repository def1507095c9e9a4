package relay

// LimitStuckKeys sets how many stuck keys a partition's pump knows.
func LimitStuckKeys(cfg *Config, n int) { cfg.stuckKeys = n }
