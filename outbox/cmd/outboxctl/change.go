package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// change carries out what a command is for. What it would do is shown first, and asked about, unless --yes; with
// --dry-run that is all. do is called with dry set or not, and show says what came of it and whether anything did.
func change[T any](ctx context.Context, a *app, question string, do func(ctx context.Context, dry bool) (T, error), show func(T) (any bool, err error)) error {
	if err := a.mayChange(); err != nil {
		return err
	}
	if !a.yes {
		would, err := do(ctx, true)
		if err != nil {
			return err
		}
		any, err := show(would)
		if a.dryRun || err != nil {
			return err
		}
		if !any {
			return errNotClean // there is nothing to do, as shown
		}
		if err := a.confirm(ctx, question); err != nil {
			return err
		}
	}
	done, err := do(ctx, false)
	if err != nil {
		return err
	}
	any, err := show(done)
	if err == nil && !any {
		err = errNotClean
	}
	return err
}

// patient gives a command that goes through everything there is more time, unless the caller says how much.
func (a *app) patient(c *cobra.Command) {
	if !c.Flags().Changed("timeout") {
		a.timeout = applyTimeout
	}
}

// mayChange checks that somebody can be asked, or need not be.
func (a *app) mayChange() error {
	switch {
	case a.dryRun:
	case !a.yes && (a.input == nil || a.output == "json"):
		return usagef("nobody can be asked here: give --yes and --reason, or --dry-run")
	case a.yes && strings.TrimSpace(a.reason) == "":
		return usagef("--reason is needed: it says why, and goes into the audit log")
	}
	return nil
}

// because is the reason that is sent; a dry run is not audited.
func (a *app) because(dry bool) string {
	if dry && a.reason == "" {
		return "dry run"
	}
	return a.reason
}

var errDeclined = errors.New("nothing was done")

// confirm asks for a yes, and for the reason where it is missing.
func (a *app) confirm(ctx context.Context, question string) error {
	a.printf("\n%s [y/N] ", question)
	answer, err := a.readLine(ctx)
	if err != nil {
		return err
	}
	if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
		return errDeclined
	}
	for tries := 0; strings.TrimSpace(a.reason) == ""; tries++ {
		if tries == 3 {
			return errDeclined
		}
		a.printf("Reason, for the audit log: ")
		if a.reason, err = a.readLine(ctx); err != nil {
			return err
		}
	}
	return nil
}

// readLine reads until the end of a line, or until ctx ends.
func (a *app) readLine(ctx context.Context) (string, error) {
	type answer struct {
		line string
		err  error
	}
	read := make(chan answer, 1)
	go func() { // ends with the process at the latest
		line, err := a.ask.ReadString('\n')
		read <- answer{line, err}
	}()
	select {
	case <-ctx.Done():
		a.printf("\n")
		return "", errDeclined
	case r := <-read:
		if r.err != nil && (!errors.Is(r.err, io.EOF) || r.line == "") {
			return "", errDeclined
		}
		return strings.TrimSpace(r.line), nil
	}
}

// noteEvery is the time between two lines of progress where no bar can be drawn.
const noteEvery = 5 * time.Second

// bar shows progress on the standard error: a bar on a screen, a line now and then elsewhere.
type bar struct {
	a     *app
	drawn bool
	noted time.Time
}

// draw shows how many are done; a total of 0 is not known.
func (b *bar) draw(done, total int64) {
	text := fmt.Sprint(done)
	if total > 0 {
		text = fmt.Sprintf("%d of %d (%d%%)", done, total, min(done, total)*100/total)
	}
	if b.a.errScreen == nil {
		if b.noted.IsZero() {
			b.noted = b.a.now()
		}
		if b.a.now().Sub(b.noted) >= noteEvery {
			b.noted = b.a.now()
			fmt.Fprintf(b.a.err, "outboxctl: %s\n", text)
		}
		return
	}
	const cells = 30
	full := 0
	if total > 0 {
		full = int(min(done, total) * cells / total)
	}
	fmt.Fprintf(b.a.err, "\r  [%s%s] %s\x1b[K", strings.Repeat("#", full), strings.Repeat(".", cells-full), text)
	b.drawn = true
}

// end takes the bar away.
func (b *bar) end() {
	if b.drawn {
		fmt.Fprint(b.a.err, "\r\x1b[K")
	}
}
