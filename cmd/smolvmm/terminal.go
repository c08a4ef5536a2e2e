package main

import (
	"os"
	"sync"

	"io"

	"golang.org/x/term"
)

const (
	escapeKey = 0x01 // Ctrl-a
	keyQuit   = 'x'
	keyBreak  = 'b'
	keyHelp   = 'h'
)

const escapeHelp = "\r\nCtrl-a x   quit\r\nCtrl-a b   send a break\r\nCtrl-a h   this help\r\nCtrl-a a   send Ctrl-a\r\n"

// escapeReader takes Ctrl-a and the key behind it out of what is typed.
type escapeReader struct {
	in      io.Reader
	keys    func(key byte)
	escaped bool
}

func (e *escapeReader) Read(p []byte) (int, error) {
	for {
		n, err := e.in.Read(p)
		kept := 0
		for _, c := range p[:n] {
			switch {
			case !e.escaped && c == escapeKey:
				e.escaped = true
				continue
			case e.escaped:
				e.escaped = false
				if c != 'a' && c != escapeKey {
					e.keys(c)
					continue
				}
				c = escapeKey
			}
			p[kept] = c
			kept++
		}
		// An escape sequence alone is not the end of the input.
		if kept > 0 || err != nil || len(p) == 0 {
			return kept, err
		}
	}
}

// rawTerminal puts a terminal into raw mode; restore undoes it, once, however
// often it is called. What is no terminal is left alone.
func rawTerminal(f *os.File) (restore func(), err error) {
	if f == nil || !term.IsTerminal(int(f.Fd())) {
		return func() {}, nil
	}
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return func() {}, err
	}
	return sync.OnceFunc(func() { _ = term.Restore(int(f.Fd()), old) }), nil
}
