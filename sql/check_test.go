package schema_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	schema "github.com/jcp/ticketwave/sql"
)

func TestCheckRefusesAnOlderDatabase(t *testing.T) {
	t.Parallel()
	plan := small(t)
	migrate(t, plan)
	db := plan.Databases[0]
	owner, service := as(t, db.Name, ""), as(t, db.Name, db.Login)
	for _, c := range []struct {
		name, change string
		schemas      []string
		old          string // the schema that the error must name, or none
	}{
		{"up to date", `SELECT 1`, []string{"outbox", "inbox"}, ""},
		{"newer", `INSERT INTO outbox.schema_version (version_id, is_applied) VALUES (999, true)`, []string{"outbox"}, ""},
		{"without the schema", `SELECT 1`, []string{"outbox", "booking"}, "booking"},
		{"behind", `DELETE FROM inbox.schema_version WHERE version_id > 0`, []string{"outbox", "inbox"}, "inbox"},
		{"not granted", `REVOKE ALL ON outbox.schema_version FROM outbox_writer`, []string{"outbox"}, "outbox"},
		{"without the table", `DROP TABLE outbox.schema_version`, []string{"outbox"}, "outbox"},
	} {
		if _, err := owner.Exec(t.Context(), c.change); err != nil {
			t.Fatal(err)
		}
		err := schema.Check(t.Context(), service, c.schemas...)
		if c.old == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if !errors.Is(err, schema.ErrOld) {
			t.Errorf("%s: %v, want ErrOld", c.name, err)
			continue
		}
		for _, word := range []string{db.Name, "schema " + c.old, "ticketwave migrate"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %q", c.name, err, word)
			}
		}
	}
}

func TestCheckTellsAbsenceFromAge(t *testing.T) {
	t.Parallel()
	plan := small(t)
	migrate(t, plan)
	away, err := pgxpool.New(t.Context(), "postgres://nobody:secret@127.0.0.1:1/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	defer away.Close()
	if err := schema.Check(t.Context(), away, "outbox"); err == nil || errors.Is(err, schema.ErrOld) || strings.Contains(err.Error(), "secret") {
		t.Errorf("server away: %v", err)
	}
	if err := schema.Check(t.Context(), as(t, plan.Databases[0].Name, ""), "bakery"); err == nil || errors.Is(err, schema.ErrOld) {
		t.Errorf("unknown schema: %v", err)
	}
}
