package main_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/outboxtest"
)

// session is outboxctl at a terminal.
type session struct {
	t      *testing.T
	cmd    *exec.Cmd
	screen *os.File // the terminal's other end
	before *term.State
	done   chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

// at starts outboxctl at a terminal of 120 columns and 40 lines.
func (c console) at(args ...string) *session {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	c.t.Cleanup(cancel)
	s := &session{t: c.t, cmd: c.command(ctx, args...), done: make(chan struct{})}
	screen, tty, err := pty.Open()
	if err != nil {
		c.t.Fatal(err)
	}
	s.screen = screen
	if err := pty.Setsize(screen, &pty.Winsize{Rows: 40, Cols: 120}); err != nil {
		c.t.Fatal(err)
	}
	if s.before, err = term.GetState(int(tty.Fd())); err != nil {
		c.t.Fatal(err)
	}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = tty, tty, tty
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	tty.Close()
	go s.read()
	c.t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it has ended, but for a test that failed
		<-s.done
		screen.Close()
	})
	return s
}

func (s *session) read() {
	defer close(s.done)
	part := make([]byte, 4096)
	for {
		n, err := s.screen.Read(part)
		s.mu.Lock()
		s.out.Write(part[:n])
		s.mu.Unlock()
		if err != nil { // nobody has the terminal any more
			_ = s.cmd.Wait() // the exit code is looked at
			return
		}
	}
}

func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// shows waits until the screen has shown the text.
func (s *session) shows(text string) {
	s.t.Helper()
	outboxtest.Eventually(s.t, 30*time.Second, func() bool { return strings.Contains(s.text(), text) }, "the screen shows %q; it shows %s", text, late(s.text))
}

func (s *session) types(keys string) {
	s.t.Helper()
	if _, err := s.screen.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// ends waits for the end, and checks the exit code and that the terminal is as it was.
func (s *session) ends(code int) {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		s.t.Fatalf("it does not end:\n%s", s.text())
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("exit code %d, want %d\n%s", got, code, s.text())
	}
	if after, err := term.GetState(int(s.screen.Fd())); err != nil || !reflect.DeepEqual(after, s.before) {
		s.t.Errorf("the terminal is not as it was: %v", err)
	}
}

func TestTop(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	const leave = "\x1b[?25h\x1b[?1049l"
	ends := func(name string, end func(s *session)) {
		t.Helper()
		s := w.at2("top", "--every", "300ms")
		s.shows("\x1b[?1049h")
		s.shows("every 300ms, q ends")
		s.shows("DATABASE")
		end(s)
		s.ends(0)
		if !strings.HasSuffix(s.text(), leave) {
			t.Errorf("%s: the screen is not left: %q", name, s.text()[max(0, len(s.text())-40):])
		}
	}
	ends("q", func(s *session) { s.types("q") })
	ends("Ctrl-C", func(s *session) { s.types("\x03") })
	ends("escape", func(s *session) { s.types("\x1b") })
	ends("SIGTERM", func(s *session) { _ = s.cmd.Process.Signal(syscall.SIGTERM) })
	ends("SIGINT", func(s *session) { _ = s.cmd.Process.Signal(syscall.SIGINT) })
	// An arrow ends nothing; what is new shows; a smaller screen is not overrun.
	s := w.at2("top", "--every", "200ms")
	s.shows("shop")
	s.types("\x1b[A")
	id := w.write("m", order{Kind: lost, Key: "a"})[0]
	w.stuckAt("outbox", id)
	s.shows("1 failing and tried again")
	s.shows("UNHEALTHY")
	if err := pty.Setsize(s.screen, &pty.Winsize{Rows: 8, Cols: 70}); err != nil {
		t.Fatal(err)
	}
	s.shows("more lines: \"outboxctl status\" prints all")
	// The API goes: the last status stays, and says why.
	w.relay.stop()
	s.shows("no answer from http://127.0.0.1:")
	// The terminal goes.
	s.screen.Close()
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		t.Error("it does not end with its terminal")
	}
	outboxtest.Eventually(t, 20*time.Second, func() bool { return s.cmd.ProcessState != nil || syscall.Kill(s.cmd.Process.Pid, 0) != nil }, "it ends with its terminal")
}

func (w *town) at2(args ...string) *session { return w.console.at(args...) }

// Without SIGHUP, as under nohup, the end of the terminal is seen all the same.
func TestTopEndsWithItsTerminalUnderNohup(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	top := w.command(ctx, "top")
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `trap '' HUP; exec "$0" top`, top.Path)
	cmd.Env = top.Env
	screen, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, 256)
	if _, err := screen.Read(seen); err != nil {
		t.Fatal(err)
	}
	screen.Close()
	if err := cmd.Wait(); ctx.Err() != nil {
		t.Errorf("it does not end: %v", err)
	}
}

var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)

