package contracts

import (
	"embed"
	"strings"
)

// Event is what every event of this package is.
type Event interface {
	// EventType is the CloudEvents type with its major version.
	EventType() string
	// EventKey is what the event is about; order is kept among events of one key.
	EventKey() string
	// Validate is nil, or an error that names the field that has no possible value.
	Validate() error
}

//go:embed schemas/*.json
var schemas embed.FS

// Schema is the JSON schema (draft 2020-12) of a type's body; false for a type that is not in this package.
func Schema(typ string) ([]byte, bool) {
	document, err := schemas.ReadFile("schemas/" + strings.TrimPrefix(typ, TypePrefix) + ".json")
	return document, err == nil && strings.HasPrefix(typ, TypePrefix)
}
