package vsock

import (
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices/vsock/vsocktest"
)

// TestHalves: each way of closing, from each side.
func TestHalves(t *testing.T) {
	t.Run("the guest sends no more", func(t *testing.T) {
		r := newRig(t, vsocktest.Options{})
		r.h.set(0)
		g, s := r.open(1)
		g.Write([]byte("tail"))
		g.Shut(shutSend)
		r.Quiet()
		r.check(s, "the end is told before the bytes", func() bool { return !s.shutW })
		s.do(func() { s.room = -1 })
		r.Quiet()
		r.check(s, "the end", func() bool { return string(s.got) == "tail" && s.shutW && !s.closed })
		s.send([]byte("answer"))
		if b := g.Read(6); string(b) != "answer" {
			t.Errorf("%q", b)
		}
		s.do(func() { s.eof, s.gone = true, true })
		g.WaitShut(shutBoth)
		g.Send(vsocktest.Packet{Op: opRST})
		r.Quiet()
		r.check(s, "all is over", func() bool { return s.closed })
	})
	t.Run("the guest takes no more", func(t *testing.T) {
		r := newRig(t, vsocktest.Options{})
		g, s := r.open(1)
		g.Shut(shutReceive)
		r.Quiet()
		s.send([]byte("nobody reads this"))
		r.Quiet()
		r.check(s, "told", func() bool { return s.shutR && s.reads == 0 })
		g.Write([]byte("on"))
		g.Shut(shutSend)
		g.WaitReset()
		r.check(s, "all is over", func() bool { return string(s.got) == "on" && s.closed })
	})
	t.Run("the guest closes with bytes on their way", func(t *testing.T) {
		r := newRig(t, vsocktest.Options{})
		r.h.set(2)
		g, s := r.open(1)
		g.Write([]byte("abcdef"))
		g.Shut(shutBoth)
		r.Quiet()
		r.check(s, "too early", func() bool { return !s.closed })
		s.do(func() { s.room = -1 })
		g.WaitReset()
		r.check(s, "all of it", func() bool { return string(s.got) == "abcdef" && s.shutW && s.closed })
	})
	t.Run("the host sends no more", func(t *testing.T) {
		r := newRig(t, vsocktest.Options{})
		g, s := r.open(1)
		s.do(func() { s.in, s.eof = []byte("last"), true })
		if b := g.Read(4); string(b) != "last" {
			t.Errorf("%q", b)
		}
		g.WaitShut(shutSend)
		g.Write([]byte("still"))
		r.Quiet()
		r.check(s, "the other way", func() bool { return string(s.got) == "still" })
		s.do(func() { s.gone = true })
		g.WaitShut(shutBoth)
		g.Shut(shutBoth)
		g.WaitReset()
		r.Quiet()
	})
	t.Run("the host takes no more", func(t *testing.T) {
		r := newRig(t, vsocktest.Options{})
		g, s := r.open(1)
		s.see(func() bool { s.deaf = true; return true })
		g.Write([]byte("lost"))
		g.WaitShut(shutReceive)
		g.Send(vsocktest.Packet{Op: opRW, Data: []byte("was on its way")})
		s.send([]byte("here"))
		if b := g.Read(4); string(b) != "here" {
			t.Errorf("%q", b)
		}
		if st := r.d.Stats(); st.Buffered != 0 || st.Violations != 0 || st.Connections != 1 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("both close", func(t *testing.T) {
		r := newRig(t, vsocktest.Options{})
		g, s := r.open(1)
		s.do(func() { s.eof, s.gone = true, true })
		g.Write([]byte("crosses"))
		g.WaitShut(shutBoth)
		g.Send(vsocktest.Packet{Op: opCreditRequest})
		r.Expect(opCreditUpdate, 1, listened)
		g.Shut(shutBoth)
		g.WaitReset()
		r.Quiet()
	})
	t.Run("the guest never answers", func(t *testing.T) {
		r := newRig(t, vsocktest.Options{})
		g, s := r.open(1)
		s.do(func() { s.eof, s.gone = true, true })
		g.WaitShut(shutBoth)
		r.late(key{1, listened})
		g.WaitReset()
		r.Quiet()
	})
}

// late has the time of a connection be up.
func (r *rig) late(k key) {
	r.d.work.Lock()
	r.d.earliest = time.Now()
	r.d.table.find(k).deadline = r.d.earliest
	r.d.work.Unlock()
	r.h.OnReady(r.h.wake)
}

// TestCalls: the host's connections, taken, refused, given up and not answered.
func TestCalls(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	s := r.h.call(22)
	g := r.Accept(22)
	r.Quiet()
	r.check(s, "taken", func() bool { return s.opened && s.host == g.Host })
	s.send([]byte("x"))
	if b := g.Read(1); string(b) != "x" {
		t.Errorf("%q", b)
	}
	type packet = vsocktest.Packet
	for _, c := range []struct {
		name string
		then func(s *fakeStream, p packet)
		rst  bool
	}{
		{"refused", func(s *fakeStream, p packet) { r.Send(packet{Op: opRST, SrcPort: 23, DstPort: p.SrcPort}) }, false},
		{"answered with data", func(s *fakeStream, p packet) {
			r.Send(packet{Op: opRW, SrcPort: 23, DstPort: p.SrcPort, Data: []byte("x")})
		}, true},
		{"hung up", func(s *fakeStream, p packet) { s.do(func() { s.gone, s.eof = true, true }) }, true},
		{"not answered", func(s *fakeStream, p packet) { r.late(key{23, p.SrcPort}) }, true},
	} {
		s := r.h.call(23)
		p := r.Recv()
		if p.Op != opRequest || p.DstPort != 23 || p.BufAlloc == 0 {
			t.Fatal(p)
		}
		c.then(s, p)
		if c.rst {
			r.Expect(opRST, 23, p.SrcPort)
		}
		r.Quiet()
		r.check(s, c.name, func() bool { return s.closed && !s.opened })
	}
	if n := r.d.Stats().Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestManyConnections: a thousand, each with a byte there and one back, and those
// that are too many are refused.
func TestManyConnections(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	conns := make([]*vsocktest.Conn, MaxConnections)
	for i := range conns {
		conns[i], _ = r.open(uint32(i))
	}
	if c := r.Dial(5000, listened); !c.Reset {
		t.Error("one too many")
	}
	if s := r.h.call(1); true {
		r.Quiet()
		r.check(s, "a call too many", func() bool { return s.closed })
	}
	for i, c := range conns {
		c.Write([]byte{byte(i)})
	}
	r.Quiet()
	for i, c := range conns {
		s := r.h.streams[i]
		r.check(s, "a byte", func() bool { return len(s.got) == 1 && s.got[0] == byte(i) })
		s.send([]byte{byte(i + 1)})
		if b := c.Read(1); b[0] != byte(i+1) {
			t.Fatalf("connection %d got %d", i, b[0])
		}
	}
	for _, c := range conns {
		c.Shut(shutBoth)
		c.WaitReset()
	}
	if n := r.d.Stats().Connections; n != 0 {
		t.Errorf("%d are left", n)
	}
}
