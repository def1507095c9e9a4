package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
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
		if err := a.confirm(question); err != nil {
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
func (a *app) confirm(question string) error {
	a.printf("\n%s [y/N] ", question)
	answer, err := a.readLine()
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
		if a.reason, err = a.readLine(); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) readLine() (string, error) {
	line, err := a.ask.ReadString('\n')
	if err != nil && (!errors.Is(err, io.EOF) || line == "") {
		return "", errDeclined
	}
	return strings.TrimSpace(line), nil
}

// bar is a progress bar, on a screen alone.
type bar struct {
	a     *app
	drawn bool
}

func (b *bar) draw(done, total int64) {
	if b.a.screen == nil || b.a.output == "json" || total <= 0 {
		return
	}
	const cells = 30
	full := int(min(done, total) * cells / total)
	fmt.Fprintf(b.a.out, "\r  [%s%s] %d of %d (%d%%)\x1b[K", strings.Repeat("#", full), strings.Repeat(".", cells-full), done, total, done*100/total)
	b.drawn = true
}

func (b *bar) end() {
	if b.drawn {
		fmt.Fprintln(b.a.out)
	}
}
