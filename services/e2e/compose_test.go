package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/internal/bus"
	schema "github.com/jcp/ticketwave/sql"
)

const root = "../.."

// programs are our own, by the name of their container: the folder of their main, and what they cannot do without.
var programs = map[string]struct {
	main     string
	required []string
}{
	"migrate":      {"services/cmd/ticketwave", []string{"TW_POSTGRES_URL", "TW_AMQP_URL", "TW_SERVICE_PASSWORD"}},
	"topology":     {"services/cmd/ticketwave", []string{"TW_POSTGRES_URL", "TW_AMQP_URL", "TW_SERVICE_PASSWORD"}},
	"relay":        {"outbox/cmd/relay", []string{"TW_RELAY_DATABASES", "TW_AMQP_URL"}},
	"booking":      {"services/cmd/booking", []string{"TW_DATABASE_URL", "TW_AMQP_URL"}},
	"catalog":      {"services/cmd/catalog", []string{"TW_DATABASE_URL", "TW_AMQP_URL"}},
	"payment":      {"services/cmd/payment", []string{"TW_DATABASE_URL", "TW_AMQP_URL"}},
	"notification": {"services/cmd/notification", []string{"TW_DATABASE_URL", "TW_AMQP_URL", "TW_SMTP_ADDR"}},
	"saga":         {"services/cmd/saga", []string{"TW_DATABASE_URL", "TW_AMQP_URL"}},
}

// compose loads docker-compose.yml as Docker does, under the given environment.
func compose(t *testing.T, environment types.Mapping) *types.Project {
	t.Helper()
	dir, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(dir, "docker-compose.yml")}},
		Environment: environment,
	})
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func TestComposeHasEveryProgram(t *testing.T) {
	t.Parallel()
	project := compose(t, nil)
	want := append(slices.Collect(maps.Keys(programs)), "postgres", "rabbitmq", "mailpit")
	if got := project.ServiceNames(); !sameSet(got, want) {
		t.Errorf("services are %v, want %v", got, want)
	}
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// pinned is an image with at least two numbers in its version, or a digest.
var pinned = regexp.MustCompile(`^[a-z0-9./-]+:(v?\d+\.\d+[a-z0-9.-]*|[a-z0-9.-]+@sha256:[0-9a-f]{64})$`)

func TestComposeImagesArePinned(t *testing.T) {
	t.Parallel()
	stages := dockerStages(t)
	for name, s := range compose(t, nil).Services {
		if _, ours := programs[name]; !ours {
			if s.Build != nil || !pinned.MatchString(s.Image) {
				t.Errorf("%s: image %q is not pinned", name, s.Image)
			}
			continue
		}
		if s.Build == nil || s.Build.Dockerfile != "deploy/Dockerfile" {
			t.Errorf("%s is not built from deploy/Dockerfile", name)
			continue
		}
		if base, ok := stages[s.Build.Target]; !ok || base != "base" {
			t.Errorf("%s: the Dockerfile has no stage %q on the base image", name, s.Build.Target)
		}
	}
	for name, base := range stages {
		if _, local := stages[base]; !local && !pinned.MatchString(base) {
			t.Errorf("Dockerfile: stage %s is from %q, which is not pinned", name, base)
		}
	}
	for image, want := range map[string]bool{"postgres:17.7-bookworm": true, "postgres:17": false, "postgres": false, "a/b:latest": false, "a/b:nonroot": false} {
		if pinned.MatchString(image) != want {
			t.Errorf("the test takes %s for pinned: %v", image, !want)
		}
	}
}

// dockerStages maps the Dockerfile's stages to what they begin from.
func dockerStages(t *testing.T) map[string]string {
	t.Helper()
	text := readFile(t, "deploy/Dockerfile")
	stages := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^FROM (\S+) AS (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		stages[m[2]] = m[1]
	}
	if n := strings.Count(string(text), "\nFROM "); n != len(stages) {
		t.Fatalf("%d stages of %d have names", len(stages), n)
	}
	return stages
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestComposePortsAreOfThisMachine(t *testing.T) {
	t.Parallel()
	defaults := map[string]string{
		"postgres": "5432:5432", "rabbitmq": "5672:5672 15672:15672", "mailpit": "8025:8025",
		"booking": "5001:5001", "catalog": "5002:5002", "payment": "5003:5003", "notification": "5004:5004", "saga": "5005:5005", "relay": "5010:5010 5011:5011",
		"migrate": "", "topology": "",
	}
	assertPorts(t, compose(t, nil), defaults)
	moved := maps.Clone(defaults)
	moved["postgres"], moved["rabbitmq"] = "25432:5432", "25672:5672 35672:15672"
	assertPorts(t, compose(t, types.Mapping{"TW_POSTGRES_PORT": "25432", "TW_AMQP_PORT": "25672", "TW_MANAGEMENT_PORT": "35672"}), moved)
}

func assertPorts(t *testing.T, project *types.Project, want map[string]string) {
	t.Helper()
	for name, s := range project.Services {
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprintf("%s:%d", p.Published, p.Target))
			if p.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to %q", name, p.Published, p.HostIP)
			}
		}
		if got := strings.Join(ports, " "); got != want[name] {
			t.Errorf("%s: ports are %q, want %q", name, got, want[name])
		}
		if addr := s.Environment["TW_HTTP_ADDR"]; addr != nil && (len(s.Ports) == 0 || *addr != fmt.Sprintf(":%d", s.Ports[0].Target)) {
			t.Errorf("%s listens on %s and publishes %q", name, *addr, want[name])
		}
	}
}

