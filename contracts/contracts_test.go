package contracts_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jcp/ticketwave/contracts"
)

var update = flag.Bool("update", false, "write the golden files anew")

func file(folder, typ string) string {
	return filepath.Join(folder, strings.TrimPrefix(typ, contracts.TypePrefix)+".json")
}

// eachEvent runs a sub-test for the example of every event.
func eachEvent(t *testing.T, test func(t *testing.T, event contracts.Event)) {
	for _, event := range contracts.All() {
		t.Run(reflect.TypeOf(event).Name(), func(t *testing.T) {
			t.Parallel()
			test(t, event)
		})
	}
}

// decode reads a body into a fresh value of the event's own type.
func decode(event contracts.Event, body []byte) (contracts.Event, error) {
	into := reflect.New(reflect.TypeOf(event))
	err := json.Unmarshal(body, into.Interface())
	return into.Elem().Interface().(contracts.Event), err
}

func mustEncode(t *testing.T, v any) []byte {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestGolden(t *testing.T) {
	t.Parallel()
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		body, err := json.MarshalIndent(event, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		body = append(body, '\n')
		golden := file("testdata", event.EventType())
		if *update {
			if err := os.WriteFile(golden, body, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body, want) {
			t.Errorf("the JSON of %s has changed; is that a new version?\ngot  %s\nwant %s", event.EventType(), body, want)
		}
		decoded, err := decode(event, want)
		if err != nil || !reflect.DeepEqual(decoded, event) {
			t.Errorf("the golden file decodes to %+v, %v; want %+v", decoded, err, event)
		}
	})
}

func TestGoldenFilesAreAllOfAnEvent(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"testdata", "schemas"} {
		found, err := filepath.Glob(folder + "/*.json")
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, event := range contracts.All() {
			want = append(want, file(folder, event.EventType()))
		}
		slices.Sort(want)
		if !slices.Equal(found, want) {
			t.Errorf("%s has %v, want %v", folder, found, want)
		}
	}
}

func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		if err := event.Validate(); err != nil {
			t.Error(err)
		}
	})
}

func TestTypesAndKeys(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^ticketwave\.(booking|catalog|payment|notification)\.[a-z]+(-[a-z]+)*\.v[1-9]$`)
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		if !form.MatchString(event.EventType()) {
			t.Errorf("type %q", event.EventType())
		}
		field := "BookingID"
		if event.EventType() == contracts.TypeCatalogEventPublished {
			field = "EventID"
		}
		if want := reflect.ValueOf(event).FieldByName(field).String(); event.EventKey() != want || want == "" {
			t.Errorf("key %q, want the %s %q", event.EventKey(), field, want)
		}
	})
}

// A reader of this version must take what a later minor version adds.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	t.Parallel()
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		body := mustEncode(t, event)
		body = append([]byte(`{"addedLater":{"a":[1,null]},"$":7,`), body[1:]...)
		decoded, err := decode(event, body)
		if err != nil || !reflect.DeepEqual(decoded, event) {
			t.Errorf("decoded to %+v, %v", decoded, err)
		}
	})
}

// Every field is needed: a body without it must be refused where zero is no possible value.
func TestMissingFieldsAreRefused(t *testing.T) {
	t.Parallel()
	zero := []string{"currentAvailableTickets", "availableTickets", "quantityReleased", "errorMessage"} // the last ticket may be gone
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		for name := range fieldsOf(t, event) {
			fields := fieldsOf(t, event)
			delete(fields, name)
			decoded, err := decode(event, mustEncode(t, fields))
			if err == nil {
				err = decoded.Validate()
			}
			if err == nil && !slices.Contains(zero, name) {
				t.Errorf("a body without %s is taken", name)
			}
		}
	})
}

func fieldsOf(t *testing.T, event contracts.Event) map[string]any {
	t.Helper()
	fields := map[string]any{}
	if err := json.Unmarshal(mustEncode(t, event), &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}

// bad are values that no field of a kind may have. The kind of a field is told from its Go type and name.
func bad(field reflect.StructField, name string) []any {
	switch {
	case field.Type == reflect.TypeFor[time.Time]():
		return []any{"", "2026-05-04", "yesterday", 1}
	case field.Type == reflect.TypeFor[contracts.Amount]():
		return []any{"0.00", "-1.00", "1.001", "1e3", "", 25, 25.5, nil, "1000000000000.00"}
	case strings.HasSuffix(name, "Id"):
		return []any{"", "test-user-123", "123E4567-E89B-12D3-A456-426614174000", "123e4567e89b12d3a456426614174000",
			"00000000-0000-0000-0000-000000000000", "123e4567-e89b-12d3-a456-42661417400g", 7}
	case name == "currency":
		return []any{"", "eur", "EURO", "E1R"}
	case name == "name":
		return []any{"", " x", "a\nb", strings.Repeat("x", contracts.MaxName+1), "\u202e"}
	case name == "paymentUrl":
		return []any{"", "javascript:alert(1)", "/pay", "https://", "https://pay.example/" + strings.Repeat("x", contracts.MaxURL)}
	case name == "errorMessage":
		return []any{"a failure beside success"}
	case field.Type.Kind() == reflect.String:
		return []any{"", "something_else", "EMAIL"}
	case field.Type.Kind() == reflect.Int:
		return []any{-1, 1.5, contracts.MaxTickets + 1, "2"}
	case field.Type.Kind() == reflect.Int64:
		return []any{-1, 0, 1.5}
	}
	return []any{"true", 1}
}

func TestImpossibleValuesAreRefused(t *testing.T) {
	t.Parallel()
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		for _, field := range reflect.VisibleFields(reflect.TypeOf(event)) {
			name := field.Tag.Get("json")
			for _, value := range bad(field, name) {
				fields := fieldsOf(t, event)
				fields[name] = value
				decoded, err := decode(event, mustEncode(t, fields))
				if err != nil {
					continue
				}
				if err := decoded.Validate(); err == nil || !strings.HasPrefix(err.Error(), name) && !strings.Contains(err.Error(), "currentAvailableTickets") {
					t.Errorf("%s = %v: %v, want an error that names the field", name, value, err)
				}
			}
		}
	})
}

func TestInventoryUpdatedGoesItsWay(t *testing.T) {
	t.Parallel()
	event := contracts.All()[4].(contracts.InventoryUpdated)
	event.UpdateType = contracts.UpdateReleased
	if event.Validate() == nil {
		t.Error("a release that leaves fewer tickets is taken")
	}
	event.PreviousAvailableTickets, event.CurrentAvailableTickets = 98, 100
	if err := event.Validate(); err != nil {
		t.Error(err)
	}
}

func TestNotificationSentHasAMessageOrSuccess(t *testing.T) {
	t.Parallel()
	event := contracts.All()[7].(contracts.NotificationSent)
	if !bytes.Contains(mustEncode(t, event), []byte(`"errorMessage":null`)) {
		t.Error("an absent errorMessage must be written as null")
	}
	event.Success = false
	if event.Validate() == nil {
		t.Error("no success and no message is taken")
	}
	message := "550 mailbox unavailable"
	event.ErrorMessage = &message
	if err := event.Validate(); err != nil {
		t.Error(err)
	}
	message = strings.Repeat("ü", contracts.MaxErrorMessage+1)
	if event.Validate() == nil {
		t.Error("an endless message is taken")
	}
}
