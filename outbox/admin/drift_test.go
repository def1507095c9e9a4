package admin_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/operate"
)

// What package operate returns is what the specification says, member by member, full or empty, and what the
// generated client reads.
func TestTypesFitTheSpecification(t *testing.T) {
	t.Parallel()
	s := readSpec(t)
	for name, c := range map[string]struct{ served, read any }{
		"Status": {operate.Status{}, api.Status{}}, "PartitionStatus": {operate.PartitionStatus{}, api.PartitionStatus{}},
		"Group": {operate.Group{}, api.Group{}}, "Stuck": {operate.Stuck{}, api.Stuck{}}, "Detail": {operate.Detail{}, api.Detail{}},
		"Result": {operate.Result{}, api.Result{}}, "Left": {operate.Left{}, api.Left{}}, "AuditEntry": {operate.AuditEntry{}, api.AuditEntry{}},
		"AuditReport": {operate.AuditReport{}, api.AuditReport{}}, "Where": {operate.Where{}, api.Where{}}, "Plan": {operate.Plan{}, api.Plan{}},
		"PlanRequest": {operate.PlanRequest{}, api.PlanRequest{}}, "Applied": {operate.Applied{}, api.Applied{}},
		"DeadMessage": {operate.DeadMessage{}, api.DeadMessage{}}, "DeadResult": {operate.DeadResult{}, api.DeadResult{}},
		"Cursor": {operate.Cursor{}, api.Cursor{}}, "Rebased": {operate.Rebased{}, api.Rebased{}}, "Finding": {operate.Finding{}, api.Finding{}},
		"Reconciliation": {operate.Reconciliation{}, api.Reconciliation{}}, "Gap": {operate.Gap{}, api.Gap{}},
		"Problem": {api.Problem{}, api.Problem{}},
	} {
		full := reflect.New(reflect.TypeOf(c.served)).Elem()
		occupy(full, 0)
		for _, value := range []any{full.Interface(), sparse(c.served)} {
			document, err := admin.Encode(value)
			if err != nil {
				t.Fatal(err)
			}
			s.check(t, "/components/schemas/"+name, document)
			read := reflect.New(reflect.TypeOf(c.read))
			decoder := json.NewDecoder(bytes.NewReader(document))
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(read.Interface()); err != nil {
				t.Errorf("%s: %v in %s", name, err, document)
			}
		}
	}
}

// words are values of the types that have few.
var words = map[string]string{
	"Side": "inbox", "State": "parked", "Severity": "warning", "LeftCode": "busy",
}

// occupy puts something into every field.
func occupy(v reflect.Value, depth int) {
	if depth > 6 {
		return
	}
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)))
		return
	case uuid.UUID:
		v.Set(reflect.ValueOf(uuid.MustParse("0199e4a2-7b7c-7d0e-8f3a-2f6f5a1b9c01")))
		return
	case json.RawMessage:
		v.Set(reflect.ValueOf(json.RawMessage(`{"changed":1}`)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.Name == "State" && f.Type.Kind() == reflect.String && f.Type.Name() == "string" {
				v.Field(i).SetString("dead") // of Where and Consumed
				continue
			}
			occupy(v.Field(i), depth+1)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		occupy(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		occupy(v.Index(0), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		occupy(value, depth+1)
		v.SetMapIndex(reflect.ValueOf("name"), value)
	case reflect.String:
		text := words[v.Type().Name()]
		if text == "" {
			text = "text"
		}
		v.SetString(text)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8:
		v.SetUint(65)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Bool:
		v.SetBool(true)
	}
}

// sparse is a value with nothing in it but the words that are never empty.
func sparse(served any) any {
	v := reflect.New(reflect.TypeOf(served)).Elem()
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		if v.Kind() != reflect.Struct {
			if word := words[v.Type().Name()]; v.Kind() == reflect.String && word != "" {
				v.SetString(word)
			}
			return
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			switch {
			case !f.IsExported():
			case f.Name == "State" && f.Type.Name() == "string":
				v.Field(i).SetString("unknown")
			case f.Name == "Database" && reflect.TypeOf(served) == reflect.TypeFor[operate.PlanRequest](), f.Name == "Request":
				occupy(v.Field(i), 0)
			default:
				walk(v.Field(i))
			}
		}
	}
	walk(v)
	return v.Interface()
}
