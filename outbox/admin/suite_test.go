package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/operate"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// house is a real server over a real database, with a token for each role.
type house struct {
	t                testing.TB
	db               *outboxtest.Database
	url              string
	viewer, operator string
	tokenFile        string
	logs             *lockedBuffer
	spec             *spec
}

// lockedBuffer is written by a server and read by a test.
type lockedBuffer struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

// generous lets a test send what it likes.
var generous = admin.Limits{PerToken: 1e6, TokenBurst: 1e6, FailedLogins: 1e6, FailedBurst: 1e6}

func newHouse(t testing.TB, limits admin.Limits, change ...func(*operate.Config)) *house {
	t.Helper()
	h := &house{t: t, db: outboxtest.NewDatabase(t, "shop"), logs: &lockedBuffer{}, spec: readSpec(t)}
	viewer, viewerLine := newToken(t, "vera", api.Viewer)
	operator, operatorLine := newToken(t, "olaf", api.Operator)
	h.viewer, h.operator = viewer, operator
	h.tokenFile = filepath.Join(t.TempDir(), "tokens")
	writeFile(t, h.tokenFile, "# who may ask\n\n"+viewerLine+"\n"+operatorLine+"\n", 0o600)
	tokens, err := admin.OpenTokens(h.tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg := operate.Config{Databases: []operate.Database{{Name: "shop", URL: h.db.OperatorURL}}}
	for _, c := range change {
		c(&cfg)
	}
	operates, err := operate.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(operates.Close)
	server, err := admin.New(admin.Config{
		Operator: operates, Tokens: tokens, Limits: limits, Logger: slog.New(slog.NewTextHandler(h.logs, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(nil)
	web.Config = server.HTTPServer()
	web.Start()
	t.Cleanup(web.Close)
	h.url = web.URL
	return h
}

func newToken(t testing.TB, name string, role api.Role) (token, line string) {
	t.Helper()
	token, line, err := admin.NewToken(name, role)
	if err != nil {
		t.Fatal(err)
	}
	return token, line
}

func writeFile(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// problem is the answer as a problem, checked against the specification.
func (h *house) problem(a answer) api.Problem {
	h.t.Helper()
	if kind := a.header.Get("Content-Type"); kind != "application/problem+json" {
		h.t.Errorf("status %d came as %q: %s", a.status, kind, a.body)
		return api.Problem{}
	}
	h.spec.check(h.t, "/components/schemas/Problem", a.body)
	var p api.Problem
	if err := json.Unmarshal(a.body, &p); err != nil || p.Status != a.status || !strings.HasPrefix(p.Type, admin.ProblemPrefix) || p.Detail == "" {
		h.t.Errorf("status %d: %+v, %v", a.status, p, err)
	}
	return p
}

// ask sends a request with a token, or with none.
func (h *house) ask(method, path, token, body string, headers ...string) answer {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waits)
	defer cancel()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, h.url+path, in)
	if err != nil {
		h.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	document, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, document}
}

// get asks as a viewer and checks the answer against the specification's path.
func (h *house) get(path, template string, into any) {
	h.t.Helper()
	a := h.ask(http.MethodGet, path, h.viewer, "")
	if a.status != http.StatusOK {
		h.t.Fatalf("%s: %d %s", path, a.status, a.body)
	}
	h.spec.check(h.t, responseOf(template), a.body)
	if err := json.Unmarshal(a.body, into); err != nil {
		h.t.Fatal(err)
	}
}

// responseOf points at the schema of what a GET answers.
func responseOf(template string) string {
	return "/paths/" + strings.ReplaceAll(template, "/", "~1") + "/get/responses/200/content/application~1json/schema"
}

// spec is the specification as a JSON document, and what its schemas say.
type spec struct {
	document map[string]any
	mu       sync.Mutex
	compiler *jsonschema.Compiler
}

func readSpec(t testing.TB) *spec {
	t.Helper()
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	s := &spec{document: document.(map[string]any), compiler: jsonschema.NewCompiler()}
	s.compiler.DefaultDraft(jsonschema.Draft2020)
	s.compiler.AssertFormat()
	s.compiler.AssertContent()
	if err := s.compiler.AddResource("openapi.json", document); err != nil {
		t.Fatal(err)
	}
	return s
}

// check holds a document against the schema at a JSON pointer.
func (s *spec) check(t testing.TB, pointer string, document []byte) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	schema, err := s.compiler.Compile("openapi.json#" + pointer)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err == nil {
		err = schema.Validate(value)
	}
	if err != nil {
		t.Errorf("%s: %v\n%s", pointer, err, document)
	}
}

// operation is a method of a path.
type operation struct {
	method, template, path string
	roles                  []string // nil for the probes
}

// operations are all of the specification, with paths that can be asked for.
func (s *spec) operations(t testing.TB) (list []operation) {
	t.Helper()
	for template, item := range s.document["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			o := operation{method: strings.ToUpper(method), template: template, path: template}
			for name, value := range map[string]string{
				"{id}": "some-key", "{messageId}": "0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01", "{hash}": "abc", "{queue}": "q.0.dead", "{fingerprint}": "abc",
			} {
				o.path = strings.ReplaceAll(o.path, name, value)
			}
			security, own := op.(map[string]any)["security"].([]any)
			if !own {
				security = s.document["security"].([]any)
			}
			for _, alternative := range security {
				for _, role := range alternative.(map[string]any)["bearer"].([]any) {
					o.roles = append(o.roles, role.(string))
				}
			}
			if strings.Contains(o.path, "{") {
				t.Fatalf("%s: the test has no value for a parameter", template)
			}
			list = append(list, o)
		}
	}
	if len(list) < 20 {
		t.Fatalf("only %d operations", len(list))
	}
	return list
}

// park puts a message with its key among the inbox's parked ones and returns its id.
func (h *house) park(key, payload string) string {
	h.t.Helper()
	var id string
	err := h.db.QueryRow(context.Background(), `
		WITH m AS (INSERT INTO inbox.messages (message_id, consumer, state) VALUES (gen_random_uuid(), 'shop', 'stuck') RETURNING message_id)
		INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, attempts, class, error, fingerprint, build, parked)
		SELECT 'shop', message_id, 0, 'shop.orders.placed.v1', $1, $2, '{"cloudEvents_type":"shop.orders.placed.v1"}', 5, 'handler',
		       'no such seat 17', 'no such seat <n>', 'a1b2c3', true FROM m RETURNING message_id::text`, key, []byte(payload)).Scan(&id)
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}
