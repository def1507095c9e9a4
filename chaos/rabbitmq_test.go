package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// broker is a private RabbitMQ node, a child of the harness.
type broker struct {
	sbin, epmd, dir                    string
	port, management, dist, mapperPort int
	proc                               *child // the script that waits for the Erlang VM
}

const brokerUser, brokerPassword = "ticketwave", "chaos"

func newBroker(sbin, epmd, dir string) (*broker, error) {
	b := &broker{sbin: sbin, epmd: epmd, dir: dir}
	for _, p := range []*int{&b.port, &b.management, &b.dist, &b.mapperPort} {
		var err error
		if *p, err = freePort(); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"home", "mnesia", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	return b, b.configure()
}

// configure writes the node's files. The ticks are short so that what the management API says is fresh, and so that a
// consumer's time-out is looked at often.
func (b *broker) configure() error {
	files := map[string]string{
		"home/.erlang.cookie": "chaoschaoschaos", "rabbitmq-env.conf": "", "enabled_plugins": "[rabbitmq_management].\n",
		"advanced.config": "[{rabbit, [{quorum_tick_interval, 500}, {channel_tick_interval, 500}]}].\n",
		"rabbitmq.conf": fmt.Sprintf(`listeners.tcp.default = %s
management.tcp.ip = 127.0.0.1
management.tcp.port = %d
load_definitions = %s
loopback_users = none
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.relative = 0.4
collect_statistics_interval = 500
log.file.level = warning
`, local(b.port), b.management, b.file("definitions.json")),
		"definitions.json": fmt.Sprintf(`{
  "users": [{"name": %[1]q, "password": %[2]q, "tags": "administrator"}], "vhosts": [{"name": "/"}],
  "permissions": [{"user": %[1]q, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}]
}`, brokerUser, brokerPassword),
	}
	for name, text := range files {
		if err := os.WriteFile(b.file(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.Chmod(b.file("home/.erlang.cookie"), 0o400)
}

func (b *broker) file(name string) string { return filepath.Join(b.dir, name) }

// command is one of RabbitMQ's scripts, which knows this node alone.
func (b *broker) command(script string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(b.sbin, script), args...)
	cmd.Dir = b.dir
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "RABBITMQ_") && !strings.HasPrefix(v, "HOME=") && !strings.HasPrefix(v, "ERL_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "HOME="+b.file("home"), "RABBITMQ_NODENAME=tw@localhost", "RABBITMQ_CONF_ENV_FILE="+b.file("rabbitmq-env.conf"),
		"RABBITMQ_CONFIG_FILE="+b.file("rabbitmq.conf"), "RABBITMQ_ADVANCED_CONFIG_FILE="+b.file("advanced.config"),
		"RABBITMQ_MNESIA_BASE="+b.file("mnesia"), "RABBITMQ_LOG_BASE="+b.file("log"), "RABBITMQ_ENABLED_PLUGINS_FILE="+b.file("enabled_plugins"),
		"RABBITMQ_PID_FILE="+b.file("pid"), "RABBITMQ_DIST_PORT="+strconv.Itoa(b.dist), "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD=none",
		"ERL_EPMD_PORT="+strconv.Itoa(b.mapperPort), "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}")
	return cmd
}

// start starts the node and waits until it takes connections and its management API answers, or it has ended.
func (b *broker) start(ctx context.Context) error {
	_ = os.Remove(b.file("pid")) // of a node that was killed
	log, err := os.OpenFile(b.file("log/console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := b.command("rabbitmq-server")
	cmd.Stdout, cmd.Stderr = log, log
	if b.proc, err = start("rabbitmq-server", cmd, syscall.SIGTERM); err != nil {
		return err
	}
	for !listening(b.port) || b.manage(ctx, http.MethodGet, "/api/overview", nil, nil) != nil {
		select {
		case <-b.proc.done:
			return fmt.Errorf("RabbitMQ does not start, see %s", log.Name())
		case <-ctx.Done():
			return fmt.Errorf("RabbitMQ does not answer: %w, see %s", ctx.Err(), log.Name())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// crash is kill -9 of the Erlang VM.
func (b *broker) crash() error {
	pid, err := b.pid()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill the Erlang VM: %w", err)
	}
	if !b.proc.await(10 * time.Second) {
		return fmt.Errorf("the script of a killed RabbitMQ does not end")
	}
	return nil
}

func (b *broker) pid() (int, error) {
	text, err := os.ReadFile(b.file("pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// ctl runs rabbitmqctl.
func (b *broker) ctl(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := output(ctx, b.command("rabbitmqctl", args...))
	return err
}

// timedOut reports whether the node has said that a consumer kept a message for too long.
func (b *broker) timedOut() bool {
	files, err := filepath.Glob(b.file("log/*.log"))
	if err != nil {
		return false
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte("delivery acknowledgement on channel")) {
			return true
		}
	}
	return false
}

// url connects to a vhost.
func (b *broker) url(vhost string) string { return amqpURL(local(b.port), vhost) }

func amqpURL(address, vhost string) string {
	u := url.URL{Scheme: "amqp", User: url.UserPassword(brokerUser, brokerPassword), Host: address, Path: "/" + vhost}
	return u.String()
}

// manage calls the management API. body and answer may be nil.
func (b *broker) manage(ctx context.Context, method, path string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var document []byte
	if body != nil {
		var err error
		if document, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+local(b.management)+path, bytes.NewReader(document))
	if err != nil {
		return err
	}
	req.SetBasicAuth(brokerUser, brokerPassword)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// newVHost makes a vhost.
func (b *broker) newVHost(ctx context.Context, name string) error {
	if err := b.manage(ctx, http.MethodPut, "/api/vhosts/"+name, nil, nil); err != nil {
		return err
	}
	return b.manage(ctx, http.MethodPut, "/api/permissions/"+name+"/"+brokerUser, map[string]string{"configure": ".*", "write": ".*", "read": ".*"}, nil)
}

// with opens a connection and a channel for one piece of work.
func (b *broker) with(vhost string, do func(ch *amqp.Channel) error) error {
	conn, err := amqp.DialConfig(b.url(vhost), amqp.Config{
		Dial: amqp.DefaultDial(10 * time.Second), Heartbeat: 10 * time.Second, Properties: amqp.Table{"connection_name": "chaos"},
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the work's error is what counts
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	return do(ch)
}
