package vsock

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// What a fuzzed program does, a byte each with operands behind it.
const (
	fzPacket  = iota // operation, port, host's port, flags, length, address, credit
	fzRaw            // length, that many bytes
	fzBuffers        // how many, of which kind
	fzCall           // port
	fzSend           // stream, length
	fzHost           // stream, what it does
	fzLate           // all that is due is overdue
	fzPoke           // queue, descriptor, address, length, flags: at random into the ring
	fzPause
	fzOps
)

// fuzzGuest drives a device without its goroutines, so that a program always does
// the same.
type fuzzGuest struct {
	t      *testing.T
	d      *Device
	h      *fakeHost
	r      *run
	rx, tx *virtqtest.Ring
	faults int
	poked  bool // what the guest says is no longer what packet remembers
	mem    *guestmem.Memory
	peers  map[key]*fuzzPeer
	calls  []uint32 // ports of the host's
}

// fuzzPeer is what the guest has said of its credit, and what it was sent.
type fuzzPeer struct{ alloc, fwd, got uint32 }

func (g *fuzzGuest) Used()          {}
func (g *fuzzGuest) ConfigChanged() {}
func (g *fuzzGuest) Fault(error)    { g.faults++ }

func newFuzzGuest(t *testing.T, mem *guestmem.Memory, bells [3]*devices.Doorbell) *fuzzGuest {
	g := &fuzzGuest{t: t, h: &fakeHost{ports: []uint32{listened}, room: 100}, mem: mem, peers: map[key]*fuzzPeer{}}
	var err error
	if g.d, err = New(Config{CID: 3, Host: g.h}); err != nil {
		t.Fatal(err)
	}
	queues := make([]*devices.Queue, 3)
	for i := range 2 {
		ring, err := virtqtest.NewRing(mem, uint64(i)<<19, 1<<19, virtqtest.Options{Size: 32, EventIdx: true, Indirect: true})
		if err != nil {
			t.Fatal(err)
		}
		q, err := virtq.New(mem, ring.Cfg)
		if err != nil {
			t.Fatal(err)
		}
		queues[i] = &devices.Queue{Queue: q, Kick: bells[i]}
		if i == 0 {
			g.rx = ring
		} else {
			g.tx = ring
		}
	}
	g.d.act = &devices.Activation{Mem: mem, Queues: queues, Driver: g}
	g.r = newRun(g.d, g.d.act)
	return g
}

// turn lets the device work until nothing more happens.
func (g *fuzzGuest) turn() {
	for range 200 {
		g.rx.Kick()
		g.tx.Kick()
		if g.r.stop.Load() {
			return
		}
		g.d.work.Lock()
		why := g.r.take()
		g.r.tx.Publish()
		more := why != ended && g.r.pump()
		g.d.work.Unlock()
		g.tx.Collect()
		g.collect()
		if !more && why != again {
			g.check()
			return
		}
	}
	g.t.Fatal("the device never comes to an end")
}

// collect takes what the device sent, and holds it to the rules.
func (g *fuzzGuest) collect() {
	us, err := g.rx.Collect()
	if err != nil && !g.poked {
		g.t.Fatal(err)
	}
	for _, u := range us {
		b := u.Joined()
		if len(b) == 0 {
			continue // of no use to the device
		}
		if g.poked && len(b) < headerLen {
			continue // over memory that is not what Collect shows
		}
		if len(b) < headerLen {
			g.t.Fatalf("a packet of %d bytes", len(b))
		}
		var h header
		h.parse((*[headerLen]byte)(b))
		switch {
		case g.poked:
		case int(h.len) != len(b)-headerLen, h.dstCID != 3, h.op == 0 || h.op >= ops, h.len != 0 && h.op != opRW:
			g.t.Fatalf("%+v with %d bytes", h, len(b)-headerLen)
		case h.op != opRST && (h.srcCID != HostCID || h.typ != typeStream):
			g.t.Fatalf("%+v", h)
		}
		k := key{h.dstPort, h.srcPort}
		switch h.op {
		case opRequest:
			g.calls = append(g.calls, h.srcPort)
			g.peers[k] = &fuzzPeer{}
		case opRW:
			p := g.peers[k]
			if g.poked {
				break
			}
			if p == nil {
				g.t.Fatalf("data for a connection that is none: %+v", h)
			}
			if p.got += h.len; p.got-p.fwd > p.alloc {
				g.t.Fatalf("%d bytes beyond the guest's credit: %+v", p.got-p.fwd-p.alloc, h)
			}
		}
	}
}

