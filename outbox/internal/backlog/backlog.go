// Package backlog is the SQL that tells what of an outbox its cursors have not passed, for those who show it.
package backlog

// Lag is what of a partition is committed and not relayed, counted up to a bound.
type Lag struct {
	Counted  int64
	Seconds  float64 // the age of the oldest
	Estimate float64 // of all, when the bound was met
}

// Messages is how many they are: counted, when that took no more than most, or about.
func (l Lag) Messages(most int64) (n int64, exact bool) {
	if l.Counted <= most {
		return l.Counted, true
	}
	return max(l.Counted, int64(l.Estimate)), false
}

// Query gives a Lag for each partition, in order. Not relayed is what the cursor's relayed does not see, but what is done
// of its open window. The count stops at $1; from there on it is taken to go on as densely as it began, to the newest id.
const Query = `
	SELECT l.counted, coalesce(extract(epoch FROM clock_timestamp() - l.oldest), 0)::float8 AS seconds,
	       coalesce(l.counted::float8 / (l.last_id - l.first_id + 1) * ((SELECT max(id) FROM outbox.messages) - l.first_id + 1), 0)::float8 AS estimate
	FROM generate_series(0, 3) AS p
	LEFT JOIN LATERAL (SELECT * FROM outbox.cursor AS c WHERE c.partition = p ORDER BY c.seq DESC LIMIT 1) AS c ON true
	CROSS JOIN LATERAL (
		SELECT count(*) AS counted, min(w.created_at) AS oldest, min(w.id) AS first_id, max(w.id) AS last_id
		FROM (SELECT * FROM (` + unrelayed + `) AS u LIMIT $1) AS w
	) AS l
	ORDER BY p`

// unrelayed are the messages of partition p that its cursor c has not passed.
const unrelayed = `
	SELECT m.id, m.key, m.created_at FROM outbox.messages AS m
	WHERE m.partition = p::smallint AND m.transaction_id >= coalesce(pg_snapshot_xmax(c.relayed), '0') AND NOT ` + Passed + `
	UNION ALL
	SELECT m.* FROM pg_snapshot_xip(c.relayed) AS late (tx), LATERAL (
		SELECT m.id, m.key, m.created_at FROM outbox.messages AS m WHERE m.partition = p::smallint AND m.transaction_id = late.tx AND NOT ` + Passed + ` OFFSET 0) AS m`

// Passed says that a message m is among the first of its cursor c's open window, all of which are done.
const Passed = `coalesce(m.id <= c.last_id AND pg_visible_in_snapshot(m.transaction_id, c.target), false)`

// IsRelayed says that the cursor c, if there is one, is done with message m: it was relayed, or is stuck.
const IsRelayed = `(coalesce(pg_visible_in_snapshot(m.transaction_id, c.relayed), false) OR ` + Passed + `)`
