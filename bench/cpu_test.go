package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpu is the processor time used so far by all processes of each program, by the kernel's name for it; a process that
// has ended is gone from it. It is empty where there is no /proc.
func cpu() map[string]time.Duration {
	const tick = time.Second / 100 // USER_HZ, the unit of /proc on every Linux
	used := map[string]time.Duration{}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(raw), "(")
		end := strings.LastIndexByte(rest, ')')
		if end < 0 {
			continue
		}
		fields := strings.Fields(rest[end+1:])
		if len(fields) < 13 {
			continue
		}
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		used[rest[:end]] += time.Duration(user+system) * tick
	}
	return used
}

// shares says who used the processors between two looks, per unit of work.
func shares(before, after map[string]time.Duration, n int, programs []string) string {
	var parts []string
	for _, name := range programs {
		if d := after[name] - before[name]; d > 0 {
			parts = append(parts, fmt.Sprintf("%s %.2f", name, 1000*d.Seconds()/float64(n)))
		}
	}
	return strings.Join(parts, ", ")
}
