package jail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

func TestFilterNetwork(t *testing.T) {
	vm, _ := program(t, Config{Mode: Enforce, Groups: Strict(Machine{Network: true})}, 1)
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	for _, c := range []struct {
		name string
		nr   uint32
		args []uint64
		want uint32
	}{
		{"TCP", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | flags, 0}, allow},
		{"UDP", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM | flags, 0}, allow},
		{"TCP, IPv6", unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM | flags, 0}, allow},
		{"UDP, IPv6", unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_DGRAM | flags, 0}, allow},
		{"echo", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM | flags, unix.IPPROTO_ICMP}, allow},
		{"echo, IPv6", unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_DGRAM | flags, unix.IPPROTO_ICMPV6}, allow},
		{"MPTCP", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | flags, unix.IPPROTO_MPTCP}, eperm},
		{"SCTP", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | flags, unix.IPPROTO_SCTP}, eperm},
		{"UDP-Lite", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM | flags, unix.IPPROTO_UDPLITE}, eperm},
		{"ICMP over a stream", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | flags, unix.IPPROTO_ICMP}, eperm},
		{"raw ICMP", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW | flags, unix.IPPROTO_ICMP}, eperm},
		{"raw", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW | flags, 0}, eperm},
		{"inheritable", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, 0}, eperm},
		{"Unix", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM | flags, 0}, eperm},
		{"netlink", unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_DGRAM | flags, 0}, eperm},
		{"packet", unix.SYS_SOCKET, []uint64{unix.AF_PACKET, unix.SOCK_DGRAM | flags, 0}, eperm},
		{"vsock", unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM | flags, 0}, eperm},
		{"listen", unix.SYS_LISTEN, []uint64{3, 16}, eperm},
		{"accept without flags", unix.SYS_ACCEPT, []uint64{3, 0, 0}, eperm},
		{"connect", unix.SYS_CONNECT, []uint64{3, 0, 16}, allow},
		{"TCP_NODELAY", unix.SYS_SETSOCKOPT, []uint64{3, unix.IPPROTO_TCP, unix.TCP_NODELAY, 0, 4}, allow},
		{"IP_MTU_DISCOVER", unix.SYS_SETSOCKOPT, []uint64{3, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, 0, 4}, allow},
		{"SO_ERROR", unix.SYS_GETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_ERROR, 0, 4}, allow},
		{"SO_PEERCRED", unix.SYS_GETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_PEERCRED, 0, 12}, eperm},
		{"IP_RECVERR", unix.SYS_SETSOCKOPT, []uint64{3, unix.IPPROTO_IP, unix.IP_RECVERR, 0, 4}, eperm},
		{"SO_ATTACH_FILTER", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, 0, 16}, eperm},
		{"SO_BINDTODEVICE", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, 0, 4}, eperm},
		{"TCP_ULP", unix.SYS_SETSOCKOPT, []uint64{3, unix.IPPROTO_TCP, unix.TCP_ULP, 0, 4}, eperm},
		{"IPT_SO_SET_REPLACE", unix.SYS_SETSOCKOPT, []uint64{3, unix.IPPROTO_IP, 64, 0, 4}, eperm},
		// A name of one level at another.
		{"TCP_NODELAY's number at SOL_SOCKET", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.TCP_NODELAY, 0, 4}, eperm},
	} {
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, c.nr, c.args...); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

// TestLandlockNetwork: TCP ports are bound before the jail, so nobody binds one
// in it; connecting is left to machines with a network.
func TestLandlockNetwork(t *testing.T) {
	for _, c := range []struct {
		abi     int
		network bool
		want    uint64
	}{
		{3, false, 0}, {3, true, 0},
		{4, false, ll.AccessNetBindTCP | ll.AccessNetConnectTCP}, {4, true, ll.AccessNetBindTCP},
		{8, false, ll.AccessNetBindTCP | ll.AccessNetConnectTCP}, {8, true, ll.AccessNetBindTCP},
	} {
		if got := landlockAttr(c.abi, c.network).HandledAccessNet; got != c.want {
			t.Errorf("ABI %d, network %v: %#x, want %#x", c.abi, c.network, got, c.want)
		}
	}
}

func TestNetworkUnderJail(t *testing.T) {
	for _, mode := range []string{"trap", "enforce"} {
		t.Run(mode, func(t *testing.T) { t.Log(mustPass(t, "network:"+mode)) })
	}
}

