package admin

import (
	"context"
	"time"

	"github.com/jcp/ticketwave/outbox/operate"
)

// Operator is what the API serves.
type Operator interface {
	Databases() []string
	Status(ctx context.Context) (operate.Status, error)
	Why(ctx context.Context, id string) ([]operate.Where, error)
	Groups(ctx context.Context, f operate.Filter) ([]operate.Group, error)
	List(ctx context.Context, f operate.Filter, p operate.Page) ([]operate.Stuck, string, error)
	Show(ctx context.Context, f operate.Filter) (operate.Detail, error)
	Do(ctx context.Context, c operate.Command) (operate.Result, error)
	Audit(ctx context.Context, f operate.AuditFilter, p operate.Page) ([]operate.AuditEntry, string, error)
	VerifyAudit(ctx context.Context, database, knownHead string) (operate.AuditReport, error)
	PlanReplay(ctx context.Context, req operate.PlanRequest) (operate.Plan, error)
	ApplyReplay(ctx context.Context, req operate.ApplyRequest) (operate.Applied, error)
	Dead(ctx context.Context, queue string, limit int) ([]operate.DeadMessage, error)
	DeadShow(ctx context.Context, queue, fingerprint string) (operate.DeadMessage, error)
	DeadRedrive(ctx context.Context, c operate.DeadCommand) (operate.DeadResult, error)
	DeadDiscard(ctx context.Context, c operate.DeadCommand) (operate.DeadResult, error)
	Cursors(ctx context.Context) ([]operate.Cursor, error)
	Rebase(ctx context.Context, c operate.RebaseCommand) (operate.Rebased, error)
	Doctor(ctx context.Context) ([]operate.Finding, error)
	Reconcile(ctx context.Context, from, to time.Time) (operate.Reconciliation, error)
}
