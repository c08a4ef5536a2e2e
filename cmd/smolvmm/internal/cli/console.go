package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Console is what COM1 is attached to.
type Console struct {
	in  io.Reader // nil: nobody can type
	Out *sink
	// note is what the user must know to use it, if anything.
	note string
	// Job is what a keeper has to do when this process has ended.
	Job KeeperJob
	// Kept is told that a keeper will do the job.
	Kept func()
	// close ends a blocked Read and gives everything back.
	close func()
}

const consoleForms = "must be stdio, none, pty, file:PATH[,append] or unix:PATH"

// CheckConsole refuses what openConsole would not understand, before anything
// is opened or made.
func CheckConsole(where string) error {
	kind, path, _ := strings.Cut(where, ":")
	switch {
	case where == "stdio", where == "none", where == "pty":
		return nil
	case (kind == "file" || kind == "unix") && path != "":
		return nil
	}
	return Usagef("-console %q: %s", where, consoleForms)
}

// openConsole opens where -console says.
func openConsole(where string, s Streams) (*Console, error) {
	kind, path, _ := strings.Cut(where, ":")
	switch kind {
	case "none":
		return &Console{Out: &sink{W: io.Discard}, close: func() {}}, nil
	case "pty":
		return ptyConsole()
	case "file":
		return fileConsole(path)
	case "unix":
		return unixConsole(path)
	}
	in, closeIn := openInput(s.In)
	return &Console{in: in, Out: &sink{W: s.Out}, close: closeIn}, nil
}

// fileConsole begins the file anew, or with ",append" goes on at its end.
func fileConsole(where string) (*Console, error) {
	path, add := strings.CutSuffix(where, ",append")
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if add {
		flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return nil, Usagef("-console file:%s: %w", path, Plain(err))
	}
	return &Console{Out: &sink{W: f}, close: func() { f.Close() }}, nil
}

// sink is the console's way out. It remembers the first thing that went wrong
// and whether the last line was ended.
type sink struct {
	W io.Writer
	// broken is called when nobody reads any more, once.
	broken func()

	mu   sync.Mutex
	err  error
	last byte
}

func (k *sink) Write(p []byte) (int, error) {
	n, err := k.W.Write(p)
	k.mu.Lock()
	first := err != nil && k.err == nil
	if first {
		k.err = err
	}
	if n > 0 && n <= len(p) {
		k.last = p[n-1]
	}
	k.mu.Unlock()
	if first && k.broken != nil && errors.Is(err, unix.EPIPE) {
		k.broken()
	}
	return n, err
}

// state gives the first error, and whether the last line lacks its end.
func (k *sink) state() (err error, open bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err, k.last != 0 && k.last != '\n'
}

// deadliner is a file of the poller's or a network connection.
type deadliner interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// Patience of a patientWriter.
const (
	// stuckAfter is how long a reader may take nothing before what the guest
	// prints is dropped instead.
	stuckAfter = 250 * time.Millisecond
	// stuckTry is how long each attempt takes from then on: long enough for
	// the poller to try at all.
	stuckTry = time.Millisecond
)

// patientWriter drops what nobody reads: a pty that no one has opened must not
// hold up the guest for ever. What a reader does take is whole and in order.
type patientWriter struct {
	w     deadliner
	stuck bool
}

// Write always takes all of p.
func (d *patientWriter) Write(p []byte) (int, error) {
	patience := stuckAfter
	if d.stuck {
		patience = stuckTry
	}
	n, err := writePatiently(d.w, p, patience)
	d.stuck = errors.Is(err, os.ErrDeadlineExceeded)
	if d.stuck {
		return len(p), nil
	}
	return n, err
}

// writePatiently writes p as long as some of it goes out every now and then: a
// slow reader is none that has stopped.
func writePatiently(w deadliner, p []byte, patience time.Duration) (written int, err error) {
	for {
		if err := w.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return written, err
		}
		n, err := w.Write(p[written:])
		written += n
		if n == 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
	}
}

// ptyConsole makes a pseudo-terminal; the guest talks to its other end.
func ptyConsole() (*Console, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("-console pty: /dev/ptmx: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	peer := -1
	if err == nil {
		// A pty whose other end nobody holds reads as EIO; holding it ourselves
		// lets people come and go. Raw, so that the guest's terminal is the only one.
		peer, err = unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		err = makeRaw(peer)
	}
	if err != nil {
		unix.Close(fd)
		if peer >= 0 {
			unix.Close(peer)
		}
		return nil, fmt.Errorf("-console pty: %w", err)
	}
	f := os.NewFile(uintptr(fd), "/dev/ptmx")
	return &Console{in: f, Out: &sink{W: &patientWriter{w: f}}, note: "console on " + name, close: func() {
		f.Close()
		unix.Close(peer)
	}}, nil
}

// makeRaw sets a terminal that is this program's own.
func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	raw := rawSettings(*t)
	return unix.IoctlSetTermios(fd, unix.TCSETS, &raw)
}
