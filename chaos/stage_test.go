package chaos_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	choreography  = "choreography"
	orchestration = "orchestration"
	both          = "both"
)

var (
	all  = flag.Bool("all", false, "run every row, not the quick ones alone")
	only = flag.String("only", "", "run these rows alone, such as 3,20")
	seed = flag.Uint64("seed", 0, "makes a run repeatable; 0 draws one")
	saga = flag.String("saga", choreography, "who leads bookings: choreography, orchestration, or both in turn, by every start of booking")
	soak = flag.Duration("soak", 0, "how long TestSoak combines random faults; 0 skips it")
)

// stage is what all rows share: the programs, and the servers.
type stage struct {
	dir, bin string // of the servers, of our programs
	where    map[string]string
	pg       *postgres
	mq       *broker
}

// on is the stage with another PostgreSQL server.
func (s *stage) on(pg *postgres) *stage {
	other := *s
	other.pg = pg
	return &other
}

// logs is where the programs' logs stay for whoever looks into a failure.
const logs = "../.run/chaos"

var (
	base     string // removed at the end
	mounts   []string
	mountsMu sync.Mutex
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !slices.Contains([]string{choreography, orchestration, both}, *saga) {
		fmt.Fprintf(os.Stderr, "chaos: -saga %q: want %s, %s or %s\n", *saga, choreography, orchestration, both)
		os.Exit(2)
	}
	if *seed == 0 {
		*seed = rand.Uint64() >> 32
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if base, err = os.MkdirTemp("", "ticketwave-chaos-"); err == nil {
		err = errors.Join(os.Chmod(base, 0o711), adoptOrphans())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	context.AfterFunc(ctx, func() {
		fmt.Fprintln(os.Stderr, "chaos: interrupted, stopping the servers")
		strike()
		os.Exit(130)
	})
	code := m.Run()
	if summary(os.Stdout) {
		code = max(code, 1)
	}
	strike()
	os.Exit(code)
}

// strike removes everything that the harness has put up.
var strike = sync.OnceFunc(func() {
	closing.Store(true)
	closeFamily()
	mountsMu.Lock()
	defer mountsMu.Unlock()
	for _, dir := range mounts {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: unmount", dir, err)
		}
	}
	if err := os.RemoveAll(base); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
})

// errNoServers says that this machine has no server programs to start.
var errNoServers = errors.New("no server programs")

// raised is the stage once raise has run.
var raised = sync.OnceValues(func() (*stage, error) {
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	s := &stage{dir: base, bin: filepath.Join(base, "bin")}
	if err := s.locate(ctx); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return nil, err
	}
	var group sync.WaitGroup
	var errs [3]error
	group.Go(func() { errs[0] = s.build(ctx) })
	group.Go(func() { errs[1] = s.startPostgres(ctx) })
	group.Go(func() { errs[2] = s.startBroker(ctx) })
	group.Wait()
	return s, errors.Join(errs[:]...)
})

// raise builds the programs and starts the servers, once.
func raise(t *testing.T) *stage {
	t.Helper()
	s, err := raised()
	if errors.Is(err, errNoServers) && !*all && *only == "" && *soak == 0 {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// locate asks deploy/stack.sh where the server programs are.
func (s *stage) locate(ctx context.Context) error {
	text, err := output(ctx, exec.Command("../deploy/stack.sh", "programs"))
	if err != nil {
		return fmt.Errorf("%w: %w", errNoServers, err)
	}
	s.where = map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		if name, path, ok := strings.Cut(line, "="); ok {
			s.where[name] = path
		}
	}
	return nil
}

// buildLimit is for a compiler on a busy machine.
const buildLimit = 10 * time.Minute

// build compiles the programs with their failpoints.
func (s *stage) build(ctx context.Context) error {
	for module, pattern := range map[string]string{"../services": "./cmd/...", "../outbox": "./cmd/relay"} {
		cmd := exec.Command("go", "build", "-tags", "failpoints", "-o", s.bin+"/", pattern)
		cmd.Dir = module
		if _, err := output(ctx, cmd); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) startPostgres(ctx context.Context) (err error) {
	if s.pg, err = newPostgres(ctx, s.where["postgres"], filepath.Join(s.dir, "postgres"), ""); err != nil {
		return err
	}
	return s.pg.start(ctx)
}

func (s *stage) startBroker(ctx context.Context) (err error) {
	if s.mq, err = newBroker(s.where["rabbitmq"], s.where["epmd"], filepath.Join(s.dir, "rabbitmq")); err != nil {
		return err
	}
	return s.mq.start(ctx)
}
