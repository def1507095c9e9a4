package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
	"github.com/jcp/ticketwave/outbox/inbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/services/internal/bus"
	"github.com/jcp/ticketwave/services/internal/web"
)

var quiet = slog.New(slog.DiscardHandler)

const (
	event   = "123e4567-e89b-12d3-a456-426614174000"
	user    = "0193c5a0-0000-7000-8000-000000000001"
	payment = "0193c5a0-0000-7000-8000-000000000002"
)

// desk is the coordinator on a database of its own, without a broker: the test plays everybody else.
type desk struct {
	t    *testing.T
	db   *outboxtest.Database
	pool *pgxpool.Pool
	svc  *Service
	cfg  Config
	read int64 // the last outbox row that the test has seen
}

func newDesk(t *testing.T, cfg Config) *desk {
	t.Helper()
	d := &desk{t: t, db: outboxtest.NewDatabase(t, "saga", "saga"), cfg: cfg}
	d.restart()
	return d
}

// restart is a new process: nothing is remembered but what is stored.
func (d *desk) restart() {
	d.t.Helper()
	if d.pool != nil {
		d.pool.Close()
	}
	d.pool = outboxtest.NewPool(d.t, d.db.ServiceURL)
	d.cfg.Pool, d.cfg.Logger = d.pool, quiet
	svc, err := New(d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	d.svc = svc
}

// handling is the context of a new message of the booking's flow.
func handling(ctx context.Context, booking string) context.Context {
	return outbox.WithCausality(ctx, outbox.Causality{CorrelationID: "flow of " + booking, CausationID: uuid.Must(uuid.NewV7()).String()})
}

// hear handles one message.
func (d *desk) hear(e contracts.Event) error {
	ctx := handling(context.Background(), e.EventKey())
	return outbox.InTx(ctx, d.pool, func(tx pgx.Tx) error {
		if created, ok := e.(contracts.BookingCreated); ok {
			return d.svc.OnBookingCreated(ctx, tx, inbox.One(ctx, created))
		}
		return d.svc.hear(ctx, tx, []heard{{ctx, e}})
	})
}

func (d *desk) must(e contracts.Event) {
	d.t.Helper()
	if err := e.Validate(); err != nil {
		d.t.Fatal(err)
	}
	if err := d.hear(e); err != nil {
		d.t.Fatal(err)
	}
}

// sent are the types of what was sent since the last look.
func (d *desk) sent() (types []string) {
	d.t.Helper()
	rows, err := d.db.Query(context.Background(), `SELECT id, topic, metadata->>'correlationid' FROM outbox.messages WHERE id > $1 ORDER BY id`, d.read)
	if err != nil {
		d.t.Fatal(err)
	}
	for rows.Next() {
		var topic, flow string
		if err := rows.Scan(&d.read, &topic, &flow); err != nil {
			d.t.Fatal(err)
		}
		if !strings.HasPrefix(flow, "flow of ") {
			d.t.Errorf("%s is of flow %q", topic, flow)
		}
		types = append(types, topic)
	}
	return types
}

// letters are what the user was told.
func (d *desk) letters() []contracts.NotificationType {
	d.t.Helper()
	rows, err := d.db.Query(context.Background(), `
		SELECT convert_from(payload, 'UTF8')::jsonb->>'notificationType' FROM outbox.messages WHERE topic = $1 ORDER BY id`, contracts.TypeSendBookingNotification)
	if err != nil {
		d.t.Fatal(err)
	}
	told, err := pgx.CollectRows(rows, pgx.RowTo[contracts.NotificationType])
	if err != nil {
		d.t.Fatal(err)
	}
	return told
}

func (d *desk) instance(booking string) record {
	d.t.Helper()
	r, err := instanceByID(context.Background(), d.db.Pool, uuid.MustParse(booking))
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

func (d *desk) is(booking, state string) {
	d.t.Helper()
	if got := d.instance(booking).State; got != state {
		d.t.Fatalf("the saga is %s, want %s", got, state)
	}
}

// The messages of a booking.
func created(id string) contracts.BookingCreated {
	now := time.Now().UTC()
	return contracts.BookingCreated{
		BookingID: id, EventID: event, UserID: user, Quantity: 2, TotalAmount: 5000, Currency: "EUR", ExpiresAt: now.Add(15 * time.Minute), CreatedAt: now,
	}
}

// answerOf is a message of a type; after a space may stand the reason of a rejection.
func answerOf(typ, id string) contracts.Event {
	now := time.Now().UTC()
	typ, reason, _ := strings.Cut(typ, " ")
	if reason == "" {
		reason = string(contracts.BookingSoldOut)
	}
	switch typ {
	case contracts.TypeInventoryUpdated:
		return contracts.InventoryUpdated{
			EventID: event, BookingID: id, PreviousAvailableTickets: 10, CurrentAvailableTickets: 8, UpdateType: contracts.UpdateReserved, Version: 2, UpdatedAt: now,
		}
	case contracts.TypeInventoryUpdateRejected:
		return contracts.InventoryUpdateRejected{EventID: event, BookingID: id, QuantityRequested: 2, Reason: contracts.RejectSoldOut, RejectedAt: now}
	case contracts.TypeInventoryReleased:
		return contracts.InventoryReleased{EventID: event, BookingID: id, QuantityReleased: 2, ReleasedAt: now}
	case contracts.TypeInventoryCommitted:
		return contracts.InventoryCommitted{EventID: event, BookingID: id, QuantityCommitted: 2, CommittedAt: now}
	case contracts.TypePaymentDataPrepared:
		return contracts.PaymentDataPrepared{
			BookingID: id, PaymentID: payment, Amount: 5000, Currency: "EUR", ExpiresAt: now.Add(time.Minute), PaymentURL: "http://pay/1", PreparedAt: now,
		}
	case contracts.TypePaymentPreparationFailed:
		return contracts.PaymentPreparationFailed{BookingID: id, Reason: contracts.PreparationRefused, FailedAt: now}
	case contracts.TypePaymentCompleted:
		return contracts.PaymentCompleted{BookingID: id, PaymentID: payment, Amount: 5000, Currency: "EUR", CompletedAt: now}
	case contracts.TypePaymentFailed:
		return contracts.PaymentFailed{BookingID: id, PaymentID: payment, Reason: contracts.PaymentDeclined, FailedAt: now}
	case contracts.TypePaymentExpired:
		return contracts.PaymentExpired{BookingID: id, PaymentID: payment, ExpiredAt: now}
	case contracts.TypePaymentCancelled:
		return contracts.PaymentCancelled{BookingID: id, CancelledAt: now}
	case contracts.TypePaymentRefunded:
		return contracts.PaymentRefunded{BookingID: id, PaymentID: payment, Amount: 5000, Currency: "EUR", RefundedAt: now}
	case contracts.TypeBookingConfirmed:
		return contracts.BookingConfirmed{
			BookingID: id, EventID: event, UserID: user, Quantity: 2, TotalAmount: 5000, Currency: "EUR", PaymentID: payment, ConfirmedAt: now,
		}
	case contracts.TypeBookingRejected:
		return contracts.BookingRejected{BookingID: id, EventID: event, UserID: user, Reason: contracts.BookingRejection(reason), RejectedAt: now}
	case contracts.TypeBookingCancelled:
		return contracts.BookingCancelled{BookingID: id, EventID: event, UserID: user, CancelledAt: now}
	case contracts.TypeBookingExpired:
		return contracts.BookingExpired{BookingID: id, EventID: event, UserID: user, ExpiredAt: now}
	}
	panic(typ)
}

// line is a message that comes, and what the coordinator sends then.
type line struct {
	heard string
	sent  []string
}

var beginning = []string{contracts.TypeUpdateEventInventory, contracts.TypeSendBookingNotification, contracts.TypePreparePaymentData}

// stories are whole lives of bookings. The coordinator is restarted before every line.
var stories = map[string]struct {
	lines  []line
	end    string
	letter contracts.NotificationType
}{
	"paid": {[]line{
		{contracts.TypeInventoryUpdated, nil},
		{contracts.TypePaymentDataPrepared, nil},
		{contracts.TypePaymentCompleted, []string{contracts.TypeSettleBooking}},
		{contracts.TypeBookingConfirmed, []string{contracts.TypeSendBookingNotification, contracts.TypeCommitEventInventory}},
		{contracts.TypeInventoryCommitted, nil},
		{contracts.TypePaymentCompleted, nil}, // repeated
	}, "committed", contracts.NotificationBookingConfirmed},
	"paid, in another order": {[]line{
		{contracts.TypePaymentCompleted, nil},
		{contracts.TypePaymentDataPrepared, nil},
		{contracts.TypeInventoryUpdated, []string{contracts.TypeSettleBooking}},
		{contracts.TypeInventoryUpdated, nil},
		{contracts.TypeBookingConfirmed, []string{contracts.TypeSendBookingNotification, contracts.TypeCommitEventInventory}},
		{contracts.TypeBookingConfirmed, nil},
		{contracts.TypeInventoryCommitted, nil},
	}, "committed", contracts.NotificationBookingConfirmed},
	"sold out": {[]line{
		{contracts.TypeInventoryUpdateRejected, []string{contracts.TypeSettleBooking}},
		{contracts.TypePaymentDataPrepared, nil},
		{contracts.TypeBookingRejected, []string{contracts.TypeSendBookingNotification, contracts.TypeCancelPayment}},
		{contracts.TypePaymentCancelled, nil},
	}, "compensated", contracts.NotificationBookingRejected},
	"payment cannot be prepared": {[]line{
		{contracts.TypePaymentPreparationFailed, []string{contracts.TypeSettleBooking}},
		{contracts.TypeBookingRejected, []string{contracts.TypeSendBookingNotification, contracts.TypeReleaseEventInventory}},
		{contracts.TypeInventoryUpdated, nil},
		{contracts.TypeInventoryReleased, nil},
	}, "compensated", contracts.NotificationBookingRejected},
	"declined": {[]line{
		{contracts.TypeInventoryUpdated, nil},
		{contracts.TypePaymentDataPrepared, nil},
		{contracts.TypePaymentFailed, []string{contracts.TypeSettleBooking}},
		{contracts.TypeBookingRejected + " payment_failed", []string{contracts.TypeSendBookingNotification, contracts.TypeReleaseEventInventory}},
		{contracts.TypeInventoryReleased, nil},
	}, "compensated", contracts.NotificationPaymentFailed},
	"expired": {[]line{
		{contracts.TypeInventoryUpdated, nil},
		{contracts.TypePaymentDataPrepared, nil},
		{contracts.TypePaymentExpired, []string{contracts.TypeSettleBooking}},
		{contracts.TypeBookingExpired, []string{contracts.TypeSendBookingNotification, contracts.TypeReleaseEventInventory}},
		{contracts.TypeInventoryReleased, nil},
	}, "compensated", contracts.NotificationBookingExpired},
	"cancelled before anything": {[]line{
		{contracts.TypeBookingCancelled, []string{contracts.TypeSendBookingNotification, contracts.TypeCancelPayment}},
		{contracts.TypePaymentCancelled, []string{contracts.TypeReleaseEventInventory}},
		{contracts.TypeInventoryReleased, nil},
	}, "compensated", contracts.NotificationBookingCancelled},
	"cancelled while it is paid": {[]line{
		{contracts.TypeInventoryUpdated, nil},
		{contracts.TypePaymentDataPrepared, nil},
		{contracts.TypeBookingCancelled, []string{contracts.TypeSendBookingNotification, contracts.TypeCancelPayment}},
		{contracts.TypePaymentCompleted, []string{contracts.TypeRefundPayment}},
		{contracts.TypePaymentRefunded, []string{contracts.TypeReleaseEventInventory}},
		{contracts.TypeInventoryReleased, nil},
	}, "compensated", contracts.NotificationBookingCancelled},
	"cancelled before it could be confirmed": {[]line{
		{contracts.TypeInventoryUpdated, nil},
		{contracts.TypePaymentDataPrepared, nil},
		{contracts.TypePaymentCompleted, []string{contracts.TypeSettleBooking}},
		{contracts.TypeBookingCancelled, []string{contracts.TypeSendBookingNotification, contracts.TypeRefundPayment}},
		{contracts.TypePaymentRefunded, []string{contracts.TypeReleaseEventInventory}},
		{contracts.TypeInventoryReleased, nil},
	}, "compensated", contracts.NotificationBookingCancelled},
	"paid after the end": {[]line{
		{contracts.TypeInventoryUpdated, nil},
		{contracts.TypePaymentDataPrepared, nil},
		{contracts.TypePaymentExpired, []string{contracts.TypeSettleBooking}},
		{contracts.TypeBookingExpired, []string{contracts.TypeSendBookingNotification, contracts.TypeReleaseEventInventory}},
		{contracts.TypeInventoryReleased, nil},
		{contracts.TypePaymentCompleted, []string{contracts.TypeRefundPayment}},
		{contracts.TypePaymentRefunded, nil},
	}, "compensated", contracts.NotificationBookingExpired},
}

func TestStories(t *testing.T) {
	t.Parallel()
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, id := newDesk(t, Config{}), uuid.NewString()
			d.must(created(id))
			d.must(created(id)) // under another message id
			if got := d.sent(); !slices.Equal(got, beginning) {
				t.Fatalf("at first are sent %v", got)
			}
			for _, l := range story.lines {
				d.restart()
				d.must(answerOf(l.heard, id))
				if got := d.sent(); !slices.Equal(got, l.sent) {
					t.Fatalf("after %s are sent %v, want %v", l.heard, got, l.sent)
				}
			}
			d.is(id, story.end)
			if got, want := d.letters(), []contracts.NotificationType{contracts.NotificationBookingCreated, story.letter}; !slices.Equal(got, want) {
				t.Errorf("letters are %v, want %v", got, want)
			}
			if r := d.instance(id); r.DueAt != nil || r.Revision != int64(len(story.lines)+1) {
				t.Errorf("revision %d, due at %v", r.Revision, r.DueAt)
			}
			d.historyIsWhole(id)
		})
	}
}

