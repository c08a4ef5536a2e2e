package muxer

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/vsock"
)

// Listener takes the guest's connections to one port of the host's, within this process.
type Listener struct {
	m     *Muxer
	port  uint32
	conns chan *Conn
	done  chan struct{}
	once  sync.Once
}

// Listen takes a port; it goes before a socket of the same port's name.
func (m *Muxer) Listen(port uint32) (*Listener, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrClosed
	case m.ports[port] != nil:
		return nil, fmt.Errorf("vsock port %d: %w", port, unix.EADDRINUSE)
	}
	l := &Listener{m: m, port: port, conns: make(chan *Conn, backlog), done: make(chan struct{})}
	m.ports[port] = l
	return l, nil
}

var errBacklog = errors.New("vsock: too many connections wait to be accepted")

// offer puts a connection of the guest's before Accept. The caller holds Muxer.mu.
func (l *Listener) offer(guestPort uint32) (vsock.Stream, error) {
	c := l.m.newConn()
	c.guest, c.host, c.isOpen = guestPort, l.port, true
	close(c.opened)
	select {
	case l.conns <- c:
		return pipeEnd{c}, nil
	default:
		return nil, errBacklog
	}
}

// Accept waits for a connection; ErrClosed is the end.
func (l *Listener) Accept() (*Conn, error) {
	select {
	case <-l.done:
		return nil, ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, ErrClosed
	}
}

// Port is the host's port.
func (l *Listener) Port() uint32 { return l.port }

// Close gives the port back, and closes what nobody has accepted.
func (l *Listener) Close() error {
	l.m.mu.Lock()
	if l.m.ports[l.port] == l {
		delete(l.m.ports, l.port)
	}
	l.m.mu.Unlock()
	l.shut()
	for {
		select {
		case c := <-l.conns:
			c.Close()
		default:
			return nil
		}
	}
}

func (l *Listener) shut() { l.once.Do(func() { close(l.done) }) }
