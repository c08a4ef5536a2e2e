// Package vsocktest is a guest's socket driver, for tests and measurements of
// devices/vsock and what is behind it: packets as a test wants them, and connections
// that keep to the rules of credit.
package vsocktest

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// Operations and flags (VirtIO 1.2 §5.10.6).
const (
	Request       = 1
	Response      = 2
	RST           = 3
	Shutdown      = 4
	RW            = 5
	CreditUpdate  = 6
	CreditRequest = 7

	ShutReceive = 1
	ShutSend    = 2
	ShutBoth    = 3

	Stream    = 1  // type
	HeaderLen = 44 // bytes
	HostCID   = 2
)

// Packet is a packet as it goes over a queue (VirtIO 1.2 §5.10.6).
type Packet struct {
	SrcCID, DstCID   uint64
	SrcPort, DstPort uint32
	Len              uint32
	Type, Op         uint16
	Flags            uint32
	BufAlloc, FwdCnt uint32
	Data             []byte // of a received one: until the next Recv
}

func (p Packet) String() string {
	op := "?"
	if names := []string{"INVALID", "REQUEST", "RESPONSE", "RST", "SHUTDOWN", "RW", "CREDIT_UPDATE", "CREDIT_REQUEST"}; int(p.Op) < len(names) {
		op = names[p.Op]
	}
	return fmt.Sprintf("%s %d:%d→%d:%d type %d len %d flags %d alloc %d fwd %d", op, p.SrcCID, p.SrcPort, p.DstCID, p.DstPort, p.Type, p.Len, p.Flags, p.BufAlloc, p.FwdCnt)
}

// Header gives the packet's 44 bytes.
func (p Packet) Header() []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(make([]byte, 0, HeaderLen), p.SrcCID)
	b = le.AppendUint64(b, p.DstCID)
	b = le.AppendUint32(b, p.SrcPort)
	b = le.AppendUint32(b, p.DstPort)
	b = le.AppendUint32(b, p.Len)
	b = le.AppendUint16(b, p.Type)
	b = le.AppendUint16(b, p.Op)
	b = le.AppendUint32(b, p.Flags)
	b = le.AppendUint32(b, p.BufAlloc)
	return le.AppendUint32(b, p.FwdCnt)
}

func (p *Packet) parse(b []byte) {
	le := binary.LittleEndian
	*p = Packet{
		SrcCID: le.Uint64(b), DstCID: le.Uint64(b[8:]), SrcPort: le.Uint32(b[16:]), DstPort: le.Uint32(b[20:]),
		Len: le.Uint32(b[24:]), Type: le.Uint16(b[28:]), Op: le.Uint16(b[30:]), Flags: le.Uint32(b[32:]),
		BufAlloc: le.Uint32(b[36:]), FwdCnt: le.Uint32(b[40:]), Data: b[HeaderLen:],
	}
}

// Options are what New takes besides the device.
type Options struct {
	Features uint64
	RX       int    // receive buffers; 0 stands for 128
	RXSize   uint32 // bytes of each; 0 stands for 4096
	TXSize   uint32 // bytes of the largest packet; 0 stands for 64 KiB and a header
	Events   int    // event buffers; 0 stands for 4, less is none
	Mem      uint64 // bytes of RAM; 0 stands for 64 MiB
}

// slots is a queue whose descriptor i always is buffer i.
type slots struct {
	ring  *virtqtest.Ring
	queue int
	gpa   uint64
	size  uint32
	free  []uint16
	last  uint16 // used.idx as far as taken
}

// Guest drives one device. One goroutine at a time uses it.
type Guest struct {
	*virtqtest.Driver
	CID        uint64
	tb         testing.TB
	rx, tx, ev slots
	held       int // receive buffer that the last packet is in; -1: none
	fence      atomic.Uint32
}

const (
	queueRX = iota
	queueTX
	queueEvent
	slotCount = 128
)

