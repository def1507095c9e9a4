package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/lease"
)

// ErrIdentity says that the stored cursor belongs to another cluster, database or timeline than the one that
// answers: after a restore or a failover its transaction ids are meaningless, and to go on would lose rows.
var ErrIdentity = errors.New("the outbox's cursor belongs to another cluster, database or timeline; the relay will not guess what was relayed")

// ErrRecovery says that the server is a standby. The cursor needs a primary.
var ErrRecovery = errors.New("the server is in recovery; the relay needs a primary")

// state is the newest row of a partition's journal.
type state struct {
	relayed snapshot
	target  *snapshot // of the open window, if any
	lastID  int64     // of the open window: all up to here is confirmed
}

// texts are the snapshots in PostgreSQL's form.
func (st state) texts() (relayed string, target *string) {
	if st.target != nil {
		text := st.target.String()
		target = &text
	}
	return st.relayed.String(), target
}

// session is the one connection that works on one partition. Any error of it ends it.
type session struct {
	conn    *pgx.Conn
	held    lease.Held
	timeout time.Duration
	source  string
	build   string
	started time.Time     // the server, when the identity was read
	closed  chan struct{} // by close
	halved  int           // how often rows have been found too large to ask for a whole page of them
}

// identity is what transaction ids are relative to.
type identity struct {
	SystemIdentifier string
	DatabaseOID      uint32
	Timeline         string
}

// openSession connects and reads what the session is relative to.
func openSession(ctx context.Context, config *pgx.ConnConfig, held lease.Held, timeout time.Duration) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s := &session{conn: conn, held: held, timeout: timeout, closed: make(chan struct{}), halved: cautious}
	if err := s.introduce(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *session) introduce(ctx context.Context) error {
	if err := s.conn.QueryRow(ctx, `SELECT source FROM outbox.config`).Scan(&s.source); err != nil {
		return fmt.Errorf("read outbox.config: %w", err)
	}
	now, started, err := s.look(ctx)
	if err != nil {
		return err
	}
	s.started = started
	_, err = s.conn.Exec(ctx, `
		INSERT INTO outbox.identity (system_identifier, database_oid, timeline) VALUES ($1, $2, $3)
		ON CONFLICT (singleton) DO NOTHING`, now.SystemIdentifier, now.DatabaseOID, now.Timeline)
	if err != nil {
		return fmt.Errorf("store the identity: %w", err)
	}
	// A statement of its own: it must see a row that another partition's session has just stored.
	var known identity
	err = s.conn.QueryRow(ctx, `SELECT system_identifier, database_oid, timeline FROM outbox.identity`).Scan(&known.SystemIdentifier, &known.DatabaseOID, &known.Timeline)
	if err != nil {
		return fmt.Errorf("read the identity: %w", err)
	}
	if now != known {
		return fmt.Errorf("%w (stored: system %s, database %d, timeline %s; found: system %s, database %d, timeline %s)", ErrIdentity,
			known.SystemIdentifier, known.DatabaseOID, known.Timeline, now.SystemIdentifier, now.DatabaseOID, now.Timeline)
	}
	return nil
}

// detached gives a statement its deadline; it outlives the lease, so that a statement under way ends cleanly.
func (s *session) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
}

func (s *session) close() {
	close(s.closed)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx)
}

// look reads what the server is, and when it started. It is another one, or another timeline, only after a restart or a
// promotion, so that next need not read the identity again.
func (s *session) look(ctx context.Context) (now identity, started time.Time, err error) {
	var inRecovery bool
	err = s.conn.QueryRow(ctx, `
		SELECT i.system_identifier, i.database_oid, i.timeline, i.in_recovery, pg_postmaster_start_time()
		FROM outbox.current_identity() AS i`,
	).Scan(&now.SystemIdentifier, &now.DatabaseOID, &now.Timeline, &inRecovery, &started)
	switch {
	case err != nil:
		return identity{}, time.Time{}, fmt.Errorf("read the server's identity: %w", err)
	case inRecovery:
		return identity{}, time.Time{}, ErrRecovery
	}
	return now, started, nil
}

// load reads the partition's state; a partition that was never relayed starts with nothing.
func (s *session) load(ctx context.Context) (state, error) {
	ctx, cancel := s.detached(ctx)
	defer cancel()
	var (
		relayed string
		target  *string
		st      state
	)
	err := s.conn.QueryRow(ctx, `
		SELECT relayed::text, target::text, last_id FROM outbox.cursor
		WHERE partition = $1 ORDER BY seq DESC LIMIT 1`, s.held.Partition,
	).Scan(&relayed, &target, &st.lastID)
	if errors.Is(err, pgx.ErrNoRows) {
		return state{relayed: nothing}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("read the cursor: %w", err)
	}
	if st.relayed, err = parseSnapshot(relayed); err != nil || target == nil {
		return st, err
	}
	open, err := parseSnapshot(*target)
	st.target = &open
	return st, err
}

// store appends the state to the journal and waits for the disk. It is refused with lease.ErrLost when the
// lease has passed on; the share lock keeps it from passing on until the row is committed.
func (s *session) store(ctx context.Context, st state) error {
	relayed, target := st.texts()
	return s.fenced(ctx, "store the cursor", storeCursor, relayed, target, st.lastID)
}

// prune removes journal rows but the newest ones; they are only history.
func (s *session) prune(ctx context.Context) error {
	const keep = 100
	ctx, cancel := s.detached(ctx)
	defer cancel()
	_, err := s.conn.Exec(ctx, `
		DELETE FROM outbox.cursor WHERE partition = $1 AND seq < (
			SELECT min(seq) FROM (
				SELECT seq FROM outbox.cursor WHERE partition = $1 ORDER BY seq DESC LIMIT $2) AS newest)`,
		s.held.Partition, keep)
	if err != nil {
		return fmt.Errorf("prune the cursor: %w", err)
	}
	return nil
}
