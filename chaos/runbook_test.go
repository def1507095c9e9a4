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
	byAlerts  = "services/e2e: TestAlertsNameWhatThereIs, what to see and what to do"
)

func rows(numbers string) string { return "make chaos ONLY=" + numbers }

// tried has every section of the runbook, by its heading.
var tried = map[string]string{
	"OutboxNoRelay":             byRunbook + ", under no-relay",
	"OutboxPartitionNotRelayed": byRunbook + ", under no-relay",
	"OutboxRelayCannotWork":     byRunbook + ", under identity",
	"OutboxNotMeasured":         byRunbook + ", under database-away",
	"OutboxLag":                 byRunbook + ", under no-relay",
	"OutboxBacklog":             looking + rows("20,34") + ", with fewer messages than the alert's",
	"OutboxOldestUnrelayed":     byRunbook + ", under no-relay",
	"OutboxRelaySlow":           looking + rows("14,28") + ", for seconds",
	"OutboxAttemptsFail":        looking + rows("26,27"),
	"OutboxStuckRetrying":       byRunbook + ", for want of a route",
	"OutboxStuckParked":         byRunbook,
	"DatabaseLongTransaction":   byRunbook + ", under long-transaction and prepared-transaction",
	"OutboxBrokerAway":          byRunbook + ", under broker",
	"OutboxQueuesNotMeasured":   byRunbook + ", under broker",
	"OutboxQueueMissing":        byRunbook + ", under queue",
	"OutboxQueueNotConsumed":    byRunbook + ", under no-consumer",
	"OutboxQueueBacklog":        looking + rows("27") + ", with fewer messages than the alert's",
	"OutboxDeadLetters":         byRunbook + ", under dead-letters",
	"InboxNotMeasured":          byRunbook + ", under database-away",
	"InboxStuckRetrying":        byRunbook,
	"InboxStuckParked":          byRunbook,
	"SagaStuck":                 byAlerts,
	"DeadlineOverdue":           byAlerts,
	"PaymentTasksRefused":       byAlerts,
	"InboxStuckLong":            byRunbook + ", under stuck-inbox",
	"ServiceBrokerAway":         byRunbook + ", under broker",
	"ServicePoolExhausted":      byRunbook,
	"ServiceErrors":             byRunbook + ", under database-away",
	"ServiceSlow":               byRunbook + ", under ServicePoolExhausted",
	"database-away":             byRunbook,
	"topology":                  byRunbook,
	"migrations":                byRunbook,
	"postgresql-version":        byRunbook + ", pg_upgrade to the same version, for no older server is here; the finding: " + byDoctor,
	"server-in-recovery":        byRunbook,
	"durability":                byRunbook,
	"permissions":               byRunbook,
	"connections":               byRunbook,
	"clock":                     byRunbook + ", with a server that tells operators another time",
	"long-transaction":          byRunbook,
	"prepared-transaction":      byRunbook,
	"replication-slot":          byRunbook,
	"identity":                  byRunbook,
	"no-relay":                  byRunbook,
	"lag":                       byRunbook + ", under no-relay",
	"stuck-outbox":              byRunbook,
	"partitions-outbox":         byRunbook,
	"default-partition-outbox":  byRunbook + ", after an INSERT that was rolled back",
	"retention-outbox":          byRunbook + ", kept by a transaction",
	"no-consumer":               byRunbook,
	"stuck-inbox":               byRunbook,
	"partitions-inbox":          byRunbook,
	"default-partition-inbox":   byRunbook + ", after an INSERT that was rolled back",
	"retention-inbox":           byRunbook + ", kept by a transaction",
	"broker":                    byRunbook + ", away and blocked",
	"rabbitmq-version":          looking + byDoctor + "; no older broker is here to be upgraded",
	"exchange":                  byRunbook,
	"queue":                     byRunbook,
	"dead-letters":              byRunbook,
	"queue-without-consumer":    byRunbook + ", under no-consumer",
	"binding":                   byRunbook + ", one too many and one missing",
	"queue-arguments":           byRunbook,
	"certificate":               byRunbook + ", expired",
	"disk-full":                 byRunbook + ", of the data and of the log",
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
