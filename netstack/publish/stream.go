package publish

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

const (
	// smallBuffer is what each direction of an idle connection has, in bytes:
	// a request or a keystroke fits.
	smallBuffer = 2 << 10
	// bigBuffer is what a busy one borrows: large enough that the cost of a
	// system call is small beside that of the copying.
	bigBuffer = 64 << 10
	// lastWords is how long what one side has sent is still delivered after it
	// has stopped to listen.
	lastWords = time.Second
)

// join relays between the two connections until both directions have ended, and
// closes them. A direction that ends is closed in the other's sense only; a
// reset of either side resets the other.
func (r *relay) join(p *port, host, guest net.Conn) {
	j := &joint{host: host, guest: guest, watch: newWatch(host)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !j.relay(r, host, guest, &p.counts.fromGuest) {
			return
		}
		j.watch.end() // before host looks as if a reset had ended it
		if closeWrite(host) != nil {
			j.kill()
		}
	}()
	if j.relay(r, guest, host, &p.counts.toGuest) {
		if closeWrite(guest) != nil {
			j.kill()
		}
		// Who has sent FIN and then goes away sends RST to what still comes, and
		// nothing would read that.
		if j.watch.died() {
			j.kill()
		}
	}
	<-done
	if j.broken.Load() {
		p.counts.resets.Add(1)
		j.kill()
		return
	}
	_ = host.Close()
	_ = guest.Close()
}

// joint is a connection of the host and one of the guest that are one.
type joint struct {
	host, guest net.Conn
	broken      atomic.Bool // it ends with a reset
	watch       *watch      // of host, until the guest has sent all that it will
}

func (j *joint) kill() {
	j.broken.Store(true)
	abort(j.host)
	abort(j.guest)
}

// relay copies one direction and says whether it came to its proper end.
func (j *joint) relay(r *relay, dst, src net.Conn, n *atomic.Int64) bool {
	readErr, writeErr := r.copy(dst, src, n)
	switch {
	case readErr != nil:
		j.kill()
	case writeErr != nil:
		// What dst had to say before it broke may still wait in its queue.
		j.broken.Store(true)
		soon := time.Now().Add(lastWords)
		_ = dst.SetReadDeadline(soon)
		_ = src.SetWriteDeadline(soon)
	default:
		return true
	}
	return false
}

// copy copies until src ends or either side fails.
func (r *relay) copy(dst io.Writer, src io.Reader, n *atomic.Int64) (readErr, writeErr error) {
	small := make([]byte, smallBuffer)
	buf := small
	var big *[bigBuffer]byte
	defer func() {
		if big != nil {
			r.big.Put(big)
		}
	}()
	for {
		got, err := src.Read(buf)
		if got > 0 {
			if _, err := dst.Write(buf[:got]); err != nil {
				return nil, err
			}
			n.Add(int64(got))
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, nil
		case err != nil:
			return err, nil
		case got == len(buf) && big == nil:
			if big, _ = r.big.Get().(*[bigBuffer]byte); big == nil {
				big = new([bigBuffer]byte)
			}
			buf = big[:]
		case got < smallBuffer && big != nil:
			r.big.Put(big)
			big, buf = nil, small
		}
	}
}

// closeWrite ends one direction. A connection that cannot do it is closed whole.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// abort ends a connection with a reset where it can.
func abort(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}
