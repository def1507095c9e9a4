//go:build full

package inbox_test

import (
	"fmt"
	"testing"
)

// The process dies before, or after, each of its statements.
func TestKilledAtAnyStatement(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		for n := range 60 {
			t.Run(fmt.Sprintf("%d,after=%v", n, after), func(t *testing.T) {
				t.Parallel()
				newBench(t).dies(step{After: after, Nth: n + 1})
			})
		}
	}
}
