package operate_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/outbox/operate"
)

// Every check of the doctor has its section in the runbook, and each section of that part is a check's.
func TestEveryFindingHasItsRunbook(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(text), "\n## Findings of the doctor\n")
	if !found {
		t.Fatal("docs/operations.md has no part \"Findings of the doctor\"")
	}
	part, _, _ = strings.Cut(part, "\n## ")
	sections := map[string]string{}
	heading := regexp.MustCompile("(?m)^### `([a-z-]+)`$")
	at := heading.FindAllStringSubmatchIndex(part, -1)
	for i, m := range at {
		end := len(part)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		sections[part[m[2]:m[3]]] = part[m[1]:end]
	}
	// A house that is well says OK for every check; those that speak only of trouble are named in the code.
	w := newTown(t)
	checks := map[string]bool{}
	for _, f := range w.doctor(w.operator(func(c *operate.Config) { manage(c, t) })) {
		checks[f.Check] = true
	}
	for _, name := range namedChecks(t) {
		checks[name] = true
	}
	if len(checks) < 30 {
		t.Fatalf("only %d checks: %v", len(checks), checks)
	}
	for name := range checks {
		section, ok := sections[name]
		delete(sections, name)
		for _, part := range []string{"**Means.**", "**See.**", "**Do.**"} {
			if !ok || !strings.Contains(section, part) {
				t.Errorf("docs/operations.md: the section of finding %s has no %s", name, part)
			}
		}
	}
	for name := range sections {
		t.Errorf("docs/operations.md: the doctor has no check %s", name)
	}
}

// namedChecks are those that the doctor's code names.
func namedChecks(t *testing.T) (names []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?:Check: |\{name: )"([a-z-]+)"`).FindAllStringSubmatch(doctorsCode(t), -1) {
		if !slices.Contains(names, m[1]) {
			names = append(names, m[1])
		}
	}
	return names
}

// doctorsCode is the source of all checks.
func doctorsCode(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, file := range []string{"doctor.go", "doctor_broker.go", "doctor_database.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// A remedy's command can be said as it stands: a rebase needs its database.
func TestRemediesNameTheDatabaseOfARebase(t *testing.T) {
	t.Parallel()
	found := regexp.MustCompile(`outboxctl cursor rebase(.{0,11})`).FindAllStringSubmatch(doctorsCode(t), -1)
	if len(found) == 0 {
		t.Error("no remedy names a rebase")
	}
	for _, m := range found {
		if m[1] != " --database" {
			t.Errorf("a remedy says %q: it needs --database", m[0])
		}
	}
}
