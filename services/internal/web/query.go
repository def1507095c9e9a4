package web

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/gorilla/mux"
)

// ParseID takes a UUID in its usual form of 36 characters; anything else is a 400 that names the field.
func ParseID(field, value string) (uuid.UUID, error) {
	if value == "" {
		return uuid.Nil, Malformed(field, "is required")
	}
	id, err := uuid.Parse(value)
	if err != nil || len(value) != 36 {
		return uuid.Nil, Malformed(field, "must be a UUID such as 123e4567-e89b-12d3-a456-426614174000")
	}
	return id, nil
}

// PathID is the UUID in a route's variable.
func PathID(r *http.Request, name string) (uuid.UUID, error) {
	return ParseID(name, mux.Vars(r)[name])
}

// Query is the request's query, in which each parameter is one of those allowed and stands there once; anything
// else is a 400 that names it.
func Query(r *http.Request, allowed ...string) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, Malformed("", "the query is malformed")
	}
	for name, given := range values {
		if !slices.Contains(allowed, name) {
			return nil, Malformed(quoted(name), "unknown query parameter; the parameters are %s", strings.Join(allowed, ", "))
		}
		if len(given) > 1 {
			return nil, Malformed(name, "the query parameter stands there twice")
		}
	}
	return values, nil
}

// Limits of one page.
const (
	DefaultLimit = 50
	MaxLimit     = 200
)

// Page is which part of a list is asked for: at most Limit items with ids beyond After, in the order of ids.
type Page struct {
	After uuid.UUID
	Limit int
}

// ParsePage reads the query parameters after (the id that the page before ended with) and limit.
func ParsePage(query url.Values) (Page, error) {
	page := Page{Limit: DefaultLimit}
	if after := query.Get("after"); after != "" {
		id, err := ParseID("after", after)
		if err != nil {
			return page, err
		}
		page.After = id
	}
	if limit := query.Get("limit"); limit != "" {
		n, err := strconv.Atoi(limit)
		if err != nil || n < 1 || n > MaxLimit {
			return page, Malformed("limit", "must be a whole number from 1 to %d", MaxLimit)
		}
		page.Limit = n
	}
	return page, nil
}

// List is one page as JSON. Next is the value of "after" for the page that follows, and absent on the last one.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// NewList makes a page of the items found with a limit of page.Limit + 1: the one too many says that more follow.
func NewList[T any](items []T, page Page, id func(T) string) List[T] {
	list := List[T]{Items: items}
	if len(items) > page.Limit {
		list.Items = items[:page.Limit]
		list.Next = id(list.Items[page.Limit-1])
	}
	if list.Items == nil {
		list.Items = []T{}
	}
	return list
}
