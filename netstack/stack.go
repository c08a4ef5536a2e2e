// Package netstack is the network of one machine: a gVisor stack that is the
// guest's router, DHCP and DNS server, and that carries on what the guest begins
// as ordinary sockets of the host. It takes and gives Ethernet frames, from
// whatever has Send, Next, Pop and OnReady to call.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID = 1

// Stack is the network of one machine. Its methods are safe for concurrent use
// as far as devices/net's Backend asks for it, the others without reserve.
type Stack struct {
	cfg   Config
	stats counters
	link  link
	stack *stack.Stack

	gateway6, dns6, linkLocal netip.Addr

	lastGuest6 atomic.Pointer[netip.Addr] // the guest's source in Subnet6, once it has shown one

	tcp     tcpForwarder
	udp     flowTable
	conns   connTable
	buffers buffers

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   <-chan struct{} // ctx's
	once   sync.Once

	mu      sync.Mutex
	closed  bool
	adverts *time.Timer    // router advertisements, once the guest has asked for one
	wg      sync.WaitGroup // every goroutine of ours
}

// New makes a network. Nothing happens on the host until the guest speaks.
func New(cfg Config) (*Stack, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	// gVisor logs to standard error, for the whole process, what a guest may bring
	// about as often as it likes.
	log.SetTarget(silence{})
	s := &Stack{cfg: cfg}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.done = s.ctx.Done()
	s.gateway6, s.dns6 = nth(cfg.Subnet6, 2), nth(cfg.Subnet6, 3)
	s.linkLocal = netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 2})
	s.link.mtu = uint32(cfg.MTU)
	s.link.mac = tcpip.LinkAddress(cfg.MAC[:])
	s.link.stats = &s.stats
	s.link.filter = s.filter
	s.link.ask = s.askAsGateway

	opts := stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4},
	}
	if !cfg.NoIPv6 {
		// The link's only other station is the guest: no one to detect duplicates
		// of, no groups to report, no router to listen to.
		opts.NetworkProtocols = append(opts.NetworkProtocols, ipv6.NewProtocolWithOptions(ipv6.Options{}))
		opts.TransportProtocols = append(opts.TransportProtocols, icmp.NewProtocol6,
			func(*stack.Stack) stack.TransportProtocol { return parts{s} })
	}
	opts.NUDConfigs = neighbours()
	s.stack = stack.New(opts)
	if err := s.configure(); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("network: %w", err)
	}
	return s, nil
}

// neighbours has the guest asked for its link address ten times a second
// instead of once (RFC 4861 §10): the link is memory, and a guest that says
// nothing by itself as it comes up is found that much sooner.
func neighbours() stack.NUDConfigurations {
	c := stack.DefaultNUDConfigurations()
	c.RetransmitTimer = 100 * time.Millisecond
	c.MaxMulticastProbes, c.MaxUnicastProbes = 30, 30 // the three seconds that RFC 4861 has in all
	return c
}

// silence is gVisor's log.
type silence struct{}

func (silence) Emit(int, log.Level, time.Time, string, ...any) {}

func (s *Stack) configure() error {
	g := s.stack
	if terr := g.CreateNIC(nicID, &s.link); terr != nil {
		return errors.New(terr.String())
	}
	type own struct {
		addr netip.Addr
		bits int
	}
	addrs := []own{{s.cfg.Gateway, s.cfg.Subnet.Bits()}, {s.cfg.DNS, s.cfg.Subnet.Bits()}}
	routes := append([]netip.Prefix{s.cfg.Subnet}, s.cfg.Sources...)
	if !s.cfg.NoIPv6 {
		addrs = append(addrs, own{s.linkLocal, 64}, own{s.gateway6, 64}, own{s.dns6, 64})
		routes = append(routes, s.cfg.Subnet6, netip.PrefixFrom(s.linkLocal, 64))
	}
	for _, a := range addrs {
		terr := g.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
			Protocol:          protocolOf(a.addr),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(a.addr.AsSlice()), PrefixLen: a.bits},
		}, stack.AddressProperties{})
		if terr != nil {
			return fmt.Errorf("address %v: %v", a.addr, terr)
		}
	}
	for _, p := range routes {
		p = p.Masked()
		g.AddRoute(tcpip.Route{NIC: nicID, Destination: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits(),
		}.Subnet()})
	}
	if !s.cfg.HostOnly {
		// The stack answers in the world's name: any address may be the
		// destination of a packet, and the source of the answer. ARP and ND for
		// others' addresses are kept from it by filter.
		g.SetPromiscuousMode(nicID, true)
		g.SetSpoofing(nicID, true)
	}
	s.tcp.init(s)
	s.udp.init(s)
	g.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCP)
	g.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDP)
	g.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.handleICMP4)
	return s.tune()
}

// Segments in flight on this link are in memory, and lost only where a queue is
// full; a connection's buffers need to hold what the two ends do not take at once.
const (
	bufMin     = 4 << 10
	bufDefault = 256 << 10
	bufMax     = 1 << 20

	smallSendBuffer = 64 << 10 // of one of many connections

	// gVisor drops a SYN for a pair of ports that is in TIME-WAIT, which a guest may
	// well use again at once; on a link in memory nothing arrives late.
	timeWait = time.Millisecond
	finWait  = 30 * time.Second // for the FIN of a guest that has gone silent
)

