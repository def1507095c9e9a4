package outboxtest

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	schema "github.com/jcp/ticketwave/sql"
)

// loginPassword is that of the login roles made for tests; they can reach test databases alone. The server is given
// loginSecret, its verifier with one iteration: the usual 4096 cost a client under the race detector 10 ms a connection.
const (
	loginPassword = "outboxtest"
	loginSecret   = "SCRAM-SHA-256$1:b3V0Ym94dGVzdC1zYWx0IQ==$dk3/9asJymViPwYep+J/6AlttddM4i8WRBmfPeE8qkI=:m4Mlzgy3dtC2EkhVhQLNc7LhbCGmEcmqngRRtKo8xIw="
)

// Database is one test's database.
type Database struct {
	// Pool connects as administrator.
	*pgxpool.Pool
	// Name is the database's name.
	Name string
	// AdminURL, ServiceURL, RelayURL and OperatorURL connect as administrator, as a service that may append and consume,
	// as the relay, and as an operator.
	AdminURL, ServiceURL, RelayURL, OperatorURL string
}

// NewDatabase makes a database with an outbox of the given source and an inbox, and the further schemas of
// package schema that are asked for. It is dropped when the test ends.
func NewDatabase(tb testing.TB, source string, schemas ...string) *Database {
	tb.Helper()
	servers := Env(tb)
	template := templateFor(tb, servers, source, schemas)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	db := &Database{Name: "tw_test_" + strings.ReplaceAll(uuid.NewString(), "-", "")[:20]}
	exec(ctx, tb, servers.PostgresURL,
		fmt.Sprintf(`SELECT pg_advisory_lock_shared(%d)`, templateLock), // copies keep off migrations, not off each other
		`CREATE DATABASE `+db.Name+` TEMPLATE `+template.Name,
		`REVOKE ALL ON DATABASE `+db.Name+` FROM PUBLIC`,
		`GRANT CONNECT ON DATABASE `+db.Name+` TO `+template.Login+`, `+template.Login+`_relay, `+template.Login+`_operator`,
		fmt.Sprintf(`SELECT pg_advisory_unlock_shared(%d)`, templateLock))
	db.AdminURL = mustURL(tb, servers.PostgresURL, db.Name, "")
	db.ServiceURL = mustURL(tb, servers.PostgresURL, db.Name, template.Login)
	db.RelayURL = mustURL(tb, servers.PostgresURL, db.Name, template.Login+"_relay")
	db.OperatorURL = mustURL(tb, servers.PostgresURL, db.Name, template.Login+"_operator")
	db.Pool = NewPool(tb, db.AdminURL)
	tb.Cleanup(func() {
		db.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		exec(ctx, tb, servers.PostgresURL, `DROP DATABASE IF EXISTS `+db.Name+` WITH (FORCE)`)
	})
	return db
}

// NewPool opens a pool that is closed when the test ends.
func NewPool(tb testing.TB, url string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	return pool
}

func mustURL(tb testing.TB, admin, database, login string) string {
	tb.Helper()
	url, err := schema.URL(admin, database, login, loginPassword)
	if err != nil {
		tb.Fatal(err)
	}
	return url
}

// templateLock keeps copies of a template and its migration apart: PostgreSQL refuses to copy a database in use.
const templateLock = 0x74656d706c617465

var (
	templatesMu sync.Mutex
	templates   = map[string]schema.Database{}
)

// templateFor migrates one database per process and set of schemas, to be copied by every test.
func templateFor(tb testing.TB, servers Servers, source string, schemas []string) schema.Database {
	tb.Helper()
	templatesMu.Lock()
	defer templatesMu.Unlock()
	name := "tw_tmpl_" + source + "_" + strings.Join(schemas, "_")
	if t, ok := templates[name]; ok {
		return t
	}
	t := schema.Database{
		Name: name, Source: source, Login: "tw_test_" + source,
		Schemas: append([]string{"outbox", "inbox"}, schemas...),
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	plan := schema.Plan{
		Databases: []schema.Database{t}, RelayLogin: t.Login + "_relay", OperatorLogin: t.Login + "_operator", Password: loginSecret,
	}
	if err := freshTemplate(ctx, servers.PostgresURL, plan); err != nil {
		tb.Fatalf("make the template database: %v", err)
	}
	templates[name] = t
	return t
}

// freshTemplate brings the template up to date under the lock; test binaries share it.
func freshTemplate(ctx context.Context, adminURL string, plan schema.Plan) error {
	conn, err := pgx.Connect(ctx, adminURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(templateLock)); err != nil {
		return err
	}
	return schema.Migrate(ctx, adminURL, plan, slog.New(slog.DiscardHandler))
}

// exec runs the statements on one connection of the process's pool of administrators: a new one costs as much as a copy of a
// small database.
func exec(ctx context.Context, tb testing.TB, url string, statements ...string) {
	tb.Helper()
	pool, err := adminPool(url)
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Release()
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			_ = conn.Conn().Close(context.WithoutCancel(ctx)) // and with it its locks
			tb.Fatalf("%s: %v", s, err)
		}
	}
}

var (
	adminMu    sync.Mutex
	adminPools = map[string]*pgxpool.Pool{} // by URL; they end with the process, or with Close
)

// Close closes what this package has open for all tests of the process, before somebody looks for leaks.
func Close() {
	adminMu.Lock()
	defer adminMu.Unlock()
	for url, pool := range adminPools {
		pool.Close()
		delete(adminPools, url)
	}
}

func adminPool(url string) (*pgxpool.Pool, error) {
	adminMu.Lock()
	defer adminMu.Unlock()
	if pool := adminPools[url]; pool != nil {
		return pool, nil
	}
	pool, err := pgxpool.New(context.Background(), url)
	if err == nil {
		adminPools[url] = pool
	}
	return pool, err
}

// WithParameter is a PostgreSQL URL with a parameter more, such as connect_timeout.
func WithParameter(tb testing.TB, postgresURL, name, value string) string {
	tb.Helper()
	u, err := url.Parse(postgresURL)
	if err != nil {
		tb.Fatal("not a URL")
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}
