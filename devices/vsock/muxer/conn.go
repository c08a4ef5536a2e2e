package muxer

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/vsock"
)

// ErrRefused says that nobody listens on the guest's port, or that its driver does
// not answer.
var ErrRefused = errors.New("vsock: connection refused by the guest")

// ErrReset says that the guest has ended the connection without closing it.
var ErrReset = errors.New("vsock: connection reset by the guest")

// Conn is a connection to the guest within this process, without descriptors. It is
// safe for concurrent use, as net.Conn is, and lacks only its addresses. Bytes go from
// the slice of a Write straight into the guest's memory, for which Write waits.
type Conn struct {
	source
	m                *Muxer
	guest, host      uint32 // ports
	opened           chan struct{}
	reads, writes    sync.Mutex // one Read and one Write at a time
	canRead, canSend chan struct{}
	rd, wr           deadline

	mu      sync.Mutex
	isOpen  bool
	err     error  // why it has ended; nil: it has not
	src     []byte // of the Write at work
	dst     []byte // of the Read at work
	got     int    // bytes in dst
	asked   bool   // the device waits for src
	offered bool   // the device waits for dst
	noRead  bool   // the guest takes no more
	eof     bool   // the guest sends no more
	shutW   bool   // we send no more
	closed  bool
}

var _ vsock.Stream = pipeEnd{}

func (m *Muxer) newConn() *Conn {
	c := &Conn{m: m, opened: make(chan struct{}), canRead: make(chan struct{}, 1), canSend: make(chan struct{}, 1), asked: true, offered: true}
	c.stream, c.pipe = pipeEnd{c}, c
	c.rd.init()
	c.wr.init()
	return c
}

// Dial connects to a port of the guest's. It waits for the guest's driver to be
// there, and then for an answer: ErrRefused is one.
func (m *Muxer) Dial(ctx context.Context, port uint32) (*Conn, error) {
	c := m.newConn()
	c.guest = port
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, ErrClosed
	}
	c.news = vsock.Event{Call: true, Port: port}
	m.enqueue(&c.source)
	m.mu.Unlock()
	select {
	case <-c.opened:
	case <-ctx.Done():
		c.Close()
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isOpen {
		return nil, c.err
	}
	return c, nil
}

// refuse ends a Dial that nobody has answered.
func (c *Conn) refuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(err)
}

// GuestPort and HostPort are the connection's ends.
func (c *Conn) GuestPort() uint32 { return c.guest }
func (c *Conn) HostPort() uint32  { return c.host }

// tell lets the device know. Neither lock is held.
func (c *Conn) tell(readable, writable bool) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.news.Readable = c.news.Readable || readable
	c.news.Writable = c.news.Writable || writable
	c.m.enqueue(&c.source)
}

// Write sends p; it returns when the guest has it in its memory, or with an error.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.writes.Lock()
	defer c.writes.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	drain(c.canSend)
	c.src = p
	for {
		n = len(p) - len(c.src)
		switch {
		case n == len(p):
		case c.closed:
			err = os.ErrClosed
		case c.err != nil:
			err = c.err
		case c.shutW || c.noRead:
			err = unix.EPIPE
		case c.wr.past():
			err = os.ErrDeadlineExceeded
		default:
			ask := c.asked
			c.asked = false
			c.mu.Unlock()
			if ask {
				c.tell(true, false)
			}
			select {
			case <-c.canSend:
			case <-c.wr.wait():
			}
			c.mu.Lock()
			continue
		}
		c.src = nil
		c.mu.Unlock()
		return n, err
	}
}

// Read gives at least a byte, io.EOF when the guest sends no more, or an error.
func (c *Conn) Read(p []byte) (n int, err error) {
	c.reads.Lock()
	defer c.reads.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	drain(c.canRead)
	c.dst, c.got = p, 0
	for {
		switch {
		case c.got > 0:
		case c.closed:
			err = os.ErrClosed
		case c.eof:
			err = io.EOF
		case c.err != nil:
			err = c.err
		case c.rd.past():
			err = os.ErrDeadlineExceeded
		default:
			ask := c.offered
			c.offered = false
			c.mu.Unlock()
			if ask {
				c.tell(false, true)
			}
			select {
			case <-c.canRead:
			case <-c.rd.wait():
			}
			c.mu.Lock()
			continue
		}
		n = c.got
		c.dst, c.got = nil, 0
		c.mu.Unlock()
		return n, err
	}
}

// CloseWrite tells the guest that no more comes.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	c.shutW = true
	c.mu.Unlock()
	signal(c.canSend)
	c.tell(true, false)
	return nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	signal(c.canRead)
	signal(c.canSend)
	c.tell(true, true)
	return nil
}

// SetDeadline, SetReadDeadline and SetWriteDeadline are as net.Conn has them.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}
func (c *Conn) SetReadDeadline(t time.Time) error  { c.rd.set(t); return nil }
func (c *Conn) SetWriteDeadline(t time.Time) error { c.wr.set(t); return nil }

// What follows is the device's side.

// end wakes everyone up. The caller holds mu.
func (c *Conn) end(err error) {
	if c.err == nil {
		c.err = err
	}
	select {
	case <-c.opened:
	default:
		close(c.opened)
	}
	signal(c.canRead)
	signal(c.canSend)
}

type pipeEnd struct{ *Conn }

func (c pipeEnd) Opened(hostPort uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.host, c.isOpen = hostPort, true
	close(c.opened)
}

func (c pipeEnd) Read(runs [][]byte) (n int, more bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, false, io.EOF
	}
	for _, b := range runs {
		k := copy(b, c.src)
		c.src, n = c.src[k:], n+k
	}
	switch {
	case len(c.src) > 0:
		return n, true, nil
	case n > 0:
		signal(c.canSend)
	case c.shutW:
		return 0, false, io.EOF
	}
	c.asked = true
	return n, c.shutW, nil
}

func (c pipeEnd) Write(runs [][]byte) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, unix.EPIPE
	}
	for _, b := range runs {
		if c.dst == nil {
			c.offered = true
			return n, nil
		}
		k := copy(c.dst[c.got:], b)
		c.got, n = c.got+k, n+k
		if k < len(b) {
			c.offered = true
			break
		}
	}
	if n > 0 {
		signal(c.canRead)
	}
	return n, nil
}

func (c pipeEnd) Gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c pipeEnd) CloseRead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noRead = true
	signal(c.canSend)
}

func (c pipeEnd) CloseWrite() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.eof = true
	signal(c.canRead)
}

func (c pipeEnd) Close() {
	c.m.mu.Lock()
	c.dead = true
	c.m.mu.Unlock()
	err := ErrReset
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isOpen {
		err = ErrRefused
	}
	c.end(err)
}

// drain forgets a signal that was for somebody before.
func drain(c chan struct{}) {
	select {
	case <-c:
	default:
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