func (s *Stack) tune() error {
	send := tcpip.TCPSendBufferSizeRangeOption{Min: bufMin, Default: bufDefault, Max: bufMax}
	recv := tcpip.TCPReceiveBufferSizeRangeOption{Min: bufMin, Default: bufDefault, Max: bufMax}
	sack := tcpip.TCPSACKEnabled(true)
	rack := tcpip.TCPRecovery(0) // RACK's timers cost more here than they find
	tw := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	fw := tcpip.TCPLingerTimeoutOption(finWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{&send, &recv, &sack, &rack, &tw, &fw} {
		if terr := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); terr != nil {
			return fmt.Errorf("TCP option %T: %v", o, terr)
		}
	}
	return nil
}

// keepAlive finds guests that have been reset, and know nothing of a connection,
// where nobody sends anything.
const keepAlive = 10 * time.Minute

// tuneConn sets up a TCP connection with the guest. Where there are many their
// buffers are smaller.
func (s *Stack) tuneConn(ep tcpip.Endpoint) {
	o := ep.SocketOptions()
	o.SetKeepAlive(true)
	idle := tcpip.KeepaliveIdleOption(keepAlive)
	_ = ep.SetSockOpt(&idle)
	if s.tcp.count() > manyConnections {
		o.SetSendBufferSize(smallSendBuffer, false)
	}
}

// Close ends every connection, those of DialContext and Listen too, and returns
// when no goroutine is left.
func (s *Stack) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		if s.adverts != nil {
			s.adverts.Stop()
		}
		s.mu.Unlock()
		s.cancel()
		s.link.shut()
		s.udp.closeAll()
		gone := make(chan struct{})
		go func() {
			s.wg.Wait()
			close(gone)
		}()
		// gVisor waits for a handshake without a way to end it but by aborting its
		// endpoint, and one may be registered at any moment until none is left.
		for again := true; again; {
			for _, e := range s.stack.RegisteredEndpoints() {
				e.Abort()
			}
			select {
			case <-gone:
				again = false
			case <-time.After(time.Millisecond):
			}
		}
		s.stack.Destroy()
	})
	return nil
}

// enter takes part in what Close waits for, until wg.Done; not after Close.
func (s *Stack) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

func (s *Stack) isClosed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Stats counts what happened so far.
func (s *Stack) Stats() Stats { return s.stats.snapshot() }

// MTU is the largest payload of a frame, in bytes.
func (s *Stack) MTU() int { return s.cfg.MTU }

// Offloads are the feature bits of virtio-net that the stack bears.
func (s *Stack) Offloads() uint64 {
	return featCSum | featHostTSO4 | featHostTSO6 | featToGuest
}

// Negotiated says which of them the driver took; 0 after a reset. What waits for
// the guest is dropped.
func (s *Stack) Negotiated(offloads uint64) { s.link.negotiated(offloads) }

// Send takes a frame of the guest's, with its virtio_net_hdr, and does not block.
func (s *Stack) Send(h *[headerLen]byte, frame [][]byte) { s.link.send(h, frame) }

// Next gives the frame that is next for the guest, the same one until Pop.
func (s *Stack) Next() (h *[headerLen]byte, frame [][]byte, ok bool) { return s.link.next() }

// Pop is done with the frame that Next gave.
func (s *Stack) Pop() { s.link.pop() }

// OnReady registers what is called when frames wait and Next has last said that
// there are none.
func (s *Stack) OnReady(wake func()) { s.link.onReady(wake) }

// isOurs says whether an address is one of the gateway's.
func (s *Stack) isOurs(a netip.Addr) bool {
	if a.Is4() {
		return a == s.cfg.Gateway || a == s.cfg.DNS
	}
	return !s.cfg.NoIPv6 && (a == s.gateway6 || a == s.dns6 || a == s.linkLocal)
}

// isGuest says whether an address may be the guest's.
func (s *Stack) isGuest(a netip.Addr) bool {
	if a == s.cfg.Guest {
		return true
	}
	if a.Is6() && !s.isOurs(a) && (s.cfg.Subnet6.Contains(a) || a.IsLinkLocalUnicast()) {
		return true
	}
	for _, p := range s.cfg.Sources {
		if p.Contains(a) && !s.isOurs(a) {
			return true
		}
	}
	return false
}

// guest6 is the guest's IPv6 address: the last it has sent from, or the one that
// its MAC gives (RFC 4291 appendix A); none where neither is known.
func (s *Stack) guest6() netip.Addr {
	if a := s.lastGuest6.Load(); a != nil {
		return *a
	}
	m := s.cfg.GuestMAC
	if m == ([6]byte{}) {
		return netip.Addr{}
	}
	a := s.cfg.Subnet6.Addr().As16()
	header.EthernetAdddressToModifiedEUI64IntoBuf(tcpip.LinkAddress(m[:]), a[8:])
	return netip.AddrFrom16(a)
}
