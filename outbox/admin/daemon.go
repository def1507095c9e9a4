package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/jcp/ticketwave/outbox/operate"
)

// Options are what a program says to offer the API. Zero values take the defaults.
type Options struct {
	// Addr is host:port. Beyond the loopback interface it needs a certificate, or Insecure.
	Addr string
	// TokenFile is the file of [Tokens].
	TokenFile string
	// CertFile and KeyFile are PEM files for TLS, read at every handshake. While they do not fit each other, the last pair that did is
	// served, and the log says so.
	CertFile, KeyFile string
	// Insecure allows plain HTTP beyond the loopback interface, where something else protects tokens on their way.
	Insecure bool
	// Operate says what is operated on.
	Operate operate.Config
	// Logger gets the access log. Default slog.Default.
	Logger *slog.Logger
	// Limits bound what clients can take.
	Limits Limits
}

// Check returns what is wrong with the options, in the words of the environment's variables.
func (o Options) Check() error {
	_, _, err := net.SplitHostPort(o.Addr)
	switch {
	case err != nil:
		return fmt.Errorf("TW_ADMIN_ADDR is %q: want host:port, 127.0.0.1:5011 for example", o.Addr)
	case o.TokenFile == "":
		return errors.New("TW_ADMIN_TOKENS: want the file of the tokens (\"outboxctl token new\" makes its lines)")
	case len(o.Operate.Databases) == 0:
		return errors.New("TW_ADMIN_DATABASES: want name=postgres://user:password@host:port/database, separated by commas")
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("TW_ADMIN_TLS_CERT and TW_ADMIN_TLS_KEY: want both or neither")
	case o.CertFile == "" && !o.Insecure && !Loopback(o.Addr):
		return fmt.Errorf("TW_ADMIN_ADDR is %q, open to other hosts without TLS: set TW_ADMIN_TLS_CERT and TW_ADMIN_TLS_KEY, "+
			"an address of 127.0.0.1, or TW_ADMIN_INSECURE=true where something else protects the tokens", o.Addr)
	}
	return nil
}

// Loopback reports whether only this machine reaches host:port, so that a token may be sent there without TLS.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// Daemon is the API on its port.
type Daemon struct {
	opts     Options
	operator *operate.Operator
	listener net.Listener
	server   *http.Server
}

// Open listens. No database needs to answer yet.
func Open(ctx context.Context, opts Options) (*Daemon, error) {
	if err := opts.Check(); err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	tokens, err := OpenTokens(opts.TokenFile)
	if err != nil {
		return nil, err
	}
	operator, err := operate.New(opts.Operate)
	if err != nil {
		return nil, err
	}
	d := &Daemon{opts: opts, operator: operator}
	if err := d.listen(ctx, tokens); err != nil {
		operator.Close()
		return nil, err
	}
	return d, nil
}

func (d *Daemon) listen(ctx context.Context, tokens *Tokens) error {
	api, err := New(Config{Operator: d.operator, Tokens: tokens, Logger: d.opts.Logger, Limits: d.opts.Limits})
	if err != nil {
		return err
	}
	certificate := &certificate{opts: d.opts, complain: rate.Sometimes{Interval: time.Minute}}
	if d.opts.CertFile != "" {
		if err := certificate.read(); err != nil {
			return err
		}
	}
	d.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", d.opts.Addr)
	if err != nil {
		return fmt.Errorf("listen: %w (TW_ADMIN_ADDR sets another address)", err)
	}
	d.server = api.HTTPServer()
	d.server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate.show}
	return nil
}

// certificate is what the daemon shows at handshakes.
type certificate struct {
	opts     Options
	last     atomic.Pointer[tls.Certificate] // that was usable
	complain rate.Sometimes
}

func (c *certificate) read() error {
	pair, err := tls.LoadX509KeyPair(c.opts.CertFile, c.opts.KeyFile)
	if err != nil {
		return fmt.Errorf("TW_ADMIN_TLS_CERT, TW_ADMIN_TLS_KEY: %w", err)
	}
	c.last.Store(&pair)
	return nil
}

func (c *certificate) show(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if err := c.read(); err != nil {
		c.complain.Do(func() { c.opts.Logger.Error("certificate not usable, showing the one before", "error", err) })
	}
	return c.last.Load(), nil
}

// HTTPServer is an [http.Server] of the handler with its limits on time and size.
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: s.cfg.Limits.Timeout + writeTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
}

// Addr is where the API answers.
func (d *Daemon) Addr() string { return d.listener.Addr().String() }

// URL is the address as a client writes it.
func (d *Daemon) URL() string {
	if d.opts.CertFile != "" {
		return "https://" + d.Addr()
	}
	return "http://" + d.Addr()
}

// Run serves until ctx ends, and then for as long as requests are under way, at most 10 s. A replay that is under way is
// cut after the messages in flight; what it sent is audited.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.operator.Close()
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	d.server.BaseContext = func(net.Listener) context.Context { return base }
	served := make(chan error, 1)
	go func() {
		if d.opts.CertFile != "" {
			served <- d.server.ServeTLS(d.listener, "", "")
		} else {
			served <- d.server.Serve(d.listener)
		}
	}()
	d.opts.Logger.Info("admin API started", "address", d.Addr(), "tls", d.opts.CertFile != "", "databases", d.operator.Databases())
	select {
	case err := <-served:
		return fmt.Errorf("admin API: %w", err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	timer := time.AfterFunc(3*time.Second, cut)
	defer timer.Stop()
	err := d.server.Shutdown(closing)
	if err != nil {
		err = errors.Join(err, d.server.Close())
	}
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}
