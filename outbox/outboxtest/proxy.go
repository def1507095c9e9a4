package outboxtest

import (
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Proxy is the network between a client and a server, which can fail in a network's ways.
type Proxy struct {
	// URL is the server's, by way of the proxy.
	URL string

	target string
	listen net.Listener

	mu      sync.Mutex
	links   []*link
	down    bool
	refused int
	stalled chan struct{} // closed when traffic may flow again; nil when it flows
	replies bool          // only what the server says is stalled
}

// link is one connection and its two halves.
type link struct {
	client, server net.Conn
	lost           chan struct{} // set when neither side ever hears of the other again; closed by cut
	closed         bool
}

// NewProxy stands between clients of its URL and the server of url until the test ends.
func NewProxy(tb testing.TB, serverURL string) *Proxy {
	tb.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		tb.Fatal("the server's URL is none")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{target: u.Host, listen: l}
	u.Host = l.Addr().String()
	p.URL = u.String()
	var wg sync.WaitGroup
	wg.Go(func() { p.accept(&wg) })
	tb.Cleanup(func() {
		_ = l.Close()
		p.Flow()
		p.Cut()
		wg.Wait()
	})
	return p
}

func (p *Proxy) accept(wg *sync.WaitGroup) {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		if p.refuses() {
			_ = client.Close()
			continue
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		l := &link{client: client, server: server}
		if !p.add(l) {
			continue
		}
		wg.Go(func() { p.copy(l, client, server, true) })
		wg.Go(func() { p.copy(l, server, client, false) })
	}
}

// refuses counts what is refused.
func (p *Proxy) refuses() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		p.refused++
	}
	return p.down
}

func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		_ = l.client.Close()
		_ = l.server.Close()
		return false
	}
	p.links = append(p.links, l)
	return true
}

func (p *Proxy) copy(l *link, to, from net.Conn, reply bool) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		p.gate(l, reply)
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// gate waits while the link is stalled or lost.
func (p *Proxy) gate(l *link, reply bool) {
	for {
		p.mu.Lock()
		wait := l.lost
		if wait == nil && (reply || !p.replies) {
			wait = p.stalled
		}
		over := wait == nil || l.closed
		p.mu.Unlock()
		if over {
			return
		}
		<-wait
	}
}

// Cut closes every connection; new ones are let through.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		l.closed = true
		if l.lost != nil {
			close(l.lost)
		}
		_ = l.client.Close()
		_ = l.server.Close()
	}
	p.links = nil
}

// Down closes every connection, and every new one at once, until Up.
func (p *Proxy) Down() {
	p.mu.Lock()
	p.down = true
	p.mu.Unlock()
	p.Cut()
}

// Refused counts the connections that were closed at once.
func (p *Proxy) Refused() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// Up ends Down.
func (p *Proxy) Up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

// Stall lets nothing through, and closes nothing.
func (p *Proxy) Stall() { p.stall(false) }

// Mute lets nothing through that the server says.
func (p *Proxy) Mute() { p.stall(true) }

func (p *Proxy) stall(replies bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled, p.replies = make(chan struct{}), replies
}

// Block lets nothing through but for heartbeats to the clients, as a RabbitMQ that is short of memory does.
func (p *Proxy) Block() {
	p.stall(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		go heartbeats(l.client)
	}
}

// heartbeats sends a frame every now and then until the connection is closed.
func heartbeats(client net.Conn) {
	beat := time.NewTicker(300 * time.Millisecond)
	defer beat.Stop()
	for range beat.C {
		if _, err := client.Write([]byte{8, 0, 0, 0, 0, 0, 0, 0xCE}); err != nil {
			return
		}
	}
}

// Flow ends a stall.
func (p *Proxy) Flow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled != nil {
		close(p.stalled)
		p.stalled = nil
	}
}

// Lose ends a stall for new connections alone. The server has closed those that there are, as one that was started
// again has, and the clients never hear of it.
func (p *Proxy) Lose() {
	p.mu.Lock()
	for _, l := range p.links {
		if l.lost == nil {
			l.lost = make(chan struct{})
			_ = l.server.Close()
		}
	}
	p.mu.Unlock()
	p.Flow()
}
