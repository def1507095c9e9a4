package api_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// The generated code is that of the specification as it is: each file of the list has the sum that it had when the
// code was generated.
func TestGeneratedCodeIsFresh(t *testing.T) {
	t.Parallel()
	list, err := os.ReadFile("generated.sha256")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(list)), "\n")
	if len(lines) != 3 {
		t.Fatalf("the list has %d files, want 3", len(lines))
	}
	for _, line := range lines {
		want, name, _ := strings.Cut(line, "  ")
		document, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(document)
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s has changed since the code was generated: run \"make generate\"", name)
		}
	}
}
