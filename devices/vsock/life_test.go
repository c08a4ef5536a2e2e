package vsock

import (
	"fmt"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/devices/vsock/vsocktest"
)

// TestConfig: configuration space has the guest's CID and nothing that a driver can change.

// TestFeatures: every combination of the ring's features.
func TestFeatures(t *testing.T) {
	for _, f := range []uint64{1, 0, virtq.FeatureEventIdx, virtq.FeatureIndirectDesc, ^uint64(0)} {
		r := newRig(t, vsocktest.Options{Features: f | 1<<63}) // newRig takes 0 for all
		g, s := r.open(1)
		for i := range 1000 {
			g.Write([]byte{byte(i)})
			s.send([]byte{byte(i)})
			if b := g.Read(1); b[0] != byte(i) {
				t.Fatalf("features %#x: byte %d is %d", f, i, b[0])
			}
		}
		r.Quiet()
		r.check(s, fmt.Sprintf("features %#x", f), func() bool { return len(s.got) == 1000 })
	}
}

// TestFaults: a broken ring is told of, and a reset mends it.
func TestFaults(t *testing.T) {
	for queue := range 2 {
		r := newRig(t, vsocktest.Options{RX: -1})
		_, s := r.open2()
		r.Rings[queue].SetDesc(0, 1<<60, 100, 0, 0)
		r.Rings[queue].PushHead(0)
		r.Kick(queue)
		s.send([]byte("something for the guest"))
		if err := r.WaitFault(); !strings.Contains(err.Error(), "outside guest RAM") {
			t.Errorf("queue %d: %v", queue, err)
		}
		r.d.Reset()
		r.check(s, "reset", func() bool { return s.closed })
	}
}

// open2 is open for a guest whose buffers run out with the answer.
func (r *rig) open2() (*vsocktest.Conn, *fakeStream) {
	r.t.Helper()
	r.Post(2)
	return r.open(1)
}

// TestLife: pause, resume, reset and close, with connections and without.
func TestLife(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	g, s := r.open(1)
	if _, err := r.d.State(); err == nil {
		t.Error("the state of a running device")
	}
	r.Pause()
	s.send([]byte("in the pause"))
	if err := r.d.Quiesce(); err != nil {
		t.Error(err)
	}
	r.Resume()
	if b := g.Read(12); string(b) != "in the pause" {
		t.Errorf("%q", b)
	}
	g.Write([]byte("after it"))
	r.Quiet()
	r.check(s, "after a pause", func() bool { return string(s.got) == "after it" })
	if r.Events() != 0 {
		t.Error("an event without a reason")
	}
	// To a new device: connections do not move, and the guest hears of it.
	next, err := New(Config{CID: 77, Host: &fakeHost{ports: []uint32{listened}, room: -1}})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := r.MoveTo(next, nil); err != nil {
		t.Fatal(err)
	}
	r.check(s, "the old device's", func() bool { return s.closed })
	if id := r.WaitEvent(); id != eventTransportReset {
		t.Errorf("event %d", id)
	}
	r.CID = 77
	if c := r.Dial(1, listened); c.Reset {
		t.Error("no new connections")
	}
	next.Reset()
	next.Reset()
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if err := next.Activate(devices.Activation{Queues: r.Queues}); err == nil {
		t.Error("a closed device was activated")
	}
}

// TestEventWaits: an event that finds no buffer waits for one, also over another move.
func TestEventWaits(t *testing.T) {
	r := newRig(t, vsocktest.Options{Events: -1})
	for range 2 {
		next, err := New(Config{CID: 3, Host: r.h})
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		if err := r.MoveTo(next, nil); err != nil {
			t.Fatal(err)
		}
		r.Quiet()
	}
	if r.Events() != 0 {
		t.Fatal("an event without a buffer")
	}
	r.PostEvents(2)
	r.WaitEvent()
	r.Quiet()
	if r.Events() != 0 {
		t.Error("it is told twice")
	}
}

