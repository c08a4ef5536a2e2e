// Package netstacktest is the guest's side of a network, for tests and
// measurements: a second gVisor stack behind a virtio-net driver that is none,
// over anything that has the methods of devices/net's Backend.
package netstacktest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Network is what the guest is connected to; devices/net's Backend is one.
type Network interface {
	MTU() int
	Offloads() uint64
	Negotiated(offloads uint64)
	Send(h *[HeaderLen]byte, frame [][]byte)
	Next() (h *[HeaderLen]byte, frame [][]byte, ok bool)
	Pop()
	OnReady(wake func())
}

// HeaderLen is the size of virtio_net_hdr, with num_buffers (VirtIO 1.2 §5.1.6).
const HeaderLen = 12

// Offloads of virtio-net (VirtIO 1.2 §5.1.3), and all of them.
const (
	CSum, GuestCSum      = 1 << 0, 1 << 1
	GuestTSO4, GuestTSO6 = 1 << 7, 1 << 8
	HostTSO4, HostTSO6   = 1 << 11, 1 << 12

	AllOffloads = CSum | GuestCSum | GuestTSO4 | GuestTSO6 | HostTSO4 | HostTSO6
)

const nic = 1

// Options are a guest's. The zero value has a MAC address and nothing else, and
// takes no offload.
type Options struct {
	MAC      [6]byte
	Address  netip.Prefix // IPv4, static; none if invalid
	Gateway  netip.Addr   // IPv4's default route
	IPv6     bool         // listen to router advertisements
	Offloads uint64       // to take of what the network has
	MTU      int          // the network's if 0
	// Tap sees each frame for the guest, with its header, before the stack does;
	// false keeps it from it. The frame is a copy, and the tap's to keep.
	Tap func(h [HeaderLen]byte, frame []byte) bool
}

// Guest is a running stack. Its Stack may be used for what is not here.
type Guest struct {
	Stack *stack.Stack

	net  Network
	opts Options
	mtu  uint32
	mac  tcpip.LinkAddress
	took uint64

	ready chan struct{}
	stop  chan struct{}
	done  chan struct{}

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

// New starts a guest.
func New(n Network, o Options) (*Guest, error) {
	if o.MAC == ([6]byte{}) {
		o.MAC = [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	}
	if o.MTU == 0 {
		o.MTU = n.MTU()
	}
	g := &Guest{
		net: n, opts: o, mtu: uint32(o.MTU), mac: tcpip.LinkAddress(o.MAC[:]), took: o.Offloads & n.Offloads(),
		ready: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	g.Stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol, arp.NewProtocol,
			ipv6.NewProtocolWithOptions(ipv6.Options{
				AutoGenLinkLocal: o.IPv6,
				NDPConfigs: ipv6.NDPConfigurations{
					HandleRAs: ipv6.HandlingRAsEnabledWhenForwardingDisabled, DiscoverDefaultRouters: true,
					DiscoverOnLinkPrefixes: true, AutoGenGlobalAddresses: true,
					MaxRtrSolicitations: 3, RtrSolicitationInterval: 1e9,
				},
			}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	n.Negotiated(g.took)
	if err := g.configure(); err != nil {
		g.Stack.Destroy()
		return nil, err
	}
	go g.receive()
	n.OnReady(g.wake)
	return g, nil
}

func (g *Guest) configure() error {
	recv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	sack, rack := tcpip.TCPSACKEnabled(true), tcpip.TCPRecovery(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&recv, &send, &sack, &rack} {
		if terr := g.Stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); terr != nil {
			return errors.New(terr.String())
		}
	}
	if terr := g.Stack.CreateNIC(nic, (*end)(g)); terr != nil {
		return errors.New(terr.String())
	}
	if a := g.opts.Address; a.IsValid() {
		if err := g.AddAddress(a); err != nil {
			return err
		}
	}
	if gw := g.opts.Gateway; gw.IsValid() {
		g.Stack.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFromSlice(gw.AsSlice()), NIC: nic})
	}
	return nil
}

// AddAddress gives the guest an address, with the route to its network.
func (g *Guest) AddAddress(a netip.Prefix) error {
	p := tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(a.Addr().AsSlice()), PrefixLen: a.Bits()}
	proto := header.IPv4ProtocolNumber
	if a.Addr().Is6() {
		proto = header.IPv6ProtocolNumber
	}
	if terr := g.Stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: p}, stack.AddressProperties{}); terr != nil {
		return fmt.Errorf("address %v: %v", a, terr)
	}
	g.Stack.AddRoute(tcpip.Route{Destination: p.Subnet(), NIC: nic})
	return nil
}

// Route6 makes an IPv6 address the guest's router.
func (g *Guest) Route6(gw netip.Addr) {
	g.Stack.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, Gateway: tcpip.AddrFromSlice(gw.AsSlice()), NIC: nic})
}

// Close takes the guest off the network. Its goroutines are gone afterwards.
func (g *Guest) Close() {
	g.net.OnReady(nil)
	close(g.stop)
	<-g.done
	g.Stack.Destroy()
	g.net.Negotiated(0)
}

func (g *Guest) wake() {
	select {
	case g.ready <- struct{}{}:
	default:
	}
}

// receive takes frames as a device's queue would.
func (g *Guest) receive() {
	defer close(g.done)
	for {
		h, runs, ok := g.net.Next()
		if !ok {
			select {
			case <-g.ready:
				continue
			case <-g.stop:
				return
			}
		}
		size := 0
		for _, r := range runs {
			size += len(r)
		}
		v := buffer.NewView(size)
		for _, r := range runs {
			_, _ = v.Write(r)
		}
		header := *h
		g.net.Pop()
		if g.opts.Tap != nil && !g.opts.Tap(header, append([]byte(nil), v.AsSlice()...)) {
			v.Release()
			continue
		}
		g.deliver(v)
	}
}

