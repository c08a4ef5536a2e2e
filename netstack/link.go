package netstack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Feature bits that say what a header may ask for (VirtIO 1.2 §5.1.3).
const (
	featCSum      = 1 << 0
	featGuestCSum = 1 << 1
	featGuestTSO4 = 1 << 7
	featGuestTSO6 = 1 << 8
	featHostTSO4  = 1 << 11
	featHostTSO6  = 1 << 12

	// gVisor hangs when it may segment but not leave out the checksum, so that
	// towards the guest it is all of them or none.
	featToGuest = featGuestCSum | featGuestTSO4 | featGuestTSO6
)

// virtio_net_hdr (VirtIO 1.2 §5.1.6): its size with num_buffers, and its fields.
const (
	headerLen = 12

	hdrFlags, hdrGSOType, hdrHdrLen, hdrGSOSize, hdrCSumStart, hdrCSumOffset = 0, 1, 2, 4, 6, 8

	flagNeedsCSum = 1
	gsoNone       = 0
	gsoTCPv4      = 1
	gsoTCPv6      = 4
	gsoECN        = 0x80
)

const (
	ethLen = header.EthernetMinimumSize
	// maxFrame is the largest frame that either side can bring about: an IP
	// packet's length has 16 bits.
	maxFrame = ethLen + 65535

	// What waits for the guest: enough for a window of one connection at MTU
	// 1500, and bounded in bytes for frames of 64 KiB. The rest is dropped, as
	// by any router.
	maxQueue      = 4096
	maxQueueBytes = 8 << 20
)

// link is the Ethernet between gVisor and the device: gVisor's LinkEndpoint on one
// side, Send, Next, Pop and OnReady on the other.
type link struct {
	mtu   uint32
	mac   tcpip.LinkAddress
	stats *counters
	// filter says what becomes of a frame of the guest's: deliver means gVisor.
	filter func(frame []byte, gso bool) (deliver bool)
	// ask sees what is not IPv4 before the guest does.
	ask func(pkt *stack.PacketBuffer)

	features   atomic.Uint64 // as negotiated
	dispatcher atomic.Pointer[dispatcher]

	mu     sync.Mutex
	ring   []*stack.PacketBuffer // a power of two, grown as needed
	head   int
	count  int
	bytes  int
	lent   bool // the head is the device's: Next has given it
	idle   bool // Next has said that there is nothing, and no one was woken since
	closed bool

	hdr  [headerLen]byte
	runs [][]byte

	wakeMu sync.Mutex
	wake   func()
}

// dispatcher is there because an atomic pointer cannot point to an interface.
type dispatcher struct{ stack.NetworkDispatcher }

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// send is Send of the Backend: it copies the frame before anything of it is read.
func (l *link) send(h *[headerLen]byte, frame [][]byte) {
	size := 0
	for _, run := range frame {
		size += len(run)
	}
	if size < ethLen || size > maxFrame {
		l.stats.guestBad.Add(1)
		return
	}
	v := buffer.NewView(size)
	for _, run := range frame {
		_, _ = v.Write(run) // into memory
	}
	l.stats.guestFrames.Add(1)
	l.stats.guestBytes.Add(uint64(size))
	d := l.dispatcher.Load()
	if d == nil || !l.filter(v.AsSlice(), h[hdrGSOType]&^gsoECN != gsoNone) {
		v.Release()
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	eth, _ := pkt.LinkHeader().Consume(ethLen)
	e := header.Ethernet(eth)
	switch dst := e.DestinationAddress(); {
	case dst == l.mac:
		pkt.PktType = tcpip.PacketHost
	case dst == header.EthernetBroadcastAddress:
		pkt.PktType = tcpip.PacketBroadcast
	default: // the filter lets no other unicast address through
		pkt.PktType = tcpip.PacketMulticast
	}
	pkt.NetworkProtocolNumber = e.Type()
	d.DeliverNetworkPacket(e.Type(), pkt)
	pkt.DecRef()
}

// WritePackets queues frames for the guest.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		if leavesWork(pkt) && l.features.Load()&featToGuest != featToGuest {
			// A connection from before the driver was reset: that guest is gone.
			l.stats.hostDropped.Add(1)
			continue
		}
		if pkt.NetworkProtocolNumber != header.IPv4ProtocolNumber {
			l.ask(pkt)
		}
		l.push(pkt.IncRef())
	}
	return pkts.Len(), nil
}

// pushFrame queues a whole frame made here.
func (l *link) pushFrame(frame *buffer.View) {
	l.push(stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(frame)}))
}

// push queues a frame, and has its reference.
func (l *link) push(pkt *stack.PacketBuffer) {
	size := pkt.Size()
	l.mu.Lock()
	if l.closed || l.count == maxQueue || l.bytes+size > maxQueueBytes {
		l.mu.Unlock()
		l.stats.hostDropped.Add(1)
		pkt.DecRef()
		return
	}
	if l.count == len(l.ring) {
		l.grow()
	}
	l.ring[(l.head+l.count)&(len(l.ring)-1)] = pkt
	l.count++
	l.bytes += size
	idle := l.idle
	l.mu.Unlock()
	l.stats.hostFrames.Add(1)
	l.stats.hostBytes.Add(uint64(size))
	if idle {
		l.notify()
	}
}

// grow doubles the ring. l.mu is held.
func (l *link) grow() {
	ring := make([]*stack.PacketBuffer, max(64, 2*len(l.ring)))
	for i := range l.count {
		ring[i] = l.ring[(l.head+i)&(len(l.ring)-1)]
	}
	l.ring, l.head = ring, 0
}

