package admin

import (
	"encoding/json"
	"reflect"
)

var raw = reflect.TypeFor[json.RawMessage]()

// fill returns a copy of v in which no list and no map is nil, so that JSON has [] and {} where the specification
// promises a list or an object.
func fill(v any) any {
	if v == nil {
		return nil
	}
	out := reflect.New(reflect.TypeOf(v)).Elem()
	out.Set(reflect.ValueOf(v))
	fillValue(out)
	return out.Interface()
}

func fillValue(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fillValue(v.Field(i))
			}
		}
	case reflect.Slice:
		fillSlice(v)
	case reflect.Map:
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
	case reflect.Pointer:
		if !v.IsNil() && v.Elem().Kind() == reflect.Struct {
			copied := reflect.New(v.Type().Elem())
			copied.Elem().Set(v.Elem())
			fillValue(copied.Elem())
			v.Set(copied)
		}
	}
}

func fillSlice(v reflect.Value) {
	if v.Type() == raw {
		return
	}
	copied := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
	reflect.Copy(copied, v)
	if v.Type().Elem().Kind() == reflect.Struct {
		for i := range copied.Len() {
			fillValue(copied.Index(i))
		}
	}
	v.Set(copied)
}
