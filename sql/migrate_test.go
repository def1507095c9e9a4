package schema_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	schema "github.com/jcp/ticketwave/sql"
)

// childPrefix and childURL tell a child process what to migrate.
const childPrefix, childURL = "TW_TEST_MIGRATE_PREFIX", "TW_TEST_MIGRATE_URL"

func migrateAsChild(prefix string) int {
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	if err := schema.Migrate(context.Background(), os.Getenv(childURL), schema.TicketWave(prefix, password), log); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// migrateInProcesses runs n processes at once and returns what they logged together.
func migrateInProcesses(t *testing.T, n int, prefix string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	outputs := make([]bytes.Buffer, n)
	var group sync.WaitGroup
	for i := range n {
		child := exec.CommandContext(t.Context(), self)
		child.Env = append(os.Environ(), childPrefix+"="+prefix, childURL+"="+admin(t))
		child.Stdout, child.Stderr = &outputs[i], &outputs[i]
		group.Go(func() {
			if err := child.Run(); err != nil {
				t.Errorf("process %d: %v\n%s", i, err, outputs[i].String())
			}
		})
	}
	group.Wait()
	var all strings.Builder
	for i := range outputs {
		all.Write(outputs[i].Bytes())
	}
	return all.String()
}

func TestEightProcessesMigrateAtOnce(t *testing.T) {
	t.Parallel()
	plan := fresh(t)
	prefix := strings.TrimSuffix(plan.RelayLogin, "relay")
	files := 0
	for _, db := range plan.Databases {
		for _, folder := range db.Schemas {
			files += len(migrations(t, folder))
		}
	}
	log := migrateInProcesses(t, 8, prefix)
	if got := strings.Count(log, "migration applied"); got != files {
		t.Errorf("%d migrations were applied in all, want each of %d once:\n%s", got, files, log)
	}
	for _, db := range plan.Databases {
		assertMigrated(t, db)
	}
	if again := migrateInProcesses(t, 2, prefix); again != "" {
		t.Errorf("migrating again said %s", again)
	}
}

// migrations are the files of a schema.
func migrations(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.sql"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no migrations in %s: %v", folder, err)
	}
	return files
}

func assertMigrated(t *testing.T, db schema.Database) {
	t.Helper()
	pool := as(t, db.Name, "")
	for _, name := range db.Schemas {
		applied := query[int](t, pool, `SELECT count(DISTINCT version_id) FROM `+name+`.schema_version WHERE version_id > 0 AND is_applied`)
		if want := len(migrations(t, name)); applied != want {
			t.Errorf("%s: schema %s has %d versions, want %d", db.Name, name, applied, want)
		}
	}
	if tables := query[int](t, pool, `SELECT count(*) FROM pg_tables WHERE tablename LIKE '%goose%' OR schemaname = 'public'`); tables != 0 {
		t.Errorf("%s: %d tables outside the schemas", db.Name, tables)
	}
	if source := query[string](t, pool, `SELECT source FROM outbox.config`); source != db.Source {
		t.Errorf("%s: source is %q, want %q", db.Name, source, db.Source)
	}
	if err := schema.Check(t.Context(), pool, db.Schemas...); err != nil {
		t.Errorf("%s: %v", db.Name, err)
	}
	own := slices.DeleteFunc(slices.Clone(db.Schemas), func(name string) bool { return name == "ops" })
	if err := schema.Check(t.Context(), as(t, db.Name, db.Login), own...); err != nil {
		t.Errorf("%s: %v", db.Name, err)
	}
}

func TestMigrateRefusesAnotherServicesDatabase(t *testing.T) {
	t.Parallel()
	plan := small(t)
	migrate(t, plan)
	plan.Databases[0].Source = "bakery"
	err := schema.Migrate(t.Context(), admin(t), plan, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), `"shop"`) || !strings.Contains(err.Error(), `"bakery"`) {
		t.Errorf("error is %v, want one that names both sources", err)
	}
	if source := query[string](t, as(t, plan.Databases[0].Name, ""), `SELECT source FROM outbox.config`); source != "shop" {
		t.Errorf("source became %q", source)
	}
}

