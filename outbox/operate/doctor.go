package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// longTransaction is from when on an open transaction, or a prepared one, is worth a word.
const longTransaction = time.Minute

// Doctor examines everything and gives a finding for each trouble, and one that says OK for each check that found none.
// Names of checks are stable; each finding with a trouble names its remedy. It changes nothing.
func (o *Operator) Doctor(ctx context.Context) ([]Finding, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	e := &examination{Operator: o, scene: o.survey(ctx)}
	found := make([][]Finding, len(e.scene.stores)+2)
	var all sync.WaitGroup
	all.Go(func() { found[0] = e.examineScene() })
	for i, st := range e.scene.stores {
		all.Go(func() { found[i+1] = e.examineStore(ctx, st) })
	}
	all.Go(func() { found[len(found)-1] = e.examineBroker(ctx) })
	all.Wait()
	return slices.Concat(found...), ctx.Err()
}

const doctorTimeout = 30 * time.Second

// examination is one visit.
type examination struct {
	*Operator
	scene *scene
}

// check looks at one thing in one database.
type check struct {
	name   string
	fine   string // what is said when nothing is found
	outbox bool   // needs an outbox
	inbox  bool   // needs an inbox
	look   func(ctx context.Context, st *store) ([]Finding, error)
}

func (e *examination) checks() []check {
	return []check{
		{name: "migrations", fine: "the schemas are as new as this program", look: checkMigrations},
		{name: "postgresql-version", fine: "PostgreSQL is new enough", look: checkVersion},
		{name: "server-in-recovery", fine: "the server is a primary", look: checkRecovery},
		{name: "durability", fine: "what is committed is on disk", look: checkDurability},
		{name: "permissions", fine: "the roles may do what they must, and no more", look: checkPermissions},
		{name: "connections", fine: "connections are left", look: checkConnections},
		{name: "clock", fine: "this clock and the server's agree", look: e.checkClock},
		{name: "long-transaction", fine: "no transaction is open for long", look: e.checkTransactions},
		{name: "prepared-transaction", fine: "no prepared transaction is forgotten", look: e.checkPrepared},
		{name: "replication-slot", fine: "no replication slot is left behind", look: checkSlots},
		{name: "identity", outbox: true, fine: "the cursor belongs to this cluster, database and timeline", look: checkIdentity},
		{name: "no-relay", outbox: true, fine: "every partition has a relay", look: checkRelays},
		{name: "lag", outbox: true, fine: "the relay keeps up", look: checkLag},
		{name: "stuck-outbox", outbox: true, fine: "nothing is stuck in the outbox", look: checkStuck(Outbox)},
		{name: "partitions-outbox", outbox: true, fine: "partitions are made ahead", look: checkPartitions("outbox")},
		{name: "default-partition-outbox", outbox: true, fine: "no message lies outside the daily partitions", look: checkDefault("outbox")},
		{name: "retention-outbox", outbox: true, fine: "old partitions are dropped", look: checkRetention("outbox")},
		{name: "no-consumer", inbox: true, fine: "every partition has a consumer", look: checkConsumers},
		{name: "stuck-inbox", inbox: true, fine: "nothing is stuck in the inbox", look: checkStuck(Inbox)},
		{name: "partitions-inbox", inbox: true, fine: "partitions are made ahead", look: checkPartitions("inbox")},
		{name: "default-partition-inbox", inbox: true, fine: "no message lies outside the daily partitions", look: checkDefault("inbox")},
		{name: "retention-inbox", inbox: true, fine: "old partitions are dropped", look: checkRetention("inbox")},
	}
}

func (e *examination) examineStore(ctx context.Context, st *store) (found []Finding) {
	for _, c := range e.checks() {
		if c.outbox && !st.outbox || c.inbox && !st.inbox {
			continue
		}
		list, err := c.look(ctx, st)
		if err != nil {
			list = append(list, Finding{Severity: NotChecked, Message: err.Error(), Remedy: "see to it that the database answers the operator's role (" + st.name + "), and ask again"})
		} else if len(list) == 0 {
			list = []Finding{{Severity: OK, Message: c.fine}}
		}
		for _, f := range list {
			f.Check, f.Database = c.name, st.name
			found = append(found, f)
		}
	}
	return found
}

// examineScene looks at what all databases say together.
func (e *examination) examineScene() (found []Finding) {
	for _, d := range e.databases {
		for _, err := range e.scene.away {
			var away awayError
			if errors.As(err, &away) && away.name == d.name {
				found = append(found, Finding{
					Check: "database-away", Severity: Critical, Database: d.name, Message: err.Error(),
					Remedy: "start the server, or mend the URL and role in TW_ADMIN_DATABASES (ticketwave migrate makes the role)",
				})
			}
		}
	}
	if len(found) == 0 {
		found = append(found, Finding{Check: "database-away", Severity: OK, Message: "every database answers"})
	}
	return append(found, e.checkTopologies())
}

func (e *examination) checkTopologies() Finding {
	f := Finding{Check: "topology", Severity: OK, Message: "every outbox has the same topology"}
	if e.scene.topology == nil {
		f.Severity, f.Message, f.Remedy = Critical, "no database has a topology: relays wait for one", "ticketwave topology apply"
		return f
	}
	for _, st := range e.scene.stores {
		if st.outbox && (st.topology == nil || fmt.Sprint(*st.topology) != fmt.Sprint(*e.scene.topology)) {
			f.Severity, f.Subject = Warning, st.name
			f.Message = fmt.Sprintf("the topology stored in %s differs from the one in use: a relay that begins with it declares another one", st.name)
			f.Remedy = "ticketwave topology apply"
			return f
		}
	}
	return f
}
