package loop_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/services/internal/loop"
)

func TestStep(t *testing.T) {
	t.Parallel()
	bad, late, away := errors.New("bad row"), fmt.Errorf("update: %w", context.DeadlineExceeded), errors.New("away")
	rows := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
	for name, c := range map[string]struct {
		together error
		each     [3]error
		list     error
		store    error // of what is put off
		taken    int
		putOff   []int
		err      error
	}{
		"together":                             {taken: 3},
		"one is bad":                           {together: bad, each: [3]error{nil, bad, nil}, taken: 3, putOff: []int{1}},
		"all are bad":                          {together: bad, each: [3]error{bad, bad, bad}, taken: 3, putOff: []int{0, 1, 2}},
		"none by itself":                       {together: bad, taken: 3, err: bad},
		"one takes too long, and ends it":      {together: late, each: [3]error{nil, late, bad}, taken: 2, putOff: []int{1}, err: late},
		"they cannot be listed":                {together: away, list: bad, err: away},
		"what is bad cannot be put off either": {together: bad, each: [3]error{bad, bad, bad}, store: away, taken: 1, putOff: []int{0}, err: away},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var putOff []int
			due := loop.Due{
				Do: func(_ context.Context, which uuid.NullUUID) (int, error) {
					if !which.Valid {
						return map[bool]int{true: len(rows)}[c.together == nil], c.together
					}
					err := c.each[slices.Index(rows, which.UUID)]
					return map[bool]int{true: 1}[err == nil], err
				},
				List: func(context.Context) ([]uuid.UUID, error) { return rows, c.list },
				PutOff: func(_ context.Context, id uuid.UUID, cause error) error {
					if n := slices.Index(rows, id); !errors.Is(cause, c.each[n]) {
						t.Errorf("row %d is put off because of %v", n, cause)
					}
					putOff = append(putOff, slices.Index(rows, id))
					return c.store
				},
			}
			n, err := due.Step(t.Context())
			if n != c.taken || !errors.Is(err, c.err) || c.err == nil && err != nil || !slices.Equal(putOff, c.putOff) {
				t.Errorf("%d taken, %v put off, error %v; want %d, %v, %v", n, putOff, err, c.taken, c.putOff, c.err)
			}
		})
	}
}
