package operate

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
)

// Errors that callers branch on.
var (
	// ErrNotFound says that no such message, database or plan exists.
	ErrNotFound = errors.New("not found")
	// ErrInvalid says that a request cannot be meant; the text names what is wrong and what would be right.
	ErrInvalid = errors.New("invalid request")
	// ErrBusy says that a relay or a handler has the message in hand now. Try again in a moment.
	ErrBusy = errors.New("the message is being worked on")
	// ErrRefused says that a verb would break a promise; the text says which and what to do instead.
	ErrRefused = errors.New("refused")
	// ErrChanged says that what a plan was made for is no longer so.
	ErrChanged = errors.New("the state has changed since the plan was made")
)

// Side is where a message is stuck.
type Side string

// The sides.
const (
	Outbox Side = "outbox"
	Inbox  Side = "inbox"
)

// State is what a stuck message waits for.
type State string

// The states of a stuck message.
const (
	// Retrying heads are tried again by themselves at NextAttempt.
	Retrying State = "retrying"
	// Parked heads wait for an operator.
	Parked State = "parked"
	// Behind is a follower: it waits for its key's head.
	Behind State = "behind"
)

// Actor says who acts and why; both go into the audit log.
type Actor struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Filter chooses stuck messages; zero fields choose all.
type Filter struct {
	Database    string
	Side        Side
	Consumer    string // inbox only
	Type        string
	Key         string
	Fingerprint string
	Class       string
	State       State
	MessageID   uuid.UUID
	// OlderThan is the least time since the message got stuck.
	OlderThan time.Duration
}

// Page bounds a listing. After is the Next of the page before.
type Page struct {
	After string
	Limit int // default 50, at most 500
}

// Group is all stuck heads that fail in one way.
type Group struct {
	Database    string    `json:"database"`
	Side        Side      `json:"side"`
	Consumer    string    `json:"consumer,omitempty"`
	Type        string    `json:"type"`
	Class       string    `json:"class"`
	Fingerprint string    `json:"fingerprint"`
	Error       string    `json:"error"` // of the newest
	Retrying    int       `json:"retrying"`
	Parked      int       `json:"parked"`
	Behind      int       `json:"behind"` // messages that wait behind these heads
	Keys        int       `json:"keys"`
	Builds      []Build   `json:"builds"` // that failed them
	Oldest      time.Time `json:"oldest"`
	Newest      time.Time `json:"newest"`
}

// Build is a version of a program and how many messages failed under it.
type Build struct {
	Build    string `json:"build"`
	Messages int    `json:"messages"`
	// Running says that a live relay or consumer runs this build.
	Running bool `json:"running"`
}

// Stuck is one stuck message.
type Stuck struct {
	Database    string     `json:"database"`
	Side        Side       `json:"side"`
	Consumer    string     `json:"consumer,omitempty"`
	Seq         int64      `json:"seq"`
	MessageID   uuid.UUID  `json:"messageId"`
	Type        string     `json:"type"`
	Key         string     `json:"key"`
	Partition   int        `json:"partition"`
	State       State      `json:"state"`
	Class       string     `json:"class,omitempty"`
	Error       string     `json:"error,omitempty"`
	Fingerprint string     `json:"fingerprint,omitempty"`
	Build       string     `json:"build,omitempty"`
	Attempts    int        `json:"attempts"`
	NextAttempt *time.Time `json:"nextAttempt,omitempty"`
	StuckAt     time.Time  `json:"stuckAt"`
	Edited      bool       `json:"edited"`
}

