package main

import (
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
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
	in      *os.File
	keys    func(key byte)
	escaped bool
}

func (e *escapeReader) Read(p []byte) (int, error) {
	for {
		n, err := e.in.Read(p)
		kept := e.filter(p[:n])
		// An escape sequence alone is not the end of the input.
		if kept > 0 || err != nil || len(p) == 0 {
			return kept, err
		}
	}
}

// SetReadDeadline lets the UART stop a Read.
func (e *escapeReader) SetReadDeadline(t time.Time) error { return e.in.SetReadDeadline(t) }

// filter moves what is for the guest to the front of p and says how much it is.
func (e *escapeReader) filter(p []byte) (kept int) {
	for _, c := range p {
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
	return kept
}

// terminal is the one on standard input, whose settings are borrowed.
type terminal struct {
	f           *os.File
	cooked, raw unix.Termios
	isRaw       *atomic.Bool

	mu   sync.Mutex
	over bool // restored for good
}

func isTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// newTerminal looks at a terminal's settings without changing them. It is nil,
// whose methods do nothing, where f is no terminal.
func newTerminal(f *os.File, isRaw *atomic.Bool) *terminal {
	if f == nil {
		return nil
	}
	cooked, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil
	}
	return &terminal{f: f, cooked: *cooked, raw: rawSettings(*cooked), isRaw: isRaw}
}

// rawSettings are those of cfmakeraw(3), with reads of one byte and more.
func rawSettings(t unix.Termios) unix.Termios {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CSIZE | unix.PARENB
	t.Cflag |= unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return t
}

// enter makes the terminal raw, as it also must be made after a stop.
func (t *terminal) enter() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil
	}
	err := unix.IoctlSetTermios(int(t.f.Fd()), unix.TCSETS, &t.raw)
	if err == nil {
		t.isRaw.Store(true)
	}
	return err
}

// leave puts the terminal back for now.
func (t *terminal) leave() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cook()
}

// restore puts the terminal back for good, however often it is called.
func (t *terminal) restore() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	t.cook()
}

func (t *terminal) cook() {
	if t.isRaw.Load() {
		_ = unix.IoctlSetTermios(int(t.f.Fd()), unix.TCSETS, &t.cooked)
		t.isRaw.Store(false)
	}
}

// openInput gives standard input as a reader whose Read can be stopped, where
// it is of a kind that blocks: the terminal or pipe opened anew, so that
// O_NONBLOCK is this program's alone and not the shell's too. Everything else
// is left as it is. closeFn gives back what was opened.
func openInput(f *os.File) (in *os.File, closeFn func()) {
	same := func() (*os.File, func()) { return f, func() {} }
	st, err := f.Stat()
	if err != nil || st.Mode()&os.ModeNamedPipe == 0 && !isTerminal(f) {
		return same()
	}
	path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	again, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return same() // another user's terminal, as after su
	}
	if again.SetReadDeadline(time.Time{}) != nil {
		again.Close()
		return same()
	}
	return again, func() { again.Close() }
}

// lineWriter is standard error: while the terminal is raw, a line's end needs
// its carriage return.
type lineWriter struct {
	w   io.Writer
	raw *atomic.Bool
}

func (l *lineWriter) Write(p []byte) (int, error) {
	if !l.raw.Load() {
		return l.w.Write(p)
	}
	if _, err := io.WriteString(l.w, strings.ReplaceAll(string(p), "\n", "\r\n")); err != nil {
		return 0, err
	}
	return len(p), nil
}
