package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/jcp/ticketwave/outbox/internal/build"
)

// app is one run of outboxctl: what it may touch, and the flags that every command has.
type app struct {
	in        io.Reader
	out, err  io.Writer
	getenv    func(string) string
	now       func() time.Time
	ask       *bufio.Reader // of in
	input     *os.File      // in, when it is a terminal
	screen    *os.File      // out, when it is a terminal
	errScreen *os.File      // err, when it is a terminal
	editing   atomic.Bool   // the caller's editor has the terminal

	url, tokenFile, caFile, output string
	insecure, yes, dryRun          bool
	timeout                        time.Duration
	reason                         string
	started                        bool // a command runs: the command line was understood
}

func newApp(in io.Reader, out, err io.Writer, getenv func(string) string) *app {
	a := &app{in: in, out: out, err: err, getenv: getenv, now: time.Now, ask: bufio.NewReader(in)}
	a.input, a.screen, a.errScreen = terminal(in), terminal(out), terminal(err)
	return a
}

// terminal is the file that v is, if it is a terminal.
func terminal(v any) *os.File {
	if f, ok := v.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

func (a *app) env(name, fallback string) string {
	if v := a.getenv(name); v != "" {
		return v
	}
	return fallback
}

const longHelp = `outboxctl shows where messages are, what is stuck and why, and moves it.

It talks to the administration API of a relay. Set TW_ADMIN_URL to its address, and TW_ADMIN_TOKEN to a token or
TW_ADMIN_TOKEN_FILE to a file that holds one.

A change shows first what it would do, and asks. --yes does it without asking, --dry-run only shows.

Exit codes: 0 it is done, 1 it failed, 2 the command line cannot be meant, 3 something is unhealthy.`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "outboxctl", Short: "See and move messages of the outbox pipeline", Long: longHelp, Version: build.Revision(),
		Example:      "  outboxctl status\n  outboxctl stuck groups\n  outboxctl why 0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01",
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if err := c.ValidateRequiredFlags(); err != nil {
				return usagef("%v (\"%s --help\" lists the flags)", err, c.CommandPath())
			}
			if a.output != "table" && a.output != "json" {
				return usagef("-o is %q: want table or json", a.output)
			}
			if a.yes && a.dryRun {
				return usagef("--yes and --dry-run exclude each other")
			}
			a.started = true
			return nil
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("outboxctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%v (\"%s --help\" lists the flags)", err, c.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&a.url, "url", a.env("TW_ADMIN_URL", "http://127.0.0.1:5011"), "address of the API (TW_ADMIN_URL)")
	f.StringVar(&a.tokenFile, "token-file", a.env("TW_ADMIN_TOKEN_FILE", ""), "file that holds the token (TW_ADMIN_TOKEN_FILE)")
	f.StringVar(&a.caFile, "ca-file", a.env("TW_ADMIN_CA", ""), "PEM file of the authority that signed the API's certificate (TW_ADMIN_CA)")
	f.BoolVar(&a.insecure, "insecure", a.getenv("TW_ADMIN_INSECURE") == "true", "send the token without TLS beyond this machine (TW_ADMIN_INSECURE)")
	f.DurationVar(&a.timeout, "timeout", 45*time.Second, "longest time for one answer; what goes through everything, such as a replay, has 30 minutes")
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	must(root.RegisterFlagCompletionFunc("output", fixed("table", "json")))
	root.AddCommand(a.status(), a.top(), a.stuck(), a.why(), a.replay(), a.dead(), a.cursor(), a.doctor(), a.reconcile(), a.audit(), a.token())
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil && c != root {
		c.Args, c.RunE = onlyCommands, func(*cobra.Command, []string) error { return nil }
	}
	plainArgs(root)
	return root
}

// plainArgs makes what cobra says about the number of arguments name them.
func plainArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		plainArgs(sub)
	}
	check, path := c.Args, c.CommandPath()
	if check == nil {
		return
	}
	c.Args = func(c *cobra.Command, args []string) error {
		err := check(c, args)
		var usage *usageError
		if err == nil || errors.As(err, &usage) {
			return err
		}
		_, names, _ := strings.Cut(c.Use, " ")
		return usagef("want %q", strings.TrimSpace(path+" "+names))
	}
}

// fixed completes to one of the words.
func fixed(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// must is for what only a mistake in this program can make fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// group is a command that has only commands.
func group(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example, Args: onlyCommands, RunE: func(*cobra.Command, []string) error { return nil }}
	c.AddCommand(commands...)
	return c
}

// onlyCommands refuses a line that names none of the command's commands.
func onlyCommands(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("%s needs a command: \"%s --help\" lists them", c.CommandPath(), c.CommandPath())
	}
	return usagef("there is no command %q: \"%s --help\" lists them", args[0], c.CommandPath())
}

// changes adds the flags of a command that changes something.
func (a *app) changes(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "do it without asking")
	c.Flags().BoolVar(&a.dryRun, "dry-run", false, "say what would be done, and do nothing")
	c.Flags().StringVarP(&a.reason, "reason", "r", "", "why; it goes into the audit log")
	return c
}

// json writes v if that was asked for.
func (a *app) json(v any) (done bool, err error) {
	if a.output != "json" {
		return false, nil
	}
	encoder := json.NewEncoder(a.out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return true, encoder.Encode(v)
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// hint says what to type next.
func (a *app) hint(format string, args ...any) {
	a.printf("\n  -> "+format+"\n", args...)
}

// warn shows why an answer is not whole. It returns an error when there is a reason, for the exit code.
func (a *app) warn(warnings []string) error {
	for _, w := range warnings {
		fmt.Fprintf(a.err, "outboxctl: incomplete: %s\n", w)
	}
	if len(warnings) > 0 {
		return errNotClean
	}
	return nil
}

// width is how wide a table may be; 0 means as wide as it likes, for what is not read on a screen.
func (a *app) width() int {
	if a.screen != nil {
		if w, _, err := term.GetSize(int(a.screen.Fd())); err == nil && w > 0 {
			return max(w, 60)
		}
	}
	if n, err := strconv.Atoi(a.getenv("COLUMNS")); err == nil && n > 0 {
		return max(n, 60)
	}
	return 0
}

// colored sets a color on a screen, unless NO_COLOR is set.
func (a *app) colored(code, text string) string {
	if a.screen == nil || a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

const (
	red    = "31;1"
	green  = "32"
	yellow = "33"
	bold   = "1"
)

// sorted are the keys of a map in order.
func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
