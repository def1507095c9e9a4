package chaos_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Where the trouble of a section is provoked. Only TestRunbook follows the document's own commands: byRunbook on a house
// that has the trouble, looking in one that has another. In rows of the fault matrix the trouble comes and goes without
// anybody who follows a section.
const (
	byRunbook = "TestRunbook: what to see and what to do"
	looking   = "TestRunbook: the commands that only look, in a house with other troubles; the trouble itself: "
	byDoctor  = "outbox/operate: TestDoctor..., its finding"
	byConsole = "outbox/cmd/outboxctl: TestMovingWhatIsStuck"
	byAlerts  = "services/e2e: TestAlertsNameWhatThereIs, what to see and what to do"
)

func rows(numbers string) string { return "make chaos ONLY=" + numbers }

// tried has every section of the runbook, by its heading.
var tried = map[string]string{
	"OutboxNoRelay":             looking + rows("3,4,5"),
	"OutboxPartitionNotRelayed": looking + rows("6,7"),
	"OutboxRelayCannotWork":     looking + rows("18,19"),
	"OutboxNotMeasured":         looking + rows("11,12"),
	"OutboxLag":                 looking + rows("14,20"),
	"OutboxBacklog":             looking + rows("20,34") + ", with fewer messages than the alert's",
	"OutboxOldestUnrelayed":     looking + byConsole,
	"OutboxRelaySlow":           looking + rows("14,28"),
	"OutboxAttemptsFail":        looking + rows("26,27"),
	"OutboxStuckRetrying":       byRunbook + ", for want of a route",
	"OutboxStuckParked":         looking + byConsole,
	"DatabaseLongTransaction":   byRunbook + ", under long-transaction and prepared-transaction",
	"OutboxBrokerAway":          looking + rows("20,21,23,24"),
	"OutboxQueuesNotMeasured":   looking + rows("20,21"),
	"OutboxQueueMissing":        byRunbook + ", under queue",
	"OutboxQueueNotConsumed":    looking + rows("8,9"),
	"OutboxQueueBacklog":        looking + rows("27"),
	"OutboxDeadLetters":         byRunbook + ", under dead-letters",
	"InboxNotMeasured":          looking + rows("11,12,17"),
	"InboxStuckRetrying":        byRunbook,
	"InboxStuckParked":          byRunbook,
	"InboxStuckLong":            looking + byConsole,
	"ServiceBrokerAway":         looking + rows("20,21"),
	"ServicePoolExhausted":      looking + rows("17"),
	"ServiceErrors":             looking + rows("17"),
	"SagaStuck":                 byAlerts,
	"SagaOverdue":               byAlerts,
	"PaymentTasksRefused":       byAlerts,
	"ServiceSlow":               looking + rows("28"),
	"database-away":             looking + rows("11,12"),
	"topology":                  byRunbook,
	"migrations":                byRunbook,
	"postgresql-version":        looking + byDoctor + "; no older server is here to be upgraded",
	"server-in-recovery":        byRunbook,
	"durability":                byRunbook,
	"permissions":               byRunbook,
	"connections":               byRunbook,
	"clock":                     looking + byDoctor,
	"long-transaction":          byRunbook,
	"prepared-transaction":      byRunbook,
	"replication-slot":          byRunbook,
	"identity":                  byRunbook,
	"no-relay":                  looking + rows("3,5"),
	"lag":                       byDoctor,
	"stuck-outbox":              byRunbook,
	"partitions-outbox":         byRunbook,
	"default-partition-outbox":  byRunbook + ", after an INSERT that was rolled back",
	"retention-outbox":          looking + byDoctor,
	"no-consumer":               looking + rows("8,9"),
	"stuck-inbox":               byRunbook,
	"partitions-inbox":          byRunbook,
	"default-partition-inbox":   byRunbook + ", after an INSERT that was rolled back",
	"retention-inbox":           looking + byDoctor,
	"broker":                    byRunbook + ", blocked; away: " + rows("20"),
	"rabbitmq-version":          looking + byDoctor + "; no older broker is here to be upgraded",
	"exchange":                  byRunbook,
	"queue":                     byRunbook,
	"dead-letters":              byRunbook,
	"queue-without-consumer":    looking + byDoctor,
	"binding":                   byRunbook,
	"queue-arguments":           byRunbook,
	"certificate":               byRunbook + ", expired",
	"disk-full":                 looking + rows("13"),
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
