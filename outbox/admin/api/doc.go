// Package api is the administration API in Go: types, the server's interface and a client, all generated from
// admin/openapi.yaml. "make generate" does it again after a change there.
package api

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config config.yaml ../openapi.yaml
//go:generate sh -c "sha256sum ../openapi.yaml config.yaml api.gen.go > generated.sha256"
