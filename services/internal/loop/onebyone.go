package loop

import (
	"context"

	"github.com/google/uuid"
)

// OneByOne does what is due each by itself, after it could not be done together: one of them is at fault, or the database. What
// fails is put off, so that it holds up no other. It returns how many it took; its error is putOff's, and ends it.
func OneByOne(
	ctx context.Context, due []uuid.UUID, do func(ctx context.Context, id uuid.UUID) (int, error),
	putOff func(ctx context.Context, id uuid.UUID, cause error) error,
) (n int, err error) {
	for _, id := range due {
		if ctx.Err() != nil {
			return n, nil
		}
		one, err := do(ctx, id)
		if err != nil && ctx.Err() == nil {
			one, err = 1, putOff(ctx, id, err)
		}
		if err != nil {
			return n, err
		}
		n += one
	}
	return n, nil
}
