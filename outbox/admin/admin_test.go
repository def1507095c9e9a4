package admin_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/outbox/relayd"
)

const waits = 30 * time.Second

// Every path and method of the specification refuses who has no token, or another one, or too little of a role.
func TestNothingAnswersWithoutAToken(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	sum := sha256.Sum256([]byte(h.operator))
	wrong := map[string][]string{
		"nothing": nil, "another token": {"Authorization", "Bearer twa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
		"half a token": {"Authorization", "Bearer " + h.operator[:20]}, "an empty token": {"Authorization", "Bearer "},
		"another scheme": {"Authorization", "Basic " + h.operator}, "no scheme": {"Authorization", h.operator},
		"the hash": {"Authorization", "Bearer " + hex.EncodeToString(sum[:])},
	}
	paths := h.spec.operations(t)
	for _, extra := range []string{"/", "/metrics", "/v1", "/v1/secret", "/livez/", "/livez/x", "/debug/pprof/", "//livez", "/v1/../livez"} {
		paths = append(paths, operation{method: http.MethodGet, path: extra, roles: []string{"viewer"}})
	}
	paths = append(paths, operation{method: http.MethodPost, path: "/livez", roles: []string{"viewer"}}, operation{method: http.MethodDelete, path: "/v1/status", roles: []string{"viewer"}})
	for _, op := range paths {
		if op.roles == nil {
			if a := h.ask(op.method, op.path, "", ""); a.status != http.StatusOK {
				t.Errorf("%s %s: %d, want 200 for everybody", op.method, op.path, a.status)
			}
			continue
		}
		for name, headers := range wrong {
			a := h.ask(op.method, op.path, "", "", headers...)
			if p := h.problem(a); a.status != http.StatusUnauthorized || a.header.Get("WWW-Authenticate") == "" || p.Type != admin.ProblemPrefix+"unauthorized" {
				t.Errorf("%s %s with %s: %d %s, want 401", op.method, op.path, name, a.status, a.body)
			}
		}
	}
	if logs := h.logs.String(); strings.Contains(logs, "/v1/secret") || strings.Contains(logs, h.operator) || strings.Contains(logs, h.operator[:20]) {
		t.Error("the log repeats what a stranger asked for, or a token")
	}
}

func TestRolesAreThoseOfTheSpecification(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	for _, op := range h.spec.operations(t) {
		forbidden := func(path, token string) bool {
			a := h.ask(op.method, path, token, map[bool]string{true: "{}"}[op.method == http.MethodPost])
			if a.status >= 400 {
				h.problem(a)
			}
			if a.status == http.StatusUnauthorized {
				t.Errorf("%s %s: 401 with a valid token", op.method, path)
			}
			return a.status == http.StatusForbidden
		}
		want := map[string][3]bool{ // viewer, viewer with a dry run, operator
			"": {}, "viewer": {}, "operator": {true, true, false}, "operator-unless-dry-run": {true, false, false},
		}[strings.Join(op.roles, " ")]
		got := [3]bool{forbidden(op.path, h.viewer), forbidden(op.path+"?dryRun=true", h.viewer), forbidden(op.path, h.operator)}
		if got != want {
			t.Errorf("%s %s (%v): forbidden %v, want %v", op.method, op.template, op.roles, got, want)
		}
		if slices.Contains(op.roles, "operator-unless-dry-run") {
			for _, trick := range []string{"?dryRun=true&dryRun=false", "?dryRun=1", "?dryRun=TRUE", "?dryRun=false", "?dryrun=true", "?dryRun="} {
				if a := h.ask(op.method, op.path+trick, h.viewer, "{}"); a.status != http.StatusForbidden && a.status != http.StatusBadRequest {
					t.Errorf("%s %s%s: %d for a viewer", op.method, op.template, trick, a.status)
				}
			}
		}
		if op.method != http.MethodGet && len(op.roles) == 1 && op.roles[0] == "viewer" && op.template != "/v1/replay/plans" {
			t.Errorf("%s %s changes something and is open to viewers", op.method, op.template)
		}
	}
}

func TestUnknownPathsAreProblems(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	for _, c := range []struct {
		method, path string
		status       int
		slug         string
	}{
		{http.MethodGet, "/v1/secret", http.StatusNotFound, "no-such-path"},
		{http.MethodGet, "/", http.StatusNotFound, "no-such-path"},
		{http.MethodDelete, "/v1/status", http.StatusMethodNotAllowed, "method-not-allowed"},
		{http.MethodGet, "/v1/stuck/messages/7", http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/stuck?limit=many", http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/stuck?limit=501", http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/stuck?side=both", http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/stuck?state=x", http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/stuck?olderThan=-1", http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/stuck?key=%00", http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/stuck?database=nowhere", http.StatusNotFound, "not-found"},
		{http.MethodGet, "/v1/audit/verify?head=" + strings.Repeat("0", 64), http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/reconciliation?from=2030-01-02T00:00:00Z&to=2030-01-01T00:00:00Z", http.StatusBadRequest, "malformed"},
		{http.MethodGet, "/v1/stuck/messages/0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01", http.StatusNotFound, "not-found"},
	} {
		a := h.ask(c.method, c.path, h.operator, "")
		if p := h.problem(a); a.status != c.status || p.Type != admin.ProblemPrefix+c.slug {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, a.status, a.body, c.status, c.slug)
		}
	}
	if a := h.ask(http.MethodPut, "/v1/status", h.viewer, "{}"); !strings.Contains(a.header.Get("Allow"), "GET") {
		t.Errorf("405 with Allow %q", a.header.Get("Allow"))
	}
}

func TestBodiesAreBoundedAndStrict(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	big := `{"reason":"` + strings.Repeat("x", 64<<10) + `","filter":{}}`
	for name, c := range map[string]struct {
		body    string
		status  int
		field   string
		headers []string
	}{
		"nothing":            {"", 415, "Content-Type", nil},
		"text":               {"{}", 415, "Content-Type", []string{"Content-Type", "text/plain"}},
		"compressed":         {"{}", 415, "Content-Type", []string{"Content-Encoding", "gzip"}},
		"a list":             {"[]", 400, "", nil},
		"half":               {`{"reason":"x"`, 400, "", nil},
		"two":                {`{"reason":"x","filter":{}} {}`, 400, "", nil},
		"unknown member":     {`{"reason":"x","filter":{},"force":true}`, 400, "force", nil},
		"unknown in filter":  {`{"reason":"x","filter":{"colour":"red"}}`, 400, "colour", nil},
		"wrong type":         {`{"reason":7,"filter":{}}`, 400, "reason", nil},
		"no reason":          {`{"filter":{}}`, 400, "reason", nil},
		"a reason of spaces": {`{"reason":"   ","filter":{}}`, 400, "reason", nil},
		"a long reason":      {`{"reason":"` + strings.Repeat("x", 501) + `","filter":{}}`, 400, "reason", nil},
		"invalid UTF-8":      {"{\"reason\":\"\xff\",\"filter\":{}}", 400, "", nil},
		"limit":              {`{"reason":"x","filter":{},"limit":10001}`, 400, "limit", nil},
		"side":               {`{"reason":"x","filter":{"side":"up"}}`, 400, "side", nil},
		"too large":          {big, 413, "", nil},
	} {
		a := h.ask(http.MethodPost, "/v1/stuck/replay", h.operator, c.body, c.headers...)
		if p := h.problem(a); a.status != c.status || p.Field != c.field {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if a := h.ask(http.MethodGet, "/v1/status", h.viewer, "", "X-Long", strings.Repeat("x", 64<<10)); a.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of headers: %d", a.status)
	}
	if h.logs.String() == "" || strings.Contains(h.logs.String(), "xxxx") {
		t.Error("the log repeats a body")
	}
}

// What a client gets wrong is its own fault, however it is wrong.
func TestBadInputIsTheClientsFault(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	id := h.park("k-1", `{}`)
	command := fmt.Sprintf(`{"filter":{"messageId":%q,"side":"inbox"},"reason":"x"`, id)
	plan := `{"database":"shop","from":%q,"to":%q,"type":%q}`
	for name, c := range map[string]struct{ method, path, body string }{
		"a hash with a zero byte":        {http.MethodPost, "/v1/replay/plans/%00/apply", `{"reason":"x"}`},
		"a hash that is no text":         {http.MethodPost, "/v1/replay/plans/%ff/apply", `{"reason":"x"}`},
		"a reason with a zero byte":      {http.MethodPost, "/v1/stuck/replay", `{"filter":{},"reason":"a\u0000b"}`},
		"a type with a zero byte":        {http.MethodPost, "/v1/replay/plans", `{"database":"shop","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","type":"\u0000"}`},
		"a time before the first year":   {http.MethodPost, "/v1/replay/plans", fmt.Sprintf(plan, "0000-01-01T00:00:00+23:59", "2026-01-02T00:00:00Z", "a")},
		"a time after the last year":     {http.MethodPost, "/v1/replay/plans", fmt.Sprintf(plan, "2026-01-02T00:00:00Z", "9999-12-31T23:59:59-23:59", "a")},
		"a header with a zero byte":      {http.MethodPost, "/v1/stuck/edit", command + `,"headers":{"a":"\u0000"}}`},
		"a header's name with one":       {http.MethodPost, "/v1/stuck/edit", command + `,"headers":{"\u0000":"a"}}`},
		"a fingerprint with a zero byte": {http.MethodPost, "/v1/dead/discard", `{"queue":"q.0.dead","fingerprints":["\u0000"],"reason":"x"}`},
		"half a query":                   {http.MethodGet, "/v1/stuck?limit=%zz", ""},
		"a page after nothing":           {http.MethodGet, "/v1/audit?after=bnVsbA", ""},
		"a trial of 1":                   {http.MethodPost, "/v1/stuck/skip?dryRun=1", command + "}"},
		"a trial of TRUE":                {http.MethodPost, "/v1/stuck/skip?dryRun=TRUE", command + "}"},
		"a trial in small letters":       {http.MethodPost, "/v1/stuck/skip?dryrun=true", command + "}"},
		"a trial that cannot be read":    {http.MethodPost, "/v1/stuck/skip?dryRun=%zz", command + "}"},
	} {
		if a := h.ask(c.method, c.path, h.operator, c.body); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		} else {
			h.problem(a)
		}
	}
	var list api.StuckPage
	h.get("/v1/stuck?messageId="+id, "/v1/stuck", &list)
	if len(list.Items) != 1 {
		t.Error("a trial was a deed")
	}
}

func TestTooManyRequestsWithOneToken(t *testing.T) {
	t.Parallel()
	h := newHouse(t, admin.Limits{PerToken: 0.01, TokenBurst: 3})
	for i := range 5 {
		a := h.ask(http.MethodGet, "/v1/whoami", h.viewer, "")
		if limited := i >= 3; limited != (a.status == http.StatusTooManyRequests) || limited && a.header.Get("Retry-After") == "" {
			t.Errorf("request %d: %d, Retry-After %q", i, a.status, a.header.Get("Retry-After"))
		}
	}
	if a := h.ask(http.MethodGet, "/v1/whoami", h.operator, ""); a.status != http.StatusOK {
		t.Errorf("another token is limited too: %d", a.status)
	}
	if a := h.ask(http.MethodGet, "/livez", "", ""); a.status != http.StatusOK {
		t.Errorf("/livez is limited too: %d", a.status)
	}
}

func TestTooManyFailedLogins(t *testing.T) {
	t.Parallel()
	h := newHouse(t, admin.Limits{FailedLogins: 0.01, FailedBurst: 3})
	for i := range 6 {
		a := h.ask(http.MethodGet, "/v1/status", "twa_wrong", "")
		want, slug := http.StatusUnauthorized, "unauthorized"
		if i >= 3 {
			want, slug = http.StatusTooManyRequests, "too-many-failed-logins"
		}
		if p := h.problem(a); a.status != want || p.Type != admin.ProblemPrefix+slug {
			t.Errorf("login %d: %d %s", i, a.status, a.body)
		}
	}
	if a := h.ask(http.MethodGet, "/v1/whoami", h.operator, ""); a.status != http.StatusOK {
		t.Errorf("a valid token from the same address: %d", a.status)
	}
}

// A request that waits for its body takes a place, and the next one is told so.
func TestTooManyRequestsAtATime(t *testing.T) {
	t.Parallel()
	h := newHouse(t, admin.Limits{Requests: 1})
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /v1/stuck/skip HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", h.operator)
	outboxtest.Eventually(t, waits, func() bool {
		return h.ask(http.MethodGet, "/v1/whoami", h.viewer, "").status == http.StatusServiceUnavailable
	}, "a second request is refused")
	if a := h.ask(http.MethodGet, "/livez", "", ""); a.status != http.StatusOK {
		t.Errorf("/livez: %d", a.status)
	}
	conn.Close()
	outboxtest.Eventually(t, waits, func() bool { return h.ask(http.MethodGet, "/v1/whoami", h.viewer, "").status == http.StatusOK }, "the place is free again")
}

func TestWhoamiAndSpecification(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	var me api.Identity
	h.get("/v1/whoami", "/v1/whoami", &me)
	if me.Name != "vera" || me.Role != api.Viewer || !slices.Equal(me.Databases, []string{"shop"}) {
		t.Errorf("%+v", me)
	}
	served := h.ask(http.MethodGet, "/openapi.yaml", h.viewer, "")
	written, err := os.ReadFile("openapi.yaml")
	if err != nil || string(served.body) != string(written) || served.header.Get("Content-Type") != "application/openapi+yaml" {
		t.Errorf("the specification is served as %s, %d bytes: %v", served.header.Get("Content-Type"), len(served.body), err)
	}
	if h.spec.document["openapi"] != "3.1.0" {
		t.Errorf("it is of version %v", h.spec.document["openapi"])
	}
}

// The deadlines of an answer end the work in the database with it.
func TestAnAnswerHasADeadline(t *testing.T) {
	t.Parallel()
	limits := generous
	limits.Timeout = 300 * time.Millisecond
	h := newHouse(t, limits)
	tx, err := h.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE outbox.stuck, inbox.stuck IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	a := h.ask(http.MethodGet, "/v1/stuck/groups", h.viewer, "")
	if p := h.problem(a); a.status != http.StatusServiceUnavailable || p.Type != admin.ProblemPrefix+"timeout" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestADatabaseThatIsAwayIsSaid(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	login, err := url.Parse(h.db.OperatorURL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.db.Exec(t.Context(), `REVOKE CONNECT ON DATABASE `+h.db.Name+` FROM `+login.User.Username()); err != nil {
		t.Fatal(err)
	}
	a := h.ask(http.MethodGet, "/v1/stuck/groups", h.viewer, "")
	if p := h.problem(a); a.status != http.StatusServiceUnavailable || p.Type != admin.ProblemPrefix+"unavailable" || strings.Contains(string(a.body), h.db.Name) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := h.ask(http.MethodGet, "/livez", "", ""); a.status != http.StatusOK {
		t.Errorf("/livez: %d", a.status)
	}
}

// What an operator does stands in the audit log under the token's name with the reason, whatever the body says.
func TestTheActorIsTheToken(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	id := h.park("k-1", `{"n":1}`)
	body := fmt.Sprintf(`{"filter":{"messageId":%q},"reason":" fixed by 1.4 "}`, id)
	a := h.ask(http.MethodPost, "/v1/stuck/replay?dryRun=true", h.viewer, body)
	h.spec.check(t, "/components/schemas/Result", a.body)
	var result api.Result
	if err := json.Unmarshal(a.body, &result); err != nil || !result.DryRun || result.Changed != 1 || len(result.AuditIds) != 0 {
		t.Errorf("dry run: %d %s", a.status, a.body)
	}
	a = h.ask(http.MethodPost, "/v1/stuck/replay", h.operator, body)
	h.spec.check(t, "/components/schemas/Result", a.body)
	if err := json.Unmarshal(a.body, &result); err != nil || result.DryRun || result.Changed != 1 || len(result.AuditIds) != 1 {
		t.Errorf("replay: %d %s", a.status, a.body)
	}
	var page api.AuditPage
	h.get("/v1/audit?messageId="+id, "/v1/audit", &page)
	if len(page.Items) != 1 || page.Items[0].Actor != (api.Actor{Name: "olaf", Reason: "fixed by 1.4"}) || page.Items[0].Action != "inbox.replay" {
		t.Errorf("audit: %+v", page)
	}
	var reports api.AuditReportList
	h.get("/v1/audit/verify", "/v1/audit/verify", &reports)
	if len(reports.Items) != 1 || !reports.Items[0].Ok || reports.Items[0].Entries != 1 {
		t.Errorf("verify: %+v", reports)
	}
}

// What was done to one message is said, whatever could not be looked at beside it.
func TestOneMessageIsTakenAlthoughADatabaseIsAway(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous, func(c *operate.Config) {
		c.Databases = append(c.Databases, operate.Database{Name: "gone", URL: "postgres://nobody@127.0.0.1:1/nothing"})
	})
	body := func(id string) string { return fmt.Sprintf(`{"filter":{"messageId":%q},"reason":"fixed"}`, id) }
	a := h.ask(http.MethodPost, "/v1/stuck/replay", h.operator, body(h.park("k-1", `{}`)))
	h.spec.check(t, "/components/schemas/Result", a.body)
	var result api.Result
	if err := json.Unmarshal(a.body, &result); err != nil || a.status != http.StatusOK || result.Changed != 1 || len(result.AuditIds) != 1 || len(result.Warnings) != 1 {
		t.Errorf("%d %s", a.status, a.body)
	}
	a = h.ask(http.MethodPost, "/v1/stuck/replay", h.operator, body("0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01"))
	if p := h.problem(a); a.status != http.StatusServiceUnavailable || p.Type != admin.ProblemPrefix+"unavailable" {
		t.Errorf("a message that may be in the database that is away: %d %s", a.status, a.body)
	}
}

func TestStuckMessagesAreServed(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	id := h.park("k-1", `{"secret":"n0t-f0r-l0gs"}`)
	var groups api.GroupList
	h.get("/v1/stuck/groups?side=inbox", "/v1/stuck/groups", &groups)
	if len(groups.Items) != 1 || groups.Items[0].Parked != 1 {
		t.Errorf("groups: %+v", groups)
	}
	var list api.StuckPage
	h.get("/v1/stuck?key=k-1&state=parked&limit=1", "/v1/stuck", &list)
	if len(list.Items) != 1 || list.Items[0].MessageID.String() != id {
		t.Errorf("list: %+v", list)
	}
	var detail api.Detail
	h.get("/v1/stuck/messages/"+id, "/v1/stuck/messages/{messageId}", &detail)
	if detail.PayloadText != `{"secret":"n0t-f0r-l0gs"}` || detail.State != api.StateParked {
		t.Errorf("detail: %+v", detail)
	}
	edit := fmt.Sprintf(`{"filter":{"messageId":%q,"side":"inbox"},"payload":{"secret":"n0t-th1s"},"reason":"price was missing"}`, id)
	if a := h.ask(http.MethodPost, "/v1/stuck/edit", h.operator, edit); a.status != http.StatusOK {
		t.Errorf("edit: %d %s", a.status, a.body)
	}
	h.get("/v1/stuck/messages/"+id, "/v1/stuck/messages/{messageId}", &detail)
	if detail.PayloadText != `{"secret":"n0t-th1s"}` || !detail.Edited || string(detail.Original.Payload) != `{"secret":"n0t-f0r-l0gs"}` {
		t.Errorf("edited: %+v", detail)
	}
	if logs := h.logs.String(); strings.Contains(logs, "n0t-") || strings.Contains(logs, "k-1") || strings.Contains(logs, id) || !strings.Contains(logs, "actor=olaf") {
		t.Errorf("the log tells too much or too little:\n%s", logs)
	}
}

// What goes through all that there is has more time than other requests: a large outbox is rebased through the API too.
func TestARebaseMayTakeItsTime(t *testing.T) {
	t.Parallel()
	limits := generous
	limits.Timeout = 200 * time.Millisecond
	h := newHouse(t, limits)
	ctx := context.Background()
	_, err := h.db.Exec(ctx, `
		INSERT INTO outbox.identity (system_identifier, database_oid, timeline) SELECT system_identifier, database_oid, timeline FROM outbox.current_identity()`)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := h.db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if _, err := tx.Exec(ctx, `LOCK TABLE outbox.messages IN ROW EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	done := make(chan answer, 1)
	go func() {
		done <- h.ask(http.MethodPost, "/v1/cursors/rebase", h.operator, `{"database":"shop","force":true,"reason":"the test wants it"}`)
	}()
	select {
	case a := <-done:
		t.Errorf("it did not wait: %d %s", a.status, a.body)
		return
	case <-time.After(time.Second):
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if a := <-done; a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestABrokerThatIsAwayIsSaid(t *testing.T) {
	t.Parallel()
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, generous, func(c *operate.Config) { c.AMQPURL = "amqp://guest:secret@" + closed.Addr().String() + "/" })
	topology := rabbitmq.Topology{Exchange: "shop.events", Partitions: 4, Queues: []rabbitmq.Queue{{Name: "mail", Types: []string{"paid"}}}}
	if err := relayd.StoreTopology(t.Context(), h.db.AdminURL, topology); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/dead/discard", "/v1/dead/redrive"} {
		a := h.ask(http.MethodPost, path, h.operator, `{"queue":"mail.0","reason":"read"}`)
		p := h.problem(a)
		if a.status != http.StatusServiceUnavailable || p.Type != admin.ProblemPrefix+"unavailable" || !strings.Contains(p.Detail, "broker") || strings.Contains(string(a.body), "secret") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}
