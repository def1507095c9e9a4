//go:build full

package saga

func init() { bounds = append(bounds, bound{retries: 1}, bound{copies: 1}) }
