package booking

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/services/internal/web"
)

// answer does the work of a POST in one transaction and writes its answer: under an Idempotency-Key once, and the
// stored answer ever after. A request that fails stores nothing.
func (s *Service) answer(w http.ResponseWriter, r *http.Request, route string, request bookingRequest, do func(context.Context, pgx.Tx) (answer, error)) error {
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return err
	}
	var a answer
	err = outbox.InTx(r.Context(), s.pool, func(tx pgx.Tx) (err error) {
		if key == "" {
			a, err = do(r.Context(), tx)
			return err
		}
		a, err = once(r.Context(), tx, key, request.hash(route), do)
		return err
	})
	if err != nil {
		return err
	}
	w.Header().Set("Location", a.Location)
	web.WriteBody(w, a.Status, a.Body)
	return nil
}

// once claims the key before anything else, so that of two requests at the same moment one waits for the other.
func once(ctx context.Context, tx pgx.Tx, key string, request []byte, do func(context.Context, pgx.Tx) (answer, error)) (answer, error) {
	isNew, err := claimKey(ctx, tx, key, request)
	if err != nil {
		return answer{}, fmt.Errorf("claim the idempotency key: %w", err)
	}
	if !isNew {
		a, err := storedAnswer(ctx, tx, key, request)
		if errors.Is(err, pgx.ErrNoRows) {
			return a, web.Refused("Idempotency-Key", "was used for another request")
		}
		return a, err
	}
	a, err := do(ctx, tx)
	if err != nil {
		return a, err
	}
	if err := storeAnswer(ctx, tx, key, a); err != nil {
		return a, fmt.Errorf("store the answer: %w", err)
	}
	return a, nil
}

// idempotencyKey is the header's value, or empty when there is none.
func idempotencyKey(h http.Header) (string, error) {
	const name = "Idempotency-Key"
	given := h.Values(name)
	if len(given) == 0 {
		return "", nil
	}
	key := given[0]
	ok := len(given) == 1 && len(key) >= 1 && len(key) <= 255
	for i := 0; ok && i < len(key); i++ {
		ok = key[i] >= 0x20 && key[i] <= 0x7e
	}
	if !ok {
		return "", web.Malformed(name, "must stand there once and have 1 to 255 printable ASCII characters")
	}
	return key, nil
}

// hash is that of what is asked for, however the JSON was written.
func (r bookingRequest) hash(route string) []byte {
	canonical, err := json.Marshal([]any{route, normal(r.EventID), normal(r.UserID), r.TicketCount})
	if err != nil {
		panic(err) // strings and an int
	}
	sum := sha256.Sum256(canonical)
	return sum[:]
}

// normal is a UUID in lower case, and any other text as it is.
func normal(id string) string {
	if parsed, err := web.ParseID("", id); err == nil {
		return parsed.String()
	}
	return id
}
