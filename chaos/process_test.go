package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// child is a process that the harness started: it is the parent, and reaps it.
type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

// family keeps track of the children. What they leave behind becomes the harness's too, as it is a subreaper.
var family = struct {
	sync.Mutex
	pids map[int]*child
	end  chan struct{}
	over sync.WaitGroup
}{pids: map[int]*child{}, end: make(chan struct{})}

// closing says that nothing more is started.
var closing atomic.Bool

// nursery is the one thread that starts children: the signal that they get when their parent dies is tied to it.
var nursery = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for do := range work {
			do()
		}
	}()
	return work
})

// adoptOrphans makes the harness reap what its killed children leave behind, until closeFamily.
func adoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	family.over.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-family.end:
				return
			case <-tick.C:
				reapOrphans()
			}
		}
	})
	return nil
}

// reapOrphans waits for zombies that have become ours and that nobody else waits for.
func reapOrphans() {
	family.Lock()
	defer family.Unlock()
	for _, p := range processes() {
		if _, known := family.pids[p.pid]; p.parent == os.Getpid() && p.state == "Z" && !known {
			var status syscall.WaitStatus
			_, _ = syscall.Wait4(p.pid, &status, syscall.WNOHANG, nil) // the next look tries again
		}
	}
}

type process struct {
	pid, parent int
	state       string
}

// processes is what /proc lists.
func processes() (all []process) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		_, rest, ok := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parent, _ := strconv.Atoi(fields[1])
		all = append(all, process{pid: pid, parent: parent, state: fields[0]})
	}
	return all
}

// closeFamily kills all children, then what they left behind, and reaps everything.
func closeFamily() {
	family.Lock()
	var left []*child
	for _, c := range family.pids {
		left = append(left, c)
	}
	family.Unlock()
	for _, c := range left {
		c.signal(syscall.SIGKILL)
		c.await(10 * time.Second)
	}
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		alive := false
		for _, p := range processes() {
			if p.parent == os.Getpid() {
				alive = true
				_ = syscall.Kill(p.pid, syscall.SIGKILL) // ours by adoption
			}
		}
		if !alive {
			break
		}
		reapOrphans()
	}
	close(family.end)
	family.over.Wait()
}

// start starts the command in a process group of its own. onDeath is what it gets when the harness dies.
func start(name string, cmd *exec.Cmd, onDeath syscall.Signal) (*child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, onDeath
	c := &child{name: name, cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	nursery() <- func() {
		family.Lock()
		defer family.Unlock()
		err := errors.New("the harness ends")
		if !closing.Load() {
			err = cmd.Start()
		}
		if err == nil {
			family.pids[cmd.Process.Pid] = c
		}
		started <- err
	}
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(c.done)
		_ = cmd.Wait() // how it ended is in ProcessState
		family.Lock()
		defer family.Unlock()
		delete(family.pids, cmd.Process.Pid)
	}()
	return c, nil
}

func (c *child) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) } // it may have ended

// await reports whether the child has ended and been reaped in time.
func (c *child) await(limit time.Duration) bool {
	select {
	case <-c.done:
		return true
	case <-time.After(limit):
		return false
	}
}

func (c *child) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// kill ends the child as a power cut of its program would, and reaps it.
func (c *child) kill() {
	c.signal(syscall.SIGKILL)
	<-c.done
}

// output runs a command to its end.
func output(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var text strings.Builder
	cmd.Stdout, cmd.Stderr = &text, &text
	cmd.WaitDelay = time.Second
	c, err := start(filepath.Base(cmd.Path), cmd, syscall.SIGKILL)
	if err != nil {
		return "", err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its group, which it may have filled
		<-c.done
		return text.String(), fmt.Errorf("%s: %w: %s", c.name, ctx.Err(), text.String())
	}
	if !cmd.ProcessState.Success() {
		return text.String(), fmt.Errorf("%s: %s: %s", strings.Join(cmd.Args, " "), cmd.ProcessState, text.String())
	}
	return text.String(), nil
}

var ports = struct {
	sync.Mutex
	given map[int]bool
	next  int
}{given: map[int]bool{}, next: 20000 + os.Getpid()*37%11000}

// freePort is a port below the ephemeral range on which nobody listens: on an ephemeral one a client that retries can
// connect to itself.
func freePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	for range 12000 {
		ports.next = 20000 + (ports.next-20000+1)%12000
		if ports.given[ports.next] {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(ports.next))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return 0, err
		}
		ports.given[ports.next] = true
		return ports.next, nil
	}
	return 0, errors.New("no free port between 20000 and 32000")
}

func port(tb testing.TB) int {
	tb.Helper()
	p, err := freePort()
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

func listening(port int) bool {
	conn, err := net.DialTimeout("tcp", local(port), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close() // it was only to see
	return true
}

// capability reports whether the harness has a Linux capability.
func capability(bit uint) bool {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for _, line := range strings.Split(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && set&(1<<bit) != 0
		}
	}
	return false
}
