package outbox

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
)

var errPublisherClosed = errors.New("outbox: publisher closed")

// Publisher is a Watermill publisher that writes to the outbox. It takes what [Schema] takes: Watermill's topic is the
// row's topic, the message's UUID its uuid, and its key the metadata [HeaderSubject], or the UUID where there is none.
type Publisher struct {
	write  func(ctx context.Context, messages []Message) error
	closed atomic.Bool
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher makes a publisher for messages that belong to no other change of state: each call of Publish is a
// transaction of its own, as [InTx] makes it. After [ErrCommitUnknown] the messages may be there, and to publish them
// again may repeat them.
func NewPublisher(db DB) *Publisher {
	return &Publisher{write: func(ctx context.Context, messages []Message) error {
		return InTx(ctx, db, func(tx pgx.Tx) error { return Write(ctx, tx, messages...) })
	}}
}

// NewTxPublisher makes a publisher whose messages are part of tx, as those of [Write] are. It lives as long as tx, and
// like it is for one goroutine.
func NewTxPublisher(tx pgx.Tx) *Publisher {
	return &Publisher{write: func(ctx context.Context, messages []Message) error { return Write(ctx, tx, messages...) }}
}

// Publish writes all the messages or none. Those of one key keep the order given. The context is that of the first
// message.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if p.closed.Load() {
		return errPublisherClosed
	}
	if len(msgs) == 0 {
		return nil
	}
	messages, err := fromWatermill(topic, msgs)
	if err != nil {
		return err
	}
	return p.write(msgs[0].Context(), messages)
}

// Close makes later calls of Publish fail. It leaves database and transaction open, and may be called again.
func (p *Publisher) Close() error {
	p.closed.Store(true)
	return nil
}
