package chaos_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Where the trouble of a section is provoked and mended. Only byRunbook runs the section's own commands, taken from the
// document; elsewhere the same is done through the packages that the commands stand for.
const (
	byRunbook = "TestRunbook"                                              // its own commands, in this package, with the tag full
	byDoctor  = "outbox/operate: the doctor's provocations"                // found there; the commands can be said
	byConsole = "outbox/cmd/outboxctl: TestStuck..., TestDead..., TestWhy" // the verbs, by outboxctl itself
)

func rows(numbers string) string { return "make chaos ONLY=" + numbers }

// tried has every section of the runbook, by its heading.
var tried = map[string]string{
	"OutboxNoRelay":             rows("3,4,5"),
	"OutboxPartitionNotRelayed": rows("6,7"),
	"OutboxRelayCannotWork":     rows("18,19"),
	"OutboxNotMeasured":         rows("11,12"),
	"OutboxLag":                 rows("14,20"),
	"OutboxBacklog":             rows("20,34"),
	"OutboxOldestUnrelayed":     byConsole,
	"OutboxRelaySlow":           rows("14,28"),
	"OutboxAttemptsFail":        rows("26,27"),
	"OutboxStuckRetrying":       rows("25,26,27"),
	"OutboxStuckParked":         byConsole,
	"DatabaseLongTransaction":   rows("14,15"),
	"OutboxBrokerAway":          rows("20,21,23,24"),
	"OutboxQueuesNotMeasured":   rows("20,21"),
	"OutboxQueueMissing":        rows("25"),
	"OutboxQueueNotConsumed":    rows("8,9"),
	"OutboxQueueBacklog":        rows("27"),
	"OutboxDeadLetters":         rows("31"),
	"InboxNotMeasured":          rows("11,12,17"),
	"InboxStuckRetrying":        byConsole,
	"InboxStuckParked":          byConsole,
	"InboxStuckLong":            byConsole,
	"ServiceBrokerAway":         rows("20,21"),
	"ServicePoolExhausted":      rows("17"),
	"ServiceErrors":             rows("17"),
	"ServiceSlow":               rows("28"),
	"database-away":             rows("11,12"),
	"topology":                  byDoctor,
	"migrations":                byDoctor,
	"postgresql-version":        byDoctor + "; no older server is here to be upgraded",
	"server-in-recovery":        byRunbook,
	"durability":                byRunbook,
	"permissions":               byRunbook,
	"connections":               rows("17"),
	"clock":                     byDoctor,
	"long-transaction":          rows("14"),
	"prepared-transaction":      rows("15"),
	"replication-slot":          byRunbook,
	"identity":                  byRunbook,
	"no-relay":                  rows("3,5"),
	"lag":                       byDoctor,
	"stuck-outbox":              rows("26"),
	"partitions-outbox":         byDoctor,
	"default-partition-outbox":  byDoctor,
	"retention-outbox":          rows("34"),
	"no-consumer":               rows("8,9"),
	"stuck-inbox":               byConsole,
	"partitions-inbox":          byDoctor,
	"default-partition-inbox":   byDoctor,
	"retention-inbox":           byDoctor,
	"broker":                    rows("20,23,24"),
	"rabbitmq-version":          byDoctor + "; no older broker is here to be upgraded",
	"exchange":                  byRunbook,
	"queue":                     rows("25"),
	"dead-letters":              rows("31"),
	"queue-without-consumer":    byDoctor,
	"binding":                   byRunbook,
	"queue-arguments":           byRunbook,
}

var heading = regexp.MustCompile("(?m)^### `?([A-Za-z-]+)`?$")

// sections of the runbook, by heading: what follows "## Alerts".
func sections(t *testing.T) map[string]string {
	t.Helper()
	_, part, found := strings.Cut(operations(t), "\n## Alerts\n")
	if !found {
		t.Fatal("docs/operations.md has no part \"Alerts\"")
	}
	list := map[string]string{}
	at := heading.FindAllStringSubmatchIndex(part, -1)
	for i, m := range at {
		end := len(part)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		list[part[m[2]:m[3]]] = part[m[1]:end]
	}
	return list
}

func operations(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A section that nobody has tried is not a runbook.
func TestEverySectionOfTheRunbookIsTried(t *testing.T) {
	there := sections(t)
	for name := range there {
		if tried[name] == "" {
			t.Errorf("docs/operations.md: nobody tries section %s", name)
		}
	}
	for name := range tried {
		if there[name] == "" {
			t.Errorf("docs/operations.md has no section %s, and it is said to be tried", name)
		}
	}
}
