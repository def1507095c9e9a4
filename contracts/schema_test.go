package contracts_test

import (
	"encoding/json"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jcp/ticketwave/contracts"
)

// schema is the part of JSON Schema that the schemas of this package use.
type schema struct {
	Dialect    string            `json:"$schema"`
	ID         string            `json:"$id"`
	Title      string            `json:"title"`
	Type       any               `json:"type"`
	Required   []string          `json:"required"`
	Properties map[string]schema `json:"properties"`

	Description string   `json:"description"`
	Format      string   `json:"format"`
	Pattern     string   `json:"pattern"`
	Enum        []string `json:"enum"`
	Not         *struct {
		Const string `json:"const"`
	} `json:"not"`
	Minimum   *float64 `json:"minimum"`
	Maximum   *float64 `json:"maximum"`
	MinLength *int     `json:"minLength"`
	MaxLength *int     `json:"maxLength"`
}

func schemaOf(t *testing.T, event contracts.Event) schema {
	t.Helper()
	document, ok := contracts.Schema(event.EventType())
	if !ok {
		t.Fatalf("no schema of %s", event.EventType())
	}
	var s schema
	decoder := json.NewDecoder(strings.NewReader(string(document)))
	decoder.DisallowUnknownFields() // a keyword that takes would not check
	if err := decoder.Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// takes reports whether a decoded JSON value fits the schema of a property.
func (s schema) takes(value any) bool {
	switch v := value.(type) {
	case nil:
		return s.is("null")
	case bool:
		return s.is("boolean")
	case float64:
		return s.is("integer") && v == math.Trunc(v) && (s.Minimum == nil || v >= *s.Minimum) && (s.Maximum == nil || v <= *s.Maximum)
	case string:
		return s.is("string") && s.takesText(v)
	}
	return false
}

func (s schema) takesText(v string) bool {
	length := utf8.RuneCountInString(v)
	return regexp.MustCompile(s.Pattern).MatchString(v) &&
		(s.Enum == nil || slices.Contains(s.Enum, v)) && (s.Not == nil || s.Not.Const != v) &&
		(s.MinLength == nil || length >= *s.MinLength) && (s.MaxLength == nil || length <= *s.MaxLength)
}

func (s schema) is(kind string) bool {
	if list, ok := s.Type.([]any); ok {
		return slices.Contains(list, any(kind))
	}
	return s.Type == kind
}

// kinds are the JSON types of a Go field.
func kinds(t reflect.Type) any {
	switch t.Kind() {
	case reflect.Pointer:
		return []any{kinds(t.Elem()), "null"}
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int64:
		if t != reflect.TypeFor[contracts.Amount]() {
			return "integer"
		}
	}
	return "string"
}

func TestSchemasHaveTheFieldsOfTheStructs(t *testing.T) {
	t.Parallel()
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		s, typ := schemaOf(t, event), reflect.TypeOf(event)
		if s.Dialect != "https://json-schema.org/draft/2020-12/schema" || s.ID != "urn:"+strings.Replace(event.EventType(), ".", ":", 1) ||
			s.Title != typ.Name() || s.Description == "" || s.Type != "object" {
			t.Errorf("the head of the schema is %+v", s)
		}
		var names []string
		for _, field := range reflect.VisibleFields(typ) {
			name := field.Tag.Get("json")
			if want := strings.ToLower(field.Name[:1]) + field.Name[1:]; !strings.EqualFold(name, want) || strings.Contains(name, ",") {
				t.Errorf("field %s is %q in JSON", field.Name, name)
			}
			property, ok := s.Properties[name]
			if !ok || !reflect.DeepEqual(property.Type, kinds(field.Type)) {
				t.Errorf("property %s is of type %v, want %v", name, property.Type, kinds(field.Type))
			}
			if isTime := field.Type == reflect.TypeFor[time.Time](); isTime != (property.Format == "date-time") {
				t.Errorf("property %s has format %q", name, property.Format)
			}
			names = append(names, name)
		}
		if !slices.Equal(s.Required, names) || len(s.Properties) != len(names) {
			t.Errorf("the struct has %v, the schema requires %v of %d properties", names, s.Required, len(s.Properties))
		}
	})
}

func TestSchemasTakeTheExamples(t *testing.T) {
	t.Parallel()
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		s := schemaOf(t, event)
		for name, value := range fieldsOf(t, event) {
			if !s.Properties[name].takes(value) {
				t.Errorf("%s = %v does not fit its schema", name, value)
			}
		}
	})
}

// Schema and Validate are two texts of one rule: a value that the schema takes is one that Validate takes.
func TestSchemasRefuseWhatValidateRefuses(t *testing.T) {
	t.Parallel()
	beyond := []string{"name", "paymentUrl", "errorMessage"} // rules that a schema cannot say
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		s := schemaOf(t, event)
		for _, field := range reflect.VisibleFields(reflect.TypeOf(event)) {
			name := field.Tag.Get("json")
			for _, value := range bad(field, name) {
				var decoded any
				if err := json.Unmarshal(mustEncode(t, value), &decoded); err != nil {
					t.Fatal(err)
				}
				nilID := decoded == "00000000-0000-0000-0000-000000000000"
				if s.Properties[name].takes(decoded) && !slices.Contains(beyond, name) && !nilID {
					t.Errorf("the schema takes %s = %v", name, value)
				}
			}
		}
	})
}

func TestSchemasHaveTheValuesOfTheEnumerations(t *testing.T) {
	t.Parallel()
	eachEvent(t, func(t *testing.T, event contracts.Event) {
		s := schemaOf(t, event)
		for _, field := range reflect.VisibleFields(reflect.TypeOf(event)) {
			name := field.Tag.Get("json")
			property, into := s.Properties[name], reflect.New(field.Type)
			known, isKnown := into.Interface().(interface{ Valid() bool })
			isKnown = isKnown && field.Type.Kind() == reflect.String
			if (property.Enum != nil) != isKnown {
				t.Errorf("%s has the enumeration %v", name, property.Enum)
				continue
			}
			for _, value := range property.Enum {
				if into.Elem().SetString(value); !known.Valid() {
					t.Errorf("%s = %s stands in the schema and is not known", name, value)
				}
			}
		}
	})
}

func TestSchemaOfAnUnknownType(t *testing.T) {
	t.Parallel()
	for _, typ := range []string{"", "ticketwave.catalog.nothing.v1", "catalog.inventory-updated.v1", "ticketwave.../doc"} {
		if _, ok := contracts.Schema(typ); ok {
			t.Errorf("%q has a schema", typ)
		}
	}
}
