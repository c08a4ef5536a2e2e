package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// backlog is how many connections wait for Accept; more are not answered.
const backlog = 128

func fullAddr(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

// split parses network and address. self stands for an empty host and for name.
func (s *Stack) split(network, address, name string, self4, self6 netip.Addr) (string, netip.AddrPort, error) {
	var zero netip.AddrPort
	if len(network) < 3 || len(network) > 4 {
		return "", zero, net.UnknownNetworkError(network)
	}
	kind, family := network[:3], network[3:]
	if kind != "tcp" && kind != "udp" || family != "" && family != "4" && family != "6" {
		return "", zero, net.UnknownNetworkError(network)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", zero, fmt.Errorf("address %q: %w", address, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", zero, fmt.Errorf("address %q: a port number from 0 to 65535 is wanted", address)
	}
	addr := self4
	switch {
	case host == "" || host == name:
		if family == "6" {
			addr = self6
		}
	default:
		if addr, err = netip.ParseAddr(host); err != nil {
			return "", zero, fmt.Errorf("address %q: the host is an IP address or %q here", address, name)
		}
	}
	if !addr.IsValid() || s.cfg.NoIPv6 && addr.Is6() {
		return "", zero, fmt.Errorf("address %q: no IPv6 address is known", address)
	}
	return kind, netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// DialContext connects from the host to a port of the guest ("tcp", "udp", with
// 4 or 6 for one family), coming from the gateway's address. The host in address
// is one of the guest's, or "guest" or nothing for the usual one.
//
// A guest that does not answer for its address yet is waited for until ctx ends;
// one that refuses does so at once, with an error that is ECONNREFUSED. The
// connection has CloseRead, CloseWrite and SetLinger as a net.TCPConn has.
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	kind, to, err := s.split(network, address, "guest", s.cfg.Guest, s.guest6())
	if err == nil && !s.isGuest(to.Addr()) {
		err = fmt.Errorf("address %q: only the guest is reached from here", address)
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	for {
		c, err := s.dial(ctx, kind, to)
		if err == nil {
			return c, nil
		}
		// gVisor gives up an address that nobody answers for after some
		// requests; the guest may not have come up yet.
		if !errors.Is(err, syscall.EHOSTUNREACH) || ctx.Err() != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Addr: addrOf(kind, to), Err: err}
		}
	}
}

func addrOf(kind string, a netip.AddrPort) net.Addr {
	if kind == "udp" {
		return net.UDPAddrFromAddrPort(a)
	}
	return net.TCPAddrFromAddrPort(a)
}

// dial makes one attempt.
func (s *Stack) dial(ctx context.Context, kind string, to netip.AddrPort) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.isClosed() {
		return nil, net.ErrClosed
	}
	proto := tcp.ProtocolNumber
	if kind == "udp" {
		proto = udp.ProtocolNumber
	}
	wq := new(waiter.Queue)
	ep, terr := s.stack.NewEndpoint(proto, protocolOf(to.Addr()), wq)
	if terr != nil {
		return nil, errno(terr)
	}
	from := s.cfg.Gateway
	if to.Addr().Is6() {
		from = s.gateway6
		if to.Addr().IsLinkLocalUnicast() {
			from = s.linkLocal
		}
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Bind(fullAddr(netip.AddrPortFrom(from, 0)))
	if terr == nil {
		if kind == "tcp" {
			s.tuneConn(ep)
		}
		terr = ep.Connect(fullAddr(to))
	}
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		case <-s.done:
			ep.Abort()
			return nil, net.ErrClosed
		}
	}
	if terr != nil {
		ep.Close()
		return nil, errno(terr)
	}
	return s.newConn(kind, ep, wq, true), nil
}

// Listen opens a TCP port at the gateway's address, which the guest reaches and
// no one else: no socket of the host's is behind it. The host in address is the
// gateway's or the DNS address, or "gateway", or nothing for the gateway's IPv4
// and IPv6 address. It goes before what HostServices says of the port.
func (s *Stack) Listen(network, address string) (net.Listener, error) {
	kind, at, err := s.split(network, address, "gateway", s.cfg.Gateway, s.gateway6)
	if err == nil && kind != "tcp" {
		err = net.UnknownNetworkError(network)
	}
	if err == nil && !s.isOurs(at.Addr()) {
		err = fmt.Errorf("address %q: %w", address, syscall.EADDRNOTAVAIL)
	}
	if err == nil && s.isClosed() {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	l := &listener{stack: s, closed: make(chan struct{})}
	if err = l.open(at); err == nil && network == "tcp" && at.Addr() == s.cfg.Gateway && !s.cfg.NoIPv6 {
		err = l.open(netip.AddrPortFrom(s.gateway6, l.addr.Port()))
	}
	if err != nil {
		_ = l.Close()
		return nil, &net.OpError{Op: "listen", Net: network, Addr: addrOf(kind, at), Err: err}
	}
	return l, nil
}

// listener is one port at one or two addresses.
type listener struct {
	stack  *Stack
	wq     waiter.Queue
	eps    []tcpip.Endpoint
	addr   netip.AddrPort
	once   sync.Once
	closed chan struct{}
}

func (l *listener) open(at netip.AddrPort) error {
	ep, terr := l.stack.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(at.Addr()), &l.wq)
	if terr != nil {
		return errno(terr)
	}
	if terr = ep.Bind(fullAddr(at)); terr == nil {
		terr = ep.Listen(backlog)
	}
	if terr != nil {
		ep.Close()
		return errno(terr)
	}
	if len(l.eps) == 0 {
		a, _ := ep.GetLocalAddress()
		l.addr = netip.AddrPortFrom(at.Addr(), a.Port)
	}
	l.eps = append(l.eps, ep)
	return nil
}

// Accept may be called from several goroutines at once.
func (l *listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		for _, ep := range l.eps {
			c, wq, terr := ep.Accept(nil)
			switch terr.(type) {
			case nil:
				return l.stack.newConn("tcp", c, wq, false), nil
			case *tcpip.ErrWouldBlock:
			default:
				return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
			}
		}
		select {
		case <-ready:
		case <-l.closed:
		case <-l.stack.done:
			_ = l.Close()
		}
	}
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// Close ends the listener; connections that were accepted go on.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		for _, ep := range l.eps {
			ep.Close()
		}
	})
	return nil
}
