package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jcp/ticketwave/services/internal/loop"
)

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

const (
	deliveryTimeout = 10 * time.Second
	deliveryLease   = 30 * time.Second // more than a delivery and its record may take
	deliveries      = 16               // at once
	storeTimeout    = 5 * time.Second
	idle            = 500 * time.Millisecond
	againMin        = 250 * time.Millisecond
	againMax        = 5 * time.Minute
)

// Run delivers webhooks until ctx ends.
func (s *Sandbox) Run(ctx context.Context) error {
	loop.Run(ctx, loop.Config{Name: "sandbox webhooks", Logger: s.cfg.Logger, Wake: s.deliver, Idle: idle, Step: s.Deliver})
	return nil
}

// Deliver sends the webhooks that are due, some at once, and returns how many. Whoever dies meanwhile leaves them to be
// sent again after a while. A failure is the webhook's own: it is put off, and counted.
func (s *Sandbox) Deliver(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deliveryLease)
	defer cancel()
	due, err := claimWebhooks(ctx, s.cfg.Pool, deliveries, deliveryLease)
	if err != nil || len(due) == 0 {
		return 0, err
	}
	secrets, err := s.signers(ctx)
	if err != nil {
		return 0, err
	}
	errs := make([]error, len(due))
	var sending sync.WaitGroup
	for i, d := range due {
		sending.Go(func() { errs[i] = s.record(ctx, d, s.post(ctx, secrets, d)) })
	}
	sending.Wait()
	return len(due), errors.Join(errs...)
}

// post is nil when the receiver has taken the webhook.
func (s *Sandbox) post(ctx context.Context, secrets Secrets, d delivery) error {
	ctx, cancel := context.WithTimeout(ctx, deliveryTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.webhookURL(), strings.NewReader(d.Body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "TicketWave-Sandbox/1")
	secrets.Sign(req.Header, d.ID, s.cfg.Now(), []byte(d.Body))
	resp, err := s.cfg.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // so that the connection can be used again
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the receiver answers %s", resp.Status)
	}
	return nil
}

// record stores how a delivery went.
func (s *Sandbox) record(ctx context.Context, d delivery, failure error) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if failure == nil {
		return markDelivered(ctx, s.cfg.Pool, d.ID)
	}
	again := backoff(d.Attempts)
	if d.Age > s.cfg.GiveUpAfter.Seconds() {
		again = 0
		s.cfg.Logger.ErrorContext(ctx, "sandbox webhook given up", "webhook_id", d.ID, "attempts", d.Attempts, "error", failure)
	} else {
		s.cfg.Logger.WarnContext(ctx, "sandbox webhook not delivered", "webhook_id", d.ID, "attempts", d.Attempts, "error", failure)
	}
	return markFailed(ctx, s.cfg.Pool, d.ID, Clip(failure.Error()), again)
}

// backoff doubles up to its bound, with jitter of half.
func backoff(attempts int) time.Duration {
	pause := min(againMin<<min(max(attempts-1, 0), 20), againMax)
	return pause/2 + rand.N(pause/2)
}