func (g *Guest) deliver(v *buffer.View) {
	g.mu.RLock()
	d := g.dispatcher
	g.mu.RUnlock()
	if d == nil || v.Size() < header.EthernetMinimumSize {
		v.Release()
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	defer pkt.DecRef()
	b, _ := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	e := header.Ethernet(b)
	switch dst := e.DestinationAddress(); {
	case dst == g.mac:
		pkt.PktType = tcpip.PacketHost
	case dst == header.EthernetBroadcastAddress:
		pkt.PktType = tcpip.PacketBroadcast
	case header.IsMulticastEthernetAddress(dst):
		pkt.PktType = tcpip.PacketMulticast
	default:
		return
	}
	d.DeliverNetworkPacket(e.Type(), pkt)
}

// SendFrame gives the network a frame as it is, past the guest's stack.
func (g *Guest) SendFrame(frame []byte) {
	var h [HeaderLen]byte
	g.net.Send(&h, [][]byte{frame})
}

// MAC is the guest's.
func (g *Guest) MAC() [6]byte { return g.opts.MAC }

func full(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{NIC: nic, Port: a.Port()}
	if a.Addr().IsValid() && !a.Addr().IsUnspecified() {
		f.Addr = tcpip.AddrFromSlice(a.Addr().AsSlice())
	}
	return f
}

func proto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

// Conn is a TCP connection of the guest's.
type Conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Reset ends the connection with RST.
func (c *Conn) Reset() {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	c.ep.Close()
}

// DialTCP connects from the guest.
func (g *Guest) DialTCP(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	wq := new(waiter.Queue)
	ep, terr := g.Stack.NewEndpoint(tcp.ProtocolNumber, proto(to.Addr()), wq)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Connect(full(to))
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		}
	}
	if terr != nil {
		ep.Close()
		return nil, fmt.Errorf("connecting to %v: %v", to, terr)
	}
	return &Conn{gonet.NewTCPConn(wq, ep), ep}, nil
}

// DialUDP makes a connected socket in the guest.
func (g *Guest) DialUDP(to netip.AddrPort) (*gonet.UDPConn, error) {
	a := full(to)
	return gonet.DialUDP(g.Stack, nil, &a, proto(to.Addr()))
}

// Listen opens a TCP port of the guest's.
func (g *Guest) Listen(at netip.AddrPort) (net.Listener, error) {
	return gonet.ListenTCP(g.Stack, full(at), proto(at.Addr()))
}

// ListenUDP opens a UDP port of the guest's.
func (g *Guest) ListenUDP(at netip.AddrPort) (*gonet.UDPConn, error) {
	a := full(at)
	return gonet.DialUDP(g.Stack, &a, nil, proto(at.Addr()))
}

// Addresses are those that the guest has.
func (g *Guest) Addresses() []netip.Addr {
	var out []netip.Addr
	for _, p := range g.Stack.AllAddresses()[nic] {
		a, _ := netip.AddrFromSlice(p.AddressWithPrefix.Address.AsSlice())
		out = append(out, a)
	}
	return out
}

// end is the guest as gVisor's link.
type end Guest

var (
	_ stack.LinkEndpoint = (*end)(nil)
	_ stack.GSOEndpoint  = (*end)(nil)
)

// WritePackets sends frames as a driver would, with what it leaves to the device.
func (e *end) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		var h [HeaderLen]byte
		if g := pkt.GSOOptions; g.Type != stack.GSONone {
			if g.NeedsCsum {
				h[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
				binary.LittleEndian.PutUint16(h[6:], header.EthernetMinimumSize+g.L3HdrLen)
				binary.LittleEndian.PutUint16(h[8:], g.CsumOffset)
			}
			if pkt.Data().Size() > int(g.MSS) {
				h[1] = 1 // VIRTIO_NET_HDR_GSO_TCPV4
				if g.Type == stack.GSOTCPv6 {
					h[1] = 4
				}
				binary.LittleEndian.PutUint16(h[2:], uint16(pkt.HeaderSize()))
				binary.LittleEndian.PutUint16(h[4:], g.MSS)
			}
		}
		e.net.Send(&h, pkt.AsSlices())
	}
	return pkts.Len(), nil
}

func (e *end) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dispatcher = d
}

func (e *end) IsAttached() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.dispatcher != nil
}

func (e *end) Capabilities() stack.LinkEndpointCapabilities {
	c := stack.CapabilityResolutionRequired
	if e.took&GuestCSum != 0 {
		c |= stack.CapabilityRXChecksumOffload
	}
	return c
}

// SupportedGSO: gVisor hangs with segmentation and without checksums left out.
func (e *end) SupportedGSO() stack.SupportedGSO {
	if all := uint64(CSum | HostTSO4 | HostTSO6); e.took&all == all {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

func (e *end) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: pkt.EgressRoute.LocalLinkAddress, DstAddr: pkt.EgressRoute.RemoteLinkAddress, Type: pkt.NetworkProtocolNumber,
	})
}

func (e *end) MTU() uint32                             { return e.mtu }
func (e *end) SetMTU(uint32)                           {}
func (e *end) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (e *end) LinkAddress() tcpip.LinkAddress          { return e.mac }
func (e *end) SetLinkAddress(tcpip.LinkAddress)        {}
func (e *end) Wait()                                   {}
func (e *end) Close()                                  {}
func (e *end) SetOnCloseAction(func())                 {}
func (e *end) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (e *end) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (e *end) GSOMaxSize() uint32                      { return 65535 - 120 }
