package cli

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

// Terminal is the one on standard input, whose settings are borrowed.
type Terminal struct {
	f           *os.File
	Cooked, Raw unix.Termios
	isRaw       *atomic.Bool

	mu   sync.Mutex
	over bool // restored for good
}

func IsTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// NewTerminal looks at a terminal's settings without changing them. It is nil,
// whose methods do nothing, where f is no terminal.
func NewTerminal(f *os.File, isRaw *atomic.Bool) *Terminal {
	if f == nil {
		return nil
	}
	cooked, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil
	}
	return &Terminal{f: f, Cooked: *cooked, Raw: rawSettings(*cooked), isRaw: isRaw}
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

// Enter makes the terminal raw, as it also must be made after a stop.
func (t *Terminal) Enter() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil
	}
	err := unix.IoctlSetTermios(int(t.f.Fd()), unix.TCSETS, &t.Raw)
	if err == nil {
		t.isRaw.Store(true)
	}
	return err
}

// leave puts the terminal back for now.
func (t *Terminal) leave() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cook()
}

// Restore puts the terminal back for good, however often it is called.
func (t *Terminal) Restore() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	t.cook()
}

func (t *Terminal) cook() {
	if t.isRaw.Load() {
		_ = unix.IoctlSetTermios(int(t.f.Fd()), unix.TCSETS, &t.Cooked)
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
	if err != nil || st.Mode()&os.ModeNamedPipe == 0 && !IsTerminal(f) {
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

// LineWriter is standard error: while the terminal is raw, a line's end needs
// its carriage return.
type LineWriter struct {
	W   io.Writer
	raw *atomic.Bool
}

func (l *LineWriter) Write(p []byte) (int, error) {
	if !l.raw.Load() {
		return l.W.Write(p)
	}
	if _, err := io.WriteString(l.W, strings.ReplaceAll(string(p), "\n", "\r\n")); err != nil {
		return 0, err
	}
	return len(p), nil
}