// notify wakes the device once, if it waits and there is something.
func (l *link) notify() {
	l.wakeMu.Lock()
	defer l.wakeMu.Unlock()
	if l.wake == nil {
		return
	}
	l.mu.Lock()
	due := l.idle && l.count > 0
	if due {
		l.idle = false
	}
	l.mu.Unlock()
	if due {
		l.wake()
	}
}

func (l *link) onReady(wake func()) {
	l.wakeMu.Lock()
	l.wake = wake
	l.wakeMu.Unlock()
	l.notify()
}

// next is Next of the Backend: the head of the queue, without a copy.
func (l *link) next() (*[headerLen]byte, [][]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		l.idle = true
		return nil, nil, false
	}
	if l.lent {
		return &l.hdr, l.runs, true
	}
	l.lent = true
	pkt := l.ring[l.head]
	l.hdr = [headerLen]byte{}
	if leavesWork(pkt) {
		l.fillHeader(pkt, pkt.GSOOptions)
	}
	l.runs = l.runs[:0]
	views, offset := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if offset >= len(b) {
			offset -= len(b)
			continue
		}
		l.runs = append(l.runs, b[offset:])
		offset = 0
	}
	return &l.hdr, l.runs, true
}

// leavesWork says whether a frame leaves the guest its checksum, and perhaps to cut
// it up.
func leavesWork(pkt *stack.PacketBuffer) bool {
	return pkt.GSOOptions.Type == stack.GSOTCPv4 || pkt.GSOOptions.Type == stack.GSOTCPv6
}

// fillHeader says what the guest has to do itself (VirtIO 1.2 §5.1.6.2): gVisor
// has left the pseudo header's sum in the checksum's place.
func (l *link) fillHeader(pkt *stack.PacketBuffer, g stack.GSO) {
	le := binary.LittleEndian
	if g.NeedsCsum {
		l.hdr[hdrFlags] = flagNeedsCSum
		le.PutUint16(l.hdr[hdrCSumStart:], ethLen+g.L3HdrLen)
		le.PutUint16(l.hdr[hdrCSumOffset:], g.CsumOffset)
	}
	if pkt.Data().Size() <= int(g.MSS) {
		return
	}
	switch g.Type {
	case stack.GSOTCPv4:
		l.hdr[hdrGSOType] = gsoTCPv4
	case stack.GSOTCPv6:
		l.hdr[hdrGSOType] = gsoTCPv6
	default:
		return
	}
	le.PutUint16(l.hdr[hdrHdrLen:], uint16(pkt.HeaderSize()))
	le.PutUint16(l.hdr[hdrGSOSize:], g.MSS)
}

// pop is Pop of the Backend.
func (l *link) pop() {
	l.mu.Lock()
	var pkt *stack.PacketBuffer
	if l.lent {
		pkt = l.take()
		l.lent = false
		clear(l.runs)
	}
	l.mu.Unlock()
	if pkt != nil {
		pkt.DecRef()
	}
}

// take removes the head. l.mu is held.
func (l *link) take() *stack.PacketBuffer {
	pkt := l.ring[l.head]
	l.ring[l.head] = nil
	l.head = (l.head + 1) & (len(l.ring) - 1)
	l.count--
	l.bytes -= pkt.Size()
	return pkt
}

// negotiated drops what waits: it was made for other features, or for a guest
// that is gone. What the device is reading it keeps until Pop.
func (l *link) negotiated(features uint64) {
	l.features.Store(features)
	l.mu.Lock()
	l.drop()
	l.mu.Unlock()
}

// drop empties the queue behind a frame that the device has. l.mu is held.
func (l *link) drop() {
	var kept *stack.PacketBuffer
	if l.lent {
		kept = l.take()
	}
	for l.count > 0 {
		l.take().DecRef()
		l.stats.hostDropped.Add(1)
	}
	if kept != nil {
		l.ring[l.head] = kept
		l.count, l.bytes = 1, kept.Size()
	}
}

// shut ends the link; what the device has stays readable until its Pop.
func (l *link) shut() {
	l.dispatcher.Store(nil)
	l.mu.Lock()
	l.closed = true
	l.drop()
	l.mu.Unlock()
	l.onReady(nil)
}

// The rest is what gVisor wants to know of a link.

func (l *link) MTU() uint32                          { return l.mtu }
func (l *link) SetMTU(uint32)                        {}
func (l *link) MaxHeaderLength() uint16              { return ethLen }
func (l *link) LinkAddress() tcpip.LinkAddress       { return l.mac }
func (l *link) SetLinkAddress(tcpip.LinkAddress)     {}
func (l *link) IsAttached() bool                     { return l.dispatcher.Load() != nil }
func (l *link) Wait()                                {}
func (l *link) Close()                               {}
func (l *link) SetOnCloseAction(func())              {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Attach gives the link its stack, or takes it.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&dispatcher{d})
}

// Capabilities: a guest that may leave out checksums has its others not verified
// either, as the way is memory (VirtIO 1.2 §5.1.6.2.1).
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	c := stack.CapabilityResolutionRequired
	if l.features.Load()&featCSum != 0 {
		c |= stack.CapabilityRXChecksumOffload
	}
	return c
}

// AddHeader writes the Ethernet header.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(ethLen)).Encode(&header.EthernetFields{
		SrcAddr: pkt.EgressRoute.LocalLinkAddress,
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// GSOMaxSize leaves room for the headers in an IP packet's 65,535 bytes.
func (l *link) GSOMaxSize() uint32 { return 65535 - 120 }

// SupportedGSO is what the driver took. Where it took nothing, gVisor cuts up what
// it sends late, which costs less for each segment.
func (l *link) SupportedGSO() stack.SupportedGSO {
	if l.features.Load()&featToGuest == featToGuest {
		return stack.HostGSOSupported
	}
	return stack.GVisorGSOSupported
}
