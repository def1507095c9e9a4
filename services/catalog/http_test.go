package catalog_test

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/services/catalog"
	"github.com/jcp/ticketwave/services/internal/web"
)

const documented = "123e4567-e89b-12d3-a456-426614174000"

func TestCreateAnEvent(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	answer := s.request(http.MethodPost, "/api/events", body(map[string]any{
		"eventId": strings.ToUpper(documented), "startsAt": "2150-09-12T21:30:00.1234567+02:00", "price": "25.5",
	}))
	if answer.Code != http.StatusCreated || answer.Header().Get("Location") != "/api/events/"+documented {
		t.Fatalf("%d %v %s", answer.Code, answer.Header(), answer.Body)
	}
	created := decode[map[string]any](t, answer.Body.Bytes())
	if _, err := time.Parse(time.RFC3339, created["createdAt"].(string)); err != nil {
		t.Error(err)
	}
	want := map[string]any{
		"eventId": documented, "name": "Symphony No. 9", "startsAt": "2150-09-12T19:30:00.123456Z", "price": "25.50",
		"currency": "EUR", "capacity": 100.0, "available": 100.0, "held": 0.0, "sold": 0.0, "version": 1.0, "createdAt": created["createdAt"],
	}
	for name, value := range want {
		if created[name] != value {
			t.Errorf("%s is %v, want %v", name, created[name], value)
		}
	}
	if len(created) != len(want) {
		t.Errorf("the answer is %v", created)
	}
	if got := s.request(http.MethodGet, "/api/events/"+documented, ""); got.Code != http.StatusOK || got.Body.String() != answer.Body.String() {
		t.Errorf("GET: %d %s", got.Code, got.Body)
	}
}

func TestCreatingPublishes(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	e := s.create(t, 100)
	messages := s.published(t, e.ID)
	event := only[contracts.CatalogEventPublished](t, messages)
	want := contracts.CatalogEventPublished{
		EventID: e.ID.String(), Name: e.Name, StartsAt: e.StartsAt, Price: 2500, Currency: "EUR", Capacity: 100, Version: 1, PublishedAt: e.CreatedAt,
	}
	if event != want {
		t.Errorf("published %+v, want %+v", event, want)
	}
	if messages[0].Metadata[outbox.HeaderCorrelationID] != "flow-1" {
		t.Errorf("its metadata is %v", messages[0].Metadata)
	}
}

func TestCreatingTwice(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	same := body(map[string]any{"eventId": documented})
	first := s.request(http.MethodPost, "/api/events", same)
	second := s.request(http.MethodPost, "/api/events", same)
	if second.Code != http.StatusCreated || second.Body.String() != first.Body.String() || second.Header().Get("Location") != first.Header().Get("Location") {
		t.Errorf("the same again: %d %s", second.Code, second.Body)
	}
	for name, value := range map[string]any{"name": "Other", "startsAt": "2150-09-12T19:30:01Z", "price": "25.01", "currency": "CHF", "capacity": 101} {
		other := s.request(http.MethodPost, "/api/events", body(map[string]any{"eventId": documented, name: value}))
		if other.Code != http.StatusConflict {
			t.Errorf("another %s: %d %s", name, other.Code, other.Body)
		}
	}
	only[contracts.CatalogEventPublished](t, s.published(t, uuid.MustParse(documented)))
}

