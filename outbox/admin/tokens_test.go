package admin_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
)

func TestTokensAreOfTheirFile(t *testing.T) {
	t.Parallel()
	token, line := newToken(t, "vera", api.Viewer)
	hash := strings.Fields(line)[2]
	if strings.Contains(line, token) || len(token) < 40 {
		t.Errorf("token %s, line %s", token, line)
	}
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		says string
	}{
		"fine":             {"# people\n\n  " + line + "  \n", 0o600, ""},
		"for a group":      {line, 0o640, ""},
		"for all":          {line, 0o604, "chmod o="},
		"for all to write": {line, 0o602, "chmod o="},
		"empty":            {"\n# nobody\n", 0o600, "has no token"},
		"two fields":       {"vera viewer", 0o600, "line 1"},
		"role":             {"vera root " + hash, 0o600, "viewer or operator"},
		"name":             {"Vera viewer " + hash, 0o600, "name"},
		"no hash":          {"vera viewer " + token, 0o600, "sha256:hex"},
		"half a hash":      {"vera viewer " + hash[:30], 0o600, "sha256:hex"},
		"name twice":       {line + "\nvera operator sha256:" + strings.Repeat("0", 64), 0o600, "line 2: the name vera"},
		"token twice":      {line + "\nolaf operator " + hash, 0o600, "line 2: the token of olaf"},
		"too large":        {strings.Repeat("#\n", 200_000), 0o600, "larger"},
	} {
		path := filepath.Join(t.TempDir(), "tokens")
		writeFile(t, path, c.text, c.mode)
		tokens, err := admin.OpenTokens(path)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.says == "":
			if found, ok := tokens.Lookup(token); !ok || found.Name != "vera" || found.Role != api.Viewer {
				t.Errorf("%s: %+v %v", name, found, ok)
			}
		case err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), token):
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	if _, err := admin.OpenTokens(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there opens")
	}
}

func TestNewTokenChecksNameAndRole(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		role api.Role
	}{{"", api.Viewer}, {"a b", api.Viewer}, {"a", "admin"}, {strings.Repeat("a", 64), api.Viewer}, {"#a", api.Operator}} {
		if _, _, err := admin.NewToken(c.name, c.role); err == nil {
			t.Errorf("%q %q is taken", c.name, c.role)
		}
	}
	one, _ := newToken(t, "a", api.Viewer)
	two, _ := newToken(t, "a", api.Viewer)
	if one == two {
		t.Error("two tokens are the same")
	}
}

// A file that changes counts at once. One that cannot be used lets nobody in, and /readyz says so.
func TestTokenFileIsReadAgain(t *testing.T) {
	t.Parallel()
	h := newHouse(t, generous)
	status := func(token string) int { return h.ask(http.MethodGet, "/v1/whoami", token, "").status }
	fresh, line := newToken(t, "nina", api.Viewer)
	if status(fresh) != http.StatusUnauthorized || status(h.viewer) != http.StatusOK {
		t.Fatal("before the change")
	}
	writeFile(t, h.tokenFile, line, 0o600)
	if status(fresh) != http.StatusOK || status(h.viewer) != http.StatusUnauthorized || status(h.operator) != http.StatusUnauthorized {
		t.Error("the new file does not count")
	}
	for name, spoil := range map[string]func(){
		"a bad line":   func() { writeFile(t, h.tokenFile, line+"\nnonsense", 0o600) },
		"open to all":  func() { writeFile(t, h.tokenFile, line, 0o644) },
		"away":         func() { _ = os.Remove(h.tokenFile) },
		"empty":        func() { writeFile(t, h.tokenFile, "", 0o600) },
		"a folder now": func() { _ = os.Remove(h.tokenFile); _ = os.Mkdir(h.tokenFile, 0o700) },
	} {
		spoil()
		if got := status(fresh); got != http.StatusUnauthorized {
			t.Errorf("%s: %d, want 401", name, got)
		}
		if a := h.ask(http.MethodGet, "/readyz", "", ""); a.status != http.StatusServiceUnavailable || strings.Contains(string(a.body), "nina") {
			t.Errorf("%s: /readyz %d %s", name, a.status, a.body)
		} else {
			h.problem(a)
		}
		_ = os.Remove(h.tokenFile)
		writeFile(t, h.tokenFile, line, 0o600)
		if got := status(fresh); got != http.StatusOK {
			t.Errorf("after %s: %d, want 200", name, got)
		}
	}
}

// FuzzTokens: no file makes the parser fail otherwise than by an error, and what it takes has a name and a role.
func FuzzTokens(f *testing.F) {
	f.Add("vera viewer sha256:" + strings.Repeat("0", 64))
	f.Add("# x\n\na operator sha256:zz")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "tokens")
		writeFile(t, path, text, 0o600)
		tokens, err := admin.OpenTokens(path)
		if err == nil && tokens.Check() != nil {
			t.Error("it opens and does not check")
		}
		if err == nil {
			if _, ok := tokens.Lookup(""); ok {
				t.Error("an empty token is let in")
			}
		}
	})
}