func TestComposeStartsInOrder(t *testing.T) {
	t.Parallel()
	const healthy, done = types.ServiceConditionHealthy, types.ServiceConditionCompletedSuccessfully
	prepared := map[string]string{"postgres": healthy, "topology": done}
	want := map[string]map[string]string{
		"postgres": {}, "rabbitmq": {}, "mailpit": {},
		"migrate":  {"postgres": healthy},
		"topology": {"migrate": done, "rabbitmq": healthy},
		"relay":    prepared, "booking": prepared, "catalog": prepared, "payment": prepared, "saga": prepared,
		"notification": {"postgres": healthy, "topology": done, "mailpit": healthy},
	}
	project := compose(t, nil)
	for name, s := range project.Services {
		got := map[string]string{}
		for on, d := range s.DependsOn {
			got[on] = d.Condition
			if d.Condition == healthy && project.Services[on].HealthCheck == nil {
				t.Errorf("%s waits for the health of %s, which has no check", name, on)
			}
			if d.Condition == done && project.Services[on].Restart != types.RestartPolicyNo {
				t.Errorf("%s waits for the end of %s, which is restarted (%q)", name, on, project.Services[on].Restart)
			}
		}
		if !maps.Equal(got, want[name]) {
			t.Errorf("%s depends on %v, want %v", name, got, want[name])
		}
	}
}

func TestComposeChecksHealth(t *testing.T) {
	t.Parallel()
	project := compose(t, nil)
	for name, s := range project.Services {
		if s.Restart == types.RestartPolicyNo {
			continue // it ends, and its status says how
		}
		if s.HealthCheck == nil || len(s.HealthCheck.Test) < 2 || s.HealthCheck.Test[0] != "CMD" || s.HealthCheck.Timeout == nil {
			t.Errorf("%s has no health check with a timeout", name)
			continue
		}
		if _, ours := programs[name]; ours && !slices.Equal(s.HealthCheck.Test, []string{"CMD", "/app/" + name, "-health"}) {
			t.Errorf("%s asks for its health with %v", name, s.HealthCheck.Test)
		}
	}
	for name, command := range map[string]string{"migrate": "migrate", "topology": "topology apply"} {
		if got := strings.Join(project.Services[name].Command, " "); got != command {
			t.Errorf("%s runs %q, want %q", name, got, command)
		}
	}
}

func TestComposeConfinesPrograms(t *testing.T) {
	t.Parallel()
	for name, s := range compose(t, nil).Services {
		if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s may gain privileges", name)
		}
		if _, ours := programs[name]; ours && (!s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || s.Privileged || len(s.Volumes) > 0) {
			t.Errorf("%s may do more than it must", name)
		}
		for _, v := range s.Volumes {
			if _, err := os.Stat(v.Source); v.Type == types.VolumeTypeBind && (err != nil || !v.ReadOnly) {
				t.Errorf("%s: mount of %s: read-only %v, %v", name, v.Source, v.ReadOnly, err)
			}
		}
	}
}

