package e2e_test

import (
	"bufio"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// rules is Prometheus's rule file.
type rules struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func readAlerts(t *testing.T) (list []rule) {
	t.Helper()
	f, err := os.Open("../../deploy/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	decoder := yaml.NewDecoder(f)
	decoder.KnownFields(true)
	var file rules
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		list = append(list, g.Rules...)
	}
	if len(list) < 20 {
		t.Fatalf("only %d alerts", len(list))
	}
	return list
}

// scrape adds what a program exposes: the label names of each series, by metric.
func scrape(t *testing.T, url string, into map[string][]string) {
	t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	series := regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? `)
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if m := series.FindStringSubmatch(lines.Text()); m != nil {
			into[m[1]] = append(into[m[1]], labelName.FindAllString(m[2], -1)...)
		}
	}
}

var (
	labelName  = regexp.MustCompile(`[a-z_]+=`)
	metricName = regexp.MustCompile(`\b(?:outbox|ticketwave)_[a-z0-9_]+`)
	selector   = regexp.MustCompile(`\b((?:outbox|ticketwave)_[a-z0-9_]+)\{([^}]*)\}`)
	grouping   = regexp.MustCompile(`\bby \(([a-z_, ]+)\)`)
)

// Every metric and label that an alert names is one of the programs', as they run.
func TestAlertsNameWhatThereIs(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	tokens := operatorToken(t)
	c.told["booking"], c.told["saga"] = []string{"TW_SAGA=orchestration"}, []string{"TW_ADMIN_TOKENS=" + tokens}
	programs := []string{"relay", "booking", "catalog", "payment", "notification", "saga"}
	c.start(programs...)
	b := c.book(c.sell(10), 1)
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		var now booking
		return call(http.MethodGet, c.proc("booking").url()+"/api/bookings/"+b.ID, "", nil, &now) == http.StatusOK && now.Status == "awaiting_payment"
	}, "the booking does not come to its payment")
	alerts := readAlerts(t)
	var there map[string][]string
	missing := func() (names []string) {
		there = map[string][]string{}
		for _, name := range programs {
			scrape(t, c.proc(name).url(), there)
		}
		for _, a := range alerts {
			for _, name := range metricName.FindAllString(a.Expr, -1) {
				if _, ok := there[name]; !ok {
					names = append(names, a.Alert+": "+name)
				}
			}
		}
		return names
	}
	var names []string
	outboxtest.Eventually(t, 30*time.Second, func() bool { names = missing(); return len(names) == 0 }, "the programs have no such metrics: %v", &names)
	own := []string{"job=", "instance=", "le="} // Prometheus's, and every histogram's
	for _, a := range alerts {
		if len(metricName.FindAllString(a.Expr, -1)) == 0 {
			t.Errorf("%s names no metric", a.Alert)
		}
		for _, m := range selector.FindAllStringSubmatch(a.Expr, -1) {
			for _, label := range labelName.FindAllString(m[2], -1) {
				if !slices.Contains(there[m[1]], label) {
					t.Errorf("%s: %s has no label %q", a.Alert, m[1], label)
				}
			}
		}
		for _, m := range grouping.FindAllStringSubmatch(a.Expr, -1) {
			for _, label := range strings.Split(m[1], ",") {
				label = strings.TrimSpace(label) + "="
				for _, name := range metricName.FindAllString(a.Expr, -1) {
					if !slices.Contains(own, label) && !slices.Contains(there[name], label) {
						t.Errorf("%s: %s has no label %q", a.Alert, name, label)
					}
				}
			}
		}
	}
	c.tryRunbook(b.ID, tokens)
}

// runbook is what the operators' documentation has about one alert or finding.
var runbook = regexp.MustCompile("(?m)^### `?([A-Za-z-]+)`?$")

// sections are the alerts' in the operators' documentation, and how its shell asks the coordinator.
func sections(t *testing.T) (of map[string]string, saga string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(text), "\n## Alerts\n")
	if !found {
		t.Fatal("docs/operations.md has no part \"Alerts\"")
	}
	part, _, _ = strings.Cut(part, "\n## ")
	of = map[string]string{}
	at := runbook.FindAllStringSubmatchIndex(part, -1)
	for i, m := range at {
		end := len(part)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		of[part[m[2]:m[3]]] = part[m[1]:end]
	}
	return of, regexp.MustCompile(`(?m)^    saga\(\) .*$`).FindString(string(text))
}

// Every alert says how bad it is and where its section is, and each section of that part is an alert's.
func TestEveryAlertHasItsRunbook(t *testing.T) {
	t.Parallel()
	sections, _ := sections(t)
	for _, a := range readAlerts(t) {
		section, ok := sections[a.Alert]
		delete(sections, a.Alert)
		for _, part := range []string{"**Means.**", "**See.**", "**Do.**", "`"} {
			if !ok || !strings.Contains(section, part) {
				t.Errorf("docs/operations.md: the section of alert %s has no %s", a.Alert, part)
			}
		}
		if want := "docs/operations.md#" + strings.ToLower(a.Alert); a.Annotations["runbook"] != want {
			t.Errorf("%s: its runbook is %q, want %q", a.Alert, a.Annotations["runbook"], want)
		}
		if a.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", a.Alert)
		}
		if s := a.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", a.Alert, s)
		}
		if _, err := time.ParseDuration(a.For); a.For != "" && err != nil {
			t.Errorf("%s: for %q", a.Alert, a.For)
		}
	}
	for name := range sections {
		t.Errorf("docs/operations.md: there is no alert %s", name)
	}
}
