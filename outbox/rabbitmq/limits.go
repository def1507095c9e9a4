package rabbitmq

import (
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	shortString = 255       // bytes of a name or property in AMQP 0.9.1
	headerRoom  = 120 << 10 // bytes of all headers and properties: they must fit one frame, 128 KiB by default
)

// check refuses what would kill the channel, or the connection, if it were written.
func check(key string, p *amqp.Publishing, maxBody int) error {
	if len(p.Body) > maxBody {
		return fmt.Errorf("%w: its body has %d bytes, the limit is %d", ErrTooLarge, len(p.Body), maxBody)
	}
	if name, value := shortStrings(key, p); len(value) > shortString {
		return fmt.Errorf("%w: its %s has %d bytes, the limit is %d", ErrUnencodable, name, len(value), shortString)
	}
	size, err := tableSize(p.Headers)
	if err != nil {
		return err
	}
	if size > headerRoom {
		return fmt.Errorf("%w: its headers have %d bytes, the limit is %d", ErrTooLarge, size, headerRoom)
	}
	return nil
}

// shortStrings is the first of the short strings that is too long, or the last one.
func shortStrings(key string, p *amqp.Publishing) (name, value string) {
	switch {
	case len(key) > shortString:
		return "routing key", key
	case len(p.MessageId) > shortString:
		return "message id", p.MessageId
	case len(p.CorrelationId) > shortString:
		return "correlation id", p.CorrelationId
	case len(p.Type) > shortString:
		return "type", p.Type
	case len(p.AppId) > shortString:
		return "app id", p.AppId
	case len(p.ContentType) > shortString:
		return "content type", p.ContentType
	case len(p.ContentEncoding) > shortString:
		return "content encoding", p.ContentEncoding
	case len(p.ReplyTo) > shortString:
		return "reply-to", p.ReplyTo
	case len(p.Expiration) > shortString:
		return "expiration", p.Expiration
	}
	return "user id", p.UserId
}

// tableSize is an upper bound of what the table takes on the wire. A value that cannot be written is an error.
func tableSize(t amqp.Table) (int, error) {
	size := 4
	for name, value := range t {
		if len(name) > shortString {
			return 0, fmt.Errorf("%w: header %.20q... has a name of %d bytes, the limit is %d", ErrUnencodable, name, len(name), shortString)
		}
		n, err := fieldSize(value)
		if err != nil {
			return 0, err
		}
		size += 1 + len(name) + n
	}
	return size, nil
}

func fieldSize(value any) (size int, err error) {
	switch v := value.(type) {
	case string:
		return 5 + len(v), nil
	case []byte:
		return 5 + len(v), nil
	case amqp.Table:
		size, err = tableSize(v)
		return 1 + size, err
	case []any:
		size = 5
		for _, item := range v {
			n, err := fieldSize(item)
			if err != nil {
				return 0, err
			}
			size += n
		}
		return size, nil
	}
	if err := (amqp.Table{"": value}).Validate(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrUnencodable, err)
	}
	return 16, nil
}