func TestCreatingAtTheSameMoment(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	answers := make([]string, 20)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			answer := s.request(http.MethodPost, "/api/events", body(map[string]any{"eventId": documented}))
			answers[i] = answer.Result().Status + answer.Body.String()
		})
	}
	wg.Wait()
	if distinct := slices.Compact(slices.Sorted(slices.Values(answers))); len(distinct) != 1 || !strings.HasPrefix(distinct[0], "201") {
		t.Errorf("the answers are %v", distinct)
	}
	only[contracts.CatalogEventPublished](t, s.published(t, uuid.MustParse(documented)))
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, test := range []struct {
		field  string
		value  any
		status int
	}{
		{"eventId", "1", 400}, {"eventId", uuid.Nil.String(), 422}, {"eventId", 7, 400},
		{"name", nil, 422}, {"name", "", 422}, {"name", " x", 422}, {"name", "a\u0000b", 422}, {"name", "a\nb", 422}, {"name", strings.Repeat("ü", 201), 422}, {"name", 1, 400},
		{"startsAt", nil, 400}, {"startsAt", "2150-09-12", 400}, {"startsAt", "2150-13-12T19:30:00Z", 400}, {"startsAt", "2020-01-01T00:00:00Z", 422}, {"startsAt", "9999-12-31T23:59:59Z", 422}, {"startsAt", "0000-01-01T00:00:00Z", 422},
		{"price", nil, 400}, {"price", 25, 400}, {"price", "25,00", 400}, {"price", "1.001", 400}, {"price", "-1.00", 400}, {"price", "0.00", 422}, {"price", "1000000.01", 422}, {"price", "99999999999999", 400},
		{"currency", nil, 422}, {"currency", "eur", 422}, {"currency", "EURO", 422},
		{"capacity", nil, 422}, {"capacity", 0, 422}, {"capacity", -5, 422}, {"capacity", 1_000_001, 422}, {"capacity", 1.5, 400}, {"capacity", "100", 400}, {"capacity", 1e300, 400},
		{"available", 3, 400}, {"Name", "x", 400},
	} {
		answer := s.request(http.MethodPost, "/api/events", body(map[string]any{test.field: test.value}))
		problem := decode[struct{ Field, Detail string }](t, answer.Body.Bytes())
		if answer.Code != test.status || problem.Field != test.field || problem.Detail == "" {
			t.Errorf("%s = %v: %d %s", test.field, test.value, answer.Code, answer.Body)
		}
	}
	var events, messages int
	err := s.db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM catalog.events), (SELECT count(*) FROM outbox.messages)`).Scan(&events, &messages)
	if err != nil || events+messages != 0 {
		t.Errorf("left are %d events and %d messages, %v", events, messages, err)
	}
}

func TestCreateTakesTheLimits(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, replace := range []map[string]any{
		{"name": strings.Repeat("ü", 200), "price": "1000000", "capacity": 1_000_000, "startsAt": "2200-12-31T23:59:59.999999Z"},
		{"name": "ß", "price": "0.01", "capacity": 1},
	} {
		answer := s.request(http.MethodPost, "/api/events", body(replace))
		if answer.Code != http.StatusCreated {
			t.Errorf("%v: %d %s", replace, answer.Code, answer.Body)
			continue
		}
		only[contracts.CatalogEventPublished](t, s.published(t, decode[catalog.Event](t, answer.Body.Bytes()).ID))
	}
}

func TestGetRefuses(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for path, status := range map[string]int{
		"/api/events/" + documented: 404, "/api/events/1": 400, "/api/events?limit=0": 400, "/api/events?limit=201": 400,
		"/api/events?after=x": 400, "/api/events?page=2": 400,
	} {
		answer := s.request(http.MethodGet, path, "")
		if answer.Code != status || answer.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", path, answer.Code, answer.Body)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	if answer := s.request(http.MethodGet, "/api/events", ""); answer.Body.String() != `{"items":[]}` {
		t.Errorf("no events are %s", answer.Body)
	}
	var want []string
	for range 5 {
		id := uuid.NewString() // not in the order of creation
		s.request(http.MethodPost, "/api/events", body(map[string]any{"eventId": id}))
		want = append(want, id)
	}
	slices.Sort(want)
	var got []string
	pages := 0
	for after := ""; pages < 10; pages++ {
		answer := s.request(http.MethodGet, "/api/events?limit=2"+after, "")
		list := decode[web.List[catalog.Event]](t, answer.Body.Bytes())
		for _, e := range list.Items {
			got = append(got, e.ID.String())
		}
		if list.Next == "" {
			break
		}
		after = "&after=" + list.Next
	}
	if !slices.Equal(got, want) || pages != 2 {
		t.Errorf("pages up to %d gave %v, want %v", pages, got, want)
	}
}

func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	service, err := catalog.New(catalog.Config{Pool: outboxtest.NewPool(t, "postgres://nobody@127.0.0.1:1/none")})
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{service: service, router: web.NewRouter(web.Config{})}
	service.Routes(s.router)
	for method, path := range map[string]string{http.MethodGet: "/api/events", http.MethodPost: "/api/events", http.MethodHead: "/api/events/" + documented} {
		answer := s.request(method, path, body(nil))
		if answer.Code != http.StatusServiceUnavailable || answer.Header().Get("Retry-After") == "" {
			t.Errorf("%s: %d %v %s", method, answer.Code, answer.Header(), answer.Body)
		}
	}
}