func TestComposeSetsWhatProgramsRead(t *testing.T) {
	t.Parallel()
	project := compose(t, nil)
	for name, program := range programs {
		read := variables(t, program.main)
		set := slices.Collect(maps.Keys(project.Services[name].Environment))
		if unread := missing(set, read); len(unread) > 0 {
			t.Errorf("%s is given %v, which it does not read", name, unread)
		}
		if unset := missing(program.required, set); len(unset) > 0 {
			t.Errorf("%s is not given %v", name, unset)
		}
		if unknown := missing(program.required, read); len(unknown) > 0 {
			t.Errorf("%s does not read %v", name, unknown)
		}
	}
	if booking := variables(t, "services/cmd/booking"); len(missing([]string{"TW_SMTP_ADDR", "TW_MAX_TICKETS"}, booking)) != 1 {
		t.Errorf("booking is said to read %v: want its own variables and no other program's", booking)
	}
}

// The administration API is off until somebody asks for it, and its tokens come as a file.
func TestComposeGuardsTheAdministrationAPI(t *testing.T) {
	t.Parallel()
	project := compose(t, nil)
	relay := project.Services["relay"].Environment
	if *relay["TW_ADMIN_ADDR"] != "" || project.Secrets["admin-tokens"].File != "/dev/null" {
		t.Errorf("it is on: %q, tokens in %s", *relay["TW_ADMIN_ADDR"], project.Secrets["admin-tokens"].File)
	}
	project = compose(t, types.Mapping{"TW_ADMIN_ADDR": ":5011", "TW_ADMIN_TOKENS_FILE": "/etc/ticketwave/tokens"})
	relay = project.Services["relay"].Environment
	secrets := project.Services["relay"].Secrets
	if len(secrets) != 1 || *relay["TW_ADMIN_TOKENS"] != "/run/secrets/"+secrets[0].Source || project.Secrets[secrets[0].Source].File != "/etc/ticketwave/tokens" {
		t.Errorf("tokens are read from %s, given %v", *relay["TW_ADMIN_TOKENS"], secrets)
	}
	if *relay["TW_ADMIN_ADDR"] != ":5011" || *relay["TW_ADMIN_INSECURE"] != "true" {
		t.Errorf("it listens on %s", *relay["TW_ADMIN_ADDR"])
	}
	if saga := project.Services["saga"].Environment; *saga["TW_ADMIN_TOKENS"] != "" || *saga["TW_ADMIN_INSECURE"] != "true" {
		t.Errorf("the coordinator takes tokens of %q, beyond its container: %s", *saga["TW_ADMIN_TOKENS"], *saga["TW_ADMIN_INSECURE"])
	}
}

// Stripe is off until the environment says otherwise, and gets what it needs from there.
func TestComposeLetsStripeBeSwitchedOn(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"TW_PAYMENT_GATEWAY": "sandbox", "TW_STRIPE_KEY": "", "TW_STRIPE_WEBHOOK_SECRETS": ""} {
		for _, given := range []types.Mapping{nil, {name: "given"}} {
			if given != nil {
				want = given[name]
			}
			if got := compose(t, given).Services["payment"].Environment[name]; got == nil || *got != want {
				t.Errorf("%s is %v, want %q", name, got, want)
			}
		}
	}
}

// missing are the words that are not in the list.
func missing(words, list []string) []string {
	return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return slices.Contains(list, w) })
}

var variable = regexp.MustCompile(`^TW_[A-Z_]+$`)

// variables are those that a program's packages name in a string of its own.
func variables(t *testing.T, main string) []string {
	t.Helper()
	found, seen := map[string]bool{}, map[string]bool{}
	var visit func(dir string)
	visit = func(dir string) {
		if seen[dir] {
			return
		}
		seen[dir] = true
		for _, file := range parsePackage(t, dir) {
			ast.Inspect(file, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if text, err := strconv.Unquote(lit.Value); err == nil && variable.MatchString(text) {
						found[text] = true
					}
				}
				return true
			})
			for _, imported := range file.Imports {
				if path, ours := strings.CutPrefix(strings.Trim(imported.Path.Value, `"`), "github.com/jcp/ticketwave/"); ours {
					visit(path)
				}
			}
		}
	}
	visit(main)
	return slices.Sorted(maps.Keys(found))
}

