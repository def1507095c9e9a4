package schema_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	schema "github.com/jcp/ticketwave/sql"
)

const password = `pass'word \ "ü" %40`

// TestMain lets the test binary be run again as a process that only migrates.
func TestMain(m *testing.M) {
	if prefix := os.Getenv(childPrefix); prefix != "" {
		os.Exit(migrateAsChild(prefix))
	}
	os.Exit(m.Run())
}

// admin is the URL of the test server's administrator.
func admin(t *testing.T) string {
	t.Helper()
	if url := os.Getenv("TW_POSTGRES_URL"); url != "" {
		return url
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if url := lookup(filepath.Join(dir, ".run", "env"), "TW_POSTGRES_URL"); url != "" {
			return url
		}
	}
	t.Fatal("no server to test on: run \"make up\", or set TW_POSTGRES_URL")
	return ""
}

func lookup(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, _ := strings.Cut(lines.Text(), "="); key == name {
			return strings.Trim(value, "'")
		}
	}
	return ""
}

// fresh is the plan of the four services under names that nobody else has. What it makes is dropped at the end.
func fresh(t *testing.T) schema.Plan {
	t.Helper()
	plan := schema.TicketWave("tw_sql_"+strings.ToLower(rand.Text())[:10]+"_", password)
	dropAtEnd(t, plan)
	return plan
}

// small is a plan of one database with outbox and inbox alone.
func small(t *testing.T) schema.Plan {
	t.Helper()
	name := "tw_sql_" + strings.ToLower(rand.Text())[:10]
	plan := schema.Plan{Password: password, Databases: []schema.Database{
		{Name: name, Login: name, Source: "shop", Schemas: []string{"outbox", "inbox"}},
	}}
	dropAtEnd(t, plan)
	return plan
}

func dropAtEnd(t *testing.T, plan schema.Plan) {
	url := admin(t)
	t.Cleanup(func() {
		if err := schema.Drop(context.Background(), url, plan); err != nil {
			t.Errorf("drop: %v", err)
		}
	})
}

func migrate(t *testing.T, plan schema.Plan) {
	t.Helper()
	if err := schema.Migrate(t.Context(), admin(t), plan, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
}

// as opens a pool on a database of the plan; an empty login is the administrator.
func as(t *testing.T, database, login string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), urlOf(t, database, login, password))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func urlOf(t *testing.T, database, login, password string) string {
	t.Helper()
	url, err := schema.URL(admin(t), database, login, password)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// connects reports why a login cannot connect, or nil.
func connects(t *testing.T, database, login, password string) error {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, urlOf(t, database, login, password))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// query reads one value.
func query[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	var value T
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}