func TestAskingAtATerminal(t *testing.T) {
	t.Parallel()
	w := newTrouble(t)
	// No.
	s := w.at2("stuck", "skip", w.odd)
	s.shows("Give these messages up? [y/N] ")
	s.types("\r")
	s.shows("outboxctl: nothing was done")
	s.ends(1)
	// Ctrl-C.
	s = w.at2("stuck", "skip", w.odd)
	s.shows("[y/N] ")
	s.types("\x03")
	s.ends(1)
	// Yes, and why.
	if n := w.audited(); n != 0 {
		t.Fatalf("%d audit entries", n)
	}
	s = w.at2("stuck", "skip", w.odd)
	s.shows("dry run: 1 message fits, 1 would be given up")
	s.types("y\r")
	s.shows("Reason, for the audit log: ")
	s.types("it is too old\r")
	s.shows("1 message fits, 1 given up (audit shop/1)")
	s.ends(0)
	w.want(0, words("audit list"), "it is too old")
	// Nothing to do: nobody is asked.
	s = w.at2("stuck", "skip", "--key", "nothing")
	s.shows("dry run: 0 messages fit")
	s.ends(1)
	// The editor; Ctrl-C there is the editor's.
	editor := filepath.Join(t.TempDir(), "editor")
	script := "#!/bin/sh\ntrap 'echo heard' INT\necho editing $1\nwhile ! read line; do :; done\ncp \"$1\" \"$1.seen\"\nprintf '{\"key\":\"poison\",\"n\":5}' > \"$1\"\n"
	if err := os.WriteFile(editor, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s = w.with("EDITOR="+editor).at("stuck", "edit", w.head, "--database", "billing", "--reason", "its number was wrong")
	s.shows("editing /")
	s.types("\x03")
	s.shows("heard")
	s.types("\r")
	s.shows("Edit this message? [y/N] ")
	s.types("y\r")
	s.shows("1 message fits, 1 edited (audit billing/1)")
	s.ends(0)
	if d := asJSON[[]api.Detail](w.console, 0, "stuck show "+w.head+" -d billing")[0]; string(d.Payload) != `{"key":"poison","n":5}` {
		t.Errorf("after the edit: %s", d.Payload)
	}
	s = w.with("EDITOR=true").at("stuck", "edit", w.head, "--database", "billing")
	s.shows("nothing was done")
	s.ends(1)
	// Tables on a screen keep within it, with colors unless they are not wanted.
	s = w.at2("stuck", "list")
	s.ends(0)
	for _, line := range strings.Split(escapes.ReplaceAllString(s.text(), ""), "\r\n") {
		if len([]rune(line)) > 120 {
			t.Errorf("wider than the screen: %q", line)
		}
	}
	s = w.at2("status")
	s.ends(3)
	plain := w.with("NO_COLOR=1").at("status")
	plain.ends(3)
	if !strings.Contains(s.text(), "\x1b[31;1m") || strings.Contains(plain.text(), "\x1b[") {
		t.Errorf("colors: %q\nand without: %q", s.text()[:60], plain.text()[:60])
	}
}

// many parks so many heads at a consumer, or in the shop's outbox.
func (w *town) many(where string, n int) {
	w.t.Helper()
	if where == "outbox" {
		w.exec(w.shop, `
			WITH m AS (
				INSERT INTO outbox.messages (uuid, topic, key, payload, metadata)
				SELECT gen_random_uuid(), $2, 'many ' || n, '{"key":"many"}', '{}' FROM generate_series(1, $1::int) AS n RETURNING *)
			INSERT INTO outbox.stuck (message_id, partition, uuid, topic, key, payload, metadata, created_at, attempts, class, error, fingerprint, build, parked)
			SELECT id, partition, uuid, topic, key, payload, metadata, created_at, 1, 'too_large', 'too large', 'too large', 'A', true FROM m`, n, placed)
		return
	}
	w.exec(w.inboxes[where], `
		WITH m AS (
			INSERT INTO inbox.messages (message_id, consumer, state) SELECT gen_random_uuid(), $2, 'stuck' FROM generate_series(1, $1::int) RETURNING message_id)
		INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, attempts, class, error, fingerprint, build, parked)
		SELECT $2, message_id, 0, $3, 'key ' || message_id, '{"key":"many"}', '{}', 1, 'handler', 'no such seat', 'no such seat', 'A', true FROM m`, n, where, placed)
}

// watched runs a command with a screen for its standard error alone.
func (c console) watched(during func(cmd *exec.Cmd, seen func() string), args ...string) (r result) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := c.command(ctx, args...)
	screen, tty, err := pty.Open()
	if err != nil {
		c.t.Fatal(err)
	}
	defer screen.Close()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, tty
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	tty.Close()
	s := &session{t: c.t, cmd: cmd, screen: screen, done: make(chan struct{})}
	go s.read()
	if during != nil {
		during(cmd, s.text)
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		c.t.Fatalf("it does not end: %s", s.text())
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), s.text()}
}

