package relay

import (
	"encoding/json"
	"testing"
)

// Whatever JSON a row's metadata is, its names are kept and its texts are what they were.
func FuzzHeaders(f *testing.F) {
	for _, seed := range []string{``, `{}`, `{"a":"b"}`, `{"a":null,"b":1}`, `{"a":{"b":[true]}}`, `[]`, `7`, `null`, `{"a":"\ud800"}`, `{"":""}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, metadata []byte) {
		got := row{Metadata: metadata}.headers()
		got["writable"] = "" // the relay adds its own
		delete(got, "writable")
		var want map[string]any
		if json.Unmarshal(metadata, &want) != nil || want == nil {
			if len(got) != 0 {
				t.Errorf("%q gives %q", metadata, got)
			}
			return
		}
		for name, value := range want {
			given, ok := got[name]
			if text, is := value.(string); !ok || is && text != given {
				t.Errorf("%q gives %q", metadata, got)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%q gives %q", metadata, got)
		}
	})
}
