package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
)

// operatorToken is a token file of one operator, whose token stands in the file beside it.
func operatorToken(t *testing.T) (tokens string) {
	t.Helper()
	token, line, err := admin.NewToken("operator", api.Operator)
	if err != nil {
		t.Fatal(err)
	}
	tokens = filepath.Join(t.TempDir(), "tokens")
	for name, content := range map[string]string{tokens: line, tokens + ".token": token} {
		if err := os.WriteFile(name, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tokens
}

// manual is the operators' documentation, and how its shell asks the coordinator.
type manual struct {
	*city
	sections     map[string]string
	saga, tokens string
}

// commands are those of a section that a pattern finds.
func (m *manual) commands(section string, pattern *regexp.Regexp, want int) (list []string) {
	m.t.Helper()
	for _, found := range pattern.FindAllStringSubmatch(m.sections[section], -1) {
		list = append(list, found[1])
	}
	if len(list) != want {
		m.t.Fatalf("section %s has %d commands %s, want %d", section, len(list), pattern, want)
	}
	return list
}

// shell runs a command that asks the coordinator.
func (m *manual) shell(command string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", m.saga+"\n"+command)
	cmd.Env = append(os.Environ(), "TW_ADMIN_TOKEN_FILE="+m.tokens+".token")
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Errorf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// rows runs statements one after the other in a transaction that is undone, and returns how many rows the last one is about.
func (m *manual) rows(service string, statements ...string) (n int64) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	undone := errors.New("undone")
	err := pgx.BeginFunc(ctx, m.pool(service), func(tx pgx.Tx) error {
		for _, statement := range statements {
			tag, err := tx.Exec(ctx, statement)
			if err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
			n = tag.RowsAffected()
		}
		return undone
	})
	if !errors.Is(err, undone) {
		m.t.Error(err)
	}
	return n
}

var (
	asksSaga    = regexp.MustCompile("`(saga [^`]+)`")
	asksPayment = regexp.MustCompile("`db payment \"([^`]+)\"`")
)

// tryRunbook follows the sections about a booking that a saga leads and that waits for its money.
func (c *city) tryRunbook(id, tokens string) {
	c.t.Helper()
	m := &manual{city: c, tokens: tokens}
	m.sections, m.saga = sections(c.t)
	m.saga = strings.ReplaceAll(m.saga, "127.0.0.1:5005", strings.TrimPrefix(c.proc("saga").url(), "http://"))

	_, err := c.pool("saga").Exec(c.t.Context(), `
		UPDATE saga.instances SET state = 'stuck', due_at = NULL, body = jsonb_set(body, '{steps,money}', '{"forward": "stuck"}') WHERE id = $1`, id)
	if err != nil {
		c.t.Fatal(err)
	}
	shows := []string{`"stuck":"step money was not answered"`, `"kind":"sent"`, `"state":"running"`}
	for i, command := range m.commands("SagaStuck", asksSaga, len(shows)) {
		if out := m.shell(strings.ReplaceAll(command, "BOOKING-ID", id)); !strings.Contains(out, shows[i]) || !strings.Contains(out, id) {
			c.t.Errorf("%s does not show %s: %s", command, shows[i], out)
		}
	}

	for service, late := range map[string]string{
		"booking": `UPDATE booking.bookings SET deadline_at = clock_timestamp() - interval '1 hour'`,
		"payment": `UPDATE payment.payments SET expires_at = clock_timestamp() - interval '1 hour'`,
		"saga":    `UPDATE saga.instances SET due_at = clock_timestamp() - interval '1 hour'`,
	} {
		asks := regexp.MustCompile("`db " + service + " \"([^`]+)\"`")
		if n := m.rows(service, late, m.commands("DeadlineOverdue", asks, 1)[0]); n != 1 {
			c.t.Errorf("%s: %d are overdue, want 1", service, n)
		}
	}

	given := `INSERT INTO payment.tasks (id, payment_id, kind, charge, state) SELECT id, id, 'refund', 'some', 'refused' FROM payment.payments`
	list := m.commands("PaymentTasksRefused", asksPayment, 2)
	again := strings.ReplaceAll(list[1], "'TASK-ID'", "(SELECT id FROM payment.payments)")
	if n := m.rows("payment", given, list[0]); n != 1 {
		c.t.Errorf("%d refused tasks are seen, want 1", n)
	}
	if n := m.rows("payment", given, again, list[0]); n != 1 {
		c.t.Errorf("%d refused tasks are tried again, want 1", n)
	}
}
