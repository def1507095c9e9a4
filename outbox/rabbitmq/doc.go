// Package rabbitmq is RabbitMQ as the pipeline needs it: a topology, a Watermill publisher that knows what became
// of every message, and a Watermill subscriber that keeps order through every stop. They share watermill-amqp v2's
// Marshaler type, and messages go both ways between its publisher and subscriber and these.
//
// # Publisher
//
// Publish returns nil when the broker has taken every message over and routed it to at least one queue. Anything
// else is an error that says whose fault it is: the route's ([ErrUnroutable], [ErrRefused]), the message's
// ([ErrTooLarge], [ErrUnencodable]) or nobody's ([ErrUnavailable]). Whatever happens to the connection, no call hangs
// longer than its deadline, and none returns nil for a message that was not confirmed.
//
// One goroutine per channel reads confirms and returns. RabbitMQ sends the return of an unroutable message before
// its confirm, so this goroutine drains the returns before it judges a confirm. It does no I/O, and its buffers hold
// everything that can be in flight, so the connection's reader never waits for it.
//
// # Subscriber
//
// One message of a queue is handed out at a time, the next one after its acknowledgement. A nack gives the same
// message again after a pause; nothing is ever rejected or requeued. When a subscription ends, the handler that runs
// is waited for and its message acknowledged; then the channel is closed, which returns what was prefetched to the
// queue in order.
//
//	       message            handler acks            queue not empty
//	idle ----------> handling -------------> acked -------------------> handling ...
//	                  |   ^  '-- ctx ends: wait for the handler, ack, close the channel
//	             nack '---' pause
package rabbitmq
