//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// variable names what happens where.
const variable = "TW_FAILPOINTS"

// point is what happens at one place, the nth time that it is reached.
type point struct {
	nth  int64
	hits atomic.Int64
	file string // to pause by; empty to kill
}

var points = sync.OnceValue(func() map[string]*point {
	found, err := parse(os.Getenv(variable))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return found
})

// Hit does what the environment says about the name. It may be called from several goroutines.
func Hit(name string) {
	p, ok := points()[name]
	if !ok || p.hits.Add(1) != p.nth {
		return
	}
	if p.file != "" {
		p.pause()
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // nothing more happens in this goroutine
}

// pause makes the file and waits until it is gone, a minute at most.
func (p *point) pause() {
	if err := os.WriteFile(p.file, nil, 0o600); err != nil {
		fmt.Fprintln(os.Stderr, variable+":", err)
		return
	}
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(p.file); err != nil {
			return
		}
	}
}

func parse(text string) (map[string]*point, error) {
	found := map[string]*point{}
	for _, item := range strings.Split(text, ";") {
		if strings.TrimSpace(item) == "" {
			continue
		}
		name, action, _ := strings.Cut(strings.TrimSpace(item), "=")
		p := &point{nth: 1}
		if i := strings.LastIndexByte(action, '@'); i >= 0 {
			n, err := strconv.ParseInt(action[i+1:], 10, 64)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("%s: %q: want a number of 1 or more behind the @", variable, item)
			}
			p.nth, action = n, action[:i]
		}
		file, pauses := strings.CutPrefix(action, "pause:")
		if !pauses && action != "kill" || pauses && file == "" || name == "" {
			return nil, fmt.Errorf("%s: %q: want name=kill or name=pause:FILE, and maybe @n", variable, item)
		}
		if pauses {
			p.file = file
		}
		found[name] = p
	}
	return found, nil
}
