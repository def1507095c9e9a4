package main_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// nowhere has a token and no server.
func nowhere(t *testing.T) console {
	return console{t, []string{"TW_ADMIN_URL=http://127.0.0.1:1", "TW_ADMIN_TOKEN=twa_" + strings.Repeat("A", 43)}}
}

const someID = "0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01"

func TestACommandLineThatCannotBeMeant(t *testing.T) {
	t.Parallel()
	c := nowhere(t)
	for line, says := range map[string]string{
		"statu":                                `unknown command "statu"`,
		"status now":                           "status",
		"status --nope":                        "--nope",
		"status -o xml":                        `-o is "xml": want table or json`,
		"status --timeout soon":                "--timeout",
		"status --url example.org":             "want http://host:port or https://host:port",
		"status --url http://example.org:5011": "the token would travel in the open",
		"status --token-file /nowhere":         "TW_ADMIN_TOKEN_FILE",
		"status --ca-file /nowhere":            "TW_ADMIN_CA",
		"top":                                  "top needs a terminal",
		"top --every 1ms":                      "top needs a terminal",
		"stuck":                                "stuck needs a command",
		"stuck mend":                           `there is no command "mend"`,
		"stuck list --limit 0":                 "--limit is 0: want 1 to 500",
		"stuck list --side both":               `--side is "both": want outbox or inbox`,
		"stuck list --state dead":              `--state is "dead": want retrying, parked or behind`,
		"stuck list --older-than -1h":          "--older-than is -1h0m0s",
		"stuck show":                           "MESSAGE-ID",
		"stuck show 17":                        `"17" is no message id`,
		"stuck replay":                         "name a message, choose with --group and the like, or say --all",
		"stuck replay --all":                   "nobody can be asked here: give --yes and --reason, or --dry-run",
		"stuck replay --all --yes":             "--reason is needed",
		"stuck replay --all --yes --dry-run":   "exclude each other",
		"stuck skip 17 --dry-run":              `"17" is no message id`,
		"stuck skip --all -o json":             "nobody can be asked here",
		"stuck edit " + someID:                 "nobody can be asked here",
		"why":                                  "MESSAGE-ID|KEY",
		"replay plan --from 2h":                `"database"`,
		"replay plan --database shop":          `"from"`,
		"replay plan --database shop --from yesterday":  `--from is "yesterday": want a time such as`,
		"replay plan --database shop --from 1h --to 2h": "--from must be before --to",
		"replay apply":                       "HASH",
		"replay apply abc":                   "nobody can be asked here",
		"replay apply abc --dry-run":         "the plan is the dry run",
		"dead list --limit 501":              "--limit is 501: want 1 to 500",
		"dead show q":                        "QUEUE FINGERPRINT",
		"dead redrive q --dry-run":           "name the fingerprints, or say --all for the whole queue",
		"dead discard q abc --all --dry-run": "name the fingerprints, or say --all for the whole queue",
		"dead discard q --all":               "nobody can be asked here",
		"cursor rebase --dry-run":            `"database"`,
		"cursor rebase --database shop":      "nobody can be asked here",
		"reconcile --from 0s":                "--from must be before --to",
		"reconcile --grace -1s":              "--grace is -1s",
		"audit verify --head abc":            "--head needs the --database",
		"audit list --message 17":            `"17" is no message id`,
		"audit list --limit 0":               "--limit is 0: want 1 to 500",
		"token new --name a":                 `"role"`,
		"token new --name a --role king":     "king",
		"completion tcsh":                    "tcsh",
	} {
		r := c.want(2, words(line), says)
		if !strings.HasPrefix(r.err, "outboxctl: ") || r.out != "" || strings.Count(r.err, "\n") > 1 && !strings.Contains(r.err, "Did you mean") {
			t.Errorf("outboxctl %s: want one line on the standard error, got:\n%s%s", line, r.out, r.err)
		}
	}
	console{t, nil}.want(2, words("status"), "no token: set TW_ADMIN_TOKEN")
	console{t, []string{"TW_ADMIN_TOKEN=two words"}}.want(2, words("status"), "more than one line or word")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.want(2, []string{"status", "--token-file", empty}, "no token")
	c.want(2, []string{"status", "--ca-file", empty}, "has no certificate in PEM")
}

func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	c := nowhere(t)
	for _, line := range []string{
		"status", "stuck groups", "stuck list", "stuck list --group abcd", "stuck show " + someID, "why x", "doctor", "reconcile", "cursor show", "dead list",
		"dead show q abc", "audit list", "audit verify", "replay plan -d shop --from 1h", "stuck replay --all --dry-run", "stuck skip --all --yes --reason x",
		"stuck edit " + someID + " --dry-run --header a=b", "dead redrive q --all --dry-run", "dead discard q abc --yes --reason x",
		"cursor rebase -d shop --dry-run", "replay apply abc --yes --reason x",
	} {
		r := c.want(1, words(line), "no answer from http://127.0.0.1:1", "connection refused", "TW_ADMIN_URL sets another address")
		if r.out != "" || strings.Count(r.err, "\n") != 1 {
			t.Errorf("outboxctl %s: want one line on the standard error, got:\n%s%s", line, r.out, r.err)
		}
	}
}

