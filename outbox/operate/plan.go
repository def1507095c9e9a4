package operate

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	mostReplayed = 1_000_000        // messages of one plan
	planTimeout  = 10 * time.Minute // of making a plan
	planLasts    = "1 day"          // that it may be applied
)

// PlanReplay says what it would do to publish relayed messages of a range again, and keeps that under a hash for a day.
// Messages that are not relayed yet, or stuck, are counted and left to the relay. A replay goes in the order of each key,
// but cannot undo what later messages of the key have done where an earlier one was missing.
func (o *Operator) PlanReplay(ctx context.Context, req PlanRequest) (Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	p, err := o.plan(ctx, req)
	if err != nil {
		return Plan{}, err
	}
	document, err := json.Marshal(p.Request)
	if err != nil {
		return Plan{}, fmt.Errorf("encode the request: %w", err)
	}
	batch := &pgx.Batch{}
	batch.Queue(`DELETE FROM ops.plans WHERE made_at < clock_timestamp() - interval '` + planLasts + `'`)
	batch.Queue(`DELETE FROM ops.plans WHERE hash = $1`, p.Hash)
	batch.Queue(`INSERT INTO ops.plans (hash, request) VALUES ($1, $2)`, p.Hash, document)
	if err := p.from.pool.SendBatch(ctx, batch).Close(); err != nil {
		return Plan{}, p.from.failed("keep the plan", err)
	}
	return p.Plan, nil
}

// planned is a plan with what is needed to apply it.
type planned struct {
	Plan
	scene    *scene
	from     *store
	ids      []int64            // of the rows to be published, in order
	touched  int64              // by operators
	canaries map[string]int64   // by type: the first message of its key that some consumer lacks
	lacking  map[int64][]string // of a canary, the consumers that lack it
}

// candidate is a row of the range.
type candidate struct {
	ID        int64
	UUID      uuid.UUID
	Topic     string
	Key       string
	Decodable bool
	Relayed   bool
	Touched   bool // skipped, or edited: the row is not what was meant
}

func (r PlanRequest) check(s *scene) error {
	switch {
	case r.From.IsZero() || !r.From.Before(r.To):
		return fmt.Errorf("%w: want a time from and a later one to", ErrInvalid)
	case r.From.Year() < 1 || r.To.Year() > 9999: // in UTC: JSON holds no others
		return fmt.Errorf("%w: want times of the years 1 to 9999", ErrInvalid)
	case len(r.Type) > 255 || len(r.Key) > 255 || !storable(r.Type) || !storable(r.Key):
		return fmt.Errorf("%w: type and key are text of at most 255 bytes", ErrInvalid)
	case s.topology == nil:
		return fmt.Errorf("%w: no database has a topology, so nobody knows where messages go", ErrRefused)
	case len(s.away) > 0:
		return fmt.Errorf("a plan needs all databases: %w", errors.Join(s.away...))
	case r.ToQueue != "" && !slices.Contains(s.consumers(), r.ToQueue):
		return fmt.Errorf("%w: there is no consumer %q among %q", ErrInvalid, r.ToQueue, s.consumers())
	}
	return nil
}

// consumers are all that have queues.
func (s *scene) consumers() (names []string) {
	for _, q := range s.topology.Queues {
		names = append(names, q.Name)
	}
	return names
}

// targets are the consumers that a replay of a type reaches.
func (p *planned) targets(typ string) []string {
	bound := p.scene.bound(typ)
	if q := p.Request.ToQueue; q != "" {
		return slices.DeleteFunc(bound, func(name string) bool { return name != q })
	}
	return bound
}

func (o *Operator) plan(ctx context.Context, req PlanRequest) (*planned, error) {
	req.From, req.To = req.From.UTC().Truncate(time.Microsecond), req.To.UTC().Truncate(time.Microsecond)
	p := &planned{scene: o.survey(ctx), canaries: map[string]int64{}, lacking: map[int64][]string{}}
	p.Plan = Plan{Request: req, MadeAt: time.Now(), Types: map[string]int{}, Handled: map[string]int64{}, Warnings: []string{}}
	if _, err := o.named(req.Database); err != nil {
		return nil, err
	}
	if err := req.check(p.scene); err != nil {
		return nil, err
	}
	at := slices.IndexFunc(p.scene.stores, func(st *store) bool { return st.name == req.Database })
	if p.from = p.scene.stores[at]; !p.from.outbox {
		return nil, fmt.Errorf("%w: database %s has no outbox", ErrInvalid, req.Database)
	}
	rows, err := p.from.candidates(ctx, req)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	document, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	sum.Write(document)
	fmt.Fprintf(sum, "%s %s %d", p.scene.topology.Exchange, p.scene.topology.TypePrefix, p.scene.topology.Partitions)
	keys := map[string]bool{}
	for part := range slices.Chunk(p.judge(rows), portion) {
		if err := p.ask(ctx, part, sum, keys); err != nil {
			return nil, err
		}
	}
	p.Messages, p.Keys = int64(len(p.ids)), int64(len(keys))
	p.Hash = hex.EncodeToString(sum.Sum(nil)[:16])
	p.warn()
	return p, nil
}

