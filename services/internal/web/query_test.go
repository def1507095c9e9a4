package web_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/services/internal/web"
)

const id = "123e4567-e89b-12d3-a456-426614174000"

func isMalformed(t *testing.T, err error, field string) {
	t.Helper()
	var told *web.Error
	if !errors.As(err, &told) || told.Status != http.StatusBadRequest || told.Field != field {
		t.Errorf("%v, want a 400 for %q", err, field)
	}
}

func TestParseID(t *testing.T) {
	t.Parallel()
	for _, given := range []string{id, strings.ToUpper(id)} {
		if got, err := web.ParseID("x", given); err != nil || got.String() != id {
			t.Errorf("%v %v", got, err)
		}
	}
	for _, given := range []string{"", "1", "test-user-123", "urn:uuid:" + id, "{" + id + "}", strings.ReplaceAll(id, "-", ""), id + " "} {
		_, err := web.ParseID("x", given)
		isMalformed(t, err, "x")
	}
}

func TestQuery(t *testing.T) {
	t.Parallel()
	query := func(raw string) (url.Values, error) {
		return web.Query(httptest.NewRequest(http.MethodGet, "/?"+raw, nil), "a", "b")
	}
	if values, err := query("a=1&b=%20"); err != nil || values.Get("a") != "1" || values.Get("b") != " " {
		t.Errorf("%v %v", values, err)
	}
	for raw, field := range map[string]string{"c=1": "c", "a=1&a=1": "a", "A=1": "A", "a=%zz": "", "a=1;b=2": ""} {
		_, err := query(raw)
		isMalformed(t, err, field)
	}
}

func TestParsePage(t *testing.T) {
	t.Parallel()
	page, err := web.ParsePage(url.Values{})
	if err != nil || page.Limit != web.DefaultLimit || page.After.String() != "00000000-0000-0000-0000-000000000000" {
		t.Errorf("%v %v", page, err)
	}
	page, err = web.ParsePage(url.Values{"limit": {"200"}, "after": {id}})
	if err != nil || page.Limit != web.MaxLimit || page.After.String() != id {
		t.Errorf("%v %v", page, err)
	}
	for _, limit := range []string{"0", "-1", "201", "x", "1.0", "99999999999999999999"} {
		_, err := web.ParsePage(url.Values{"limit": {limit}})
		isMalformed(t, err, "limit")
	}
	_, err = web.ParsePage(url.Values{"after": {"x"}})
	isMalformed(t, err, "after")
}

func TestNewList(t *testing.T) {
	t.Parallel()
	page := web.Page{Limit: 2}
	for n, want := range []struct {
		items int
		next  string
	}{{0, ""}, {1, ""}, {2, ""}, {2, "1"}} {
		items := make([]int, n)
		for i := range items {
			items[i] = i
		}
		list := web.NewList(items, page, strconv.Itoa)
		if list.Items == nil || len(list.Items) != want.items || list.Next != want.next {
			t.Errorf("of %d found: %+v", n, list)
		}
	}
}
