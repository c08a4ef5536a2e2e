package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// PingSocket opens one of Linux's unprivileged echo sockets (socket(2) with
// SOCK_DGRAM and IPPROTO_ICMP), connected to dst. The kernel sets the identifier
// of what is written, and gives back answers to it only. The error is EACCES
// where net.ipv4.ping_group_range leaves the process out.
func PingSocket(_ context.Context, dst netip.Addr) (net.Conn, error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr
	if dst.Is4() {
		sa = &unix.SockaddrInet4{Addr: dst.As4()}
	} else {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		sa = &unix.SockaddrInet6{Addr: dst.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, fmt.Errorf("echo socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "echo socket")
	defer f.Close() // FileConn has a duplicate
	if err := unix.Connect(fd, sa); err != nil {
		return nil, fmt.Errorf("echo socket to %v: %w", dst, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("echo socket: %w", err)
	}
	return c, nil
}
