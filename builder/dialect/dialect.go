// Package dialect reads Dockerfiles as smolvmm has them: Docker's syntax through
// BuildKit's own parser, and what a bootable NetBSD image needs besides, as
// smolBSD's files have it (FROM with NetBSD's sets, INCLUDE, LABEL smolbsd.*).
//
// Parse gives a File of Stages of instructions. Variables are expanded later, one
// stage after the other, as a stage's variables begin with those of its base
// image. Whatever is not supported is an *Error with file, line and column that
// names the nearest thing that is.
//
// The files are not trusted: their size, their includes and what variables can
// grow to are bounded.
package dialect

import (
	"fmt"
	"strings"
)

// Pos is a place in a file. Lines and columns count from 1, columns in
// characters.
type Pos struct {
	File      string
	Line, Col int
}

func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

// Error is what is wrong with a file, where, and what to do.
type Error struct {
	Pos
	Msg  string // what is wrong
	Hint string // what is nearest to it and would do, or ""
	Err  error  // what is behind it, or nil
}

func (e *Error) Error() string {
	s := e.Pos.String() + ": " + e.Msg
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Unwrap gives the error behind it.
func (e *Error) Unwrap() error { return e.Err }

// errorf makes an Error without a hint. An error among the arguments is unwrapped
// to when the format ends in %w.
func errorf(p Pos, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Pos: p, Msg: err.Error(), Err: unwrapped(err)}
}

func unwrapped(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return nil
}

// hint adds what would do.
func (e *Error) hint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Warning is what works, perhaps not as it was meant.
type Warning struct {
	Pos
	Msg string
}

func (w Warning) String() string { return w.Pos.String() + ": " + w.Msg }

// File is a Dockerfile, its includes in their places.
type File struct {
	Name     string
	Escape   rune      // the escape character: a backslash, or a backquote
	Args     []*Arg    // the ARGs before the first FROM
	Stages   []*Stage  // at least one
	Warnings []Warning // what works, perhaps not as meant
}

// Stage is a FROM and what follows it.
type Stage struct {
	Pos
	Index int
	Name  string // what AS says, lower case, or ""
	From  string // what FROM says, variables not expanded
	Text  string // the FROM line
	Steps []Instruction
	// SmolBSD says that shell text is quoted as smolBSD's builder wants it: see
	// Run.Command. It is what LABEL smolvmm.quoting says, else whether there is
	// a LABEL smolbsd.service, which smolBSD demands.
	SmolBSD bool

	line Base
}

// Title is how people call the stage.
func (s *Stage) Title() string {
	if s.Name != "" {
		return s.Name
	}
	return fmt.Sprintf("stage %d", s.Index)
}

// Stage finds a stage by name or number, among the first n; nil if there is none.
func (f *File) Stage(name string, n int) *Stage {
	for _, s := range f.Stages[:min(n, len(f.Stages))] {
		if s.Name != "" && strings.EqualFold(s.Name, name) || fmt.Sprint(s.Index) == name {
			return s
		}
	}
	return nil
}