// Detail is a stuck message with everything there is to know.
type Detail struct {
	Stuck
	CreatedAt time.Time         `json:"createdAt,omitzero"` // zero when the message does not say
	Headers   map[string]string `json:"headers"`
	// Payload is the body as stored; PayloadText is it when it is UTF-8.
	Payload     []byte  `json:"payload"`
	PayloadText *string `json:"payloadText,omitempty"`
	// Original is the first version of an edited message.
	Original *Original `json:"original,omitempty"`
	// Behind are messages that wait for this one, oldest first, at most 100; BehindTotal counts all.
	Behind      []Stuck `json:"behind"`
	BehindTotal int     `json:"behindTotal"`
	// Head is what this one waits for, if it is a follower.
	Head *Stuck `json:"head,omitempty"`
	// Audit is what operators did to it, newest first.
	Audit []AuditEntry `json:"audit"`
}

// Original is what a message was before it was edited.
type Original struct {
	Payload []byte            `json:"payload"`
	Headers map[string]string `json:"headers"`
}

// Verb is what may be done with stuck messages.
type Verb string

// The verbs.
const (
	// VerbReplay lets heads be tried again at once, with their attempts counted from zero. Followers go after them.
	VerbReplay Verb = "replay"
	// VerbSkip gives messages up: what waits behind goes on. The message stays in the audit log by its id, and on the
	// outbox's side in outbox.messages, from where a replay plan can still send it.
	VerbSkip Verb = "skip"
	// VerbEdit replaces the payload or headers of a parked message; its id and the original stay.
	VerbEdit Verb = "edit"
	// VerbPark lets heads that are tried again by themselves wait for an operator instead, so that they can be edited. What
	// waits behind them goes on waiting.
	VerbPark Verb = "park"
)

// Command is a verb with what it is for.
type Command struct {
	Verb   Verb
	Filter Filter
	// Payload and Headers are the new ones of VerbEdit; nil leaves them. Edit takes one message.
	Payload json.RawMessage
	Headers map[string]string
	// Limit is the most messages that are touched. Default 1,000, at most 10,000.
	Limit int
	// After goes on behind what an earlier command came to: it is the Next of its result. Filter and verb are those of then.
	After string
	// Within ends the command early when it has taken so long, once it has touched something; zero does not.
	Within time.Duration
	DryRun bool
	Actor  Actor
}

// Result says what a command did, or with DryRun would do.
type Result struct {
	DryRun  bool `json:"dryRun"`
	Matched int  `json:"matched"`
	Changed int  `json:"changed"`
	// Left are messages that matched and were not touched, with the reason, at most 100.
	Left []Left `json:"left"`
	// More says that further messages match, beyond the limit or the time that the command had. Next is the After of the
	// command that goes on with them.
	More bool   `json:"more"`
	Next string `json:"next,omitempty"`
	// Total is how many the filter chose when the command began. It is counted without an After, and 0 if that took too long.
	Total int `json:"total,omitempty"`
	// AuditIDs are the rows of the audit log: one for each database, side and 250 messages.
	AuditIDs []AuditRef `json:"auditIds"`
}

// Left is a message that a command did not touch.
type Left struct {
	Stuck
	Code   LeftCode `json:"code"`
	Reason string   `json:"reason"`
}

// LeftCode says why a message was not touched.
type LeftCode string

// The reasons why a message is left.
const (
	LeftGone     LeftCode = "gone"     // it is no longer stuck
	LeftBusy     LeftCode = "busy"     // a relay or a handler has it in hand, or changes it all the time
	LeftBehind   LeftCode = "behind"   // replay or park its head instead
	LeftParked   LeftCode = "parked"   // it waits for an operator already
	LeftRetrying LeftCode = "retrying" // it is not edited while it is tried again by itself
	LeftExposed  LeftCode = "exposed"  // it is not edited where a consumer may have the first version
)

// AuditRef names a row of a database's audit log.
type AuditRef struct {
	Database string `json:"database"`
	ID       int64  `json:"id"`
}

// AuditEntry is one action. Entries of a database form a chain: each holds the hash of the one before.
type AuditEntry struct {
	Database string          `json:"database"`
	ID       int64           `json:"id"`
	At       time.Time       `json:"at"`
	Actor    Actor           `json:"actor"`
	Action   string          `json:"action"`
	Detail   json.RawMessage `json:"detail"` // counts, ids, filter; never a payload
	Hash     string          `json:"hash"`
}