func TestSomethingElseAnswers(t *testing.T) {
	t.Parallel()
	const silence = "no answer from"
	answers := map[string]http.HandlerFunc{
		"is this the administration API?": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "nothing here", http.StatusNotFound) },
		"answered what outboxctl cannot read": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("<html>welcome</html>"))
		},
		"the answer was 302 Found": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		silence:                    func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	}
	for says, answer := range answers {
		web := httptest.NewServer(answer)
		t.Cleanup(web.Close)
		status := "status --timeout 1m"
		if says == silence {
			status = "status --timeout 1s"
		}
		nowhere(t).with("TW_ADMIN_URL="+web.URL).want(1, words(status), says)
		nowhere(t).with("TW_ADMIN_URL="+web.URL).want(1, words(status+" -o json"), says)
	}
}

func TestHelpNeedsNothing(t *testing.T) {
	t.Parallel()
	c := console{t, nil}
	var all strings.Builder
	var walk func(path []string)
	walk = func(path []string) {
		r := c.want(0, append(path, "--help"))
		all.WriteString("$ outboxctl " + strings.Join(append(path, "--help"), " ") + "\n" + r.out + r.err + "\n")
		_, list, found := strings.Cut(r.out, "Available Commands:\n")
		if !found {
			return
		}
		list, _, _ = strings.Cut(list, "\n\n")
		for _, line := range strings.Split(list, "\n") {
			if name := strings.Fields(line)[0]; name != "help" && name != "completion" {
				walk(append(append([]string{}, path...), name))
			}
		}
	}
	walk(nil)
	golden(t, "help", all.String())
	c.want(0, []string{"--version"}, "outboxctl ")
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	c := console{t, nil}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := c.want(0, []string{"completion", shell}, "outboxctl"); len(r.out) < 1000 || r.err != "" {
			t.Errorf("completion of %s: %d bytes, %s", shell, len(r.out), r.err)
		}
	}
	for line, words := range map[string][]string{
		"stuck ":                {"groups", "list", "show", "replay", "skip", "edit"},
		"stuck list --side ":    {"outbox", "inbox"},
		"stuck list --state ":   {"retrying", "parked", "behind"},
		"stuck edit --side ":    {"outbox", "inbox"},
		"status -o ":            {"table", "json"},
		"token new --role ":     {"viewer", "operator"},
		"audit ":                {"list", "verify"},
		"replay apply abc --ca": {"--canary"},
	} {
		r := c.run(append([]string{"__complete"}, strings.Split(line, " ")...)...)
		for _, word := range words {
			if r.code != 0 || !strings.Contains("\n"+r.out, "\n"+word) {
				t.Errorf("%q completes to %q, want %s among it", line, r.out, word)
			}
		}
	}
}

func TestTokenNewNeedsNoServer(t *testing.T) {
	t.Parallel()
	c := console{t, nil}
	c.want(0, words("token new --name ann --role viewer"), "token, for ann alone", "ann viewer sha256:")
	made := asJSON[map[string]string](c, 0, "token new --name ann --role viewer")
	if !strings.HasPrefix(made["token"], "twa_") || !strings.HasPrefix(made["line"], "ann viewer sha256:") {
		t.Errorf("%v", made)
	}
}

// Every command line that the runbook names can be said as it stands, once its placeholders are filled.
func TestTheRunbooksCommandsCanBeSaid(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("MESSAGE-ID", someID, "BOOKING-ID", "b", "NAME", "abcd", "HASH", "abc", "QUEUE", "q", "FINGERPRINT", "abc", " D ", " shop ")
	word := regexp.MustCompile(`"[^"]*"|\S+`)
	said := map[string]bool{}
	for _, m := range regexp.MustCompile("`outboxctl ([^`]+)`").FindAllStringSubmatch(string(text), -1) {
		if said[m[1]] {
			continue
		}
		said[m[1]] = true
		args := word.FindAllString(fill.Replace(m[1]+" "), -1)
		code, says := 1, "no answer from"
		switch {
		case args[0] == "top":
			code, says = 2, "top needs a terminal"
		case args[0] == "completion":
			code, says = 0, "outboxctl"
		case strings.HasPrefix(m[1], "stuck edit"):
			args = append(args, "--dry-run", "--header", "a=b")
		case slices.Contains(args, "--reason") && !slices.Contains(args, "--yes"):
			args = append(args, "--yes")
		}
		nowhere(t).want(code, args, says)
	}
	if len(said) < 30 {
		t.Errorf("only %d commands were found in the runbook", len(said))
	}
}
