package notification

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/services/internal/web"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const columns = `id, message_id, booking_id, user_id, event_id, type, channel, recipient, success, error, sent_at`

// scan is pgx.RowToStructByName in UTC.
func scan(row pgx.CollectableRow) (Notification, error) {
	n, err := pgx.RowToStructByName[Notification](row)
	n.SentAt = n.SentAt.UTC()
	return n, err
}

func insertNotifications(ctx context.Context, tx pgx.Tx, all []Notification) error {
	inserts := &pgx.Batch{}
	for _, n := range all {
		inserts.Queue(`
		INSERT INTO notification.notifications (`+columns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
			n.ID, n.MessageID, n.BookingID, n.UserID, n.EventID, string(n.Type), string(n.Channel), n.Recipient, n.Success, n.Error, n.SentAt)
	}
	return tx.SendBatch(ctx, inserts).Close()
}

// notificationsOf is the page of a booking's notifications in the order of ids, and one more if more follow.
func notificationsOf(ctx context.Context, db querier, booking uuid.UUID, page web.Page) ([]Notification, error) {
	rows, err := db.Query(ctx, `
		SELECT `+columns+` FROM notification.notifications
		WHERE booking_id = $1 AND id > $2
		ORDER BY id
		LIMIT $3`, booking, page.After, page.Limit+1)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}