var goOn = regexp.MustCompile(`interrupted, after (\d+) of \d+, (\d+) of which were given up; to go on, say the same with --after ([\w-]+)`)

// Thousands of stuck messages: in pieces, with progress, to be interrupted and gone on with, and every one audited once.
func TestThousands(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.many("billing", many)
	of := fmt.Sprintf("of %d (", many)
	began := time.Now()
	r := w.watched(nil, yes("stuck replay --database billing --all-heads")...)
	r.check(t, 2, nil, "--all-heads")
	r = w.watched(nil, yes("stuck replay --database billing -o json")...)
	if r.code != 0 || !strings.Contains(r.err, of) || !strings.Contains(r.err, "[###") || !strings.Contains(r.out, `"changed": `+strconv.Itoa(many)) {
		t.Fatalf("%d\n%.2000s\n%.2000s", r.code, r.out, r.err)
	}
	t.Logf("replayed within %s", time.Since(began))
	w.exec(w.inboxes["billing"], `UPDATE inbox.stuck SET parked = true, attempts = 1`)
	// Interrupted, and gone on with.
	r = w.watched(func(cmd *exec.Cmd, seen func() string) {
		outboxtest.Eventually(t, time.Minute, func() bool { return strings.Contains(seen(), of) }, "progress")
		_ = cmd.Process.Signal(os.Interrupt)
	}, yes("stuck skip --database billing")...)
	m := goOn.FindStringSubmatch(r.err)
	if r.code != 1 || m == nil || m[1] != m[2] {
		t.Fatalf("interrupted: %d\n%s\n%s", r.code, r.out, r.err)
	}
	w.exec(w.inboxes["billing"], `INSERT INTO inbox.stuck (consumer, message_id, partition, type, key, payload, headers, parked) VALUES ('billing', gen_random_uuid(), 0, 'late', 'late', '', '{}', true)`)
	r = w.watched(nil, append(yes("stuck skip --database billing"), "--after", m[3])...)
	r.check(t, 0, nil, "given up (audit billing/")
	if n := get[int](w, w.inboxes["billing"], `SELECT count(*) FROM inbox.stuck`); n != 1 {
		t.Errorf("%d are left, want the one that came late", n)
	}
	if n := get[int](w, w.inboxes["billing"], `SELECT count(*) FROM ops.audit, jsonb_array_elements_text(detail -> 'messages') WHERE action = 'inbox.skip'`); n != many {
		t.Errorf("%d messages stand in the audit log as skipped", n)
	}
	if n := get[int](w, w.inboxes["billing"], `SELECT count(DISTINCT id) FROM ops.audit, jsonb_array_elements_text(detail -> 'messages') AS id WHERE action = 'inbox.skip'`); n == 0 {
		t.Error("none")
	}
	w.want(0, words("audit verify -d billing"), "whole")
	w.want(1, append(yes("stuck skip --database billing"), "--after", "nonsense"), "after is not the next")
	// The other side, where the relay publishes what is replayed.
	w.many("outbox", many)
	w.until(w.shop, `SELECT bool_and(outbox.is_passed(partition, id)) FROM (SELECT DISTINCT ON (partition) partition, id FROM outbox.messages ORDER BY partition, id DESC) AS m`)
	park := w.want(1, yes("stuck park --side outbox"), "0 messages fit, 0 parked")
	if park.err != "" {
		t.Errorf("%s", park.err)
	}
	r = w.watched(nil, yes("stuck skip --side outbox")...)
	r.check(t, 0, nil, fmt.Sprintf("%[1]d messages fit, %[1]d given up (audit shop/1", many), " more)")
	if n := get[int](w, w.shop, `SELECT count(*) FROM outbox.stuck`); n != 0 {
		t.Errorf("%d are left in the outbox", n)
	}
}

// A piece that the API is too busy for, or that gets no answer, is asked for again.
func TestABusyAPIIsAskedAgain(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	w.many("billing", 2500)
	proxy := outboxtest.NewProxy(t, "http://"+w.relay.addr)
	c := w.with("TW_ADMIN_URL=" + proxy.URL)
	done := make(chan result, 1)
	go func() { done <- c.watched(nil, yes("stuck replay --database billing")...) }()
	outboxtest.Eventually(t, time.Minute, func() bool { return get[int](w, w.inboxes["billing"], `SELECT count(*) FROM ops.audit`) > 0 }, "the first part is done")
	proxy.Cut()
	r := <-done
	whole := r.code == 0 && strings.Contains(r.out, "2500 messages fit, 2500 replayed")
	unknown := r.code == 1 && strings.Contains(r.err, "no answer")
	if !whole && !unknown {
		t.Errorf("%d\n%s%s", r.code, r.out, r.err)
	}
	if r.code == 1 { // cut in the first piece, before anything was known to be done
		w.want(0, yes("stuck replay --database billing"), "2500 messages fit, 2500 replayed")
	}
}
