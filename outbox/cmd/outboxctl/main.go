// Command outboxctl shows where messages are, what is stuck and why, and moves it. It talks to the administration API of
// a relay.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// The exit codes.
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitUnhealthy = 3
)

func main() {
	a := newApp(os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range signals {
			if s != os.Interrupt || !a.editing.Load() {
				signal.Stop(signals) // a second one ends the process
				stop()
			}
		}
	}()
	code := run(ctx, a, os.Args[1:])
	stop()
	os.Exit(code)
}

// run carries out one command line and returns the exit code.
func run(ctx context.Context, a *app, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUnhealthy):
		return exitUnhealthy
	case errors.Is(err, errNotClean):
		return exitFailed
	case errors.As(err, &usage), !a.started: // what cobra itself refuses
		fmt.Fprintf(a.err, "outboxctl: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(a.err, "outboxctl: %v\n", err)
	return exitFailed
}

// Errors that have been shown already and only set the exit code.
var (
	errUnhealthy = errors.New("unhealthy")
	errNotClean  = errors.New("not clean")
)

// usageError is a command line that cannot be meant.
type usageError struct{ text string }

// Error says what is wrong and what would be right.
func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }
