package cli

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what sockaddr_un holds besides its NUL (unix(7)), in bytes.
const maxSocketPath = 107

// hangUpAfter is how long a client may take nothing before it is hung up on.
const hangUpAfter = time.Second

// ListenUnix listens on a socket at path, for this user alone. One that nobody
// listens on any more is replaced.
func ListenUnix(path string) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%d bytes: a socket's path has at most %d; use a shorter one", len(path), maxSocketPath)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Nobody else's from its first moment on: a console may be a root shell.
	mask := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(mask)
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		err = sys.Err
	}
	return l, err
}

// unixConsole listens on a socket; one client at a time is the console.
func unixConsole(path string) (*Console, error) {
	l, err := ListenUnix(path)
	if err != nil {
		return nil, Usagef("-console unix:%s: %w", path, err)
	}
	u := &socketConsole{l: l, data: make(chan []byte), done: make(chan struct{})}
	u.ended.Add(1)
	go u.accept()
	return &Console{
		in: u, Out: &sink{W: u}, note: "console on " + path, close: u.Close,
		Job: KeeperJob{Sockets: []SocketFile{{Path: path}}},
		// A confined process must not even try.
		Kept: func() { l.SetUnlinkOnClose(false) },
	}, nil
}

// removeStale removes a socket that nobody listens on: a killed process left it.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return Plain(err)
	case st.Mode()&os.ModeSocket == 0:
		return errors.New("something that is no socket has this name; use another")
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return errors.New("another program listens there; use another name")
	case errors.Is(err, unix.ECONNREFUSED):
		return Plain(os.Remove(path))
	}
	return errors.New("a socket is there that cannot be tried; remove it or use another name")
}

// socketConsole hands bytes between the UART and whoever is connected. It
// holds one client's read of 512 bytes and nothing else.
type socketConsole struct {
	l     *net.UnixListener
	data  chan []byte
	done  chan struct{}
	once  sync.Once
	ended sync.WaitGroup
	rest  []byte

	mu   sync.Mutex
	conn net.Conn
}

// acceptPause is how long a listener that failed is left alone.
const acceptPause = 100 * time.Millisecond

// accept takes clients one after the other. One that has said all it had to
// goes on listening until the next comes.
func (u *socketConsole) accept() {
	defer u.ended.Done()
	for {
		c, err := u.l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			u.attach(nil)
			return
		case err != nil:
			// Out of descriptors, say: it may pass, and asking at once would spin.
			select {
			case <-time.After(acceptPause):
			case <-u.done:
			}
			continue
		}
		u.attach(c)
		u.serve(c)
	}
}

// attach makes c the client, and hangs up on the one before.
func (u *socketConsole) attach(c net.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn != nil {
		u.conn.Close()
	}
	u.conn = c
	select {
	case <-u.done:
		// Close has come between Accept and here.
		if c != nil {
			c.Close()
		}
	default:
	}
}

// serve takes what the client types until it ends.
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

// Write sends to the client, if there is one. A client that takes nothing is
// hung up on, so that it holds up neither the guest nor the next client.
func (u *socketConsole) Write(p []byte) (int, error) {
	u.mu.Lock()
	c := u.conn
	u.mu.Unlock()
	if c != nil {
		if _, err := writePatiently(c, p, hangUpAfter); err != nil {
			c.Close()
		}
	}
	return len(p), nil
}

// Close stops listening and hangs up. The listener removes its socket, unless
// a keeper does.
func (u *socketConsole) Close() {
	u.once.Do(func() {
		close(u.done)
		u.l.Close()
		u.mu.Lock()
		if u.conn != nil {
			u.conn.Close()
		}
		u.mu.Unlock()
		u.ended.Wait()
	})
}
