package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/smolvmm/smolvmm/netstack/policy"
)

const (
	// A relay reads as much as one segment of the largest kind has.
	relayBuffer = 64 << 10
	// Where there are many connections their buffers are smaller, so that all of
	// them together stay in bounds.
	manyConnections  = 128
	smallRelayBuffer = 16 << 10
)

// buffers are what relays read into: taken only when there is something to read,
// so that a thousand idle connections hold none.
type buffers struct{ large, small sync.Pool }

func (b *buffers) get(many bool) *[]byte {
	pool, size := &b.large, relayBuffer
	if many {
		pool, size = &b.small, smallRelayBuffer
	}
	if p, ok := pool.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, size)
	return &p
}

func (b *buffers) put(p *[]byte) {
	if len(*p) == relayBuffer {
		b.large.Put(p)
	} else {
		b.small.Put(p)
	}
}

// relay is a connection of the guest's and the one that the host made for it.
type relay struct {
	s     *Stack
	guest *conn
	host  net.Conn
	raw   syscall.RawConn // host's, where it has one
	once  sync.Once
	a     *attempt
}

// relay carries both ways until both ends have ended, or one has reset.
func (s *Stack) relay(guest *conn, host net.Conn, a *attempt) {
	r := &relay{s: s, guest: guest, host: host, a: a}
	if c, ok := host.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			r.raw = raw
		}
	}
	// The guest's RST has to be passed on also while both directions wait for
	// the host.
	entry := waiter.NewFunctionEntry(waiter.EventHUp|waiter.EventErr, func(waiter.EventMask) {
		if tcp.EndpointState(guest.ep.State()) == tcp.StateError && s.enter() {
			go func() { // gVisor holds its locks here
				defer s.wg.Done()
				r.abort()
			}()
		}
	})
	defer context.AfterFunc(s.ctx, r.abort)()
	guest.wq.EventRegister(&entry)
	defer guest.wq.EventUnregister(&entry)
	if tcp.EndpointState(guest.ep.State()) == tcp.StateError { // before the entry was there
		r.abort()
	}
	if !s.enter() {
		r.abort()
		return
	}
	done := make(chan struct{})
	go func() {
		defer s.wg.Done()
		defer close(done)
		r.down()
	}()
	r.up()
	<-done
	_ = r.host.Close()
	_ = r.guest.Close()
}

// abort resets both ends.
func (r *relay) abort() {
	r.once.Do(func() {
		abort(r.host)
		abort(r.guest)
	})
}

// up carries what the guest sends.
func (r *relay) up() {
	if len(r.a.target.names) > 0 && !r.checkTLS() {
		r.abort()
		return
	}
	for {
		buf := r.s.buffers.get(r.s.tcp.count() > manyConnections)
		n, err := r.guest.fill(*buf, func() { r.s.buffers.put(buf); buf = nil }, func() []byte {
			buf = r.s.buffers.get(r.s.tcp.count() > manyConnections)
			return *buf
		})
		if n > 0 {
			_, werr := r.host.Write((*buf)[:n])
			if werr != nil {
				err = werr
			}
		}
		if buf != nil {
			r.s.buffers.put(buf)
		}
		if errors.Is(err, io.EOF) {
			if closeWrite(r.host) != nil {
				r.abort()
			}
			return
		}
		if err != nil {
			r.abort()
			return
		}
	}
}

// checkTLS looks at the first bytes that the guest sends, and passes them on if
// the policy bears the name in them.
func (r *relay) checkTLS() bool {
	var first []byte
	need := 1
	for need > 0 {
		chunk := make([]byte, max(need-len(first), 512))
		n, err := r.guest.Read(chunk)
		first = append(first, chunk[:n]...)
		var name string
		var isTLS bool
		name, need, isTLS = policy.ServerName(first)
		if err != nil {
			// What ends before it can be told is passed on no further than it came.
			if errors.Is(err, io.EOF) && len(first) == 0 {
				return closeWrite(r.host) == nil
			}
			return false
		}
		if need == 0 && isTLS {
			if d := r.a.target.rule.TLS(name); !d.Allow {
				r.s.deny("tcp", r.a.dst, d)
				return false
			}
		}
	}
	_, err := r.host.Write(first)
	return err == nil
}

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil // it has no half-close: the other direction goes on
}

// down carries what the host receives.
func (r *relay) down() {
	for {
		buf, n, err := r.readHost()
		if n > 0 {
			if _, werr := r.guest.Write((*buf)[:n]); werr != nil {
				err = werr
			}
		}
		if buf != nil {
			r.s.buffers.put(buf)
		}
		if errors.Is(err, io.EOF) {
			if r.guest.CloseWrite() != nil {
				r.abort()
			}
			return
		}
		if err != nil {
			r.abort()
			return
		}
	}
}

// readHost waits until there is something, and takes a buffer only then.
func (r *relay) readHost() (buf *[]byte, n int, err error) {
	many := r.s.tcp.count() > manyConnections
	if r.raw == nil {
		buf = r.s.buffers.get(many)
		n, err = r.host.Read(*buf)
		return buf, n, err
	}
	rerr := r.raw.Read(func(fd uintptr) bool {
		buf = r.s.buffers.get(many)
		for {
			n, err = unix.Read(int(fd), *buf)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			r.s.buffers.put(buf)
			buf = nil
			return false
		}
		return true
	})
	switch {
	case rerr != nil:
		return buf, 0, rerr
	case err != nil:
		return buf, 0, err
	case n == 0:
		return buf, 0, io.EOF
	}
	return buf, n, nil
}
