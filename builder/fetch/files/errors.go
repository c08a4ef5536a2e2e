package files

import (
	"errors"
	"fmt"
)

// What an *Error can be about, for errors.Is.
var (
	ErrNotFound = errors.New("not on the server")
	ErrNetwork  = errors.New("server out of reach")
	ErrServer   = errors.New("bad answer from the server")
	ErrChecksum = errors.New("checksum differs")
	ErrCache    = errors.New("cache cannot be used")
)

// Error is one line for the user: what, where, what to do.
type Error struct {
	Text string
	Kind error // one of the Err values, here or of who wraps this package
	Err  error // what caused it, or nil
}

func (e *Error) Error() string { return e.Text }

// Unwrap gives Kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Fail makes an *Error; cause may be nil.
func Fail(kind, cause error, format string, args ...any) error {
	return &Error{Text: fmt.Sprintf(format, args...), Kind: kind, Err: cause}
}
