package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

func (a *app) top() *cobra.Command {
	var every time.Duration
	c := &cobra.Command{
		Use: "top", Short: "The status, live; q or Ctrl-C ends", Args: cobra.NoArgs,
		Example: "  outboxctl top --every 1s",
		RunE: func(c *cobra.Command, _ []string) error {
			if a.screen == nil || a.input == nil {
				return usagef("top needs a terminal: \"outboxctl status\" prints once")
			}
			if every < 200*time.Millisecond {
				return usagef("--every is %s: want 200ms or longer", every)
			}
			if _, err := a.getStatus(c.Context()); err != nil {
				return err // what is wrong with the command line or the token is best said on a quiet screen
			}
			return a.live(c.Context(), every)
		},
	}
	c.Flags().DurationVar(&every, "every", 2*time.Second, "time between two looks")
	return c
}

const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearRest   = "\x1b[J"
)

// live draws until a key or ctx ends it. The terminal is left as it was.
func (a *app) live(ctx context.Context, every time.Duration) (err error) {
	before, err := term.MakeRaw(int(a.input.Fd()))
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	fmt.Fprint(a.screen, enterScreen)
	defer func() {
		fmt.Fprint(a.screen, leaveScreen)
		if e := term.Restore(int(a.input.Fd()), before); err == nil && e != nil {
			err = fmt.Errorf("terminal: %w", e)
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go quitOnKey(a.input, cancel)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var shown api.Status
	for {
		status, err := a.getStatus(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			shown = status
		}
		a.draw(shown, err, every)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// quitOnKey reads keys until one of them ends the show, or the terminal goes. The read ends with the process at the latest.
func quitOnKey(in *os.File, quit func()) {
	keys := make([]byte, 64)
	for {
		n, err := in.Read(keys)
		// An escape with more behind it is a key such as an arrow.
		if err != nil || n == 0 || keys[0] == '\x1b' && n == 1 || keys[0] != '\x1b' && strings.ContainsAny(string(keys[:n]), "qQ\x03\x04") {
			quit()
			return
		}
	}
}

// draw shows one frame, cut to the screen's height. What could not be read again stays, and the error with it.
func (a *app) draw(s api.Status, err error, every time.Duration) {
	width, height, sizeErr := term.GetSize(int(a.screen.Fd()))
	if sizeErr != nil || height < 4 {
		width, height = 80, 24
	}
	lines := []string{fmt.Sprintf("outboxctl top  %s  every %s, q ends", a.now().UTC().Format("15:04:05Z"), every)}
	if err != nil {
		lines = append(lines, a.colored(red, clip(plain(err.Error()), width)))
	}
	if !s.At.IsZero() {
		lines = append(lines, a.statusLines(s, width, false)...)
	}
	if len(lines) > height {
		hidden := len(lines) - height + 1
		lines = append(lines[:height-1], fmt.Sprintf("and %d more lines: \"outboxctl status\" prints all", hidden))
	}
	var frame strings.Builder
	frame.WriteString(home)
	for i, line := range lines {
		if i > 0 {
			frame.WriteString("\r\n")
		}
		frame.WriteString(line + clearLine)
	}
	frame.WriteString(clearRest)
	fmt.Fprint(a.screen, frame.String())
}
