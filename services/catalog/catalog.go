package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/services/internal/web"
)

// Limits of an event, beside those of package contracts.
const (
	// MaxPrice is the highest price of one ticket, 1000000.00.
	MaxPrice contracts.Amount = 100_000_000
	// lastYear bounds startsAt; it is further than tickets are sold and within what every reader can write.
	lastYear = 2200
)

// Event is something with tickets to sell.
type Event struct {
	ID       uuid.UUID        `db:"id" json:"eventId"`
	Name     string           `db:"name" json:"name"`
	StartsAt time.Time        `db:"starts_at" json:"startsAt"`
	Price    contracts.Amount `db:"price_minor" json:"price"`
	Currency string           `db:"currency" json:"currency"`
	Capacity int              `db:"capacity" json:"capacity"`
	// Available is how many tickets are left.
	Available int `db:"available" json:"available"`
	// Held is how many are held for bookings that are not paid yet.
	Held int `db:"held" json:"held"`
	// Sold is how many belong to confirmed bookings.
	Sold int `db:"sold" json:"sold"`
	// Version counts the changes, from 1.
	Version   int64     `db:"version" json:"version"`
	CreatedAt time.Time `db:"created_at" json:"createdAt"`
}

// describes reports whether both are the same event as it was put on sale, whatever was sold since.
func (e Event) describes(other Event) bool {
	return e.ID == other.ID && e.Name == other.Name && e.StartsAt.Equal(other.StartsAt) && e.Price == other.Price &&
		e.Currency == other.Currency && e.Capacity == other.Capacity
}

// Config of a Service.
type Config struct {
	// Pool connects as a role that is a member of catalog_service, outbox_writer and inbox_consumer.
	Pool *pgxpool.Pool
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Now tells whether an event lies ahead. Default time.Now.
	Now func() time.Time
}

// Service is the catalog.
type Service struct {
	pool *pgxpool.Pool
	log  *slog.Logger
	now  func() time.Time
}

// New makes a Service. It does not touch the database.
func New(cfg Config) (*Service, error) {
	if cfg.Pool == nil {
		return nil, errors.New("catalog: config has no Pool")
	}
	s := &Service{pool: cfg.Pool, log: cfg.Logger, now: cfg.Now}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s, nil
}

// Create puts an event on sale, all of its capacity available, and publishes CatalogEventPublished with it. An id
// that is there already gives the event as it stands now, and publishes nothing, if the description is the same;
// another description is a conflict. The fields must be within the limits.
func (s *Service) Create(ctx context.Context, e Event) (Event, error) {
	var stored Event
	err := outbox.InTx(ctx, s.pool, func(tx pgx.Tx) (err error) {
		stored, err = s.create(ctx, tx, e)
		return err
	})
	return stored, err
}

func (s *Service) create(ctx context.Context, tx pgx.Tx, e Event) (Event, error) {
	created, isNew, err := insertEvent(ctx, tx, e)
	switch {
	case err != nil:
		return Event{}, fmt.Errorf("insert event %s: %w", e.ID, err)
	case !isNew:
		return existing(ctx, tx, e)
	case !created.StartsAt.After(s.now()):
		return Event{}, web.Refused("startsAt", "must lie ahead")
	}
	s.log.InfoContext(ctx, logCreated, "event_id", created.ID.String(), "capacity", created.Capacity)
	return created, outbox.Append(ctx, tx, created.published())
}

// existing is the event that has e's id already.
func existing(ctx context.Context, tx pgx.Tx, e Event) (Event, error) {
	stored, err := eventByID(ctx, tx, e.ID)
	switch {
	case err != nil:
		return Event{}, fmt.Errorf("read event %s: %w", e.ID, err)
	case !stored.describes(e):
		return Event{}, web.Conflict("there is another event with the id %s", e.ID)
	}
	return stored, nil
}

// Reserve handles UpdateEventInventory: it holds the tickets if there are enough, and publishes InventoryUpdated or
// InventoryUpdateRejected. A booking that asked before gets its first answer again and nothing is taken; one whose tickets
// were released, before or after it asked, gets InventoryReleased. The requests must be valid, and of different bookings.
func (s *Service) Reserve(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.UpdateEventInventory]) error {
	for _, r := range requests {
		s.logger(r.Event).InfoContext(r.Context(), logProcessing)
	}
	taken, err := takeAll(ctx, tx, requests)
	if err != nil {
		return fmt.Errorf("reserve tickets for %d bookings: %w", len(requests), err)
	}
	for i, r := range requests {
		if err := s.reserved(r.Context(), tx, r.Event, taken[i]); err != nil {
			return fmt.Errorf("reserve %d of event %s for booking %s: %w", r.Event.QuantityReduced, r.Event.EventID, r.Event.BookingID, err)
		}
	}
	return nil
}

// reserved answers a request: with what was taken, or why nothing was, or what the booking was told before.
func (s *Service) reserved(ctx context.Context, tx pgx.Tx, request contracts.UpdateEventInventory, taken *reservation) (err error) {
	isFirst := true
	if taken == nil {
		if taken, isFirst, err = notTaken(ctx, tx, request); err != nil {
			return err
		}
	}
	log := s.logger(request)
	taken.log(ctx, log, isFirst)
	answer, published := taken.answer()
	if err := outbox.Append(ctx, tx, answer); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	log.InfoContext(ctx, published)
	return nil
}

