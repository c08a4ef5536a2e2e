package jail

import "golang.org/x/sys/unix"

// vsockRules are what the sockets behind virtio-vsock need: clients of one that
// listens since before the guest ran, and connections to the sockets that the guest's
// ports stand for. Which ones, a filter cannot see and Landlock (up to ABI 8) does not
// look at: of Unix sockets it can only shut the abstract ones off, which it does.
func vsockRules() []rule {
	return []rule{
		{nr: unix.SYS_SOCKET, why: "a stream to the socket of a port that the guest connects to", when: []match{{
			{arg: 0, op: opEq, val: unix.AF_UNIX},
			{arg: 1, op: opEq, val: unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC},
			{arg: 2, op: opEq, val: 0}}}},
		{nr: unix.SYS_CONNECT, why: "the same"},
		{nr: unix.SYS_ACCEPT4, why: "the host's connections to the guest"},
		{nr: unix.SYS_SHUTDOWN, why: "half-closed connections"},
		{nr: unix.SYS_EPOLL_WAIT, why: "which of the sockets has something"},
	}
}
