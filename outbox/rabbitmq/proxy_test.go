package rabbitmq_test

import (
	"net"
	"net/url"
	"sync"
	"testing"
)

// proxy stands between a client and the broker, and can be cut or stalled.
type proxy struct {
	url    string
	target string
	listen net.Listener

	mu      sync.Mutex
	conns   []net.Conn
	stalled chan struct{} // closed when traffic may flow again; nil when it flows
	replies bool          // only what the broker says is stalled
}

func newProxy(t *testing.T, amqpURL string) *proxy {
	t.Helper()
	u, err := url.Parse(amqpURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: u.Host, listen: l}
	u.Host = l.Addr().String()
	p.url = u.String()
	var wg sync.WaitGroup
	wg.Go(func() { p.accept(&wg) })
	t.Cleanup(func() {
		_ = l.Close()
		p.flow()
		p.cut()
		wg.Wait()
	})
	return p
}

func (p *proxy) accept(wg *sync.WaitGroup) {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		wg.Go(func() { p.copy(client, server, true) })
		wg.Go(func() { p.copy(server, client, false) })
	}
}

func (p *proxy) copy(to, from net.Conn, reply bool) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		p.gate(reply)
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// gate waits while the proxy is stalled.
func (p *proxy) gate(reply bool) {
	p.mu.Lock()
	stalled, waits := p.stalled, reply || !p.replies
	p.mu.Unlock()
	if stalled != nil && waits {
		<-stalled
	}
}

// cut closes every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// stall lets nothing through, and closes nothing.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled, p.replies = make(chan struct{}), false
}

// mute lets nothing through that the broker says.
func (p *proxy) mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled, p.replies = make(chan struct{}), true
}

// flow ends a stall.
func (p *proxy) flow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled != nil {
		close(p.stalled)
		p.stalled = nil
	}
}