// TestActivation: what cannot be activated, and queues that are not there.
func TestActivation(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	if err := r.d.Activate(devices.Activation{Queues: r.Queues}); err == nil {
		t.Error("activated twice")
	}
	for _, sizes := range [][]uint16{{0, 0, 0}, {8, 0, 0}, {0, 8, 0}, {0, 0, 8}, {8, 8, 0}} {
		d, err := New(Config{CID: 3, Host: &fakeHost{}})
		if err != nil {
			t.Fatal(err)
		}
		g := virtqtest.NewDriver(t, d, virtqtest.DriverOptions{Features: ^uint64(0), Sizes: sizes})
		if sizes[1] != 0 && sizes[0] == 0 {
			// Packets are taken, and nothing can be said to them.
			for i := range 200 {
				g.Do(1, [][]byte{vsocktest.Packet{SrcCID: 3, DstCID: 2, SrcPort: uint32(i), Type: 1, Op: opRequest}.Header()})
			}
		}
		g.Pause()
		g.Resume()
		d.Close()
	}
	d, _ := New(Config{CID: 3, Host: &fakeHost{}})
	for _, a := range []devices.Activation{{}, {Queues: make([]*devices.Queue, 4)}, {Queues: make([]*devices.Queue, 3), Features: 2}} {
		if err := d.Activate(a); err == nil {
			t.Errorf("%+v was taken", a)
		}
	}
}

// TestRestoreIsWary: states that no device has written.
func TestRestoreIsWary(t *testing.T) {
	for _, s := range []string{
		``, `{}`, `null`, `[]`, `{"version":2,"guest_cid":3,"transport_reset":true}`, `{"version":1,"guest_cid":2,"transport_reset":true}`,
		`{"version":1,"guest_cid":-1,"transport_reset":true}`, `{"version":1,"guest_cid":3,"transport_reset":1}`,
		`{"version":1,"guest_cid":3,"more":1}`, `{"version":1,"guest_cid":3,"transport_reset":true} x`,
		`{"version":1,"guest_cid":3}` + strings.Repeat(" ", maxState),
	} {
		d, err := New(Config{CID: 3, Host: &fakeHost{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Restore([]byte(s)); err == nil {
			t.Errorf("%.60q was taken", s)
		}
	}
	r := newRig(t, vsocktest.Options{})
	if err := r.d.Restore([]byte(`{"version":1,"guest_cid":3,"transport_reset":true}`)); err == nil {
		t.Error("a device in use was restored")
	}
}

// TestNoAllocations: a packet costs none, either way.
func TestNoAllocations(t *testing.T) {
	r := newRig(t, vsocktest.Options{Features: virtq.FeatureEventIdx})
	r.open(1)
	s := &nullStream{}
	r.Pause()
	c := r.d.table.find(key{1, listened})
	c.stream.Mark().c = nil
	c.stream, s.Mark().c = s, c
	for _, q := range r.Queues {
		if err := q.Attach(r.Mem); err != nil {
			t.Fatal(err)
		}
	}
	run := newRun(r.d, r.d.act)
	h := vsocktest.Packet{SrcCID: 3, DstCID: 2, SrcPort: 1, DstPort: listened, Len: 4096, Type: 1, Op: opRW, BufAlloc: 1 << 30}
	payload := make([]byte, 4096)
	got := uint32(0)
	once := func() {
		h.FwdCnt = got
		r.Queue(h.Header(), payload)
		r.Flush()
		c.readable, s.left = true, 4000
		run.take()
		run.tx.Publish()
		run.pump()
		for {
			p, ok := r.TryRecv()
			if !ok {
				break
			}
			if p.Op == opRW {
				got += p.Len
			}
		}
	}
	base := testing.AllocsPerRun(200, func() { _ = h.Header() })
	once()
	if n := testing.AllocsPerRun(1000, once); n > base {
		t.Errorf("%v allocations a packet", n-base)
	}
	if s.wrote == 0 || s.read == 0 {
		t.Errorf("%+v", s)
	}
	for _, q := range r.Queues {
		q.Drop()
	}
}

// nullStream takes everything and gives as much as a test says.
type nullStream struct {
	Hook
	left, wrote, read int
}

func (s *nullStream) Opened(uint32) {}
func (s *nullStream) Read(runs [][]byte) (n int, more bool, err error) {
	for _, b := range runs {
		k := min(len(b), s.left)
		s.left -= k
		n += k
	}
	s.read += n
	return n, false, nil
}
func (s *nullStream) Write(runs [][]byte) (n int, err error) {
	for _, b := range runs {
		n += len(b)
	}
	s.wrote += n
	return n, nil
}
func (s *nullStream) Gone() bool  { return false }
func (s *nullStream) CloseRead()  {}
func (s *nullStream) CloseWrite() {}
func (s *nullStream) Close()      {}
