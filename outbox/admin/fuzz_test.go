package admin_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/outbox/relayd"
)

// FuzzRequests: whatever an operator's client asks for, with a real database and broker behind, is answered, and never as
// the server's fault; what is no problem is JSON, and a problem is as the specification says.
func FuzzRequests(f *testing.F) {
	for _, o := range readSpec(f).operations(f) {
		f.Add(o.method, strings.TrimPrefix(o.path, "/"), "", "")
		f.Add(o.method, strings.TrimPrefix(o.path, "/"), "limit=2&after=eyJkIjoic2hvcCJ9&dryRun=true", `{"filter":{},"reason":"fuzz"}`)
	}
	for _, seed := range [][4]string{
		{"GET", "v1/stuck", "database=shop&side=inbox&state=parked&olderThanSeconds=1", ""},
		{"GET", "v1/stuck", "after=eyJkIjoiZWxzZXdoZXJlIiwicyI6Im91dGJveCIsInEiOjF9", ""},
		{"GET", "v1/stuck", "limit=-1&limit=99999999999999999999", ""},
		{"GET", "v1/why/%00", "", ""},
		{"GET", "v1/why/..%2f..%2fetc", "", ""},
		{"POST", "v1/stuck/replay", "", `{"filter":{"key":"k","olderThanSeconds":1e300},"limit":5,"reason":"fuzz"}`},
		{"POST", "v1/stuck/skip", "dryRun=true", `{"filter":{"messageId":"0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01"},"reason":"fuzz"}`},
		{"POST", "v1/stuck/edit", "", `{"filter":{"messageId":"0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01"},"payload":"e30=","headers":{"a":"b"},"reason":"fuzz"}`},
		{"POST", "v1/replay/plans", "", `{"database":"shop","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z"}`},
		{"POST", "v1/replay/plans/abc/apply", "", `{"reason":"fuzz","canary":true}`},
		{"POST", "v1/dead/redrive", "", `{"queue":"mail.0.dead","reason":"fuzz"}`},
		{"POST", "v1/dead/discard", "", `{"queue":"mail.0.dead","fingerprints":["a"],"reason":"fuzz"}`},
		{"POST", "v1/cursors/rebase", "dryRun=true", `{"database":"shop","reason":"fuzz"}`},
		{"POST", "v1/stuck/replay", "", `{"filter":` + strings.Repeat("[", 5000)},
		{"POST", "v1/stuck/replay", "", "\xff\xfe{}"},
		{"PATCH", "v1/stuck", "", "{}"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	amqp := outboxtest.NewVHost(f)
	h := newHouse(f, generous, func(c *operate.Config) { c.AMQPURL = amqp })
	h.park("k", `{}`)
	topology := rabbitmq.Topology{
		Exchange: "shop.events", TypePrefix: "shop.", Partitions: outbox.Partitions,
		Queues: []rabbitmq.Queue{{Name: "mail", Types: []string{"shop.orders.placed.v1"}}},
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := topology.Apply(ctx, amqp); err != nil {
		f.Fatal(err)
	}
	if err := relayd.StoreTopology(ctx, h.db.AdminURL, topology); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		ctx, cancel := context.WithTimeout(t.Context(), waits)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, h.url+"/"+path+"?"+query, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Skip("no client can send it")
		}
		req.Header.Set("Authorization", "Bearer "+h.operator)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			if ctx.Err() != nil {
				t.Fatalf("no answer: %v", err)
			}
			t.Skip("no client can send it")
		}
		defer resp.Body.Close()
		document, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			t.Fatal(err)
		case resp.StatusCode >= 500:
			t.Fatalf("%d %s\n%s", resp.StatusCode, document, h.logs.String())
		case resp.StatusCode >= 400 && req.Method != http.MethodHead && resp.Header.Get("Content-Type") == "application/problem+json":
			h.spec.check(t, "/components/schemas/Problem", document)
		}
	})
}