func parsePackage(t *testing.T, dir string) []*ast.File {
	t.Helper()
	names, err := fs.Glob(os.DirFS(filepath.Join(root, dir)), "*.go")
	if err != nil || len(names) == 0 {
		t.Fatalf("no Go files in %s: %v", dir, err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// TestComposeDatabasesAreThoseOfThePlan compares URLs with what migrate makes.
func TestComposeDatabasesAreThoseOfThePlan(t *testing.T) {
	t.Parallel()
	project := compose(t, types.Mapping{"TW_SERVICE_PASSWORD": "s3cret"})
	plan := schema.TicketWave(*project.Services["migrate"].Environment["TW_DATABASE_PREFIX"], *project.Services["migrate"].Environment["TW_SERVICE_PASSWORD"])
	var relayed, operated []string
	for _, db := range plan.Databases {
		url := func(login string) string {
			return fmt.Sprintf("postgres://%s:%s@postgres:5432/%s", login, plan.Password, db.Name)
		}
		if got := *project.Services[db.Source].Environment["TW_DATABASE_URL"]; got != url(db.Login) {
			t.Errorf("%s connects to %s, want %s", db.Source, got, url(db.Login))
		}
		relayed = append(relayed, db.Source+"="+url(plan.RelayLogin))
		operated = append(operated, db.Source+"="+url(plan.OperatorLogin))
	}
	if got := *project.Services["relay"].Environment["TW_RELAY_DATABASES"]; got != strings.Join(relayed, ",") {
		t.Errorf("the relay reads %s, want %s", got, strings.Join(relayed, ","))
	}
	if got := *project.Services["relay"].Environment["TW_ADMIN_DATABASES"]; got != strings.Join(operated, ",") {
		t.Errorf("operators reach %s, want %s", got, strings.Join(operated, ","))
	}
}

// definitions is the part of RabbitMQ's definitions that is used.
type definitions struct {
	Users []struct {
		Name             string   `json:"name"`
		PasswordHash     string   `json:"password_hash"`
		HashingAlgorithm string   `json:"hashing_algorithm"`
		Tags             []string `json:"tags"`
	} `json:"users"`
	VHosts      []struct{ Name string } `json:"vhosts"`
	Permissions []permission            `json:"permissions"`
}

type permission struct {
	User      string `json:"user"`
	VHost     string `json:"vhost"`
	Configure string `json:"configure"`
	Write     string `json:"write"`
	Read      string `json:"read"`
}

func readDefinitions(t *testing.T) definitions {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(readFile(t, "deploy/rabbitmq/definitions.json")))
	decoder.DisallowUnknownFields() // nothing that RabbitMQ 4 no longer takes, such as policies for mirrored queues
	var d definitions
	if err := decoder.Decode(&d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d definitions) hash(user string) string {
	for _, u := range d.Users {
		if u.Name == user && u.HashingAlgorithm == "rabbit_password_hashing_sha256" {
			return u.PasswordHash
		}
	}
	return ""
}

// matches checks a password as RabbitMQ does: four bytes of salt, then SHA-256 of salt and password.
func matches(hash, password string) bool {
	raw, err := base64.StdEncoding.DecodeString(hash)
	if err != nil || len(raw) != 4+sha256.Size {
		return false
	}
	sum := sha256.Sum256(append(slices.Clone(raw[:4]), password...))
	return bytes.Equal(sum[:], raw[4:])
}

func TestComposeUsersAreDefined(t *testing.T) {
	t.Parallel()
	d := readDefinitions(t)
	project := compose(t, nil)
	used := map[string]bool{}
	for name := range programs {
		u, err := url.Parse(*project.Services[name].Environment["TW_AMQP_URL"])
		if err != nil {
			t.Fatal(err)
		}
		user := u.User.Username()
		if password, _ := u.User.Password(); !matches(d.hash(user), password) {
			t.Errorf("%s: RabbitMQ does not know user %s by this password", name, user)
		}
		if want := map[bool]string{true: "admin", false: "ticketwave-" + name}[strings.HasSuffix(programs[name].main, "/ticketwave")]; user != want {
			t.Errorf("%s connects as %s, want %s", name, user, want)
		}
		used[user] = true
	}
	if !matches(d.hash("admin"), "admin123") || matches(d.hash("admin"), "admin124") {
		t.Error("the administrator's password is not admin123")
	}
	granted := map[string]bool{}
	for _, p := range d.Permissions {
		granted[p.User] = p.VHost == "/"
	}
	for _, u := range d.Users {
		if !used[u.Name] || !granted[u.Name] || (len(u.Tags) > 0) != (u.Name == "admin") {
			t.Errorf("user %s: used %v, has rights %v, tags %v", u.Name, used[u.Name], granted[u.Name], u.Tags)
		}
	}
}

// broker is a virtual host with the users of the definitions, under other names.
type broker struct {
	t     *testing.T
	admin *url.URL
	users string // begins their names
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	admin, err := url.Parse(outboxtest.NewVHost(t))
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t, admin: admin, users: "tw_test_" + uuid.NewString()[:8] + "_"}
	d := readDefinitions(t)
	for _, u := range d.Users {
		path := "/api/users/" + b.users + u.Name
		outboxtest.Manage(t, http.MethodPut, path, fmt.Sprintf(
			`{"password_hash": %q, "hashing_algorithm": %q, "tags": ""}`, u.PasswordHash, u.HashingAlgorithm))
		t.Cleanup(func() { outboxtest.Manage(t, http.MethodDelete, path, "") })
	}
	for _, p := range d.Permissions {
		body, err := json.Marshal(map[string]string{"configure": p.Configure, "write": p.Write, "read": p.Read})
		if err != nil {
			t.Fatal(err)
		}
		outboxtest.Manage(t, http.MethodPut, "/api/permissions"+admin.Path+"/"+b.users+p.User, string(body))
	}
	return b
}

func (b *broker) url(user string) string {
	u := *b.admin
	u.User = url.UserPassword(b.users+user, "ticketwave")
	return u.String()
}

// try does one thing on a channel of its own and returns the broker's answer.
func (b *broker) try(user string, do func(ch *amqp.Channel) error) error {
	b.t.Helper()
	conn, err := amqp.Dial(b.url(user))
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		b.t.Fatal(err)
	}
	return do(ch)
}

// TestBrokerUsersMayDoTheirWorkAndNoMore gives real users the rights of the definitions.
func TestBrokerUsersMayDoTheirWorkAndNoMore(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	if err := bus.Topology().Apply(t.Context(), b.url("ticketwave-relay")); err != nil {
		t.Fatalf("the relay declares the topology: %v", err)
	}
	for name, c := range map[string]struct {
		user string
		may  bool
		do   func(ch *amqp.Channel) error
	}{
		"read its queue":           {"booking", true, get("booking.0")},
		"read another's queue":     {"booking", false, get("catalog.0")},
		"hear answers":             {"saga", true, get("saga.2")},
		"hear for another":         {"saga", false, get("booking.2")},
		"read dead letters":        {"booking", false, get("booking.0.dead")},
		"write dead letters":       {"catalog", true, publish(t.Context(), "ticketwave.dead", "catalog.3")},
		"write events":             {"catalog", false, publish(t.Context(), "ticketwave.events", "x")},
		"write past the exchange":  {"catalog", false, publish(t.Context(), "", "booking.0")},
		"declare a queue":          {"payment", false, declare("payment.9")},
		"delete its queue":         {"payment", false, remove("payment.0")},
		"relay events":             {"relay", true, publish(t.Context(), "ticketwave.events", "x")},
		"relay reads dead letters": {"relay", true, get("catalog.0.dead")},
		"relay redrives them":      {"relay", true, publish(t.Context(), "", "catalog.0")},
		"relay declares others":    {"relay", false, declare("somebody.else")},
	} {
		if err := b.try("ticketwave-"+c.user, c.do); (err == nil) != c.may {
			t.Errorf("%s: %s: %v, want allowed: %v", c.user, name, err, c.may)
		}
	}
}

func get(queue string) func(ch *amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
		if err == nil && deliveries == nil {
			err = fmt.Errorf("no deliveries from %s", queue)
		}
		return err
	}
}

// publish waits for the confirmation, or for the channel to be closed.
func publish(ctx context.Context, exchange, key string) func(ch *amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		if err := ch.Confirm(false); err != nil {
			return err
		}
		confirmation, err := ch.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, amqp.Publishing{})
		if err != nil {
			return err
		}
		select {
		case reason := <-closed:
			return reason
		case <-confirmation.Done():
			select {
			case reason := <-closed:
				return reason
			default:
				return nil
			}
		}
	}
}

func declare(queue string) func(ch *amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(queue, true, false, false, false, nil)
		return err
	}
}

func remove(queue string) func(ch *amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(queue, false, false, false)
		return err
	}
}
