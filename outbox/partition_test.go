package outbox_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

func TestPartitionOfAgreesWithTheDatabase(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), outboxtest.NewDatabase(t, "shop").AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	defer func() { _ = conn.Close(ctx) }()
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r != 0 }), 0, 60, 255).Draw(t, "key")
		var want int
		if err := conn.QueryRow(ctx, `SELECT outbox.partition_of($1)`, key).Scan(&want); err != nil {
			t.Fatal(err)
		}
		if got := outbox.PartitionOf(key); got != want {
			t.Errorf("the partition of %q is %d, the database says %d", key, got, want)
		}
	})
}