// networked uses sockets as a user-mode network does, under the jail of a
// machine with one. In trap mode the first call outside the table ends it.
func networked(arg string) error {
	mode, err := ParseMode(arg)
	if err != nil {
		return err
	}
	const local4, local6 = "127.0.0.1:0", "[::1]:0"
	tcp, err := net.Listen("tcp", local4)
	if err != nil {
		return err
	}
	addresses := []string{local4}
	if l, err := net.Listen("tcp6", local6); err == nil {
		l.Close()
		addresses = append(addresses, local6)
	}
	if err := Apply(Config{Mode: mode, Groups: Strict(Machine{Network: true})}); err != nil {
		return err
	}
	if err := tcpWorks(tcp); err != nil {
		return fmt.Errorf("TCP: %w", err)
	}
	for _, a := range addresses {
		if err := udpWorks(a); err != nil {
			return fmt.Errorf("UDP at %s: %w", a, err)
		}
	}
	var refused *os.SyscallError
	if _, err := net.Dial("tcp", "127.0.0.1:1"); !errors.As(err, &refused) || refused.Err != unix.ECONNREFUSED {
		return fmt.Errorf("a port that nobody listens on: %v", err)
	}
	if err := echoWorks(); err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	if mode == Trap {
		return nil
	}
	if l, err := net.Listen("tcp4", local4); err == nil {
		return fmt.Errorf("listens at %v", l.Addr())
	}
	if _, err := net.Dial("unix", "/tmp/no-such-socket"); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("a Unix socket: %v", err)
	}
	if abi := Probe().Landlock; abi >= 4 && !withCgo {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("bind of TCP: %v", err)
		}
	}
	return nil
}

// tcpWorks connects, sends both ways, closes half and resets.
func tcpWorks(l net.Listener) error {
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, struct{ io.Reader }{c})
			err = errors.Join(err, c.(*net.TCPConn).SetLinger(0), c.Close())
		}
		served <- err
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	if _, err := c.Write([]byte("there and back")); err != nil {
		return err
	}
	back := make([]byte, len("there and back"))
	if _, err := io.ReadFull(c, back); err != nil {
		return err
	}
	if !bytes.Equal(back, []byte("there and back")) {
		return fmt.Errorf("%q came back", back)
	}
	if err := errors.Join(c.CloseWrite(), <-served); err != nil {
		return err
	}
	return l.Close()
}

// udpWorks sends a datagram from a connected socket to a bound one and back.
func udpWorks(address string) error {
	p, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	defer p.Close()
	c, err := net.Dial("udp", p.LocalAddr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	buf := make([]byte, 16)
	n, from, err := p.(*net.UDPConn).ReadFromUDPAddrPort(buf)
	if err != nil {
		return err
	}
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	level, discover, do, mtu := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU
	if from.Addr().Is6() && !from.Addr().Is4In6() {
		level, discover, do, mtu = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU
	}
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		sockErr = unix.SetsockoptInt(int(fd), level, discover, do)
		if sockErr == nil {
			_, sockErr = unix.GetsockoptInt(int(fd), level, mtu)
		}
	}); err != nil || sockErr != nil {
		return errors.Join(err, sockErr)
	}
	if _, err := p.(*net.UDPConn).WriteToUDPAddrPort(buf[:n], from); err != nil {
		return err
	}
	if n, err = c.Read(buf); err != nil || string(buf[:n]) != "ping" {
		return fmt.Errorf("%q came back, %w", buf[:n], err)
	}
	return nil
}

// echoWorks pings the loopback with a socket of icmp(7). The kernel refuses it
// (EACCES) to groups outside net.ipv4.ping_group_range; the jail does not.
func echoWorks() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if errors.Is(err, unix.EACCES) {
		fmt.Println("NOT RUN: net.ipv4.ping_group_range allows this group no echo sockets")
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "echo")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	c, err := net.FileConn(f) // as netstack.PingSocket does
	if err != nil {
		return err
	}
	defer c.Close()
	request := []byte{8, 0, 0, 0, 0, 0, 0, 1, 'h', 'i'} // RFC 792; the kernel fills in checksum and identifier
	if _, err := c.Write(request); err != nil {
		return err
	}
	answer := make([]byte, 64)
	if n, err := c.Read(answer); err != nil || n != len(request) || answer[0] != 0 {
		return fmt.Errorf("% x, %w", answer[:max(n, 0)], err)
	}
	return nil
}