// New activates dev and posts buffers.
func New(tb testing.TB, dev devices.Virtio, o Options) *Guest {
	tb.Helper()
	if o.RX == 0 {
		o.RX = slotCount
	}
	if o.RXSize == 0 {
		o.RXSize = 4096
	}
	if o.TXSize == 0 {
		o.TXSize = 64<<10 + HeaderLen
	}
	if o.Events == 0 {
		o.Events = 4
	}
	if o.Mem == 0 {
		o.Mem = 64 << 20
	}
	var cid [8]byte
	dev.ReadConfig(0, cid[:])
	g := &Guest{tb: tb, held: -1, CID: binary.LittleEndian.Uint64(cid[:])}
	g.Driver = virtqtest.NewDriver(tb, dev, virtqtest.DriverOptions{
		Mem: virtqtest.NewMemory(tb, o.Mem), PerQueue: 16 << 20, Features: o.Features, Sizes: []uint16{slotCount, slotCount, 16},
	})
	g.rx = g.slots(queueRX, o.RXSize, slotCount)
	g.tx = g.slots(queueTX, o.TXSize, slotCount)
	g.ev = g.slots(queueEvent, 4, 16)
	g.Post(o.RX)
	for range o.Events {
		g.post(&g.ev)
	}
	g.Kick(queueEvent)
	return g
}

func (g *Guest) slots(queue int, size uint32, n int) slots {
	g.tb.Helper()
	b, err := g.Rings[queue].Alloc(size * uint32(n))
	if err != nil {
		g.tb.Fatal(err)
	}
	s := slots{ring: g.Rings[queue], queue: queue, gpa: b.GPA, size: size}
	for i := range n {
		s.free = append(s.free, uint16(i))
	}
	return s
}

func (s *slots) memory(i uint16) []byte {
	b, err := s.ring.Mem.Slice(s.gpa+uint64(i)*uint64(s.size), uint64(s.size))
	if err != nil {
		panic(err)
	}
	return b
}

// put makes buffer i available.
func (s *slots) put(i uint16, n uint32, flags uint16) {
	s.ring.SetDesc(i, s.gpa+uint64(i)*uint64(s.size), n, flags, 0)
	s.ring.PushHead(i)
}

// used gives the next buffer that came back.
func (s *slots) used() (i uint16, n uint32, ok bool) {
	if s.ring.UsedIdx() == s.last {
		return 0, 0, false
	}
	e, err := s.ring.Mem.Slice(s.ring.Cfg.Used+4+8*uint64(s.last%s.ring.Cfg.Size), 8)
	if err != nil {
		panic(err)
	}
	s.last++
	return uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:]), true
}

func (g *Guest) post(s *slots) bool {
	if len(s.free) == 0 {
		return false
	}
	i := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.put(i, s.size, virtqtest.Write)
	return true
}

// Post gives the device n more receive buffers.
func (g *Guest) Post(n int) {
	for range n {
		if !g.post(&g.rx) {
			break
		}
	}
	g.Kick(queueRX)
}

// await waits for an interrupt, unless s has something already.
func (g *Guest) await(s *slots, late <-chan time.Time) bool {
	if s.ring.Cfg.EventIdx {
		s.ring.SetUsedEvent(s.last)
		g.fence.Swap(1)
	}
	if s.ring.UsedIdx() != s.last {
		return true
	}
	select {
	case <-g.Interrupted():
		return true
	case <-late:
		return false
	}
}

// reclaim takes back transmit buffers.
func (g *Guest) reclaim() {
	for {
		i, _, ok := g.tx.used()
		if !ok {
			return
		}
		g.tx.free = append(g.tx.free, i)
	}
}

// Send sends a packet: addresses, type and length are filled in where they are zero.
func (g *Guest) Send(p Packet) {
	g.tb.Helper()
	if p.SrcCID == 0 {
		p.SrcCID = g.CID
	}
	if p.DstCID == 0 {
		p.DstCID = HostCID
	}
	if p.Type == 0 {
		p.Type = Stream
	}
	if p.Len == 0 {
		p.Len = uint32(len(p.Data))
	}
	g.SendRaw(p.Header(), p.Data)
}

// SendRaw sends any bytes as a packet.
func (g *Guest) SendRaw(parts ...[]byte) {
	g.tb.Helper()
	g.Queue(parts...)
	g.Kick(queueTX)
}

