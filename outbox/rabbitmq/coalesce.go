package rabbitmq

import (
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// maxBuffered bounds what waits to be written; a writer that comes then waits.
const maxBuffered = 1 << 20

// coalesced writes what piles up while a write is under way with the next one: many small frames cost one system
// call here, and one wake-up at the broker, instead of one each. Nothing is delayed on purpose. An error of a write
// is that of all later ones, and closes the connection, so that the reader ends too.
type coalesced struct {
	net.Conn
	ended chan struct{} // closed when nothing will be written any more

	mu      sync.Mutex
	more    sync.Cond // something was added, or closed
	room    sync.Cond // something was taken, or failed
	pending []byte
	closed  bool
	err     error
	doom    *time.Timer // closes the connection
}

func coalesce(conn net.Conn) *coalesced {
	c := &coalesced{Conn: conn, ended: make(chan struct{})}
	c.more.L, c.room.L = &c.mu, &c.mu
	go c.run()
	return c
}

// Write takes b for the next write. It waits while the buffer is full, which a peer that reads no more ends by
// writeTimeout.
func (c *coalesced) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) >= maxBuffered && c.err == nil && !c.closed {
		c.room.Wait()
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case c.closed:
		return 0, net.ErrClosed
	}
	c.pending = append(c.pending, b...)
	c.more.Signal()
	return len(b), nil
}

func (c *coalesced) run() {
	defer close(c.ended)
	var buffer []byte
	for {
		buffer = c.take(buffer[:0])
		if len(buffer) == 0 {
			return
		}
		if err := c.write(buffer); err != nil {
			c.fail(err)
			return
		}
		if cap(buffer) > 2*maxBuffered {
			buffer = nil
		}
	}
}

// take waits for something to write and exchanges it for the empty buffer; nothing when closed.
func (c *coalesced) take(empty []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) == 0 && !c.closed {
		c.more.Wait()
	}
	full := c.pending
	c.pending = empty
	c.room.Broadcast()
	return full
}

func (c *coalesced) write(b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.Conn.Write(b)
	return err
}

func (c *coalesced) fail(err error) {
	if os.IsTimeout(err) {
		err = fmt.Errorf("the broker reads no more: %w", err)
	}
	c.mu.Lock()
	c.err = err
	c.room.Broadcast()
	c.mu.Unlock()
	_ = c.Conn.Close() // the reader sees it
}

// SetDeadline closes the connection at t, unless it is called again. A deadline of reading alone would not end a good-bye:
// every heartbeat moves it, and a broker that is short of memory sends them while it reads nothing.
func (c *coalesced) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.doom != nil {
		c.doom.Stop()
	}
	if !t.IsZero() {
		c.doom = time.AfterFunc(time.Until(t), func() { _ = c.Conn.Close() })
	}
	return c.Conn.SetDeadline(t)
}

// Close writes what is left, for at most a second, and closes the connection.
func (c *coalesced) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.doom != nil {
		c.doom.Stop()
	}
	c.more.Signal()
	c.room.Broadcast()
	c.mu.Unlock()
	select {
	case <-c.ended:
	case <-time.After(time.Second):
	}
	return c.Conn.Close()
}
