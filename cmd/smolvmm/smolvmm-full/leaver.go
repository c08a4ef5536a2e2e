package main

import (
	"errors"
	"io"
)

// errLeft: the user did not want to wait for a command any longer.
var errLeft = errors.New("the command was given up on: ~. was typed")

// leaver takes "~." at the beginning of a line out of what is typed, and calls leave
// then: a command that hangs, in a terminal where Ctrl-C is the command's too, is left
// as ssh(1) and cu(1) are. "~~" is one "~", and before all else "~" is itself.
type leaver struct {
	in    io.Reader
	leave func()

	inside bool // a line has begun
	held   bool // a "~" that began it has been kept back
	left   bool
	buf    [4096]byte
	out    []byte // not read yet
	space  []byte
	err    error // of in
}

func (l *leaver) Read(p []byte) (int, error) {
	for len(l.out) == 0 {
		if l.left {
			return 0, io.EOF
		}
		if l.err != nil {
			return 0, l.err
		}
		var n int
		n, l.err = l.in.Read(l.buf[:])
		l.filter(l.buf[:n])
		if l.err != nil && l.held {
			l.out, l.held = append(l.out, '~'), false
		}
	}
	n := copy(p, l.out)
	l.out = l.out[n:]
	return n, nil
}

// filter puts what is for the command into out, which is empty.
func (l *leaver) filter(p []byte) {
	l.out = l.space[:0]
	for _, c := range p {
		switch {
		case l.held && c == '.':
			l.left, l.held = true, false
			l.leave()
			return
		case l.held:
			l.held = false
			l.out = append(l.out, '~')
			if c == '~' {
				l.inside = true
				continue
			}
		case !l.inside && c == '~':
			l.held = true
			continue
		}
		l.inside = c != '\r' && c != '\n'
		l.out = append(l.out, c)
	}
	l.space = l.out
}
