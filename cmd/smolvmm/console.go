package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// console is what COM1 is attached to.
type console struct {
	in  io.Reader
	out io.Writer
	// note is what the user must know to use it, if anything.
	note string
	// close ends a blocked Read and gives everything back.
	close func()
}

// openConsole opens where -console says. keys is told of escape keys, which
// only a terminal on standard input has.
func openConsole(where string, s streams, keys func(key byte)) (*console, error) {
	kind, path, _ := strings.Cut(where, ":")
	switch {
	case where == "stdio":
		return stdioConsole(s, keys), nil
	case where == "none":
		return &console{out: io.Discard, close: func() {}}, nil
	case where == "pty":
		return ptyConsole()
	case kind == "file" && path != "":
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return nil, usagef("-console %s: %w", where, err)
		}
		return &console{out: f, close: func() { f.Close() }}, nil
	case kind == "unix" && path != "":
		return unixConsole(path)
	}
	return nil, usagef("-console %q: must be stdio, none, pty, file:PATH or unix:PATH", where)
}

func stdioConsole(s streams, keys func(byte)) *console {
	c := &console{in: s.in, out: s.out, close: func() {}}
	if s.in != nil && term.IsTerminal(int(s.in.Fd())) {
		c.in = &escapeReader{in: s.in, keys: keys}
	}
	return c
}

// ptyConsole makes a pseudo-terminal; the guest talks to its other end.
func ptyConsole() (*console, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("-console pty: /dev/ptmx: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	var peer int
	if err == nil {
		// A pty whose other end nobody holds reads as EIO; holding it ourselves
		// lets people come and go. Raw, so that the guest's terminal is the only one.
		peer, err = unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		if _, err = term.MakeRaw(peer); err != nil {
			unix.Close(peer)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("-console pty: %w", err)
	}
	f := os.NewFile(uintptr(fd), "/dev/ptmx")
	return &console{in: f, out: dropWriter{f}, note: "console on " + name, close: func() {
		f.Close()
		unix.Close(peer)
	}}, nil
}

// dropWriter loses what cannot be written now: a pty or socket without a
// reader must not hold up the guest for ever.
type dropWriter struct{ f *os.File }

func (d dropWriter) Write(p []byte) (int, error) {
	rc, err := d.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	werr := rc.Write(func(fd uintptr) bool {
		for b := p; len(b) > 0; {
			n, err := unix.Write(int(fd), b)
			if n <= 0 || err != nil && !errors.Is(err, unix.EINTR) {
				break
			}
			b = b[n:]
		}
		return true
	})
	return len(p), werr
}

// unixConsole listens on a socket; one client at a time is the console.
func unixConsole(path string) (*console, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, usagef("-console unix:%s: another program listens there", path)
		}
		// Nobody listens: the socket is one that a killed process left behind.
		_ = os.Remove(path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, usagef("-console unix:%s: %w", path, err)
	}
	_ = os.Chmod(path, 0o600)
	u := &socketConsole{l: l, data: make(chan []byte), done: make(chan struct{})}
	go u.accept()
	return &console{in: u, out: u, note: "console on " + path, close: u.Close}, nil
}

// socketConsole hands bytes between the UART and whoever is connected.
type socketConsole struct {
	l    net.Listener
	data chan []byte
	done chan struct{}
	once sync.Once
	rest []byte

	mu   sync.Mutex
	conn net.Conn
}

func (u *socketConsole) accept() {
	for {
		c, err := u.l.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.conn = c
		u.mu.Unlock()
		u.serve(c)
		u.mu.Lock()
		u.conn = nil
		u.mu.Unlock()
		c.Close()
	}
}

func (u *socketConsole) serve(c net.Conn) {
	for {
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		if n > 0 {
			select {
			case u.data <- buf[:n]:
			case <-u.done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// Read gives what clients type.
func (u *socketConsole) Read(p []byte) (int, error) {
	if len(u.rest) == 0 {
		select {
		case u.rest = <-u.data:
		case <-u.done:
			return 0, io.EOF
		}
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

// Write sends to the client, if there is one.
func (u *socketConsole) Write(p []byte) (int, error) {
	u.mu.Lock()
	c := u.conn
	u.mu.Unlock()
	if c != nil {
		if _, err := c.Write(p); err != nil {
			c.Close()
		}
	}
	return len(p), nil
}

// Close stops listening, hangs up and removes the socket.
func (u *socketConsole) Close() {
	u.once.Do(func() {
		close(u.done)
		u.l.Close()
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.conn != nil {
			u.conn.Close()
		}
	})
}
