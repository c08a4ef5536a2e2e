package jail

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestFilterVsock: Unix streams and nothing else, beside what a network may make.
func TestFilterVsock(t *testing.T) {
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	for _, network := range []bool{false, true} {
		vm, _ := program(t, Config{Mode: Enforce, Groups: Strict(Machine{Vsock: true, Network: network})}, 1)
		tcp := uint32(eperm)
		if network {
			tcp = allow
		}
		for _, c := range []struct {
			name string
			nr   uint32
			args []uint64
			want uint32
		}{
			{"a Unix stream", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM | flags, 0}, allow},
			{"inheritable", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, eperm},
			{"a datagram socket", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_DGRAM | flags, 0}, eperm},
			{"TCP", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | flags, 0}, tcp},
			{"vsock", unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM | flags, 0}, eperm},
			{"socketpair", unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX, unix.SOCK_STREAM | flags, 0}, eperm},
			{"connect", unix.SYS_CONNECT, []uint64{3, 0, 16}, allow},
			{"accept4", unix.SYS_ACCEPT4, []uint64{3, 0, 0, flags}, allow},
			{"epoll_wait", unix.SYS_EPOLL_WAIT, []uint64{3, 0, 64, 0}, allow},
			{"listen", unix.SYS_LISTEN, []uint64{3, 16}, eperm},
		} {
			if got := run(t, vm, unix.AUDIT_ARCH_X86_64, c.nr, c.args...); got != c.want {
				t.Errorf("network %v, %s: %#x, want %#x", network, c.name, got, c.want)
			}
		}
	}
	vm, _ := program(t, Config{Mode: Enforce, Groups: Strict(Machine{})}, 1)
	for _, nr := range []uint32{unix.SYS_SOCKET, unix.SYS_CONNECT, unix.SYS_EPOLL_WAIT} {
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, nr, unix.AF_UNIX, unix.SOCK_STREAM|flags, 0); got != eperm {
			t.Errorf("without a vsock system call %d is %#x", nr, got)
		}
	}
}
