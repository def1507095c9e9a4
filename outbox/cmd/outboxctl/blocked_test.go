package main_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// gatekeeper stands between clients and a broker, and can say that the broker takes no messages, as it does itself when
// it is short of memory: connection.blocked, and what is published goes nowhere.
type gatekeeper struct {
	url    string
	target string

	mu      sync.Mutex
	blocked bool
	clients map[net.Conn]bool // whose connection is open
}

// Methods of AMQP 0.9.1, by class and number.
const (
	connectionOpenOK    = 10<<16 | 41
	connectionBlocked   = 10<<16 | 60
	connectionUnblocked = 10<<16 | 61
	basicPublish        = 60<<16 | 40
)

func newGatekeeper(t *testing.T, amqp string) *gatekeeper {
	t.Helper()
	u, err := url.Parse(amqp)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gatekeeper{target: u.Host, clients: map[net.Conn]bool{}}
	u.Host = l.Addr().String()
	g.url = u.String()
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go g.serve(client)
		}
	}()
	return g
}

func (g *gatekeeper) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", g.target)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer client.Close()
		defer server.Close()
		in := bufio.NewReader(client)
		if _, err := io.CopyN(server, in, 8); err != nil { // the protocol's header
			return
		}
		g.copy(server, in, func(kind byte, method uint32) bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.blocked && (kind == 2 || kind == 3 || method == basicPublish)
		})
	}()
	g.copy(client, bufio.NewReader(server), func(byte, uint32) bool { return false })
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.clients, client)
}

// copy copies frames that are not dropped.
func (g *gatekeeper) copy(to net.Conn, from *bufio.Reader, drop func(kind byte, method uint32) bool) {
	for {
		head := make([]byte, 7)
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		frame := append(head, make([]byte, binary.BigEndian.Uint32(head[3:])+1)...)
		if _, err := io.ReadFull(from, frame[7:]); err != nil {
			return
		}
		var method uint32
		if frame[0] == 1 && len(frame) > 12 {
			method = binary.BigEndian.Uint32(frame[7:])
		}
		if drop(frame[0], method) {
			continue
		}
		if g.write(to, frame, method) != nil {
			return
		}
	}
}

// write passes a frame on. A client whose connection is open is told how things are.
func (g *gatekeeper) write(to net.Conn, frame []byte, method uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := to.Write(frame)
	if err == nil && method == connectionOpenOK {
		if g.clients[to] = true; g.blocked {
			g.tell(to)
		}
	}
	return err
}

// tell needs mu.
func (g *gatekeeper) tell(client net.Conn) {
	method, text := uint32(connectionUnblocked), ""
	if g.blocked {
		method, text = connectionBlocked, "\x0alow memory"
	}
	frame := binary.BigEndian.AppendUint32([]byte{1, 0, 0}, uint32(4+len(text)))
	frame = append(binary.BigEndian.AppendUint32(frame, method), text...)
	_, _ = client.Write(append(frame, 0xce)) // it may have gone
}

// block says to all clients that the broker takes messages, or none.
func (g *gatekeeper) block(is bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.blocked = is
	for client := range g.clients {
		g.tell(client)
	}
}
