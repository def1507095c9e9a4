package inbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// permanentError marks an error that no retry will mend.
type permanentError struct{ error }

// Unwrap gives the marked error.
func (e permanentError) Unwrap() error { return e.error }

// Permanent marks an error that no retry will mend: its message is parked at once. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanentError{err}
}

// unreadableError marks an error of what this build cannot read.
type unreadableError struct{ error }

// Unwrap gives the marked error.
func (e unreadableError) Unwrap() error { return e.error }

// Unreadable marks an error that another build of the program may not have, as of a version that this one does not know. Its
// message waits, as one whose body does not fit does, and another build tries it afresh. Unreadable(nil) is nil.
func Unreadable(err error) error {
	if err == nil {
		return nil
	}
	return unreadableError{err}
}

var (
	errUnknownType = errors.New("no handler for this type") // another build may have one
	errPanic       = errors.New("the handler panicked")
	errTooOld      = errors.New("the message is older than what the inbox remembers: it may have been handled")
)

// Classes of failure, as stored with a stuck message.
const (
	classHandler     = "handler"
	classPermanent   = "permanent"
	classPanic       = "panic"
	classUnknownType = "unknown_type"
	classUndecodable = "undecodable"
	classTooOld      = "too_old"
)

func classOf(err error) string {
	var (
		permanent  permanentError
		unreadable unreadableError
	)
	switch {
	case errors.As(err, &permanent):
		return classPermanent
	case errors.Is(err, errUnknownType):
		return classUnknownType
	case errors.As(err, &unreadable):
		return classUndecodable
	case errors.Is(err, errPanic):
		return classPanic
	case errors.Is(err, errTooOld):
		return classTooOld
	}
	return classHandler
}

// quick reports whether trying again at once could help. A handler whose time ran out has kept its partition waiting for long
// enough.
func quick(err error) bool {
	class := classOf(err)
	var pg *pgconn.PgError
	late := errors.Is(err, context.DeadlineExceeded) || errors.As(err, &pg) && pg.Code == "57014" // its statement's time
	return (class == classHandler || class == classPanic) && !late
}

// clip bounds a text that goes into the database.
func clip(s string, most int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "?")
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}

// recovered turns a panic into an error.
func recovered(ctx context.Context, c *Consumer, err *error) {
	if cause := recover(); cause != nil {
		c.logPanic(ctx, cause)
		*err = fmt.Errorf("%w: %v", errPanic, cause)
	}
}