// AuditReport is the outcome of checking the chains.
type AuditReport struct {
	Database string `json:"database"`
	Entries  int64  `json:"entries"`
	Head     string `json:"head"` // hash of the newest entry: keep it elsewhere to notice a cut tail
	OK       bool   `json:"ok"`
	// BrokenAt is the first entry that does not fit, and Why.
	BrokenAt int64  `json:"brokenAt,omitempty"`
	Why      string `json:"why,omitempty"`
}

// PartitionStatus is how one partition of one database's outbox or of a consumer's inbox stands.
type PartitionStatus struct {
	Database   string  `json:"database"`
	Side       Side    `json:"side"`
	Consumer   string  `json:"consumer,omitempty"`
	Partition  int     `json:"partition"`
	Owner      string  `json:"owner"` // label of the process that holds the lease; empty when nobody does
	Lag        int64   `json:"lag"`   // outbox: committed and not relayed; inbox: messages ready in the queue; -1 when not known
	LagExact   bool    `json:"lagExact"`
	LagSeconds float64 `json:"lagSeconds"` // age of the oldest of them, -1 when not known
	Retrying   int64   `json:"retrying"`
	Parked     int64   `json:"parked"`
	Behind     int64   `json:"behind"`
	Dead       int64   `json:"dead"` // messages in the dead-letter queue, -1 when not known
}

// Status is everything at a glance.
type Status struct {
	At         time.Time         `json:"at"`
	Healthy    bool              `json:"healthy"`
	Problems   []string          `json:"problems"`
	Partitions []PartitionStatus `json:"partitions"`
}