// check holds what the device keeps against its bounds.
func (g *fuzzGuest) check() {
	if n := len(g.d.table.conns); n > MaxConnections {
		g.t.Fatalf("%d connections", n)
	}
	held := 0
	for k, c := range g.d.table.conns {
		if c.key != k || c.state == none || c.waiting() != uint32(c.out.n) || c.waiting() > c.alloc || len(c.out.buf) > int(c.alloc) {
			g.t.Fatalf("connection %+v", c)
		}
		if (c.stream == nil) != (c.state == dying || c.state == closing) {
			g.t.Fatalf("state %d with the stream %v", c.state, c.stream)
		}
		held += c.out.n
	}
	if st := g.d.Stats(); int(st.Buffered) != held || int(st.Connections) != len(g.d.table.conns) {
		g.t.Fatalf("%+v: %d bytes of %d connections", st, held, len(g.d.table.conns))
	}
	for _, s := range g.h.streams {
		if c := s.Mark().c; s.closed != (c == nil) && len(g.h.events) == 0 {
			g.t.Fatalf("stream %+v", s)
		}
	}
}

// packet sends one, and remembers what it says of the credit.
func (g *fuzzGuest) packet(h header, n int) {
	var b [headerLen]byte
	h.put(&b)
	parts := [][]byte{b[:]}
	if n > 0 {
		parts = append(parts, make([]byte, n))
	}
	// What is on its way at the same time has another credit: in turn.
	g.turn()
	if g.r.stop.Load() {
		return
	}
	k := key{h.srcPort, h.dstPort}
	if h.srcCID == 3 && h.dstCID == HostCID && h.typ == typeStream {
		if h.op == opRequest && g.d.table.find(k) == nil {
			g.peers[k] = &fuzzPeer{}
		}
		if p := g.peers[k]; p != nil {
			p.alloc, p.fwd = h.bufAlloc, h.fwdCnt
		}
	}
	if _, err := g.tx.Add(parts, nil); err != nil {
		return
	}
	g.turn()
}

func (g *fuzzGuest) play(in []byte) {
	next := func() byte {
		if len(in) == 0 {
			return 0
		}
		b := in[0]
		in = in[1:]
		return b
	}
	for steps := 0; len(in) > 0 && steps < 300 && !g.r.stop.Load(); steps++ {
		switch next() % fzOps {
		case fzPacket:
			h := header{srcCID: 3, dstCID: HostCID, typ: typeStream, op: uint16(next() % 10), srcPort: uint32(next() % 4)}
			switch p := next(); {
			case p < 128:
				h.dstPort = listened
			case p < 140:
				h.dstPort = 81
			case len(g.calls) > 0:
				h.dstPort = g.calls[int(p)%len(g.calls)]
			}
			h.flags = uint32(next() % 5)
			n := int(binary.LittleEndian.Uint16([]byte{next(), next()}) % 9000)
			switch a := next(); {
			case a < 8:
				h.srcCID = uint64(a)
			case a < 16:
				h.dstCID = uint64(a)
			case a < 24:
				h.typ = uint16(a)
			case a < 40:
				h.len = uint32(a) << 24
			}
			h.bufAlloc = uint32(next()) << (next() % 25)
			unread := uint32(next())
			if p := g.peers[key{h.srcPort, h.dstPort}]; p != nil {
				h.fwdCnt = p.got - unread
			}
			if h.op != opRW {
				n = 0
			}
			if h.len == 0 {
				h.len = uint32(n)
			}
			g.packet(h, n)
		case fzRaw:
			n := min(int(next()), len(in))
			if n > 0 && g.tx.Room() > 0 {
				// Its credit is not followed: it is nobody's connection.
				b := append([]byte{9}, in[:n]...)
				g.tx.Add([][]byte{b}, nil)
			}
			in = in[n:]
		case fzBuffers:
			n, kind := int(next()%17), next()
			for range n {
				switch kind % 8 {
				case 0:
					g.rx.Add(nil, []uint32{43})
				case 1:
					g.rx.Add(nil, []uint32{44})
				case 2:
					g.rx.Add(nil, []uint32{20, 24, 1})
				case 3:
					g.rx.Add([][]byte{{1}}, []uint32{100})
				case 4:
					g.rx.AddIndirect(nil, []uint32{1, 50, 3, 400})
				default:
					g.rx.Add(nil, []uint32{4096})
				}
			}
		case fzCall:
			g.h.call(uint32(next() % 4))
		case fzSend, fzHost:
			i, n := int(next()), int(next())
			if len(g.h.streams) == 0 {
				break
			}
			s := g.h.streams[i%len(g.h.streams)]
			if s.closed {
				break
			}
			if n < 200 {
				s.send(make([]byte, n*37))
				break
			}
			s.do(func() {
				switch n % 6 {
				case 0:
					s.eof = true
				case 1:
					s.eof, s.gone = true, true
				case 2:
					s.deaf = true
				case 3:
					s.room = -1
				default:
					s.room = n
				}
			})
		case fzLate:
			for _, c := range g.d.table.conns {
				if !c.deadline.IsZero() {
					c.deadline = time.Unix(1, 0)
					g.d.earliest = c.deadline
				}
			}
		case fzPoke:
			ring := g.rx
			g.poked = true
			if next()%2 == 1 {
				ring = g.tx
			}
			ring.SetDesc(uint16(next()%32), uint64(next())<<13, uint32(next())<<5, uint16(next()%8), uint16(next()%40))
			if next()%4 == 0 {
				ring.PushHead(uint16(next() % 40))
			}
		case fzPause:
			// A pause has nothing in flight.
			for i, q := range g.d.act.Queues[:2] {
				if n := q.InFlight(); n != 0 {
					g.t.Fatalf("queue %d: %d in flight", i, n)
				}
			}
		}
		g.turn()
	}
	for _, q := range g.d.act.Queues[:2] {
		if n := q.InFlight(); n != 0 && g.faults == 0 {
			g.t.Fatalf("%d in flight at the end", n)
		}
	}
}

