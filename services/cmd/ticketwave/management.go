package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// management is RabbitMQ's HTTP API.
type management struct{ url string }

// makeVHost makes a virtual host that the user of the AMQP URL may do everything in, and returns its URL.
func (m management) makeVHost(ctx context.Context, name, amqpURL string) (string, error) {
	amqp, err := url.Parse(amqpURL)
	if err != nil {
		return "", err
	}
	if err := m.send(ctx, http.MethodPut, "/api/vhosts/"+name, map[string]any{}); err != nil {
		return "", err
	}
	rights := map[string]string{"configure": ".*", "write": ".*", "read": ".*"}
	if err := m.send(ctx, http.MethodPut, "/api/permissions/"+name+"/"+url.PathEscape(amqp.User.Username()), rights); err != nil {
		return "", err
	}
	amqp.Path = "/" + name
	return amqp.String(), nil
}

func (m management) dropVHost(ctx context.Context, name string) error {
	return m.send(ctx, http.MethodDelete, "/api/vhosts/"+name, nil)
}

func (m management) send(ctx context.Context, method, path string, body any) error {
	base, err := url.Parse(m.url)
	if err != nil {
		return err
	}
	user := base.User
	base.User = nil
	req, err := request(ctx, method, strings.TrimRight(base.String(), "/")+path, body)
	if err != nil {
		return err
	}
	password, _ := user.Password()
	req.SetBasicAuth(user.Username(), password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("RabbitMQ's management API: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("RabbitMQ's management API: %s %s: %s", method, path, resp.Status)
	}
	return nil
}

// brokerName is the virtual host, for people.
func brokerName(opts options) string {
	u, err := url.Parse(opts.AMQPURL)
	if err != nil {
		return "the broker"
	}
	return "virtual host " + u.Path
}
