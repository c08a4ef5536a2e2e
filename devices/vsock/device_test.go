package vsock

import (
	"bytes"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/devices/vsock/vsocktest"
)

// TestConfig: configuration space has the guest's CID and nothing that a driver can change.
func TestConfig(t *testing.T) {
	d, err := New(Config{CID: 0x12345678, Host: &fakeHost{}})
	if err != nil {
		t.Fatal(err)
	}
	d.WriteConfig(0, []byte{1, 2, 3, 4, 5, 6, 7, 8})
	p := bytes.Repeat([]byte{0xee}, 16)
	d.ReadConfig(0, p)
	if !bytes.Equal(p, []byte{0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("% x", p)
	}
	for off, want := range map[uint64]byte{3: 0x12, 7: 0, 8: 0, 1 << 63: 0, ^uint64(0): 0} {
		b := []byte{0xee}
		if d.ReadConfig(off, b); b[0] != want {
			t.Errorf("byte %d is %#x", off, b[0])
		}
	}
	if d.ID() != 19 || len(d.QueueSizes()) != 3 || d.Features()&^(1|virtq.FeatureEventIdx|virtq.FeatureIndirectDesc) != 0 {
		t.Errorf("%d %v %#x", d.ID(), d.QueueSizes(), d.Features())
	}
	for _, cid := range []uint64{0, 1, 2, 1<<32 - 1, 1 << 32, ^uint64(0)} {
		if _, err := New(Config{CID: cid, Host: &fakeHost{}}); err == nil {
			t.Errorf("CID %d was taken", cid)
		}
	}
	if _, err := New(Config{CID: 3}); err == nil {
		t.Error("a device without a host")
	}
}

// TestPackets: one packet each to where there is no connection, and its answer.
func TestPackets(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	type packet = vsocktest.Packet
	for _, c := range []struct {
		name string
		p    packet
		rst  bool // an answer comes
	}{
		{"a port that nobody listens on", packet{Op: opRequest}, true},
		{"data out of nowhere", packet{Op: opRW, Data: []byte("x")}, true},
		{"data that claim to be more", packet{Op: opRW, Len: 1 << 31, Data: []byte("x")}, true},
		{"a response", packet{Op: opResponse}, true},
		{"a shutdown", packet{Op: opShutdown, Flags: 3}, true},
		{"an update", packet{Op: opCreditUpdate}, true},
		{"a request for one", packet{Op: opCreditRequest}, true},
		{"RST", packet{Op: opRST}, false},
		{"operation 0", packet{Op: 0}, true},
		{"operation 8", packet{Op: 8}, true},
		{"operation 65535", packet{Op: 65535}, true},
		{"a type of the future", packet{Op: opRequest, Type: 2, DstPort: listened}, true},
		{"its RST", packet{Op: opRST, Type: 2}, false},
		{"another host", packet{Op: opRequest, DstCID: 5, DstPort: listened}, true},
		{"itself", packet{Op: opRequest, DstCID: 3, DstPort: listened}, true},
		{"somebody else", packet{Op: opRequest, SrcCID: 4, DstPort: listened}, false},
		{"the host", packet{Op: opRequest, SrcCID: 2, DstPort: listened}, false},
		{"a CID beyond 32 bits", packet{Op: opRequest, SrcCID: 1<<32 | 3, DstPort: listened}, false},
		{"one to there", packet{Op: opRequest, DstCID: 1<<32 | 2, DstPort: listened}, true},
	} {
		p := c.p
		if p.SrcPort = 1000; p.DstPort == 0 {
			p.DstPort = 81
		}
		r.Send(p)
		if c.rst {
			got := r.Recv()
			want := packet{SrcCID: max(2, p.DstCID), DstCID: 3, SrcPort: p.DstPort, DstPort: 1000, Type: max(1, p.Type), Op: opRST}
			if got.Data = nil; got.String() != want.String() {
				t.Errorf("%s: %v", c.name, got)
			}
		}
		r.Quiet()
	}
	s := r.d.Stats()
	if s.Spoofed != 3 || s.Connections != 0 || s.Violations != 0 {
		t.Errorf("%+v", s)
	}
	// What is no packet.
	r.SendRaw(make([]byte, headerLen-1))
	r.SendRaw([]byte{1})
	if _, err := r.Rings[queueTX].Add([][]byte{make([]byte, 44)}, []uint32{4}); err != nil {
		t.Fatal(err)
	}
	r.Kick(queueTX)
	if _, err := r.Rings[queueTX].Add(nil, []uint32{64}); err != nil {
		t.Fatal(err)
	}
	r.Kick(queueTX)
	for late := time.Now().Add(virtqtest.Patience); r.d.Stats().Malformed != 4; {
		if time.Now().After(late) {
			t.Fatalf("%+v", r.d.Stats())
		}
	}
}

// TestRules: what ends a connection with RST, and what does not.
func TestRules(t *testing.T) {
	type packet = vsocktest.Packet
	for i, c := range []struct {
		name    string
		packets []packet
		reset   bool
	}{
		{"data", []packet{{Op: opRW, Data: []byte("abc")}}, false},
		{"data of no bytes", []packet{{Op: opRW}}, false},
		{"fewer bytes than came", []packet{{Op: opRW, Len: 2, Data: []byte("abcdef")}}, false},
		{"more than came", []packet{{Op: opRW, Len: 4, Data: []byte("abc")}}, true},
		{"very much more", []packet{{Op: opRW, Len: 1<<32 - 1, Data: []byte("abc")}}, true},
		{"the port again", []packet{{Op: opRequest}}, true},
		{"an answer to nothing", []packet{{Op: opResponse}}, true},
		{"operation 0", []packet{{Op: 0}}, true},
		{"operation 99", []packet{{Op: 99}}, true},
		{"data behind the end", []packet{{Op: opShutdown, Flags: shutSend}, {Op: opRW, Data: []byte("x")}}, true},
		{"a half closed twice", []packet{{Op: opShutdown, Flags: shutSend}, {Op: opShutdown, Flags: shutSend}}, false},
		{"nothing closed", []packet{{Op: opShutdown, Flags: 0}, {Op: opShutdown, Flags: 0xfffffffc}}, false},
		{"data from who takes none", []packet{{Op: opShutdown, Flags: shutReceive}, {Op: opRW, Data: []byte("x")}}, false},
		{"an absurd credit", []packet{{Op: opCreditUpdate, BufAlloc: 1<<32 - 1, FwdCnt: 1 << 31}}, false},
		{"both halves", []packet{{Op: opShutdown, Flags: shutReceive}, {Op: opShutdown, Flags: shutSend}}, true},
	} {
		r := newRig(t, vsocktest.Options{})
		g, s := r.open(uint32(1000 + i))
		for _, p := range c.packets {
			if p.Op == opCreditUpdate {
				p.SrcPort, p.DstPort = g.Port, g.Host
				r.Send(p)
				continue
			}
			g.Send(p)
		}
		if c.reset {
			g.WaitReset()
		}
		r.Quiet()
		if n := r.d.Stats().Connections; c.reset != (n == 0) {
			t.Errorf("%s: %d connections", c.name, n)
		}
		r.check(s, c.name, func() bool { return s.closed == c.reset })
	}
}

// TestCredit: a host that takes nothing costs a buffer and no more, and the rest of
// the device nothing.
func TestCredit(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	r.h.set(0)
	g, s := r.open(1000)
	if g.Alloc != allocLarge {
		t.Fatalf("credit of %d", g.Alloc)
	}
	want := make([]byte, allocLarge)
	for i := range want {
		want[i] = byte(i * 7)
	}
	g.Write(want)
	r.Quiet()
	if st := r.d.Stats(); st.Buffered != allocLarge || st.FromGuest.Bytes != allocLarge {
		t.Fatalf("%+v", st)
	}
	// Another connection goes on.
	r.h.set(-1)
	other, os := r.open(1001)
	other.Write([]byte("hello"))
	r.Quiet()
	r.check(os, "the other", func() bool { return string(os.got) == "hello" })
	// A little is no news yet, more is.
	s.do(func() { s.room = allocLarge/4 - 1 })
	r.Quiet()
	s.do(func() { s.room = 1000 })
	p := r.Expect(opCreditUpdate, 1000, listened)
	if p.FwdCnt != allocLarge/4-1+1000 || p.BufAlloc != allocLarge {
		t.Fatal(p)
	}
	s.do(func() { s.room = -1 })
	p = r.Expect(opCreditUpdate, 1000, listened)
	if p.FwdCnt != allocLarge {
		t.Fatal(p)
	}
	r.check(s, "what came", func() bool { return bytes.Equal(s.got, want) })
	if n := r.d.Stats().Buffered; n != 0 {
		t.Errorf("%d bytes buffered", n)
	}
	// One byte too many, with the host taking nothing again.
	s.see(func() bool { s.room = 0; return true })
	for left := allocLarge; left > 0; left -= 65536 {
		g.Send(vsocktest.Packet{Op: opRW, Data: want[:65536]})
	}
	r.Quiet()
	g.Send(vsocktest.Packet{Op: opRW, Data: []byte("x")})
	g.WaitReset()
	r.check(s, "a guest beyond its credit", func() bool { return s.closed })
	if st := r.d.Stats(); st.Violations != 1 || st.Buffered != 0 {
		t.Errorf("%+v", st)
	}
}

// TestGuestCredit: the guest gets what it has room for, and is asked once for more.
func TestGuestCredit(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	type packet = vsocktest.Packet
	r.Send(packet{Op: opRequest, SrcPort: 1, DstPort: listened, BufAlloc: 100})
	r.Expect(opResponse, 1, listened)
	s := r.h.last()
	s.send(make([]byte, 1000))
	if p := r.Expect(opRW, 1, listened); p.Len != 100 {
		t.Fatal(p)
	}
	r.Expect(opCreditRequest, 1, listened)
	s.send(make([]byte, 1))
	r.Quiet()
	r.Send(packet{Op: opCreditUpdate, SrcPort: 1, DstPort: listened, BufAlloc: 100, FwdCnt: 30})
	if p := r.Expect(opRW, 1, listened); p.Len != 30 {
		t.Fatal(p)
	}
	r.Expect(opCreditRequest, 1, listened)
	// A buffer that shrinks, and one that was read beyond what was sent.
	for _, p := range []packet{{BufAlloc: 50, FwdCnt: 100}, {BufAlloc: 0, FwdCnt: 130}, {BufAlloc: 1000, FwdCnt: 151}} {
		p.Op, p.SrcPort, p.DstPort = opCreditUpdate, 1, listened
		r.Send(p)
		if got := r.Recv(); p.BufAlloc == 50 && (got.Op != opRW || got.Len != 20) || p.BufAlloc != 50 && got.Op != opCreditRequest {
			t.Fatalf("%+v: %v", p, got)
		}
		if p.BufAlloc == 50 {
			r.Expect(opCreditRequest, 1, listened)
		}
	}
	r.Send(packet{Op: opCreditUpdate, SrcPort: 1, DstPort: listened, BufAlloc: 4000, FwdCnt: 150})
	if p := r.Expect(opRW, 1, listened); p.Len != 1001-150 {
		t.Fatal(p)
	}
	// What it asks for itself it hears.
	r.Send(packet{Op: opCreditRequest, SrcPort: 1, DstPort: listened, BufAlloc: 4000, FwdCnt: 150})
	r.Expect(opCreditUpdate, 1, listened)
	r.Quiet()
}

// TestNoBuffers: a guest that asks and takes no answers is not listened to, and
// nothing of its is lost.
func TestNoBuffers(t *testing.T) {
	r := newRig(t, vsocktest.Options{RX: -1})
	const asked = 120
	for i := range asked {
		r.Queue(vsocktest.Packet{SrcCID: 3, DstCID: 2, SrcPort: uint32(i), DstPort: 9, Type: 1, Op: opRequest}.Header())
	}
	r.Flush()
	for late := time.Now().Add(virtqtest.Patience); r.d.Stats().Refused < 64; {
		if time.Now().After(late) {
			t.Fatalf("%+v", r.d.Stats())
		}
	}
	r.Pause() // it stops all the same, with what it owes
	if n := r.d.Stats().Refused; n != 64 {
		t.Errorf("%d refused", n)
	}
	r.Resume()
	r.Post(50)
	for i := range asked {
		r.Expect(opRST, uint32(i), 9)
	}
	r.Quiet()
	if n := r.d.Stats().Starved; n == 0 {
		t.Error("nobody was starved")
	}
}

// TestBuffers: receive buffers of every kind.
func TestBuffers(t *testing.T) {
	for _, c := range []struct {
		size  uint32
		plain bool // control packets fit
		bytes bool
	}{{43, false, false}, {44, true, false}, {45, true, true}, {100 << 10, true, true}} {
		r := newRig(t, vsocktest.Options{RXSize: c.size, RX: 64, Mem: 128 << 20})
		r.Send(vsocktest.Packet{Op: opRequest, SrcPort: 1, DstPort: listened, BufAlloc: 1 << 20})
		if !c.plain {
			for late := time.Now().Add(virtqtest.Patience); r.d.Stats().BadBuffers != 64; {
				if time.Now().After(late) {
					t.Fatalf("%+v", r.d.Stats())
				}
			}
			continue
		}
		r.Expect(opResponse, 1, listened)
		s := r.h.last()
		s.send(make([]byte, 100000))
		if !c.bytes {
			for late := time.Now().Add(virtqtest.Patience); r.d.Stats().BadBuffers < 60; {
				if time.Now().After(late) {
					t.Fatalf("%+v", r.d.Stats())
				}
			}
			continue
		}
		if p := r.Expect(opRW, 1, listened); p.Len != min(c.size-44, maxPacket) {
			t.Errorf("buffers of %d: %v", c.size, p)
		}
	}
	// Scattered ones: a header in pieces, bytes in others.
	r := newRig(t, vsocktest.Options{RX: -1})
	if _, err := r.Rings[queueRX].AddIndirect(nil, []uint32{1, 2, 40, 1, 3, 10}); err != nil {
		t.Fatal(err)
	}
	r.Kick(queueRX)
	r.Send(vsocktest.Packet{Op: opRequest, SrcPort: 1, DstPort: listened, BufAlloc: 1 << 20})
	if u := r.Wait(queueRX, 1); u[0].Len != 44 {
		t.Fatal(u)
	}
	if _, err := r.Rings[queueRX].AddIndirect(nil, []uint32{1, 2, 40, 1, 3, 10}); err != nil {
		t.Fatal(err)
	}
	r.h.last().send([]byte("0123456789abcdef"))
	r.Kick(queueRX)
	if u := r.Wait(queueRX, 1); u[0].Len != 57 || string(u[0].Joined()[44:]) != "0123456789abc" {
		t.Fatalf("%d %q", u[0].Len, u[0].Joined())
	}
}
