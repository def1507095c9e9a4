package relay

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/jcp/ticketwave/outbox"
)

// errPanicked stands for a panic that no middleware recovered; the router logs it.
var errPanicked = errors.New("a middleware panicked")

// Delivery is one attempt to relay one message. Middlewares and handlers find it with [DeliveryFrom].
type Delivery struct {
	// Database is the name given in Config, Partition the outbox partition.
	Database  string
	Partition int
	// Sequence is the row's id.
	Sequence int64
	// Type is the row's topic, Key its key.
	Type, Key string
	// Attempt counts from 1.
	Attempt int
	// CreatedAt is when the row was written, by the database's clock.
	CreatedAt time.Time

	msg    *message.Message
	stuck  bool            // it comes from outbox.stuck
	lost   <-chan struct{} // closed when the pump is gone: the message comes again, whatever is reported
	err    error
	report func() // tells the pump that the attempt has ended, with err set
}

type deliveryKey struct{}

// end tells the pump the outcome, once.
func (d *Delivery) end(err error) {
	d.err = err
	d.report()
}

func (d *Delivery) isLost() bool {
	select {
	case <-d.lost:
		return true
	default:
		return false
	}
}

// DeliveryFrom returns the delivery whose message carries ctx.
func DeliveryFrom(ctx context.Context) (*Delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*Delivery)
	return d, ok
}

func newDelivery(e *entry, db string, sess *session) *Delivery {
	r := e.row
	d := &Delivery{
		Database: db, Partition: sess.held.Partition, Sequence: r.ID, Type: r.Topic, Key: r.Key,
		Attempt: e.attempts + 1, CreatedAt: r.CreatedAt,
		stuck: e.seq != 0, lost: sess.closed,
	}
	id := r.UUID.String()
	d.msg = message.NewMessage(id, r.Payload)
	d.msg.Metadata = r.headers()
	outbox.SetOwnHeaders(d.msg.Metadata, id, r.Topic, sess.source, r.Key, r.CreatedAt)
	d.msg.SetContext(context.WithValue(context.Background(), deliveryKey{}, d))
	return d
}
