package bench

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	quick = flag.Bool("quick", false, "smaller figures, all rows within five minutes")
	only  = flag.String("only", "", "rows to run, separated by commas; all when empty")
)

// rows are the table, in its order.
var rows = []struct {
	name, goal string
	run        func(b *testing.B, r *Row)
}{
	{"drain", ">= 20 x stock, >= 2 x River, >= 0.85 of the limit", drain},
	{"keys", "single key >= 1.5 x stock", keys},
	{"message", "the leanest that keeps CloudEvents", messageShapes},
	{"backlog", ">= 0.9 of the rate at 20,000; idle poll p99 <= 2 ms", backlog},
	{"latency", "p50 <= 5 ms; p99 <= 1.5 x straight + 10 ms; single event p50 <= 15 ms", latency},
	{"writing", ">= 0.75 of no events", writing},
	{"whole", ">= 400 bookings/s; p99 <= 300 ms at half of it", whole},
	{"hot", "one event >= 0.8 x 50 events", hot},
	{"fairness", "p99 of the others <= 1.1 x", fairness},
	{"size", "<= 96 MiB; <= 20 queries/s when idle", size},
}

var report = newReport()

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if len(report.Rows) > 0 {
		if err := report.finish(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// BenchmarkPipeline runs the rows one after the other. A row that fails leaves the others alone.
func BenchmarkPipeline(b *testing.B) {
	chosen := strings.FieldsFunc(*only, func(r rune) bool { return r == ',' || r == ' ' })
	for _, name := range chosen {
		if !slices.ContainsFunc(rows, func(r struct {
			name, goal string
			run        func(b *testing.B, r *Row)
		}) bool {
			return r.name == name
		}) {
			b.Fatalf("there is no row %q: want some of drain, keys, message, backlog, latency, writing, whole, hot, fairness, size", name)
		}
	}
	for _, row := range rows {
		if len(chosen) > 0 && !slices.Contains(chosen, row.name) {
			continue
		}
		b.Run(row.name, func(b *testing.B) {
			r := report.row(row.name, row.goal)
			start := time.Now()
			r.say("begins")
			r.Error = "ended early: see the output above"
			row.run(b, r)
			r.Error, r.Seconds = "", round3(time.Since(start).Seconds())
		})
	}
}

// pick is the first figure, or in quick mode the second.
func pick[T any](full, small T) T {
	if *quick {
		return small
	}
	return full
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
