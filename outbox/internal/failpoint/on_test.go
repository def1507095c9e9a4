//go:build failpoints

package failpoint

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	t.Parallel()
	found, err := parse("a=kill; b=pause:/tmp/x@3;c=kill@2")
	if err != nil || len(found) != 3 || found["a"].nth != 1 || found["a"].file != "" || found["b"].nth != 3 || found["b"].file != "/tmp/x" || found["c"].nth != 2 {
		t.Errorf("found %v, error %v", found, err)
	}
	for _, bad := range []string{"a", "a=", "a=stop", "a=kill@0", "a=kill@x", "a=pause:", "=kill"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestPauseLastsAsLongAsItsFile(t *testing.T) {
	t.Parallel()
	p := &point{file: filepath.Join(t.TempDir(), "here")}
	ended := make(chan struct{})
	go func() { p.pause(); close(ended) }()
	for limit := time.Now().Add(10 * time.Second); ; {
		if _, err := os.Stat(p.file); err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the file does not appear")
		}
	}
	select {
	case <-ended:
		t.Fatal("it goes on while the file is there")
	default:
	}
	if err := os.Remove(p.file); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not go on")
	}
}
