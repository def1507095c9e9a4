package operate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/relayd"
)

var planSeeds = []string{
	`{"database":"shop","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z"}`,
	`{"database":"shop","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","type":"shop.orders.placed.v1","key":"k","toQueue":"mail"}`,
	`{"database":"elsewhere","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z"}`,
	`{"database":"shop","from":"2026-01-02T00:00:00Z","to":"2026-01-01T00:00:00Z"}`,
	`{"database":"shop","from":"yesterday","to":7}`,
	`{"database":"shop","from":"0000-01-01T00:00:00+23:59","to":"9999-12-31T23:59:59-23:59","toQueue":"nobody"}`,
	`{"database":["shop"]}`, `{"unknown":true}`, `{}`, `[]`, `null`, `"shop"`, `17`, `{"key":"` + strings.Repeat("k", 300) + `"}`,
}

// FuzzDecodePlan: a stored request is read or refused, and what is read is stored as the same again.
func FuzzDecodePlan(f *testing.F) {
	for _, seed := range append(planSeeds, ``, `{`, `{}{}`, "\xff", `{"from":"2026-13-01T00:00:00Z"}`) {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		req, err := operate.DecodePlan(document)
		if err != nil {
			return
		}
		once, err := json.Marshal(req)
		if err != nil {
			t.Skip("its times are of years that JSON does not hold") // check refuses them
		}
		again, err := operate.DecodePlan(once)
		if err != nil {
			t.Fatalf("%s is not read again: %v", once, err)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s becomes %s, %v", once, twice, err)
		}
	})
}

// FuzzStoredPlan: a plan in the database that was tampered with is refused, and nothing is published or logged for it.
func FuzzStoredPlan(f *testing.F) {
	for _, seed := range planSeeds {
		f.Add(seed)
	}
	db := outboxtest.NewDatabase(f, "shop")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := relayd.StoreTopology(ctx, db.AdminURL, townTopology); err != nil {
		f.Fatal(err)
	}
	o, err := operate.New(operate.Config{Databases: []operate.Database{{Name: "shop", URL: db.OperatorURL}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(o.Close)
	const hash = "0123456789abcdef0123456789abcdef"
	f.Fuzz(func(t *testing.T, document string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := db.Exec(ctx, `
			INSERT INTO ops.plans (hash, request) VALUES ($1, $2::text::jsonb)
			ON CONFLICT (hash) DO UPDATE SET request = excluded.request, made_at = clock_timestamp()`, hash, document)
		if err != nil {
			t.Skip("the database does not hold it")
		}
		done, err := o.ApplyReplay(ctx, operate.ApplyRequest{Hash: hash, Actor: ann})
		if err == nil || ctx.Err() != nil || done.Published != 0 {
			t.Fatalf("applied: %+v, %v", done, err)
		}
		var logged int
		if err := db.QueryRow(ctx, `SELECT count(*) FROM ops.audit`).Scan(&logged); err != nil || logged != 0 {
			t.Fatalf("%d entries in the audit log, %v", logged, err)
		}
	})
}
