package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// conn is a connection inside the stack, TCP or UDP, as a net.Conn whose errors
// are errnos like those of the host's own sockets. A TCP one has CloseRead,
// CloseWrite and SetLinger with the meaning they have in net.TCPConn.
type conn struct {
	s         *Stack // whose list of flows it is on until Close
	began     time.Time
	inbound   bool
	sent, got atomic.Uint64 // payload bytes of the guest's, and for it

	ep            tcpip.Endpoint
	wq            *waiter.Queue
	network       string
	local, remote net.Addr

	readMu, writeMu      sync.Mutex
	readable, writable   chan struct{}
	rEntry, wEntry       waiter.Entry
	rDeadline, wDeadline deadline

	once   sync.Once
	closed chan struct{}
}

func (s *Stack) newConn(network string, ep tcpip.Endpoint, wq *waiter.Queue, inbound bool) *conn {
	c := &conn{s: s, began: time.Now(), inbound: inbound, ep: ep, wq: wq, network: network, closed: make(chan struct{})}
	c.rEntry, c.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	c.wEntry, c.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&c.rEntry)
	wq.EventRegister(&c.wEntry)
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = netAddr(network, a)
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.remote = netAddr(network, a)
	}
	s.conns.add(c)
	return c
}

func netAddr(network string, a tcpip.FullAddress) net.Addr {
	if network == "udp" {
		return &net.UDPAddr{IP: a.Addr.AsSlice(), Port: int(a.Port)}
	}
	return &net.TCPAddr{IP: a.Addr.AsSlice(), Port: int(a.Port)}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.network, Source: c.local, Addr: c.remote, Err: err}
}

// wait blocks until ready is signalled; the error says why it will not be.
func (c *conn) wait(ready <-chan struct{}, d *deadline) error {
	select {
	case <-ready:
		return nil
	case <-c.closed:
		return net.ErrClosed
	case <-d.passed():
		return os.ErrDeadlineExceeded
	}
}

// check says whether an operation may begin.
func (c *conn) check(d *deadline) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	select {
	case <-d.passed():
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// Read gives what has come, io.EOF after the other side's FIN; of UDP one
// datagram, whose rest is lost where b is too short.
func (c *conn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if err := c.check(&c.rDeadline); err != nil {
		return 0, c.opError("read", err)
	}
	for {
		w := tcpip.SliceWriter(b)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			c.sent.Add(uint64(res.Count))
			return res.Count, nil
		case *tcpip.ErrClosedForReceive:
			return 0, io.EOF
		case *tcpip.ErrWouldBlock:
			if werr := c.wait(c.readable, &c.rDeadline); werr != nil {
				return 0, c.opError("read", werr)
			}
		default:
			return 0, c.opError("read", errno(err))
		}
	}
}

// fill is Read into a buffer that is given back while there is nothing to read.
func (c *conn) fill(b []byte, release func(), again func() []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		if err := c.check(&c.rDeadline); err != nil {
			return 0, c.opError("read", err)
		}
		w := tcpip.SliceWriter(b)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			c.sent.Add(uint64(res.Count))
			return res.Count, nil
		case *tcpip.ErrClosedForReceive:
			return 0, io.EOF
		case *tcpip.ErrWouldBlock:
			release()
			werr := c.wait(c.readable, &c.rDeadline)
			if werr != nil {
				return 0, c.opError("read", werr)
			}
			b = again()
		default:
			return 0, c.opError("read", errno(err))
		}
	}
}

func (c *conn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.check(&c.wDeadline); err != nil {
		return 0, c.opError("write", err)
	}
	var r bytes.Reader
	for done := 0; ; {
		r.Reset(b[done:])
		n, err := c.ep.Write(&r, tcpip.WriteOptions{})
		done += int(n)
		c.got.Add(uint64(n))
		switch err.(type) {
		case nil:
			if done >= len(b) {
				return done, nil
			}
		case *tcpip.ErrWouldBlock:
			if werr := c.wait(c.writable, &c.wDeadline); werr != nil {
				return done, c.opError("write", werr)
			}
		default:
			return done, c.opError("write", errno(err))
		}
	}
}

// Close ends the connection; what was written is still sent, unless SetLinger(0)
// said otherwise. It does not block.
func (c *conn) Close() error {
	err := c.opError("close", net.ErrClosed)
	c.once.Do(func() {
		c.s.conns.remove(c)
		c.wq.EventUnregister(&c.rEntry)
		c.wq.EventUnregister(&c.wEntry)
		close(c.closed)
		c.ep.Close()
		err = nil
	})
	return err
}

func (c *conn) shutdown(how tcpip.ShutdownFlags) error {
	if err := c.ep.Shutdown(how); err != nil {
		return c.opError("close", errno(err))
	}
	return nil
}

// CloseRead says that nothing more will be read.
func (c *conn) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

// CloseWrite sends FIN after what was written.
func (c *conn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

// SetLinger with 0 has Close send RST; other values mean nothing here.
func (c *conn) SetLinger(sec int) error {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: sec == 0})
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	c.rDeadline.set(t)
	c.wDeadline.set(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.rDeadline.set(t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.wDeadline.set(t)
	return nil
}

// deadline is a channel that is closed once a time has passed.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	ch    chan struct{} // nil where there has never been a deadline
}

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	return d.ch
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.ch: // it has passed: the next one needs its own
		d.ch = nil
	default:
	}
	if t.IsZero() {
		return
	}
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	ch := d.ch
	left := time.Until(t)
	if left <= 0 {
		close(ch)
		return
	}
	d.timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.ch != ch {
			return
		}
		select {
		case <-ch:
		default:
			close(ch)
		}
	})
}

// errno translates gVisor's errors to the host's.
func errno(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrNotConnected, *tcpip.ErrInvalidEndpointState:
		return syscall.ENOTCONN
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	case *tcpip.ErrBadLocalAddress:
		return syscall.EADDRNOTAVAIL
	case *tcpip.ErrMessageTooLong:
		return syscall.EMSGSIZE
	case *tcpip.ErrNoBufferSpace:
		return syscall.ENOBUFS
	}
	return errors.New(err.String())
}
