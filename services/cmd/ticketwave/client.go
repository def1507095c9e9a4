package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// call sends one request and decodes the JSON answer into answer, which may be nil. A status of 400 or above is an
// error that shows the problem's detail.
func call(ctx context.Context, method, url string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := request(ctx, method, url, body)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	document, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var problem struct{ Detail, Field string }
		_ = json.Unmarshal(document, &problem) // shown as far as it can be read
		return &statusError{status: resp.StatusCode, text: fmt.Sprintf("%s %s: %s: %s %s", method, url, resp.Status, problem.Field, problem.Detail)}
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(document, answer)
}

func request(ctx context.Context, method, url string, body any) (*http.Request, error) {
	document := []byte{}
	if body != nil {
		var err error
		if document, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(document))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// statusError is an answer of 400 or above.
type statusError struct {
	status int
	text   string
}

// Error shows request and answer.
func (e *statusError) Error() string { return e.text }

// isStatus reports whether err is an answer with that status.
func isStatus(err error, status int) bool {
	var e *statusError
	return errors.As(err, &e) && e.status == status
}

// until calls look every 10 ms until it says yes; a deadline of ctx ends it with what was waited for.
func until(ctx context.Context, what string, look func() (bool, error)) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		ok, err := look()
		if ok {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waiting for %s: %w", what, ctx.Err()), last)
		case <-ticker.C:
		}
	}
}
