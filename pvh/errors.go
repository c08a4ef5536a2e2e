package pvh

import (
	"errors"
	"fmt"
)

// What an *Error can be about, for errors.Is.
var (
	ErrNotELF     = errors.New("not an ELF kernel")
	ErrMachine    = errors.New("wrong machine")
	ErrFormat     = errors.New("malformed file")
	ErrTruncated  = errors.New("truncated file")
	ErrCompressed = errors.New("bad compressed file")
	ErrNoNote     = errors.New("no PVH note")
	ErrEntry      = errors.New("entry point outside the kernel")
	ErrOutsideRAM = errors.New("segment outside RAM")
	ErrOverlap    = errors.New("overlap")
	ErrMemory     = errors.New("too little memory")
	ErrCmdline    = errors.New("bad command line")
	ErrParams     = errors.New("bad parameter")
)

// Error is a kernel, module or command line that cannot be used.
type Error struct {
	File string // its name, or "" where no file is concerned
	Fact string // what is wrong with it and, where known, what to do
	Kind error  // one of the Err values
}

func (e *Error) Error() string {
	if e.File == "" {
		return e.Fact
	}
	return e.File + ": " + e.Fact
}

// Unwrap gives Kind.
func (e *Error) Unwrap() error { return e.Kind }

func fail(file string, kind error, format string, args ...any) error {
	return &Error{File: file, Fact: fmt.Sprintf(format, args...), Kind: kind}
}