// Queue is SendRaw without telling the device; Flush tells it.
func (g *Guest) Queue(parts ...[]byte) {
	g.tb.Helper()
	if g.reclaim(); len(g.tx.free) == 0 {
		g.Kick(queueTX)
		late := time.After(virtqtest.Patience)
		for g.reclaim(); len(g.tx.free) == 0; g.reclaim() {
			if !g.await(&g.tx, late) {
				g.tb.Fatalf("the device takes no packets")
			}
		}
	}
	i := g.tx.free[len(g.tx.free)-1]
	g.tx.free = g.tx.free[:len(g.tx.free)-1]
	b, n := g.tx.memory(i), 0
	for _, p := range parts {
		n += copy(b[n:], p)
	}
	g.tx.put(i, uint32(n), 0)
}

// Flush tells the device of what was queued.
func (g *Guest) Flush() { g.Kick(queueTX) }

// Room is how many packets can be queued without waiting.
func (g *Guest) Room() int {
	g.reclaim()
	return len(g.tx.free)
}

// Recv waits for a packet. Its data lie in guest memory until the next call, when the
// buffer is posted again.
func (g *Guest) Recv() Packet {
	g.tb.Helper()
	p, ok := g.TryRecv()
	if ok {
		return p
	}
	late := time.After(virtqtest.Patience)
	for {
		if !g.await(&g.rx, late) {
			g.tb.Fatalf("no packet within %v", virtqtest.Patience)
		}
		if p, ok := g.TryRecv(); ok {
			return p
		}
	}
}

// TryRecv gives a packet that is there.
func (g *Guest) TryRecv() (p Packet, ok bool) {
	g.tb.Helper()
	if g.held >= 0 {
		g.rx.put(uint16(g.held), g.rx.size, virtqtest.Write)
		g.Kick(queueRX)
		g.held = -1
	}
	i, n, ok := g.rx.used()
	if !ok {
		return p, false
	}
	b := g.rx.memory(i)
	if n < HeaderLen || n > g.rx.size {
		g.tb.Fatalf("a packet of %d bytes", n)
	}
	p.parse(b[:n])
	if p.Len != uint32(len(p.Data)) {
		g.tb.Fatalf("%v: %d bytes came", p, len(p.Data))
	}
	if p.SrcCID != HostCID && p.Op != RST || p.DstCID != g.CID {
		g.tb.Fatalf("%v: to %d", p, g.CID)
	}
	g.held = int(i)
	return p, true
}

// Expect waits for a packet of this operation, on these ports of the guest's and the host's.
func (g *Guest) Expect(op uint16, guest, host uint32) Packet {
	g.tb.Helper()
	p := g.Recv()
	if p.Op != op || p.DstPort != guest || p.SrcPort != host {
		g.tb.Fatalf("%v came, want operation %d from %d to %d", p, op, host, guest)
	}
	return p
}

// Quiet fails if there is a packet. What it can follow from, the device has done:
// a packet that is answered is sent and its answer awaited.
func (g *Guest) Quiet() {
	g.tb.Helper()
	g.Send(Packet{Op: CreditUpdate, SrcPort: 0xfeed, DstPort: 0xbeef})
	if p := g.Recv(); p.Op != RST || p.DstPort != 0xfeed || p.SrcPort != 0xbeef {
		g.tb.Fatalf("%v came, want nothing", p)
	}
}

// WaitEvent waits for an event and gives its id.
func (g *Guest) WaitEvent() uint32 {
	g.tb.Helper()
	late := time.After(virtqtest.Patience)
	for {
		if i, n, ok := g.ev.used(); ok {
			if n != 4 {
				g.tb.Fatalf("an event of %d bytes", n)
			}
			return binary.LittleEndian.Uint32(g.ev.memory(i))
		}
		if !g.await(&g.ev, late) {
			g.tb.Fatalf("no event within %v", virtqtest.Patience)
		}
	}
}

// PostEvents gives the device n more event buffers.
func (g *Guest) PostEvents(n int) {
	for range n {
		g.post(&g.ev)
	}
	g.Kick(queueEvent)
}

// Events says how many events there are that nobody has waited for.
func (g *Guest) Events() int { return int(g.ev.ring.UsedIdx() - g.ev.last) }
