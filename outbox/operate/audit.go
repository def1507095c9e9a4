package operate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// AuditFilter chooses entries of the audit log; zero fields choose all.
type AuditFilter struct {
	Database  string
	Actor     string
	Action    string // "outbox.replay", say
	MessageID uuid.UUID
}

// auditRow is a row of ops.audit.
type auditRow struct {
	ID                    int64
	At                    time.Time
	Actor, Reason, Action string
	Detail                string // as PostgreSQL writes it
	Previous, Hash        []byte
}

const auditColumns = `a.id, a.at, a.actor, a.reason, a.action, a.detail::text AS detail, a.previous, a.hash`

func (r auditRow) entry(database string) AuditEntry {
	return AuditEntry{
		Database: database, ID: r.ID, At: r.At, Actor: Actor{Name: r.Actor, Reason: r.Reason}, Action: r.Action,
		Detail: json.RawMessage(r.Detail), Hash: hex.EncodeToString(r.Hash),
	}
}

// Audit lists what operators did, newest first by the databases' clocks. Databases that do not answer are an error beside
// the entries of the others.
func (o *Operator) Audit(ctx context.Context, f AuditFilter, page Page) (entries []AuditEntry, next string, err error) {
	before := map[string]int64{} // by database: only what is older
	limit, err := page.limit()
	err = errors.Join(err, Filter{Database: f.Database, Key: f.Actor, Type: f.Action}.check(), readToken(page.After, &before))
	if err != nil {
		return nil, "", err
	}
	databases, err := o.chosen(f.Database)
	errs := []error{err}
	var logs [][]AuditEntry
	for _, d := range databases {
		found, err := d.auditEntries(ctx, f, before[d.name], limit+1)
		errs, logs = append(errs, err), append(logs, found)
	}
	entries, more := merged(logs, limit)
	for _, e := range entries {
		before[e.Database] = e.ID
	}
	if more {
		next = token(before)
	}
	return entries, next, errors.Join(errs...)
}

// merged takes entries of all logs, newest first, each log in its own order.
func merged(logs [][]AuditEntry, limit int) (entries []AuditEntry, more bool) {
	for entries = []AuditEntry{}; ; {
		logs = slices.DeleteFunc(logs, func(log []AuditEntry) bool { return len(log) == 0 })
		if len(logs) == 0 || len(entries) == limit {
			return entries, len(logs) > 0
		}
		newest := slices.MaxFunc(logs, func(a, b []AuditEntry) int { return a[0].At.Compare(b[0].At) })
		i := slices.IndexFunc(logs, func(log []AuditEntry) bool { return &log[0] == &newest[0] })
		entries, logs[i] = append(entries, newest[0]), newest[1:]
	}
}

// log appends to the audit log what no transaction of the database holds, such as work at the broker.
func (d *database) log(ctx context.Context, by Actor, action string, detail map[string]any) (AuditRef, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ref := AuditRef{Database: d.name}
	if err := d.pool.QueryRow(ctx, `SELECT ops.append($1, $2, $3, $4)`, by.Name, by.Reason, action, detail).Scan(&ref.ID); err != nil {
		return ref, d.failed("append to the audit log", err)
	}
	return ref, nil
}

// auditEntries are the newest that fit, older than before if that is set.
func (d *database) auditEntries(ctx context.Context, f AuditFilter, before int64, limit int) ([]AuditEntry, error) {
	q := &query{}
	if f.Actor != "" {
		q.and("a.actor = ?", f.Actor)
	}
	if f.Action != "" {
		q.and("a.action = ?", f.Action)
	}
	if f.MessageID != uuid.Nil {
		q.and("a.detail -> 'messages' @> to_jsonb(?::text)", f.MessageID.String())
	}
	if before > 0 {
		q.and("a.id < ?", before)
	}
	rows, err := collect[auditRow](ctx, d, "read the audit log",
		`SELECT `+auditColumns+` FROM ops.audit AS a WHERE `+q.String()+` ORDER BY a.id DESC LIMIT `+strconv.Itoa(limit), q.args...)
	entries := make([]AuditEntry, len(rows))
	for i, r := range rows {
		entries[i] = r.entry(d.name)
	}
	return entries, err
}

// sum is the hash that the row must have: SHA-256 over its fields, each with its length, as ops.hash_of has it.
func (r auditRow) sum() []byte {
	h := sha256.New()
	for _, field := range []string{
		strconv.FormatInt(r.ID, 10), strconv.FormatInt(r.At.UnixMicro(), 10), r.Actor, r.Reason, r.Action, r.Detail, hex.EncodeToString(r.Previous),
	} {
		fmt.Fprintf(h, "%d:%s,", len(field), field)
	}
	return h.Sum(nil)
}

// verifyPage is how many entries are read at once.
const verifyPage = 1000

// VerifyAudit computes a database's chain again and says where it first does not fit. What is altered, removed, inserted
// or moved breaks it. That newest entries were cut off, or that the whole log was written anew, shows only against a head
// that was remembered elsewhere: with knownHead the entry of that hash must be there.
func (o *Operator) VerifyAudit(ctx context.Context, database, knownHead string) (AuditReport, error) {
	d, err := o.named(database)
	if err != nil {
		return AuditReport{}, err
	}
	knownHead = strings.ToLower(strings.TrimSpace(knownHead))
	if known, err := hex.DecodeString(knownHead); err != nil || knownHead != "" && len(known) != sha256.Size {
		return AuditReport{}, fmt.Errorf("%w: the known head is no SHA-256 in hexadecimal", ErrInvalid)
	}
	v := verifier{report: AuditReport{Database: database, OK: true}, known: knownHead, found: knownHead == ""}
	for last := int64(-1 << 62); ; {
		rows, err := collect[auditRow](ctx, d, "read the audit log",
			`SELECT `+auditColumns+` FROM ops.audit AS a WHERE a.id > $1 ORDER BY a.id LIMIT `+strconv.Itoa(verifyPage), last)
		if err != nil {
			return AuditReport{}, err
		}
		for _, r := range rows {
			v.next(r)
			last = r.ID
		}
		if len(rows) < verifyPage {
			return v.end(), nil
		}
	}
}

// verifier follows the chain.
type verifier struct {
	report AuditReport
	known  string
	found  bool // the known head
	before auditRow
}

func (v *verifier) next(r auditRow) {
	switch want := v.before.ID + 1; {
	case !v.report.OK:
	case r.ID != want:
		v.broken(r.ID, fmt.Sprintf("entry %d follows %d: entries between them are missing, or this one was put in", r.ID, v.before.ID))
	case !bytes.Equal(r.Previous, v.before.Hash):
		v.broken(r.ID, "it does not hold the hash of the entry before: that one, or this, was replaced or moved")
	case !bytes.Equal(r.Hash, r.sum()):
		v.broken(r.ID, "its hash is not that of its fields: it was altered")
	}
	v.report.Entries++
	v.report.Head = hex.EncodeToString(r.Hash)
	v.found = v.found || v.report.OK && v.report.Head == v.known
	v.before = r
}

func (v *verifier) broken(id int64, why string) {
	v.report.OK, v.report.BrokenAt, v.report.Why = false, id, why
}

func (v *verifier) end() AuditReport {
	if v.report.OK && !v.found {
		v.broken(v.before.ID+1, "no entry has the remembered hash: the newest were cut off, or the log was written anew")
	}
	return v.report
}
