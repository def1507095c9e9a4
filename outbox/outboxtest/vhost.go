package outboxtest

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// NewVHost makes an empty vhost and returns its AMQP URL. It is removed when the test ends.
func NewVHost(tb testing.TB) string {
	tb.Helper()
	servers := Env(tb)
	amqp, err := url.Parse(servers.AMQPURL)
	if err != nil {
		tb.Fatal("TW_AMQP_URL is not a URL")
	}
	name := "tw_test_" + uuid.NewString()[:13]
	Manage(tb, http.MethodPut, "/api/vhosts/"+name, "")
	Manage(tb, http.MethodPut, "/api/permissions/"+name+"/"+url.PathEscape(amqp.User.Username()), `{"configure":".*","write":".*","read":".*"}`)
	tb.Cleanup(func() { Manage(tb, http.MethodDelete, "/api/vhosts/"+name, "") })
	amqp.Path = "/" + name
	return amqp.String()
}

// Manage calls RabbitMQ's management API and returns the body of the answer; any error fails the test.
func Manage(tb testing.TB, method, path, body string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	base, err := url.Parse(Env(tb).ManagementURL)
	if err != nil {
		tb.Fatal("TW_RABBITMQ_MANAGEMENT_URL is not a URL")
	}
	user := base.User
	base.User = nil
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(base.String(), "/")+path, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	password, _ := user.Password()
	req.SetBasicAuth(user.Username(), password)
	answer, status, err := send(req)
	if err != nil || status >= 300 {
		tb.Fatalf("%s %s: status %d: %s %v", method, path, status, answer, err)
	}
	return answer
}

func send(req *http.Request) (string, int, error) {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	return string(answer), resp.StatusCode, err
}