func (s *Service) logger(request contracts.UpdateEventInventory) *slog.Logger {
	return s.log.With("event_id", request.EventID, "booking_id", request.BookingID)
}

// notTaken notes why not, or finds what the booking was told before.
func notTaken(ctx context.Context, tx pgx.Tx, request contracts.UpdateEventInventory) (*reservation, bool, error) {
	r, err := refuse(ctx, tx, request)
	if !errors.Is(err, pgx.ErrNoRows) {
		return &r, true, err
	}
	r, err = reservationOf(ctx, tx, request.BookingID)
	return &r, false, err
}

// Release handles ReleaseEventInventory: it gives back what is held for the bookings and publishes InventoryReleased, as
// often as it is asked. A booking that asks for tickets later gets none. Sold tickets are never released: such a request is
// parked. The requests must be valid, and of different bookings.
func (s *Service) Release(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.ReleaseEventInventory]) error {
	released, err := releaseAll(ctx, tx, requests)
	if err != nil {
		return fmt.Errorf("release the tickets of %d bookings: %w", len(requests), err)
	}
	for i, r := range requests {
		if err := s.released(r.Context(), tx, r.Event, released[i]); err != nil {
			return fmt.Errorf("release the tickets of booking %s: %w", r.Event.BookingID, err)
		}
	}
	return nil
}

func (s *Service) released(ctx context.Context, tx pgx.Tx, request contracts.ReleaseEventInventory, released *reservation) error {
	isFirst := true
	if released == nil {
		known, made, err := notReleased(ctx, tx, request)
		if err != nil {
			return err
		}
		released, isFirst = &known, made
	}
	if err := released.isOf(request.EventID, holdReleased); err != nil {
		return err
	}
	answer := released.released()
	if err := outbox.Append(ctx, tx, answer); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	s.log.InfoContext(ctx, logReleased, "event_id", request.EventID, "booking_id", request.BookingID,
		"reason", request.Reason, "quantity", answer.QuantityReleased, "repeated", !isFirst)
	return nil
}

// errMeanwhile asks for another try. It needs an event that the catalog does not know: the row of one that it knows is locked.
var errMeanwhile = errors.New("the booking's request is answered at the same moment")

// notReleased notes that the booking gets nothing when it asks, or finds what became of its tickets before.
func notReleased(ctx context.Context, tx pgx.Tx, request contracts.ReleaseEventInventory) (reservation, bool, error) {
	r, err := forestall(ctx, tx, request)
	if !errors.Is(err, pgx.ErrNoRows) {
		return r, true, err
	}
	r, err = reservationOf(ctx, tx, request.BookingID)
	if err == nil && r.EventID.String() == request.EventID && !r.Hold.isFinal() {
		err = errMeanwhile
	}
	return r, false, err
}

// Commit handles CommitEventInventory: it turns what is held for the bookings into sold tickets and publishes
// InventoryCommitted, as often as it is asked. A booking that holds no tickets cannot have them sold: such a request is
// parked. The requests must be valid, and of different bookings.
func (s *Service) Commit(ctx context.Context, tx pgx.Tx, requests []inbox.Item[contracts.CommitEventInventory]) error {
	committed, err := commitAll(ctx, tx, requests)
	if err != nil {
		return fmt.Errorf("sell the tickets of %d bookings: %w", len(requests), err)
	}
	for i, r := range requests {
		if err := s.committed(r.Context(), tx, r.Event, committed[i]); err != nil {
			return fmt.Errorf("sell the tickets of booking %s: %w", r.Event.BookingID, err)
		}
	}
	return nil
}

func (s *Service) committed(ctx context.Context, tx pgx.Tx, request contracts.CommitEventInventory, committed *reservation) error {
	isFirst := committed != nil
	if !isFirst {
		known, err := reservationOf(ctx, tx, request.BookingID)
		if errors.Is(err, pgx.ErrNoRows) {
			return inbox.Permanent(errors.New("it has asked for none"))
		}
		if err != nil {
			return err
		}
		committed = &known
	}
	if err := committed.isOf(request.EventID, holdSold); err != nil {
		return err
	}
	if err := outbox.Append(ctx, tx, committed.committed()); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	s.log.InfoContext(ctx, logCommitted, "event_id", request.EventID, "booking_id", request.BookingID,
		"quantity", committed.Quantity, "repeated", !isFirst)
	return nil
}

// isOf is nil for a reservation of the event that has come to what is asked for, and the error of a request that can never
// be fulfilled otherwise.
func (r reservation) isOf(event string, want hold) error {
	switch {
	case r.EventID.String() != event:
		return inbox.Permanent(fmt.Errorf("its tickets are of event %s, not of %s", r.EventID, event))
	case r.Hold != want:
		return inbox.Permanent(fmt.Errorf("its tickets are %s and cannot be %s", r.Hold, want))
	}
	return nil
}