// candidates reads what was written in the range.
func (st *store) candidates(ctx context.Context, req PlanRequest) (rows []candidate, err error) {
	err = st.look(ctx, "read the range", planTimeout, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, `SET LOCAL enable_seqscan = on`); err != nil {
			return err
		}
		rows, err = rowsOf[candidate](ctx, tx, `
			SELECT m.id, m.uuid, m.topic, m.key,
			       octet_length(m.payload) <= 1048576 AND octet_length(m.metadata::text) <= 32768 AND jsonb_typeof(m.metadata) = 'object'
			         AND NOT jsonb_path_exists(m.metadata, 'strict $.* ? (@.type() != "string")', '{}', true) AS decodable,
			       touched.id IS NOT NULL AS touched,
			       `+isRelayed+`
			         AND NOT EXISTS (SELECT FROM outbox.stuck AS s WHERE s.message_id = m.id) AS relayed
			FROM outbox.messages AS m
			LEFT JOIN LATERAL (SELECT * FROM outbox.cursor AS c WHERE c.partition = m.partition ORDER BY c.seq DESC LIMIT 1) AS c ON true
			LEFT JOIN (
				SELECT DISTINCT jsonb_array_elements_text(a.detail -> 'messages') AS id FROM ops.audit AS a
				WHERE a.action IN ('outbox.skip', 'outbox.edit')) AS touched ON touched.id = m.uuid::text
			WHERE m.created_at >= $1 AND m.created_at < $2 AND ($3 = '' OR m.topic = $3) AND ($4 = '' OR m.key = $4)
			LIMIT $5`, req.From, req.To, req.Type, req.Key, mostReplayed+1)
		return err
	})
	if err == nil && len(rows) > mostReplayed {
		err = fmt.Errorf("%w: the range has more than %d messages: plan it in parts", ErrInvalid, mostReplayed)
	}
	slices.SortFunc(rows, func(a, b candidate) int { return cmp.Compare(a.ID, b.ID) })
	return rows, err
}

// judge leaves what can be published, and counts the rest.
func (p *planned) judge(rows []candidate) (good []candidate) {
	for _, r := range rows {
		switch {
		case !r.Relayed:
			p.NotRelayed++
		case r.Touched:
			p.touched++
		case !r.Decodable:
			p.Undecodable++
		case len(p.targets(r.Topic)) == 0:
			p.Unroutable++
		default:
			good = append(good, r)
			p.Types[r.Topic]++
		}
	}
	return good
}

// ask looks which consumers have these messages, and makes that part of the hash.
func (p *planned) ask(ctx context.Context, part []candidate, sum hash.Hash, keys map[string]bool) error {
	ids := make([]uuid.UUID, len(part))
	for i, r := range part {
		ids[i] = r.UUID
	}
	type row struct {
		MessageID uuid.UUID
		State     string
	}
	have := map[string]map[uuid.UUID]string{} // by consumer: the state
	for _, q := range p.scene.topology.Queues {
		have[q.Name] = map[uuid.UUID]string{}
		home := p.scene.home(q.Name)
		if home == nil {
			continue
		}
		handled, err := collect[row](ctx, home.database, "look into the inbox", `
			SELECT message_id, CASE WHEN bool_or(state = 'done') THEN 'done' ELSE min(state) END AS state
			FROM inbox.messages WHERE consumer = $1 AND message_id = ANY ($2) GROUP BY message_id`, q.Name, ids)
		if err != nil {
			return err
		}
		for _, r := range handled {
			have[q.Name][r.MessageID] = r.State
		}
	}
	for _, r := range part {
		p.ids = append(p.ids, r.ID)
		sum.Write(r.UUID[:])
		var lacks []string
		for _, name := range p.targets(r.Topic) {
			state := have[name][r.UUID]
			fmt.Fprintf(sum, "%s=%s;", name, state)
			switch {
			case state == "done":
				p.Handled[name]++
			case state == "" && p.scene.home(name) != nil:
				lacks = append(lacks, name)
			}
		}
		if p.canaries[r.Topic] == 0 && len(lacks) > 0 && !keys[r.Key] {
			p.canaries[r.Topic], p.lacking[r.ID] = r.ID, lacks
		}
		keys[r.Key] = true
	}
	return nil
}

func (p *planned) warn() {
	warn := func(n int64, text string) {
		if n > 0 {
			p.Warnings = append(p.Warnings, amount(n, "message")+text)
		}
	}
	warn(p.NotRelayed, " of the range not relayed yet, or stuck: left to the relay")
	warn(p.touched, " skipped or edited by operators: left out")
	warn(p.Undecodable, " written past the outbox's rules: cannot be published")
	warn(p.Unroutable, " of a type that no queue is bound to: left out")
	if p.Messages == 0 {
		p.Warnings = append(p.Warnings, "nothing would be published")
	}
	for _, name := range p.scene.consumers() {
		if p.scene.home(name) == nil {
			p.Warnings = append(p.Warnings, "the inbox of "+name+" is in none of these databases: nobody knows what it has handled")
		}
	}
}
