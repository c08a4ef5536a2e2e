package publish

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watch looks after a connection that nobody reads, for the reset that would end
// it. The zero one watches nothing.
type watch struct {
	conn     *net.TCPConn
	raw      syscall.RawConn
	over     atomic.Bool // nobody asks any more
	watching atomic.Bool
}

// newWatch makes a watch of c, if that is TCP: a Unix socket that its owner has
// closed after a last message looks as if it was reset.
func newWatch(c net.Conn) *watch {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return &watch{}
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return &watch{}
	}
	return &watch{conn: tcp, raw: raw}
}

// died waits for the reset, or the watch's end, and says whether it was the
// reset. Nothing else reads the connection meanwhile.
func (w *watch) died() (dead bool) {
	if w.raw == nil {
		return false
	}
	w.watching.Store(true)
	// The runtime calls this again at each event of the socket, until it is true.
	_ = w.raw.Read(func(fd uintptr) bool {
		// POLLHUP is there for a reset, and when both ends were shut down; our own
		// is shut down after the watch's end only.
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		gone := err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		if w.over.Load() {
			return true
		}
		dead = gone
		return gone
	})
	return dead
}

// end ends the watch.
func (w *watch) end() {
	w.over.Store(true)
	if w.watching.Load() {
		_ = w.conn.SetReadDeadline(time.Now())
	}
}

// during calls gone if the connection is reset before the function that it gives
// is called; afterwards the connection can be read.
func (w *watch) during(gone func()) (end func()) {
	if w.raw == nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if w.died() {
			gone()
		}
	}()
	return func() {
		w.end()
		<-done
		_ = w.conn.SetReadDeadline(time.Time{})
	}
}
