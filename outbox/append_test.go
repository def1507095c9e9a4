package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// placed is the event of these tests.
type placed struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (placed) EventType() string  { return "shop.orders.placed.v1" }
func (p placed) EventKey() string { return p.Key }

type stored struct {
	ID       int64
	UUID     uuid.UUID
	Topic    string
	Key      string
	Payload  string
	Metadata map[string]string
}

func rowsOf(t *testing.T, db *outboxtest.Database) []stored {
	t.Helper()
	rows, err := db.Query(t.Context(), `SELECT id, uuid, topic, key, convert_from(payload, 'UTF8'), metadata FROM outbox.messages ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[stored])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAppendWritesWithTheTransaction(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	service := outboxtest.NewPool(t, db.ServiceURL)
	ctx := outbox.WithCausality(t.Context(), outbox.Causality{CorrelationID: "c-1", CausationID: "m-1"})
	err := outbox.InTx(ctx, service, func(tx pgx.Tx) error {
		return outbox.Append(ctx, tx, placed{"b", 1}, placed{"a", 2}, placed{"b", 3})
	})
	if err != nil {
		t.Fatal(err)
	}
	rollback := errors.New("changed my mind")
	err = outbox.InTx(ctx, service, func(tx pgx.Tx) error {
		return errors.Join(outbox.Append(ctx, tx, placed{"c", 4}), rollback)
	})
	if !errors.Is(err, rollback) {
		t.Fatalf("InTx = %v, want the function's error", err)
	}
	got := rowsOf(t, db)
	if len(got) != 3 {
		t.Fatalf("%d rows, want the 3 that were committed", len(got))
	}
	for i, want := range []string{`{"key":"a","n":2}`, `{"key":"b","n":1}`, `{"key":"b","n":3}`} {
		if got[i].Payload != want || got[i].Topic != "shop.orders.placed.v1" || got[i].UUID.Version() != 7 {
			t.Errorf("row %d is %+v, want payload %s", i, got[i], want)
		}
		if got[i].Metadata[outbox.HeaderCorrelationID] != "c-1" || got[i].Metadata[outbox.HeaderCausationID] != "m-1" {
			t.Errorf("row %d has metadata %v", i, got[i].Metadata)
		}
	}
}

func TestAppendSQLWritesTheSame(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	pool, err := sql.Open("pgx", db.ServiceURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	tx, err := pool.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.AppendSQL(t.Context(), tx, placed{"a", 1}, placed{"ü", 2}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(t, db); len(got) != 2 || got[1].Payload != `{"key":"ü","n":2}` || got[1].Key != "ü" {
		t.Errorf("rows are %+v", got)
	}
}

func TestAppendRefusesWhatTheBrokerCannotCarry(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	good := func() outbox.Message {
		return outbox.Message{ID: uuid.Must(uuid.NewV7()), Topic: "t", Key: "k", Payload: []byte("{}")}
	}
	many := map[string]string{}
	for i := range 40 {
		many[strings.Repeat("x", i+1)] = strings.Repeat("v", 1000)
	}
	for name, spoil := range map[string]func(m *outbox.Message){
		"no id":           func(m *outbox.Message) { m.ID = uuid.Nil },
		"long topic":      func(m *outbox.Message) { m.Topic = strings.Repeat("t", outbox.MaxTopic+1) },
		"empty key":       func(m *outbox.Message) { m.Key = "" },
		"long key":        func(m *outbox.Message) { m.Key = strings.Repeat("k", outbox.MaxKey+1) },
		"NUL in key":      func(m *outbox.Message) { m.Key = "a\x00b" },
		"large payload":   func(m *outbox.Message) { m.Payload = make([]byte, outbox.MaxPayload+1) },
		"long header":     func(m *outbox.Message) { m.Metadata = map[string]string{strings.Repeat("h", 256): "v"} },
		"bad header text": func(m *outbox.Message) { m.Metadata = map[string]string{"h": "\xff"} },
		"large metadata":  func(m *outbox.Message) { m.Metadata = many },
	} {
		t.Run(name, func(t *testing.T) {
			m := good()
			spoil(&m)
			err := outbox.InTx(t.Context(), db, func(tx pgx.Tx) error { return outbox.Write(t.Context(), tx, good(), m) })
			if !errors.Is(err, outbox.ErrInvalid) {
				t.Errorf("error is %v, want ErrInvalid", err)
			}
		})
	}
	if got := rowsOf(t, db); len(got) != 0 {
		t.Errorf("%d rows were written", len(got))
	}
}

func TestAppendRefusesTooManyKeys(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	events := make([]outbox.Event, outbox.MaxKeys+1)
	for i := range events {
		events[i] = placed{uuid.NewString(), i}
	}
	write := func(events ...outbox.Event) error {
		return outbox.InTx(t.Context(), db, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, events...) })
	}
	if err := write(events...); !errors.Is(err, outbox.ErrTooManyKeys) {
		t.Errorf("error is %v, want ErrTooManyKeys", err)
	}
	if err := write(events[:outbox.MaxKeys]...); err != nil {
		t.Errorf("%d keys: %v", outbox.MaxKeys, err)
	}
}

// TestWritersMayAppendAndNoMore runs as a service's role, past the Go code.
func TestWritersMayAppendAndNoMore(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	service := outboxtest.NewPool(t, db.ServiceURL)
	const row = `gen_random_uuid(), 't', 'k', '{}'`
	for name, c := range map[string]struct{ statement, code string }{
		"plain insert":        {`INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (` + row + `)`, ""},
		"choose id":           {`INSERT INTO outbox.messages (uuid, topic, key, payload, id) VALUES (` + row + `, 1)`, "42501"},
		"choose transaction":  {`INSERT INTO outbox.messages (uuid, topic, key, payload, transaction_id) VALUES (` + row + `, '1')`, "42501"},
		"choose partition":    {`INSERT INTO outbox.messages (uuid, topic, key, payload, partition) VALUES (` + row + `, 1)`, "42501"},
		"choose time":         {`INSERT INTO outbox.messages (uuid, topic, key, payload, created_at) VALUES (` + row + `, now())`, "42501"},
		"read":                {`SELECT key FROM outbox.messages`, "42501"},
		"update":              {`UPDATE outbox.messages SET key = 'x'`, "42501"},
		"delete":              {`DELETE FROM outbox.messages`, "42501"},
		"truncate":            {`TRUNCATE outbox.messages`, "42501"},
		"write a day's table": {`INSERT INTO outbox.messages_default (uuid, topic, key, payload) VALUES (` + row + `)`, "42501"},
		"set the sequence":    {`SELECT setval('outbox.message_id', 1)`, "42501"},
		"move the cursor":     {`INSERT INTO outbox.cursor (partition, relayed, token) VALUES (0, '9:9:', 1)`, "42501"},
		"take a lease":        {`UPDATE outbox.leases SET token = 0`, "42501"},
		"create a table":      {`CREATE TABLE public.mine (n int)`, "42501"},
		"long header":         {`INSERT INTO outbox.messages (uuid, topic, key, payload, metadata) VALUES (` + row + `, jsonb_build_object(repeat('h', 256), 'v'))`, "23514"},
		"header no string":    {`INSERT INTO outbox.messages (uuid, topic, key, payload, metadata) VALUES (` + row + `, '{"a": 1}')`, "23514"},
		"header an array":     {`INSERT INTO outbox.messages (uuid, topic, key, payload, metadata) VALUES (` + row + `, '{"a": ["x"]}')`, "23514"},
		"long and an array":   {`INSERT INTO outbox.messages (uuid, topic, key, payload, metadata) VALUES (` + row + `, jsonb_build_object('a', '[]'::jsonb, 'h', repeat('v', 300)))`, "23514"},
		"metadata no object":  {`INSERT INTO outbox.messages (uuid, topic, key, payload, metadata) VALUES (` + row + `, '["a"]')`, "23514"},
		"large metadata":      {`INSERT INTO outbox.messages (uuid, topic, key, payload, metadata) VALUES (` + row + `, jsonb_build_object('h', repeat('v', 33000)))`, "23514"},
		"large payload":       {`INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), 't', 'k', convert_to(repeat('v', 1048577), 'UTF8'))`, "23514"},
		"long topic":          {`INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), repeat('t', 251), 'k', '{}')`, "23514"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := service.Exec(context.Background(), c.statement)
			var pg *pgconn.PgError
			if errors.As(err, &pg); c.code == "" && err != nil || c.code != "" && (pg == nil || pg.Code != c.code) {
				t.Errorf("error is %v, want code %q", err, c.code)
			}
		})
	}
}

// The rules mean the same whatever the writer's search_path, and hold for an administrator too.
func TestRulesHoldForEveryWriter(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	conn, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, statement := range []string{
		`CREATE SCHEMA evil`,
		`CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql IMMUTABLE RETURN 1`,
		`CREATE FUNCTION evil.nextval(regclass) RETURNS bigint LANGUAGE sql VOLATILE RETURN 7`,
		`CREATE FUNCTION evil.mod(bigint, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE RETURN 9`,
		`SET search_path = evil, pg_catalog`,
	} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	var id int64
	var partition int
	err = conn.QueryRow(t.Context(), `
		INSERT INTO outbox.messages (uuid, topic, key, payload, partition, id) VALUES (gen_random_uuid(), 't', 'k', '{}', 77, 7)
		RETURNING id, partition`).Scan(&id, &partition)
	if err != nil || id == 7 || partition != outbox.PartitionOf("k") {
		t.Errorf("id %d, partition %d (%v), want the sequence's id and partition %d", id, partition, err, outbox.PartitionOf("k"))
	}
	_, err = conn.Exec(t.Context(), `INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), repeat('t', 251), 'k', '{}')`)
	if err == nil || !strings.Contains(err.Error(), "topic has 251 bytes, want 1 to 250") {
		t.Errorf("error is %v, want one that names the limit", err)
	}
}

// The second writer of a key waits for the first, by whatever way they write; other keys do not.
func TestWritersOfAKeyTakeTurns(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDatabase(t, "shop")
	ctx := t.Context()
	held, err := db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Rollback(ctx) }()
	if err := outbox.Append(ctx, held, placed{"k", 1}); err != nil {
		t.Fatal(err)
	}
	ways := map[string]func(tx pgx.Tx, key string) error{
		"Append": func(tx pgx.Tx, key string) error { return outbox.Append(ctx, tx, placed{key, 2}) },
		"plain SQL": func(tx pgx.Tx, key string) error {
			_, err := tx.Exec(ctx, `INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES (gen_random_uuid(), 't', $1, '{}')`, key)
			return err
		},
	}
	for name, write := range ways {
		for key, want := range map[string]string{"k": "55P03", "other": ""} {
			err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '200ms'`); err != nil {
					return err
				}
				return write(tx, key)
			})
			var pg *pgconn.PgError
			if errors.As(err, &pg); want == "" && err != nil || want != "" && (pg == nil || pg.Code != want) {
				t.Errorf("%s, key %s: %v, want code %q", name, key, err, want)
			}
		}
	}
}
