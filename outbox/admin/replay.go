package admin

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/operate"
)

const (
	progressEvery = 200 * time.Millisecond
	// keepAlive is the longest silence of a stream: a client may take what is silent for longer for dead.
	keepAlive    = 5 * time.Second
	writeTimeout = 10 * time.Second
)

// PlanReplay says what a replay would do.
func (s *Server) PlanReplay(w http.ResponseWriter, r *http.Request) {
	var body api.PlanRequest
	if err := decode(w, r, maxBody, &body); err != nil {
		s.fail(w, r, err)
		return
	}
	plan, err := s.cfg.Operator.PlanReplay(r.Context(), operate.PlanRequest{
		Database: body.Database, From: body.From, To: body.To, Type: body.Type, Key: body.Key, ToQueue: body.ToQueue,
	})
	s.answer(w, r, plan, err)
}

// ApplyReplay does what a plan says, and tells how far it is. What fails before the first message is an ordinary
// problem; later it is the last line. Either says what was done before.
func (s *Server) ApplyReplay(w http.ResponseWriter, r *http.Request, hash string) {
	var body api.Apply
	err := decode(w, r, maxBody, &body)
	if err == nil {
		err = reason(body.Reason)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := &stream{w: w, cut: cancel}
	stop := out.keepAlive(ctx)
	done, err := s.cfg.Operator.ApplyReplay(ctx, operate.ApplyRequest{
		Hash: hash, Canary: body.Canary, Actor: actor(ctx, body.Reason), Progress: out.progress,
	})
	stop()
	err = afterReplay(err, done)
	switch {
	case err != nil && !out.begun():
		s.fail(w, r, err)
	case err != nil:
		s.cfg.Logger.Error("replay ended early", "request", requestID(ctx), "error", err)
		p := explain(err).body(requestID(ctx))
		out.last(event{Problem: &p})
	default:
		out.last(event{Applied: &done})
	}
}

// event is a line of the stream.
type event struct {
	Progress *api.Progress    `json:"progress,omitempty"`
	Applied  *operate.Applied `json:"applied,omitempty"`
	Problem  *api.Problem     `json:"problem,omitempty"`
}

// stream writes lines. One that cannot be written in time ends the work.
type stream struct {
	w   http.ResponseWriter
	cut context.CancelFunc

	mu      sync.Mutex
	started bool
	wrote   time.Time
	newest  api.Progress
}

func (s *stream) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// progress is called for every message that is confirmed, and writes now and then.
func (s *stream) progress(done, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = api.Progress{Done: done, Total: total}
	if time.Since(s.wrote) >= progressEvery {
		s.write(event{Progress: &s.newest})
	}
}

func (s *stream) last(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(e)
}

// keepAlive repeats the progress of a stream that has begun and is silent, until stop, which waits for its end.
func (s *stream) keepAlive(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(keepAlive)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			s.mu.Lock()
			if s.started && time.Since(s.wrote) >= keepAlive {
				s.write(event{Progress: &s.newest})
			}
			s.mu.Unlock()
		}
	}()
	return func() { cancel(); <-ended }
}

// write needs mu.
func (s *stream) write(e event) {
	if !s.started {
		s.started = true
		s.w.Header().Set("Content-Type", "application/x-ndjson")
		s.w.WriteHeader(http.StatusOK)
	}
	s.wrote = time.Now()
	line, err := encode(e)
	control := http.NewResponseController(s.w)
	if err == nil {
		err = control.SetWriteDeadline(s.wrote.Add(writeTimeout))
	}
	if err == nil {
		_, err = s.w.Write(line)
	}
	if err == nil {
		err = control.Flush()
	}
	if err != nil {
		s.cut()
	}
}
