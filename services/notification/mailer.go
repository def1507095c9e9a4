package notification

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/wneessen/go-mail"
)

// mailer sends letters: a mail server, or files.
type mailer interface {
	// send returns nil when the letter is out of our hands.
	send(ctx context.Context, l letter) error
}

// sendTimeout bounds one mail; the handler's transaction is open meanwhile.
const sendTimeout = 10 * time.Second

func newMailer(cfg Config) (mailer, error) {
	if cfg.SMTPAddr == "" {
		return files{dir: cfg.MailDir}, nil
	}
	host, port, err := net.SplitHostPort(cfg.SMTPAddr)
	n, numErr := strconv.ParseUint(port, 10, 16)
	if err != nil || numErr != nil || host == "" || n == 0 {
		return nil, fmt.Errorf("notification: mail server %q: want host:port", cfg.SMTPAddr)
	}
	return server{host: host, port: int(n)}, nil
}

// server speaks SMTP, a connection for each letter.
type server struct {
	host string
	port int
}

func (s server) send(ctx context.Context, l letter) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	client, err := mail.NewClient(s.host, mail.WithPort(s.port), mail.WithTLSPolicy(mail.TLSOpportunistic),
		mail.WithTimeout(sendTimeout), mail.WithHELO("ticketwave.example"))
	if err != nil {
		return fmt.Errorf("mail server %s: %w", s.host, err)
	}
	if err := client.DialAndSendWithContext(ctx, l.msg); err != nil {
		return fmt.Errorf("mail server %s: %w", s.host, err)
	}
	return nil
}

// isFinal reports a refusal that trying again will not change.
func isFinal(err error) bool {
	var refused *mail.SendError
	return errors.As(err, &refused) && !refused.IsTemp() && refused.ErrorCode() >= 500
}

// files writes each letter to a file of its own.
type files struct{ dir string }

// send writes beside and renames, so that the file is whole or not there; written again it is the same. It does not
// wait for the disk: files are for development, and survive the process but not the machine.
func (f files) send(_ context.Context, l letter) error {
	var document bytes.Buffer
	if _, err := l.msg.WriteTo(&document); err != nil {
		return fmt.Errorf("encode the mail: %w", err)
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("mail directory: %w", err)
	}
	tmp, err := os.CreateTemp(f.dir, "."+l.name+"-*")
	if err != nil {
		return fmt.Errorf("mail file: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone after the rename
	_, err = tmp.Write(document.Bytes())
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("write mail file: %w", err)
	}
	if err := os.Rename(tmp.Name(), filepath.Join(f.dir, l.name)); err != nil {
		return fmt.Errorf("mail file: %w", err)
	}
	return nil
}
