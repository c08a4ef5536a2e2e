package agentd

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// vsockBacklog is how many connections may wait to be accepted.
const vsockBacklog = 128

// VsockAddr is an address of vsock(7).
type VsockAddr struct{ CID, Port uint32 }

// Network is "vsock".
func (VsockAddr) Network() string { return "vsock" }

func (a VsockAddr) String() string { return fmt.Sprintf("vsock:%d:%d", a.CID, a.Port) }

// ListenVsock listens on a port of this system's for virtio-vsock (vsock(7)), for
// callers of any CID; unix.VMADDR_PORT_ANY picks a port, which Addr tells. The error is
// EAFNOSUPPORT where the kernel knows nothing of such sockets. A system whose
// transport comes later is reached from then on.
func ListenVsock(port uint32) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, fmt.Errorf("listening on vsock port %d: %w", port, err)
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		f.Close()
		return fail(err)
	}
	if err := unix.Listen(fd, vsockBacklog); err != nil {
		f.Close()
		return fail(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		f.Close()
		return fail(err)
	}
	return &vsockListener{f: f, at: vsockAddr(at)}, nil
}

// vsockAddr is what the kernel calls an address.
func vsockAddr(sa unix.Sockaddr) VsockAddr {
	vm, ok := sa.(*unix.SockaddrVM)
	if !ok {
		return VsockAddr{CID: unix.VMADDR_CID_ANY, Port: unix.VMADDR_PORT_ANY}
	}
	return VsockAddr{vm.CID, vm.Port}
}

// vsockListener is a listening socket in the runtime's own epoll set.
type vsockListener struct {
	f      *os.File
	at     VsockAddr
	closed atomic.Bool
}

func (l *vsockListener) Accept() (net.Conn, error) {
	raw, err := l.f.SyscallConn()
	if err != nil {
		return nil, l.failed(err)
	}
	var fd int
	var from unix.Sockaddr
	var bad error
	err = raw.Read(func(s uintptr) bool {
		for {
			fd, from, bad = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if bad != unix.EINTR {
				return bad != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, l.failed(err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	return &vsockConn{f, f, l.at, vsockAddr(from)}, nil
}

// failed is an Accept's error: net.ErrClosed after Close, as of any listener.
func (l *vsockListener) failed(err error) error {
	if l.closed.Load() {
		err = net.ErrClosed
	}
	return &net.OpError{Op: "accept", Net: l.at.Network(), Addr: l.at, Err: err}
}

func (l *vsockListener) Close() error {
	l.closed.Store(true)
	return l.f.Close()
}

func (l *vsockListener) Addr() net.Addr { return l.at }

// vsockStream is what of a file a connection shows: its other methods would have
// io.Copy try copy_file_range and the like.
type vsockStream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

type vsockConn struct {
	vsockStream
	f        *os.File // the same
	at, from VsockAddr
}

func (c *vsockConn) LocalAddr() net.Addr  { return c.at }
func (c *vsockConn) RemoteAddr() net.Addr { return c.from }

// CloseWrite tells the other side that no more will come.
func (c *vsockConn) CloseWrite() (err error) {
	var raw syscall.RawConn
	if raw, err = c.f.SyscallConn(); err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) }); e != nil {
		return e
	}
	return err
}
