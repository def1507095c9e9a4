package operate

import "time"

// SetClock lets tests move the operator's clock.
func (o *Operator) SetClock(now func() time.Time) { o.now = now }

// SetLong is from when on a transaction is long.
func (o *Operator) SetLong(d time.Duration) { o.long = d }

// Rules that no server here can break.
var (
	JudgePostgreSQL = judgePostgreSQL
	JudgeRabbitMQ   = judgeRabbitMQ
)

// DecodePlan reads a stored plan.
var DecodePlan = decodePlan