func TestMigrateRefusesBadPlans(t *testing.T) {
	t.Parallel()
	good := schema.Database{Name: "tw_sql_never_made", Login: "tw_sql_never_made", Source: "shop", Schemas: []string{"outbox"}}
	for name, spoil := range map[string]func(p *schema.Plan){
		"name":     func(p *schema.Plan) { p.Databases[0].Name = `x"; DROP` },
		"long":     func(p *schema.Plan) { p.Databases[0].Name = strings.Repeat("x", 64) },
		"login":    func(p *schema.Plan) { p.Databases[0].Login = "Me" },
		"schema":   func(p *schema.Plan) { p.Databases[0].Schemas = []string{"out-box"} },
		"source":   func(p *schema.Plan) { p.Databases[0].Source = "" },
		"operator": func(p *schema.Plan) { p.OperatorLogin = "op;" },
		"relay":    func(p *schema.Plan) { p.RelayLogin = "re lay" },
		"unknown":  func(p *schema.Plan) { p.Databases[0].Schemas = []string{"bakery"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plan := schema.Plan{Databases: []schema.Database{good}}
			spoil(&plan)
			if err := schema.Migrate(t.Context(), admin(t), plan, slog.New(slog.DiscardHandler)); err == nil {
				t.Error("no error")
			}
		})
	}
	t.Cleanup(func() {
		err := connects(t, good.Name, "", "")
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "3D000" {
			t.Errorf("connecting to the database of a bad plan: %v, want that there is none", err)
		}
	})
}

// TestPartitionsAreMadeAhead writes as the administrator, who alone may choose a row's time.
func TestPartitionsAreMadeAhead(t *testing.T) {
	t.Parallel()
	plan := small(t)
	migrate(t, plan)
	pool := as(t, plan.Databases[0].Name, "")
	for _, c := range []struct {
		days int
		want string
	}{{0, "messages_2%"}, {1, "messages_2%"}, {7, "messages_2%"}, {9, "messages_default"}} {
		const noon = `date_trunc('day', now(), 'UTC') + $1 * interval '1 day' + interval '12 hours'`
		for schemaName, insert := range map[string]string{
			"outbox": `INSERT INTO outbox.messages (uuid, topic, key, payload, created_at)
				VALUES (gen_random_uuid(), 't', 'k', '{}', ` + noon + `) RETURNING tableoid::regclass::text`,
			"inbox": `INSERT INTO inbox.messages (message_id, consumer)
				VALUES (inbox.first_id(` + noon + `), 'c') RETURNING tableoid::regclass::text`,
		} {
			table := query[string](t, pool, insert, c.days)
			if !query[bool](t, pool, `SELECT $1 LIKE $2`, table, schemaName+"."+c.want) {
				t.Errorf("%d days ahead: row goes to %s, want %s.%s", c.days, table, schemaName, c.want)
			}
		}
	}
}

// TestMigrateMakesMissingPartitions is what the next run, some days later, has to do.
func TestMigrateMakesMissingPartitions(t *testing.T) {
	t.Parallel()
	plan := small(t)
	migrate(t, plan)
	pool := as(t, plan.Databases[0].Name, "")
	const partitions = `SELECT count(*) FROM pg_inherits WHERE inhparent IN ('outbox.messages'::regclass, 'inbox.messages'::regclass)`
	before := query[int](t, pool, partitions)
	_, err := pool.Exec(t.Context(), `DO $$ BEGIN
		EXECUTE 'DROP TABLE outbox.messages_' || to_char(now() AT TIME ZONE 'UTC' + interval '7 days', 'YYYYMMDD');
		EXECUTE 'DROP TABLE inbox.messages_' || to_char(now() AT TIME ZONE 'UTC' + interval '7 days', 'YYYYMMDD');
	END $$`)
	if err != nil {
		t.Fatal(err)
	}
	migrate(t, plan)
	if after := query[int](t, pool, partitions); after != before {
		t.Errorf("%d partitions, before there were %d", after, before)
	}
}
