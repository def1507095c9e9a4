package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	dialTimeout  = 10 * time.Second
	writeTimeout = 10 * time.Second
	heartbeat    = 2 * time.Second
	reconnectMin = 100 * time.Millisecond
	reconnectMax = 5 * time.Second
)

// State is a connection as seen by this process.
type State struct {
	Connected bool `json:"connected"`
	// Blocked: the broker takes no messages, for want of memory or disk.
	Blocked bool `json:"blocked"`
	// Reason is why it is not connected, or blocked.
	Reason string `json:"reason,omitempty"`
	// Since is when this state began.
	Since time.Time `json:"since"`
}

// line keeps one connection up until it is closed.
type line struct {
	url, name string
	most      time.Duration // between two attempts to connect
	log       *slog.Logger
	cancel    context.CancelFunc
	done      chan struct{}

	blocked atomic.Bool // as state has it
	mu      sync.Mutex
	conn    *amqp.Connection // nil while there is none
	changed chan struct{}    // closed at the next change of anything here
	state   State
}

func newLine(address, name string, most time.Duration, log *slog.Logger) (*line, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "amqp" && u.Scheme != "amqps" || u.Host == "" {
		return nil, errors.New("bad RabbitMQ URL: want amqp://user:password@host:port/vhost")
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &line{
		url: address, name: name, most: most, log: log, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}),
		state: State{Reason: "not connected yet", Since: time.Now()},
	}
	go l.run(ctx)
	return l, nil
}

// run dials and dials again until ctx ends.
func (l *line) run(ctx context.Context) {
	defer close(l.done)
	pause := min(reconnectMin, l.most)
	for ctx.Err() == nil {
		conn, err := dial(ctx, l.url, l.name)
		if err == nil {
			began := time.Now()
			err = l.serve(ctx, conn)
			if time.Since(began) > l.most {
				pause = min(reconnectMin, l.most)
			}
		}
		l.set(nil, State{Reason: reason(err)})
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, l.most)
	}
}

// serve watches a connection until it closes or ctx ends, and returns why.
func (l *line) serve(ctx context.Context, conn *amqp.Connection) error {
	defer hangUp(conn)
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 16))
	l.set(conn, State{Connected: true})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-closed:
			if err == nil {
				return errors.New("connection closed")
			}
			l.log.Warn("connection to the broker lost", "connection", l.name, "error", err)
			return err
		case b, ok := <-blocked:
			if !ok {
				blocked = nil
				continue
			}
			l.log.Warn("broker changes whether it takes messages", "connection", l.name, "blocked", b.Active, "reason", b.Reason)
			l.set(conn, State{Connected: true, Blocked: b.Active, Reason: b.Reason})
		}
	}
}

func (l *line) set(conn *amqp.Connection, s State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.Connected != l.state.Connected {
		if s.Connected {
			l.log.Info("connected to the broker", "connection", l.name)
		} else {
			l.log.Debug("not connected to the broker", "connection", l.name, "reason", s.Reason)
		}
	}
	s.Since = l.state.Since
	if s.Connected != l.state.Connected || s.Blocked != l.state.Blocked {
		s.Since = time.Now()
	}
	l.conn, l.state = conn, s
	l.blocked.Store(s.Blocked)
	close(l.changed)
	l.changed = make(chan struct{})
}

// look returns what there is now, and a channel that closes when that changes.
func (l *line) look() (*amqp.Connection, State, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn, l.state, l.changed
}

// get waits for a connection until ctx ends.
func (l *line) get(ctx context.Context) (*amqp.Connection, error) {
	for {
		conn, state, changed := l.look()
		if conn != nil && !conn.IsClosed() {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no connection to the broker: %s", state.Reason)
		case <-changed:
		case <-time.After(reconnectMin): // closed, and not noticed yet
		}
	}
}

// close ends the connection and returns when everything has ended.
func (l *line) close() {
	l.cancel()
	<-l.done
}

// dial connects under a name that the broker shows, within the bounds of ctx and 10 s. CloseDeadline of the connection ends
// at its deadline whatever the broker does. Errors hold no password.
func dial(ctx context.Context, address, name string) (*amqp.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(fmt.Sprintf("%s %s/%d", name, filepath.Base(os.Args[0]), os.Getpid()))
	var raw net.Conn
	stop := func() bool { return true }
	conn, err := amqp.DialConfig(address, amqp.Config{
		Heartbeat: heartbeat, Properties: properties, Locale: "en_US",
		Dial: func(network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			stop = context.AfterFunc(ctx, func() { _ = c.Close() }) // ends the handshake too
			raw = coalesce(c)
			return raw, c.SetDeadline(time.Now().Add(dialTimeout))
		},
	})
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if raw != nil {
			_ = raw.Close()
		}
		return nil, fmt.Errorf("connect to the broker: %w", withoutURL(err))
	}
	return conn, nil
}

// withoutURL drops the address from a parse error, since it may hold a password.
func withoutURL(err error) error {
	var parse *url.Error
	if errors.As(err, &parse) {
		return parse.Err
	}
	return err
}

// hangUp closes a connection, politely for two seconds at most.
func hangUp(conn *amqp.Connection) {
	_ = conn.CloseDeadline(time.Now().Add(2 * time.Second)) // closed is what matters
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// wait pauses with jitter; false when ctx ended instead.
func wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause/2 + rand.N(pause))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
