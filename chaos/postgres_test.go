package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgres is a private PostgreSQL server, a child of the harness.
type postgres struct {
	bin, dir, password string
	port               int
	settings           map[string]string
	env                []string // of the server itself
	proc               *child
}

// newPostgres makes a data directory in dir. walDir, if not empty, takes the write-ahead log elsewhere.
func newPostgres(ctx context.Context, bin, dir, walDir string) (*postgres, error) {
	p := &postgres{bin: bin, dir: dir, password: "chaos", settings: map[string]string{
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "200", "max_prepared_transactions": "20",
		"shared_buffers": "128MB", "max_wal_size": "1GB", "log_min_messages": "warning", "log_line_prefix": "%m [%p] %d ",
		"wal_level": "replica", "max_wal_senders": "4",
	}}
	var err error
	if p.port, err = freePort(); err != nil {
		return nil, err
	}
	for _, d := range []string{dir, walDir} {
		if err := ownedByServer(d); err != nil {
			return nil, err
		}
	}
	secret := filepath.Join(dir, "password")
	if err := os.WriteFile(secret, []byte(p.password), 0o644); err != nil {
		return nil, err
	}
	args := []string{"-D", p.data(), "-U", "postgres", "-A", "scram-sha-256", "--pwfile=" + secret, "--no-locale", "-E", "UTF8", "--no-sync"}
	if walDir != "" {
		args = append(args, "--waldir="+filepath.Join(walDir, "wal"))
	}
	if _, err := output(ctx, p.command("initdb", args...)); err != nil {
		return nil, err
	}
	return p, nil
}

// ownedByServer makes a directory that the server's user may write.
func ownedByServer(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if id := serverUser(); id != nil {
		return os.Chown(dir, int(id.Uid), int(id.Gid))
	}
	return nil
}

func (p *postgres) data() string { return filepath.Join(p.dir, "data") }

// serverUser is whom the server's programs run as: initdb and postgres refuse root.
func serverUser() *syscall.Credential {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if errors.Join(err1, err2) != nil {
		return nil
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// command is one of PostgreSQL's programs. Directories above may be closed to the server's user: a capability lets it
// pass where the harness has one to give.
func (p *postgres) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "PGPASSWORD="+p.password)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: serverUser()}
	const dacOverride, dacReadSearch = 1, 2
	for _, bit := range []uint{dacReadSearch, dacOverride} {
		if cmd.SysProcAttr.Credential != nil && capability(bit) {
			cmd.SysProcAttr.AmbientCaps = []uintptr{uintptr(bit)}
			break
		}
	}
	return cmd
}

// start starts the server and waits until it takes connections, or has ended.
func (p *postgres) start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"-D", p.data(), "-p", strconv.Itoa(p.port)}
	for name, value := range p.settings {
		args = append(args, "-c", name+"="+value)
	}
	cmd := p.command("postgres", args...)
	cmd.Env = append(cmd.Env, p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if p.proc, err = start("postgres", cmd, syscall.SIGQUIT); err != nil {
		return err
	}
	for {
		if err := p.ping(ctx); err == nil {
			return nil
		}
		select {
		case <-p.proc.done:
			return fmt.Errorf("PostgreSQL does not start, see %s", log.Name())
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer: %w, see %s", ctx.Err(), log.Name())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *postgres) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.url(""))
	switch {
	case code(err) == "53300": // it answers, that it has no room
		return nil
	case err != nil:
		return err
	}
	return conn.Close(ctx)
}

// url connects as administrator.
func (p *postgres) url(database string) string {
	if database == "" {
		database = "postgres"
	}
	return fmt.Sprintf("postgres://postgres:%s@%s/%s?sslmode=disable", p.password, local(p.port), database)
}

// crash is kill -9 of the postmaster. Its backends see that and end; the restart waits for them.
func (p *postgres) crash() { p.proc.kill() }

// stop ends the server: SIGINT is a fast shutdown, SIGQUIT an immediate one, which recovers at the next start.
func (p *postgres) stop(how syscall.Signal) error {
	if p.proc == nil || !p.proc.alive() {
		return nil
	}
	p.proc.signal(how)
	if !p.proc.await(30 * time.Second) {
		p.proc.kill()
		return errors.New("PostgreSQL did not stop in 30 s")
	}
	return nil
}

// restart starts a server that has crashed. Until the last backend has gone it is refused.
func (p *postgres) restart(ctx context.Context) error {
	for {
		err := p.start(ctx)
		if err == nil || ctx.Err() != nil || p.proc == nil || p.proc.alive() {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
