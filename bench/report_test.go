package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox/rabbitmq"
)

const resultsFile = "results/latest.json"

// Figure is one measured number.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// Row is one line of the table.
type Row struct {
	Goal    string               `json:"goal"`
	Met     *bool                `json:"met,omitempty"`
	Quick   bool                 `json:"quick"`
	Figures []Figure             `json:"figures"`
	Notes   []string             `json:"notes,omitempty"`
	Series  map[string][]float64 `json:"series,omitempty"` // latencies in ms at the percentiles of the plot
	Machine Machine              `json:"machine"`
	Error   string               `json:"error,omitempty"`
	Seconds float64              `json:"seconds"`

	name string
}

// Machine is where and with what a row was measured.
type Machine struct {
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	MemoryMB int               `json:"memoryMiB"`
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"`
	Commit   string            `json:"commit"`
	Time     time.Time         `json:"time"`
}

// Report is results/latest.json: the newest result of every row.
type Report struct {
	Rows map[string]*Row `json:"rows"`

	started time.Time
	machine Machine
}

func newReport() *Report { return &Report{Rows: map[string]*Row{}, started: time.Now()} }

func (r *Report) row(name, goal string) *Row {
	if r.machine.CPU == "" {
		r.machine = thisMachine()
	}
	row := &Row{Goal: goal, Quick: *quick, name: name, Machine: r.machine}
	r.Rows[name] = row
	return row
}

// say shows progress.
func (r *Row) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1fs  %-9s %s\n", time.Since(report.started).Seconds(), r.name, fmt.Sprintf(format, args...))
}

func (r *Row) add(name string, value float64, unit string) {
	r.Figures = append(r.Figures, Figure{name, round3(value), unit})
	r.say("%s: %s %s", name, short(value), unit)
}

func (r *Row) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *Row) judge(met bool) { r.Met = &met }

// finish merges with what other runs have left, writes the file and the plots, and prints the table of this run.
func (r *Report) finish() error {
	all := Report{Rows: map[string]*Row{}}
	if old, err := os.ReadFile(resultsFile); err == nil {
		if err := json.Unmarshal(old, &all); err != nil {
			return fmt.Errorf("%s: %w", resultsFile, err)
		}
	}
	for name, row := range r.Rows {
		all.Rows[name] = row
	}
	if err := os.MkdirAll(filepath.Dir(resultsFile), 0o755); err != nil {
		return err
	}
	document, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(resultsFile, append(document, '\n'), 0o644); err != nil {
		return err
	}
	r.print()
	return errors.Join(plotDrain(all.Rows["drain"]), plotLatency(all.Rows["latency"]))
}

func (r *Report) print() {
	fmt.Printf("\n%-9s  %-44s %12s %-12s %s\n", "row", "figure", "value", "unit", "goal")
	for _, row := range rows {
		got := r.Rows[row.name]
		if got == nil {
			continue
		}
		fmt.Println(strings.Repeat("-", 110))
		name, goal := row.name, verdict(got)
		for _, f := range got.Figures {
			fmt.Printf("%-9s  %-44s %12s %-12s %s\n", name, f.Name, short(f.Value), f.Unit, goal)
			name, goal = "", ""
		}
		if got.Error != "" {
			fmt.Printf("%-9s  failed: %s\n", name, got.Error)
		}
		for _, n := range got.Notes {
			fmt.Printf("%-9s  note: %s\n", "", n)
		}
	}
	m := r.machine
	fmt.Printf("\n%s, %d cores, %d MiB, %s; %v; commit %s; quick: %v; %s\n", m.CPU, m.Cores, m.MemoryMB, m.Kernel, m.Versions, m.Commit, *quick, time.Since(r.started).Round(time.Second))
}

func verdict(r *Row) string {
	switch {
	case r.Met == nil:
		return r.Goal
	case *r.Met:
		return "met: " + r.Goal
	}
	return "NOT MET: " + r.Goal
}

func short(v float64) string {
	switch {
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func round3(v float64) float64 { return math.Round(v*1000) / 1000 }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return math.NaN()
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// percentile p of 0 to 1 by nearest rank; values are sorted in place.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	return values[min(len(values)-1, max(0, int(math.Ceil(p*float64(len(values))))-1))]
}

func thisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Time: time.Now().UTC().Truncate(time.Second), Versions: versions(), Commit: output("git", "describe", "--always", "--dirty")}
	m.CPU = field("/proc/cpuinfo", "model name")
	var kb int
	_, _ = fmt.Sscan(field("/proc/meminfo", "MemTotal"), &kb)
	m.MemoryMB = kb / 1024
	m.Kernel = output("uname", "-sr")
	return m
}

// peers are the modules whose versions matter to the figures.
var peers = []string{
	"github.com/ThreeDotsLabs/watermill", "github.com/ThreeDotsLabs/watermill-amqp/v2", "github.com/ThreeDotsLabs/watermill-sql/v3",
	"github.com/jackc/pgx/v5", "github.com/riverqueue/river", "github.com/rabbitmq/amqp091-go",
}

// versions are those of Go, the modules and the servers. A test binary does not know its modules: go list does.
func versions() map[string]string {
	found := map[string]string{"go": runtime.Version(), "postgresql": postgresVersion(), "rabbitmq": rabbitVersion()}
	list := output("go", append([]string{"list", "-m", "-f", "{{.Path}} {{.Version}}"}, peers...)...)
	for line := range strings.Lines(list) {
		if path, version, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			found[strings.TrimPrefix(path, "github.com/")] = version
		}
	}
	return found
}

func postgresVersion() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, os.Getenv("TW_POSTGRES_URL"))
	if err != nil {
		return "unknown"
	}
	defer func() { _ = conn.Close(ctx) }()
	version, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), " ")
	return version
}

func rabbitVersion() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	broker := rabbitmq.NewObserver(os.Getenv("TW_AMQP_URL"), "bench")
	defer broker.Close()
	_, done, err := broker.Channel(ctx)
	if err != nil {
		return "unknown"
	}
	defer done()
	return broker.Version()
}

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func field(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}
