package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

const maxAnswer = 64 << 20

// client is the API with the caller's token.
func (a *app) client() (*api.Client, error) {
	base, err := url.Parse(a.url)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, usagef("TW_ADMIN_URL is %q: want http://host:port or https://host:port", a.url)
	}
	if base.Scheme == "http" && !a.insecure && !local(base.Hostname()) {
		return nil, usagef("TW_ADMIN_URL is %q: the token would travel in the open; use https://, or --insecure where something else protects it", a.url)
	}
	token, err := a.secret()
	if err != nil {
		return nil, err
	}
	transport, err := a.transport()
	if err != nil {
		return nil, err
	}
	web := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return api.NewClient(a.url, api.WithHTTPClient(web), api.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("User-Agent", "outboxctl")
		return nil
	}))
}

func (a *app) transport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second,
	}
	if a.caFile == "" {
		return t, nil
	}
	document, err := os.ReadFile(a.caFile)
	if err != nil {
		return nil, usagef("TW_ADMIN_CA: %v", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(document) {
		return nil, usagef("TW_ADMIN_CA: %s has no certificate in PEM", a.caFile)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}

func local(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// secret is the token. It comes from the environment or a file, never from the command line, which others can see.
func (a *app) secret() (string, error) {
	token := a.getenv("TW_ADMIN_TOKEN")
	if a.tokenFile != "" {
		document, err := os.ReadFile(a.tokenFile)
		if err != nil {
			return "", usagef("TW_ADMIN_TOKEN_FILE: %v", err)
		}
		token = string(document)
	}
	token = strings.TrimSpace(token)
	if token == "" {
		return "", usagef("no token: set TW_ADMIN_TOKEN, or TW_ADMIN_TOKEN_FILE to a file that holds one (\"outboxctl token new\" makes one)")
	}
	if strings.ContainsAny(token, " \t\r\n") {
		return "", usagef("the token has more than one line or word")
	}
	return token, nil
}

// apiError is a problem that the API answered with.
type apiError struct {
	api.Problem
	retryAfter time.Duration
}

// busy reports that the same request may succeed in a moment.
func (e *apiError) busy() bool {
	return e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable
}

// Error is what went wrong, and what to do about it where that is known.
func (e *apiError) Error() string {
	text := e.Detail
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	switch e.slug() {
	case "unauthorized":
		return "the API does not know this token (TW_ADMIN_TOKEN, TW_ADMIN_TOKEN_FILE)"
	case "changed":
		return text + ": make a new plan with \"outboxctl replay plan\""
	case "internal":
		return text + ": " + e.RequestID
	}
	return text
}

func (e *apiError) slug() string {
	return e.Type[strings.LastIndexByte(e.Type, ':')+1:]
}

// call asks the API for a T.
func call[T any](ctx context.Context, a *app, ask func(ctx context.Context, c *api.Client) (*http.Response, error)) (answer T, err error) {
	c, err := a.client()
	if err != nil {
		return answer, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := ask(ctx, c)
	if err != nil {
		return answer, a.unreachable(err)
	}
	defer resp.Body.Close()
	if err := refused(resp); err != nil {
		return answer, err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&answer); err != nil {
		return answer, fmt.Errorf("%s answered what outboxctl cannot read: %w", a.url, err)
	}
	return answer, nil
}

// unreachable says where the API was looked for.
func (a *app) unreachable(err error) error {
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return fmt.Errorf("no answer from %s: %w (TW_ADMIN_URL sets another address)", a.url, err)
}

// refused is the problem that an answer is, if it is one.
func refused(resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	var p api.Problem
	document, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || json.Unmarshal(document, &p) != nil || p.Type == "" {
		return fmt.Errorf("the answer was %s: is this the administration API?", resp.Status)
	}
	after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || after < 0 {
		after = 0
	}
	return &apiError{p, time.Duration(min(after, 60)) * time.Second}
}
