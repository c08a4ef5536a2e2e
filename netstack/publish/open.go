package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// takenError is an address that somebody else has.
type takenError struct {
	network string
	at      netip.AddrPort
}

func (e *takenError) Error() string {
	return fmt.Sprintf("%s port %d of the host is taken (%s): choose another, or 0 for any that is free", e.network, e.at.Port(), e.at)
}

// portTries is how often a port that is free in one family is looked for until
// it is free in both. The kernel gives random ones of 28,000: each miss means
// that somebody has the same port in the other family alone.
const portTries = 32

// openPorts opens the spec's addresses, with one port number for all of them.
func (p *port) openPorts() error {
	addrs := []netip.Addr{p.spec.Host}
	optional := netip.Addr{}
	if !p.spec.Host.IsValid() {
		optional = netip.IPv6Loopback()
		addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), optional}
	}
	for try := 1; ; try++ {
		err := p.openAll(addrs, optional)
		if err == nil {
			return nil
		}
		_ = p.close()
		p.streams, p.packets = nil, nil
		var taken *takenError
		if p.spec.HostPort != 0 || !errors.As(err, &taken) {
			return err
		}
		if try == portTries {
			return fmt.Errorf("no port is free in IPv4 and IPv6 both, of %d tried: %w", try, err)
		}
	}
}

func (p *port) openAll(addrs []netip.Addr, optional netip.Addr) error {
	number := p.spec.HostPort
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, number)
		got, err := p.listen(at)
		if err != nil {
			// A host without IPv6 has the IPv4 half of the loopback.
			missing := errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
			if a == optional && missing {
				continue
			}
			return explain(p.spec.Network, at, err)
		}
		number = got
	}
	p.spec.HostPort = number
	return nil
}

// listen opens one address and gives its port.
func (p *port) listen(at netip.AddrPort) (uint16, error) {
	// With the family in the network's name an IPv6 socket takes IPv6 only.
	network := p.spec.Network + "6"
	if at.Addr().Is4() {
		network = p.spec.Network + "4"
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // plain TCP, whose resets and half-closes are passed on
	if p.spec.Network == "udp" {
		lc.Control = wantDestination(at.Addr())
		c, err := lc.ListenPacket(context.Background(), network, at.String())
		if err != nil {
			return 0, err
		}
		p.packets = append(p.packets, c)
		return addrPort(c.LocalAddr()).Port(), nil
	}
	l, err := lc.Listen(context.Background(), network, at.String())
	if err != nil {
		return 0, err
	}
	p.streams = append(p.streams, l)
	return addrPort(l.Addr()).Port(), nil
}

// addrPort is an address of the net package's as netip has it, or the zero one.
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// firstFree is where the host says which ports are everyone's (ip-sysctl.rst).
const firstFree = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

// explain says in one line what a failed bind means and what to do.
func explain(network string, at netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return &takenError{network: network, at: at}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		first := "1024"
		if b, err := os.ReadFile(firstFree); err == nil && len(b) > 1 {
			first = string(b[:len(b)-1])
		}
		return fmt.Errorf("%s port %d of the host needs privilege: choose one from %s up, or have CAP_NET_BIND_SERVICE or a lower net.ipv4.ip_unprivileged_port_start", network, at.Port(), first)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%v is no address of this host: choose one that it has, or none for its loopback", at.Addr())
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("this host has no network for %v: choose an address of the other family", at.Addr())
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%s port %d of the host: too many open files: raise the limit (ulimit -n)", network, at.Port())
	}
	return fmt.Errorf("%s %v of the host: %w", network, at, err)
}

// staleTimeout bounds the question whether a Unix socket has a listener: the
// kernel answers at once, except where a backlog is full.
const staleTimeout = time.Second

// openUnix opens the spec's Unix socket, for its owner only. What a dead process
// left at the path is replaced; a file, or the socket of a living one, is not.
func (p *port) openUnix() error {
	path := p.spec.Path
	l, err := listenUnix(path)
	if errors.Is(err, unix.EADDRINUSE) {
		if err := removeStale(path); err != nil {
			return err
		}
		l, err = listenUnix(path)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("the Unix socket %s is taken: somebody else opened it just now", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the Unix socket %s cannot be made: its folder is not writable for you", path)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the Unix socket %s cannot be made: there is no such folder", path)
	case err != nil:
		return fmt.Errorf("the Unix socket %s: %w", path, err)
	}
	p.streams = append(p.streams, l)
	made, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return fmt.Errorf("the Unix socket %s was removed as soon as it was made: %w", path, err)
	}
	p.unlink = func() error {
		// Somebody may have put a socket of their own there: it is theirs.
		if now, err := os.Lstat(path); err != nil || !os.SameFile(made, now) {
			return nil
		}
		return os.Remove(path)
	}
	return nil
}

func listenUnix(path string) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// Linux makes the file with the socket's mode, so that there is no moment
		// in which it is open to others (unix_bind, net/unix/af_unix.c).
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // port.unlink does, and looks first
	return u, nil
}

// removeStale removes the Unix socket at path if nobody listens there.
func removeStale(path string) error {
	before, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the Unix socket %s: %w", path, err)
	case before.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket: it is not replaced; choose another path or remove it", path)
	}
	c, err := net.DialTimeout("unix", path, staleTimeout)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("the Unix socket %s is taken by a running program: choose another path", path)
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(before, now) {
		return nil // it is another one by now: the next try to listen finds out
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("the Unix socket %s is a dead program's and cannot be removed: %w", path, err)
	}
	return nil
}