// FuzzDevice lets a guest and a host do what they want, each in its turn.
func FuzzDevice(f *testing.F) {
	buffers := []byte{fzBuffers, 16, 5}
	pkt := func(op, port, host byte, flags byte, n uint16, alloc, shift byte) []byte {
		return []byte{fzPacket, op, port, host, flags, byte(n), byte(n >> 8), 255, alloc, shift, 0}
	}
	cat := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	connect := cat(buffers, pkt(opRequest, 1, 0, 0, 0, 200, 10))
	f.Add(connect)
	f.Add(cat(connect, pkt(opRW, 1, 0, 0, 500, 200, 10), []byte{fzSend, 0, 100}, pkt(opCreditUpdate, 1, 0, 0, 0, 200, 10)))
	f.Add(cat(connect, pkt(opRW, 1, 0, 0, 8000, 200, 10), []byte{fzHost, 0, 201}, pkt(opShutdown, 1, 0, 3, 0, 200, 10)))
	f.Add(cat(connect, []byte{fzHost, 0, 205}, buffers, pkt(opShutdown, 1, 0, 2, 0, 200, 10), pkt(opRST, 1, 0, 0, 0, 0, 0)))
	f.Add(cat(buffers, []byte{fzCall, 2}, pkt(opResponse, 2, 255, 0, 0, 200, 10), []byte{fzSend, 0, 199}, buffers, pkt(opRW, 2, 255, 0, 100, 200, 10), []byte{fzLate}))
	f.Add(cat(buffers, []byte{fzCall, 2, fzLate, fzCall, 3}, pkt(opRST, 3, 255, 0, 0, 0, 0), []byte{fzPause}))
	f.Add(cat(connect, []byte{fzPoke, 1, 0, 255, 255, 7, 39, 0, 0}, pkt(opRequest, 1, 0, 0, 0, 1, 0)))
	f.Add(cat([]byte{fzBuffers, 16, 1}, pkt(opRequest, 1, 0, 0, 0, 200, 10), []byte{fzSend, 0, 50, fzBuffers, 16, 4, fzRaw, 10, 1, 2, 3}))
	mem := virtqtest.NewMemory(f, 1<<20)
	var bells [3]*devices.Doorbell
	for i := range bells {
		var err error
		if bells[i], err = devices.NewDoorbell(); err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { bells[i].Close() })
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 4096 {
			return
		}
		g := newFuzzGuest(t, mem, bells)
		g.play(in)
		g.r.timer.Stop()
		g.d.Reset()
		if n := len(g.d.table.conns); n != 0 {
			t.Fatalf("%d connections after a reset", n)
		}
		for _, s := range g.h.streams {
			if !s.closed && s.Mark().c != nil {
				t.Fatal("a stream outlives a reset")
			}
		}
	})
}

// TestFuzzSeeds: the seeds do real work, or the fuzzing would begin with nothing.
func TestFuzzSeeds(t *testing.T) {
	var bells [3]*devices.Doorbell
	for i := range bells {
		bells[i], _ = devices.NewDoorbell()
		defer bells[i].Close()
	}
	g := newFuzzGuest(t, virtqtest.NewMemory(t, 1<<20), bells)
	g.play([]byte{fzBuffers, 16, 5, fzPacket, opRequest, 1, 0, 0, 0, 0, 255, 200, 10, 0,
		fzPacket, opRW, 1, 0, 0, 50, 0, 255, 200, 10, 0, fzSend, 0, 100, fzHost, 0, 203, fzPacket, opShutdown, 1, 0, 3, 0, 0, 255, 200, 10, 0})
	if st := g.d.Stats(); st.Opened != 1 || st.FromGuest.Bytes != 50 || st.ToGuest.Bytes != 3700 || st.Violations != 0 || st.Connections != 0 || g.faults != 0 {
		t.Errorf("%+v, %d faults", st, g.faults)
	}
}

// FuzzRestore: a state is taken or refused, and what is taken is a device.
func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"version":1,"guest_cid":3,"transport_reset":true}`))
	f.Add([]byte(`{"version":1,"guest_cid":4294967294,"transport_reset":false}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := New(Config{CID: 3, Host: &fakeHost{}})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if d.Restore(b) == nil {
			if _, err := d.State(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