// historyIsWhole compares with what was sent, and wants a message id in every entry.
func (d *desk) historyIsWhole(id string) {
	d.t.Helper()
	var missing int
	err := d.db.QueryRow(context.Background(), `
		SELECT count(*) FROM (SELECT uuid FROM outbox.messages WHERE key = $1) AS m (id)
		FULL JOIN (SELECT message_id FROM saga.history WHERE instance_id = $1::uuid AND kind = 'sent') AS h (id) USING (id)
		WHERE m.id IS NULL OR h.id IS NULL`, id).Scan(&missing)
	if err != nil || missing > 0 {
		d.t.Errorf("%d messages differ between outbox and history, %v", missing, err)
	}
}

// statements keeps what a connection is asked for.
type statements struct{ asked []string }

// TraceQueryStart is pgx.QueryTracer's.
func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	s.asked = append(s.asked, q.SQL)
	return ctx
}

// TraceQueryEnd is pgx.QueryTracer's.
func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart is pgx.BatchTracer's.
func (s *statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	for _, q := range b.Batch.QueuedQueries {
		s.asked = append(s.asked, q.SQL)
	}
	return ctx
}

// TraceBatchQuery is pgx.BatchTracer's.
func (*statements) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is pgx.BatchTracer's.
func (*statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// Where booking leads, a batch of answers costs one look for instances.
func TestBookingsThatOthersLeadAreLeftAlone(t *testing.T) {
	t.Parallel()
	d, asked := newDesk(t, Config{}), &statements{}
	cfg, err := pgx.ParseConfig(d.db.ServiceURL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Tracer = asked
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var all []heard
	for range 20 {
		e := answerOf(contracts.TypeInventoryUpdated, uuid.NewString())
		all = append(all, heard{handling(t.Context(), e.EventKey()), e})
	}
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	asked.asked = nil
	err = d.svc.hear(t.Context(), tx, all)
	if got := asked.asked; err != nil || len(got) != 1 || !strings.HasPrefix(got[0], "SELECT") {
		t.Errorf("%v, asked for %q", err, got)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := d.sent(); len(got) > 0 {
		t.Errorf("sent %v", got)
	}
}

func TestADecisionIsFinal(t *testing.T) {
	t.Parallel()
	d, id := newDesk(t, Config{}), uuid.NewString()
	d.must(created(id))
	d.must(answerOf(contracts.TypeBookingCancelled, id))
	if err := d.hear(answerOf(contracts.TypeBookingConfirmed, id)); !errors.Is(err, ErrContradiction) {
		t.Errorf("%v", err)
	}
}

// hasty is the first definition with waits that are over at once.
func hasty(version, retries int) Definition {
	d := patient(first, retries)
	d.Version = version
	for _, steps := range [][]Step{d.Steps, d.Finish} {
		for i := range steps {
			steps[i].Wait.Timeout, steps[i].UndoWait.Timeout = time.Nanosecond, time.Nanosecond
			steps[i].Wait.PastExpiry = 0
		}
	}
	d.Decision.Wait.Timeout = time.Nanosecond
	return d
}

// expire looks once for deadlines.
func (d *desk) expire() {
	d.t.Helper()
	if _, err := d.svc.expireDue(context.Background()); err != nil {
		d.t.Fatal(err)
	}
}

func TestWithoutAnswersEverythingIsAskedForAgainAndThenUndoneAndThenStuck(t *testing.T) {
	t.Parallel()
	d, id := newDesk(t, Config{Definitions: []Definition{hasty(1, 1)}}), uuid.NewString()
	d.must(created(id))
	want := [][]string{
		beginning,
		{contracts.TypeUpdateEventInventory, contracts.TypePreparePaymentData},
		{contracts.TypeSettleBooking},
		{contracts.TypeSettleBooking},
		nil,
	}
	for i, types := range want {
		if got := d.sent(); !slices.Equal(got, types) {
			t.Fatalf("%d: sent %v, want %v", i, got, types)
		}
		d.restart()
		d.expire()
	}
	d.is(id, "stuck")
	d.must(answerOf(contracts.TypeBookingExpired, id)) // late, and welcome
	d.is(id, "compensating")
	for i, types := range [][]string{{contracts.TypeSendBookingNotification, contracts.TypeCancelPayment}, {contracts.TypeCancelPayment}, nil} {
		if got := d.sent(); !slices.Equal(got, types) {
			t.Fatalf("%d: sent %v, want %v", i, got, types)
		}
		d.restart()
		d.expire()
	}
	d.is(id, "stuck")
	d.historyIsWhole(id)
}

func TestDeadlinesAreSharedOut(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Config{Definitions: []Definition{hasty(1, 0)}, Look: 5 * time.Millisecond})
	const bookings = 120
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for range bookings {
		d.must(created(uuid.NewString()))
	}
	for range 3 {
		running.Go(func() {
			if err := d.svc.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	count := func() (n int) {
		if err := d.db.QueryRow(context.Background(), `SELECT count(*) FROM saga.instances WHERE state = 'stuck'`).Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool { return count() == bookings }, "not all deadlines are kept")
	cancel()
	running.Wait()
	var settles int
	if err := d.db.QueryRow(context.Background(), `SELECT count(*) FROM outbox.messages WHERE topic = $1`, contracts.TypeSettleBooking).Scan(&settles); err != nil || settles != bookings {
		t.Errorf("%d bookings are settled, want %d: %v", settles, bookings, err)
	}
}

// Fifty sagas that cannot be read, as many as are taken at once, are put off alone, each time for longer; and the overdue show.
func TestABadSagaHoldsUpNoDeadline(t *testing.T) {
	t.Parallel()
	d, good := newDesk(t, Config{Definitions: []Definition{hasty(1, 1)}}), uuid.NewString()
	change := func(what string, args ...any) {
		t.Helper()
		if _, err := d.db.Exec(t.Context(), `UPDATE saga.instances SET `+what, args...); err != nil {
			t.Fatal(err)
		}
	}
	for range batchOfDue {
		d.must(created(uuid.NewString()))
	}
	change(`body = '[]', due_at = clock_timestamp() - interval '1 hour'`)
	d.must(created(good))
	d.sent()
	taken := func(want int) {
		t.Helper()
		d.restart()
		if n, err := d.svc.expireDue(t.Context()); n != want || err != nil {
			t.Errorf("%d were taken, want %d: %v", n, want, err)
		}
	}
	taken(batchOfDue)
	change(`deadline_next_at = deadline_next_at + interval '1 hour' WHERE body = '[]'`)
	taken(1)
	if got, want := d.sent(), []string{contracts.TypeUpdateEventInventory, contracts.TypePreparePaymentData}; !slices.Equal(got, want) {
		t.Errorf("the good one has sent %v, want %v", got, want)
	}
	if late := d.shows()["ticketwave_deadline_overdue_seconds"]; late < 3600 || late > 3700 {
		t.Errorf("overdue for %v s", late)
	}
	change(`deadline_next_at = clock_timestamp(), deadline_failures = 30 WHERE body = '[]'`)
	change(`due_at = NULL WHERE id = $1`, good)
	taken(batchOfDue)
	var waits bool
	if err := d.db.QueryRow(t.Context(), `
		SELECT bool_and(deadline_failures = 31 AND deadline_next_at BETWEEN clock_timestamp() + interval '2 min' AND clock_timestamp() + interval '5 min')
		FROM saga.instances WHERE body = '[]'`).Scan(&waits); err != nil || !waits {
		t.Errorf("they wait up to five minutes: %t, %v", waits, err)
	}
	change(`deadline_next_at = clock_timestamp(), body = (SELECT body FROM saga.instances WHERE id = $1)
		WHERE id = (SELECT min(id::text)::uuid FROM saga.instances WHERE body = '[]')`, good)
	taken(1)
	var fresh int
	if err := d.db.QueryRow(t.Context(), `SELECT count(*) FROM saga.instances WHERE deadline_failures = 0 AND deadline_next_at IS NULL`).Scan(&fresh); err != nil || fresh != 2 {
		t.Errorf("%d sagas are not put off, want the good one and the one that was mended: %v", fresh, err)
	}
}

func TestOldInstancesGoOnUnderTheirVersion(t *testing.T) {
	t.Parallel()
	shorter := patient(first, 3)
	shorter.Version, shorter.Finish = 2, nil
	d, old, fresh := newDesk(t, Config{}), uuid.NewString(), uuid.NewString()
	d.must(created(old))
	d.cfg.Definitions = append(Definitions(), shorter)
	d.restart()
	d.must(created(fresh))
	for _, id := range []string{old, fresh} {
		for _, typ := range []string{contracts.TypeInventoryUpdated, contracts.TypePaymentCompleted, contracts.TypeBookingConfirmed} {
			d.must(answerOf(typ, id))
		}
	}
	d.is(old, "committing")
	d.is(fresh, "committed")
	unended := uuid.NewString()
	d.must(created(unended))
	d.cfg.Definitions = nil // an older build
	d.restart()
	if err := d.hear(answerOf(contracts.TypeInventoryUpdated, unended)); !errors.Is(err, errVersion) {
		t.Errorf("%v", err)
	}
	d.expire()
	api := d.api()
	if w := api.ask(http.MethodGet, path+"/"+unended, ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"state":"stuck","stuck":"the definition's version`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := api.ask(http.MethodGet, path+"?state=stuck", api.viewer); !strings.Contains(w.Body.String(), unended) || strings.Contains(w.Body.String(), fresh) {
		t.Errorf("%s", w.Body)
	}
	if w := api.ask(http.MethodGet, path+"?state=running", api.viewer); strings.Contains(w.Body.String(), unended) {
		t.Errorf("%s", w.Body)
	}
	if w := api.ask(http.MethodPost, path+"/"+unended+"/compensate", api.operator); w.Code != 409 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// shows is what Prometheus sees after a look.
func (d *desk) shows() map[string]float64 {
	d.t.Helper()
	if err := d.svc.Measure(context.Background()); err != nil {
		d.t.Error(err)
	}
	return d.exposed()
}

// exposed are the metrics, by name and label.
func (d *desk) exposed() map[string]float64 {
	d.t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(d.svc.Metrics()...)
	families, err := registry.Gather()
	if err != nil {
		d.t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			values[name] = m.GetGauge().GetValue()
		}
	}
	return values
}

func TestWhatIsStuckAndOverdueIsMeasured(t *testing.T) {
	t.Parallel()
	d, want := newDesk(t, Config{}), map[string]float64{"ticketwave_deadline_overdue_seconds": 0}
	for _, state := range []string{"running", "settling", "committing", "compensating", "stuck"} {
		want["ticketwave_saga_instances "+state] = 0
	}
	is := func(running, stuck float64) {
		t.Helper()
		want["ticketwave_saga_instances running"], want["ticketwave_saga_instances stuck"] = running, stuck
		if got := d.shows(); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	change := func(id, what string) {
		t.Helper()
		if _, err := d.db.Exec(t.Context(), `UPDATE saga.instances SET `+what+` WHERE id = $1`, id); err != nil {
			t.Fatal(err)
		}
	}
	is(0, 0)
	ids := []string{uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()}
	for _, id := range ids {
		d.must(created(id))
	}
	change(ids[0], `state = 'stuck', due_at = NULL`)
	change(ids[1], `state = 'compensated', due_at = NULL`)
	is(2, 1)
	change(ids[2], `due_at = clock_timestamp() - interval '1 hour'`)
	if late := d.shows()["ticketwave_deadline_overdue_seconds"]; late < 3600 || late > 3700 {
		t.Errorf("overdue for %v s", late)
	}
	change(ids[2], `version = 2`) // a newer build keeps its deadline
	is(1, 2)
	d.pool.Close()
	if err := d.svc.Measure(t.Context()); err == nil {
		t.Error("what does not answer is measured")
	}
	if got := d.exposed(); len(got) > 0 {
		t.Errorf("what is not measured is shown: %v", got)
	}
}

func TestARevisionIsWrittenOnce(t *testing.T) {
	t.Parallel()
	d, id := newDesk(t, Config{}), uuid.NewString()
	d.must(created(id))
	stale := change{record: d.instance(id)}
	d.must(answerOf(contracts.TypeInventoryUpdated, id))
	err := outbox.InTx(t.Context(), d.pool, func(tx pgx.Tx) error { return d.svc.write(t.Context(), tx, []change{stale}, nil) })
	if !errors.Is(err, errRevision) {
		t.Errorf("%v", err)
	}
}

// window is the coordinator's HTTP API with tokens.
type window struct {
	t                *testing.T
	router           *web.Router
	viewer, operator string
}

func (d *desk) api() *window {
	d.t.Helper()
	w := &window{t: d.t, router: web.NewRouter(web.Config{Logger: quiet})}
	file, lines := filepath.Join(d.t.TempDir(), "tokens"), ""
	for into, role := range map[*string]api.Role{&w.viewer: api.Viewer, &w.operator: api.Operator} {
		token, line, err := admin.NewToken(string(role), role)
		if err != nil {
			d.t.Fatal(err)
		}
		*into, lines = token, lines+line+"\n"
	}
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		d.t.Fatal(err)
	}
	tokens, err := admin.OpenTokens(file)
	if err != nil {
		d.t.Fatal(err)
	}
	d.svc.tokens = tokens
	d.svc.Routes(w.router)
	return w
}

func (w *window) ask(method, target, token string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, http.NoBody)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	recorder := httptest.NewRecorder()
	w.router.ServeHTTP(recorder, r)
	return recorder
}

func decode[T any](t *testing.T, w *httptest.ResponseRecorder) (v T) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	return v
}

func TestTheAPIShowsHistoryAndWhatIsToCome(t *testing.T) {
	t.Parallel()
	d, id := newDesk(t, Config{}), uuid.NewString()
	d.must(created(id))
	d.must(answerOf(contracts.TypeInventoryUpdated, id))
	v := decode[detailView](t, d.api().ask(http.MethodGet, path+"/"+id, ""))
	if v.State != "running" || v.Version != 1 || v.DueAt == nil || v.Revision != 2 || len(v.History) != 5 || v.HistoryTruncated {
		t.Errorf("%+v", v)
	}
	if h := v.History[4]; h.Kind != "heard" || h.Step != "tickets" || h.Type != contracts.TypeInventoryUpdated || h.MessageID == nil || h.State != "running" {
		t.Errorf("%+v", h)
	}
	var steps []string
	for _, s := range v.ToCome {
		steps = append(steps, fmt.Sprint(s.Action, " ", s.Step, " ", s.Asked))
	}
	if got := strings.Join(steps, ", "); got != "do payment true, do money false, do decision false, do last letter false, do sale false" {
		t.Error(got)
	}
}

func TestSagasArePagedAndFiltered(t *testing.T) {
	t.Parallel()
	d, want := newDesk(t, Config{}), []string{}
	for range 5 {
		id := uuid.Must(uuid.NewV7()).String()
		want = append(want, id)
		d.must(created(id))
	}
	d.must(answerOf(contracts.TypeBookingCancelled, want[2]))
	api, got, next := d.api(), []string{}, ""
	for {
		page := decode[web.List[sagaView]](t, api.ask(http.MethodGet, path+"?limit=2"+next, api.viewer))
		for _, v := range page.Items {
			got = append(got, v.BookingID.String())
		}
		if page.Next == "" {
			break
		}
		next = "&after=" + page.Next
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	page := decode[web.List[sagaView]](t, api.ask(http.MethodGet, path+"?state=compensating", api.viewer))
	if len(page.Items) != 1 || page.Items[0].BookingID.String() != want[2] || page.Items[0].Decided != contracts.TypeBookingCancelled {
		t.Errorf("%+v", page)
	}
}

func TestCompensate(t *testing.T) {
	t.Parallel()
	d, id := newDesk(t, Config{}), uuid.NewString()
	d.must(created(id))
	d.must(answerOf(contracts.TypeInventoryUpdated, id))
	d.sent()
	api, target := d.api(), path+"/"+id+"/compensate"
	v := decode[compensation](t, api.ask(http.MethodPost, target+"?dryRun=true", api.viewer))
	if !v.DryRun || v.State != "running" || len(v.Undo) != 2 || v.Undo[0].Command != contracts.TypeCancelPayment || v.Undo[1].Command != contracts.TypeReleaseEventInventory {
		t.Errorf("%+v", v)
	}
	if got := d.sent(); len(got) > 0 || d.instance(id).Revision != v.Revision {
		t.Errorf("a trial has sent %v", got)
	}
	if w := api.ask(http.MethodPost, target+"?revision=1", api.operator); w.Code != 409 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	v = decode[compensation](t, api.ask(http.MethodPost, fmt.Sprintf("%s?revision=%d&dryRun=false", target, v.Revision), api.operator))
	if v.DryRun || v.State != "settling" || v.Outcome != contracts.OutcomeCancelled || len(v.Undo) != 2 {
		t.Errorf("%+v", v)
	}
	if got := d.sent(); !slices.Equal(got, []string{contracts.TypeSettleBooking}) {
		t.Errorf("sent %v", got)
	}
	detail := decode[detailView](t, api.ask(http.MethodGet, path+"/"+id, ""))
	if h := detail.History[len(detail.History)-2]; h.Kind != "operator" || h.Note != "by operator" {
		t.Errorf("%+v", detail.History)
	}
	if w := api.ask(http.MethodPost, target, api.operator); w.Code != 409 {
		t.Errorf("twice: %d %s", w.Code, w.Body)
	}
}

func TestResume(t *testing.T) {
	t.Parallel()
	d, id := newDesk(t, Config{Definitions: []Definition{hasty(1, 0)}}), uuid.NewString()
	d.must(created(id))
	api, target := d.api(), path+"/"+id+"/resume"
	if w := api.ask(http.MethodPost, target, api.operator); w.Code != 409 {
		t.Errorf("not stuck: %d %s", w.Code, w.Body)
	}
	d.must(answerOf(contracts.TypeBookingCancelled, id))
	d.expire()
	d.sent()
	v := decode[detailView](t, api.ask(http.MethodGet, path+"/"+id, ""))
	if v.State != "stuck" || v.Stuck != "step payment was not answered" || v.DueAt != nil {
		t.Errorf("%+v", v)
	}
	if got := decode[sagaView](t, api.ask(http.MethodPost, target, api.operator)); got.State != "compensating" || got.DueAt == nil {
		t.Errorf("%+v", got)
	}
	if got := d.sent(); !slices.Equal(got, []string{contracts.TypeCancelPayment}) {
		t.Errorf("sent %v", got)
	}
	d.must(answerOf(contracts.TypePaymentCancelled, id))
	d.must(answerOf(contracts.TypeInventoryReleased, id))
	d.is(id, "compensated")
}

func TestWhatTheAPIRefuses(t *testing.T) {
	t.Parallel()
	d, id := newDesk(t, Config{}), uuid.NewString()
	d.must(created(id))
	api := d.api()
	for _, c := range []struct {
		method, target, token string
		status                int
	}{
		{http.MethodGet, path + "?state=ended", api.viewer, 400},
		{http.MethodGet, path + "?state=", api.viewer, 400},
		{http.MethodGet, path + "?state=stuck&state=running", api.viewer, 400},
		{http.MethodGet, path + "?limit=0", api.viewer, 400},
		{http.MethodGet, path + "?limit=1000000", api.viewer, 400},
		{http.MethodGet, path + "?after=x", api.viewer, 400},
		{http.MethodGet, path + "?x=y", api.viewer, 400},
		{http.MethodGet, path, "", 401},
		{http.MethodGet, path + "?x=y", "twa_nobody", 401},
		{http.MethodGet, path + "/x", "", 400},
		{http.MethodGet, path + "/" + id + "?x=y", "", 400},
		{http.MethodGet, path + "/" + uuid.NewString(), "", 404},
		{http.MethodPost, path + "/" + id + "/resume", "", 401},
		{http.MethodPost, path + "/" + id + "/resume", "twa_nobody", 401},
		{http.MethodPost, path + "/" + id + "/resume", api.viewer, 403},
		{http.MethodPost, path + "/" + id + "/resume?dryRun=true", api.operator, 400},
		{http.MethodPost, path + "/" + id + "/compensate?dryRun=true", "", 401},
		{http.MethodPost, path + "/" + id + "/compensate", api.viewer, 403},
		{http.MethodPost, path + "/" + id + "/compensate?dryRun=false", api.viewer, 403},
		{http.MethodPost, path + "/" + id + "/compensate?dryRun=1", api.operator, 400},
		{http.MethodPost, path + "/" + id + "/compensate?dryRun", api.operator, 400},
		{http.MethodPost, path + "/" + id + "/compensate?dryrun=true", api.operator, 400},
		{http.MethodPost, path + "/" + id + "/compensate?dryRun=true&dryRun=false", api.operator, 400},
		{http.MethodPost, path + "/" + id + "/compensate?revision=0", api.operator, 400},
		{http.MethodPost, path + "/" + id + "/compensate?revision=99999999999999999999", api.operator, 400},
		{http.MethodPost, path + "/x/compensate", api.operator, 400},
		{http.MethodPost, path + "/" + uuid.NewString() + "/compensate", api.operator, 404},
		{http.MethodPost, path + "/" + uuid.NewString() + "/resume", api.operator, 404},
	} {
		w := api.ask(c.method, c.target, c.token)
		if w.Code != c.status || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.target, w.Code, w.Body, c.status)
		}
		if (w.Code == 401) != (w.Header().Get("WWW-Authenticate") == "Bearer") {
			t.Errorf("%s %s: %v", c.method, c.target, w.Header())
		}
	}
	r := httptest.NewRequest(http.MethodPost, path+"/"+id+"/compensate", strings.NewReader("{}"))
	r.Header.Set("Authorization", "Bearer "+api.operator)
	w := httptest.NewRecorder()
	if api.router.ServeHTTP(w, r); w.Code != 400 {
		t.Errorf("with a body: %d %s", w.Code, w.Body)
	}
	if d.is(id, "running"); d.instance(id).Revision != 1 {
		t.Error("something was changed")
	}
	d.svc.tokens = nil
	if w := api.ask(http.MethodPost, path+"/"+id+"/compensate", api.operator); w.Code != 403 {
		t.Errorf("without a token file: %d", w.Code)
	}
}

func TestDefinitionsAreChecked(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(d *Definition){
		"name twice":     func(d *Definition) { d.Steps[1].Name = "tickets" },
		"no name":        func(d *Definition) { d.Decision.Name = "" },
		"after later":    func(d *Definition) { d.Steps[0].After = "money" },
		"unknown":        func(d *Definition) { d.Steps[0].Command = "x" },
		"no answer":      func(d *Definition) { d.Steps[3].Done = nil },
		"undo for ever":  func(d *Definition) { d.Steps[0].Over = nil },
		"no timeout":     func(d *Definition) { d.Steps[0].Wait.Timeout = 0 },
		"no decision":    func(d *Definition) { d.Decision.Undo = nil },
		"a lower number": func(d *Definition) { d.Version = 0 },
	} {
		d := patient(first, 9)
		change(&d)
		if _, err := New(Config{Pool: &pgxpool.Pool{}, Definitions: []Definition{d}}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// What the definitions speak of is in the topology: every answer at the coordinator, every command at somebody.
func TestTheTopologyHasWhatTheDefinitionsSpeakOf(t *testing.T) {
	t.Parallel()
	heard, sent := []string{}, []string{}
	for _, q := range contracts.Topology().Queues {
		if q.Name == "saga" {
			heard = q.Types
		} else {
			sent = append(sent, q.Types...)
		}
	}
	for _, d := range Definitions() {
		var answers []string
		for a := range d.Decision.Undo {
			answers = append(answers, a.Type)
		}
		for _, s := range d.all() {
			answers = append(answers, slices.Concat(s.Done, s.Over)...)
			for a := range s.Refused {
				answers = append(answers, a.Type)
			}
			for _, typ := range []string{s.Command, s.Undo} {
				if typ != "" && !slices.Contains(sent, typ) {
					t.Errorf("nobody hears %s", typ)
				}
			}
		}
		for _, typ := range answers {
			if !slices.Contains(heard, typ) {
				t.Errorf("the coordinator does not hear %s", typ)
			}
		}
	}
}

func TestOverRabbitMQ(t *testing.T) {
	t.Parallel()
	d, id := newDesk(t, Config{}), uuid.NewString()
	address := outboxtest.NewVHost(t)
	if err := bus.Topology().Apply(t.Context(), address); err != nil {
		t.Fatal(err)
	}
	b, err := bus.Open(bus.Config{Name: "saga", URL: address, Pool: d.pool, Batch: 20, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	d.svc.Handlers(b.Consumer)
	publisher, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: address, Exchange: bus.Topology().Exchange}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for _, err := range []error{<-ended, b.Close(), publisher.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	send := func(e contracts.Event) {
		body, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		msg := message.NewMessage(uuid.Must(uuid.NewV7()).String(), body)
		msg.Metadata = message.Metadata{
			outbox.HeaderID: msg.UUID, outbox.HeaderType: e.EventType(), outbox.HeaderSubject: e.EventKey(),
			outbox.HeaderTime: time.Now().UTC().Format(time.RFC3339Nano), outbox.HeaderCorrelationID: "flow of " + id,
		}
		if err := publisher.Publish(bus.Topology().RoutingKey(e.EventType(), 0), msg, msg.Copy()); err != nil {
			t.Fatal(err)
		}
	}
	send(created(id))
	for _, l := range stories["paid"].lines {
		send(answerOf(l.heard, id))
	}
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		r, err := instanceByID(context.Background(), d.db.Pool, uuid.MustParse(id))
		return err == nil && r.State == "committed" && r.Revision == 7
	}, "the saga does not come to its end")
	want := append(slices.Clone(beginning), contracts.TypeSettleBooking, contracts.TypeSendBookingNotification, contracts.TypeCommitEventInventory)
	if got := d.sent(); !slices.Equal(got, want) {
		t.Errorf("sent %v, want %v", got, want)
	}
	d.historyIsWhole(id)
	// What another build's definition is needed for waits for that build.
	if _, err := d.db.Exec(t.Context(), `UPDATE saga.instances SET version = 2`); err != nil {
		t.Fatal(err)
	}
	send(answerOf(contracts.TypePaymentRefunded, id))
	outboxtest.Eventually(t, 30*time.Second, func() (waits bool) {
		err := d.db.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM inbox.stuck WHERE class = 'undecodable' AND NOT parked)`).Scan(&waits)
		return err == nil && waits
	}, "the message does not wait for another build")
}