// Where says, for one message, how far it came and what it waits for.
type Where struct {
	MessageID uuid.UUID `json:"messageId"`
	Database  string    `json:"database,omitempty"` // that it was written in
	Type      string    `json:"type,omitempty"`
	Key       string    `json:"key,omitempty"`
	Partition int       `json:"partition"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
	// Verdict is one sentence: "waits behind ... until an operator replays it".
	Verdict string `json:"verdict"`
	// State is one of not_committed, waiting, in_window, stuck, broker_blocked, no_binding, relayed, consumed, dead, skipped, unknown.
	State string `json:"state"`
	// RelayedAt is the latest and RelayedAfter the earliest time at which it can have been relayed, as far as that is known.
	RelayedAt    *time.Time `json:"relayedAt,omitempty"`
	RelayedAfter *time.Time `json:"relayedAfter,omitempty"`
	Relay        string     `json:"relay,omitempty"` // that owns the partition
	Stuck        *Stuck     `json:"stuck,omitempty"`
	Head         *Stuck     `json:"head,omitempty"`
	Consumers    []Consumed `json:"consumers"`
}

// Consumed is what one bound consumer did with a message.
type Consumed struct {
	Consumer string     `json:"consumer"`
	Database string     `json:"database,omitempty"`
	State    string     `json:"state"` // handled, stuck, parked, behind, skipped, dead, queued, missing, unknown
	At       *time.Time `json:"at,omitempty"`
	Stuck    *Stuck     `json:"stuck,omitempty"`
}

// PlanRequest chooses relayed messages to publish again.
type PlanRequest struct {
	Database string    `json:"database"`
	From     time.Time `json:"from"` // created at or after
	To       time.Time `json:"to"`   // created before
	Type     string    `json:"type,omitempty"`
	Key      string    `json:"key,omitempty"`
	// ToQueue sends to one consumer's queues alone, past the exchange.
	ToQueue string `json:"toQueue,omitempty"`
}

// Plan is what a replay would do, and the hash that applies just that.
type Plan struct {
	Hash     string         `json:"hash"`
	Request  PlanRequest    `json:"request"`
	MadeAt   time.Time      `json:"madeAt"`
	Messages int64          `json:"messages"`
	Keys     int64          `json:"keys"`
	Types    map[string]int `json:"types"`
	// Handled counts, for each consumer, messages that its inbox holds: a plain replay is absorbed there.
	Handled     map[string]int64 `json:"handled"`
	Unroutable  int64            `json:"unroutable"`
	Undecodable int64            `json:"undecodable"`
	NotRelayed  int64            `json:"notRelayed"` // in the range, and left to the relay
	Warnings    []string         `json:"warnings"`
}

// ApplyRequest applies a plan.
type ApplyRequest struct {
	Hash string
	// Canary sends one message of each type first and waits until a consumer's inbox shows a new row for it.
	Canary bool
	Actor  Actor
	// Progress, if set, is told how many messages are confirmed.
	Progress func(done, total int64)
}

// Applied is the outcome of a replay.
type Applied struct {
	Published int64      `json:"published"`
	Canaries  int64      `json:"canaries"`
	Failed    []string   `json:"failed"`
	Audit     []AuditRef `json:"audit"`
}

// DeadMessage is one message of a dead-letter queue.
type DeadMessage struct {
	Queue       string            `json:"queue"`
	Position    int               `json:"position"`
	Fingerprint string            `json:"fingerprint"` // of the whole message: names it for redrive and discard
	Reason      string            `json:"reason"`
	MessageID   string            `json:"messageId,omitempty"`
	Headers     map[string]string `json:"headers"`
	Payload     []byte            `json:"payload,omitempty"`
	Size        int               `json:"size"`
}

// Cursor is a partition's cursor.
type Cursor struct {
	Database  string    `json:"database"`
	Partition int       `json:"partition"`
	Relayed   string    `json:"relayed"`
	Target    string    `json:"target,omitempty"`
	LastID    int64     `json:"lastId"`
	StoredAt  time.Time `json:"storedAt,omitzero"`
	// IdentityOK says that the stored cluster, database and timeline are those that answer.
	IdentityOK bool   `json:"identityOk"`
	Identity   string `json:"identity"`
}

// Severity of a finding.
type Severity string

// The severities.
const (
	OK         Severity = "ok"
	Warning    Severity = "warning"
	Critical   Severity = "critical"
	NotChecked Severity = "not_checked"
)

// Finding is one result of the doctor.
type Finding struct {
	Check    string   `json:"check"` // stable name, that of its runbook: "prepared-transaction"
	Severity Severity `json:"severity"`
	Database string   `json:"database,omitempty"`
	Subject  string   `json:"subject,omitempty"`
	Message  string   `json:"message"`
	Remedy   string   `json:"remedy,omitempty"`
}

// Reconciliation compares what was committed with what was relayed and consumed.
type Reconciliation struct {
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Messages int64     `json:"messages"`
	// Pending are not relayed yet, or still in a consumer's queue, once for each consumer.
	Pending    int64 `json:"pending"`
	Stuck      int64 `json:"stuck"`
	Gaps       []Gap `json:"gaps"` // at most 1,000; GapsTotal counts all
	GapsTotal  int64 `json:"gapsTotal"`
	Duplicates int64 `json:"duplicates"` // effects beyond one per (message, consumer)
	// Unknown are inbox rows of messages that no outbox holds.
	Unknown int64 `json:"unknown"`
	// NotChecked is what could not be asked; nothing is said about it.
	NotChecked []string `json:"notChecked"`
	// Clean says that there are no gaps, duplicates or unknown messages, and that everything was checked.
	Clean bool `json:"clean"`
}

// Gap is a message that a bound consumer does not have.
type Gap struct {
	Database  string    `json:"database"`
	MessageID uuid.UUID `json:"messageId"`
	Type      string    `json:"type"`
	Key       string    `json:"key"`
	Consumer  string    `json:"consumer"`
	Why       string    `json:"why"`
}
