package net

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// void is a network that takes everything, touching each byte's cache line no
// more than a sender would have to, and that has the same frame for ever.
type void struct {
	mtu   int
	left  int // frames for the guest
	h     Header
	frame [2][]byte
	bytes uint64
}

func (v *void) MTU() int          { return v.mtu }
func (v *void) Offloads() uint64  { return everything }
func (v *void) Negotiated(uint64) {}
func (v *void) OnReady(func())    {}
func (v *void) Pop()              { v.left-- }
func (v *void) Send(_ *Header, frame [][]byte) {
	for _, b := range frame {
		v.bytes += uint64(len(b))
	}
}
func (v *void) Next() (*Header, [][]byte, bool) { return &v.h, v.frame[:], v.left > 0 }

// benchRun makes a device's workers without their goroutines, over rings of 256.
func benchRun(tb testing.TB, v *void, features uint64) (*run, [3]*virtqtest.Ring) {
	tb.Helper()
	mem := virtqtest.NewMemory(tb, 96<<20)
	dev := configured(tb, Config{Backend: v, MAC: testMAC})
	a := devices.Activation{Mem: mem, Features: dev.Features() & features, Driver: &silent{}}
	var rings [3]*virtqtest.Ring
	for i := range rings {
		rings[i] = benchRing(tb, mem, uint64(i), &a)
	}
	return newRun(dev, &a), rings
}

func benchRing(tb testing.TB, mem *guestmem.Memory, i uint64, a *devices.Activation) *virtqtest.Ring {
	r, err := virtqtest.NewRing(mem, 1<<20+i*24<<20, 24<<20, virtqtest.Options{Size: 256, EventIdx: true, Indirect: true})
	if err != nil {
		tb.Fatal(err)
	}
	q, err := newQueue(tb, mem, r)
	if err != nil {
		tb.Fatal(err)
	}
	a.Queues = append(a.Queues, q)
	return r
}

// reuse puts n chains into the ring again and again without the mock's own work:
// what it costs is two words for each.
type reuse struct {
	r     *virtqtest.Ring
	heads []uint16
	next  uint16
}

func newReuse(tb testing.TB, r *virtqtest.Ring, n int, readable, writable []virtqtest.Buf) *reuse {
	u := &reuse{r: r}
	for range n {
		table, err := r.Alloc(uint32(16 * (len(readable) + len(writable))))
		if err != nil {
			tb.Fatal(err)
		}
		h, err := r.AddTable(readable, writable, table)
		if err != nil {
			tb.Fatal(err)
		}
		u.heads = append(u.heads, h)
	}
	u.r.Kick()
	return u
}

func (u *reuse) refill(n int) {
	for range n {
		u.r.PushHead(u.heads[int(u.next)%len(u.heads)])
		u.next++
	}
	u.r.Kick()
}

func buf(tb testing.TB, r *virtqtest.Ring, n int) virtqtest.Buf {
	b, err := r.Alloc(uint32(n))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

var benchMTUs = []int{1500, 65520}

// batchOf is how many frames a benchmark moves at a time.
const batchOf = 32

// BenchmarkTX moves frames from a guest's ring to a network that drops them: what
// the device itself costs, without waking anybody.
func BenchmarkTX(b *testing.B) {
	for _, mtu := range benchMTUs {
		b.Run(fmt.Sprint(mtu), func(b *testing.B) {
			v := &void{mtu: mtu}
			run, rings := benchRun(b, v, everything)
			w := run.d.newTX(run, run.act.Queues[1], 0)
			r := rings[1]
			f := frameTo([6]byte{2}, mtu+14)
			head, body := buf(b, r, HeaderLen), buf(b, r, len(f))
			if err := r.Mem.WriteAt(f, body.GPA); err != nil {
				b.Fatal(err)
			}
			u := newReuse(b, r, batchOf, []virtqtest.Buf{head, body}, nil)
			w.drain()
			b.SetBytes(int64(len(f)))
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += batchOf {
				u.refill(batchOf)
				w.drain()
			}
			b.StopTimer()
			if got := run.d.Stats().TX; got.Frames < uint64(b.N) || got.Malformed+got.Oversized > 0 {
				b.Errorf("%+v", got)
			}
		})
	}
}

// BenchmarkRX moves frames from a network that always has some to a guest's ring:
// one copy, into one buffer, or with MRG_RXBUF into buffers of 2 KiB.
func BenchmarkRX(b *testing.B) {
	for _, mtu := range benchMTUs {
		for _, size := range []int{HeaderLen + mtu + 14, 2048} {
			b.Run(fmt.Sprintf("%d/buffer=%d", mtu, size), func(b *testing.B) {
				v := &void{mtu: mtu}
				f := frameTo(testMAC, mtu+14)
				v.frame = [2][]byte{f[:66], f[66:]}
				run, rings := benchRun(b, v, everything)
				w := run.d.newRX(run, 1)
				r := rings[0]
				// As many frames as the ring has buffers for.
				each := (HeaderLen + len(f) + size - 1) / size
				frames := min(batchOf, 256/each)
				u := newReuse(b, r, frames*each, nil, []virtqtest.Buf{buf(b, r, size)})
				serve := func() {
					for v.left = frames; v.left > 0; {
						if why, _, _ := w.batch(); why == starved || why == ended {
							b.Fatal("no buffers")
						}
					}
				}
				serve()
				b.SetBytes(int64(len(f)))
				b.ReportAllocs()
				b.ResetTimer()
				for n := 0; n < b.N; n += frames {
					u.refill(frames * each)
					serve()
				}
				b.StopTimer()
				if got := run.d.Stats(); got.RX.Frames < uint64(b.N) || got.RX.Oversized+got.Filtered > 0 {
					b.Errorf("%+v", got)
				}
			})
		}
	}
}

// TestNoAllocations: a frame costs none either way, once the rooms have grown.
func TestNoAllocations(t *testing.T) {
	v := &void{mtu: 1500}
	f := frameTo(testMAC, 1514)
	v.frame = [2][]byte{f[:66], f[66:]}
	v.h = header(1, 1, 1448, 34, 16)
	run, rings := benchRun(t, v, everything)
	run.d.active.Store(1)
	tx := run.d.newTX(run, run.act.Queues[1], 0)
	h := [...]Header{{}, header(1, 1, 1448, 34, 16), header(1, 9, 0, 0, 0)}
	var readable []virtqtest.Buf
	for _, x := range h {
		b := buf(t, rings[1], HeaderLen)
		if err := rings[1].Mem.WriteAt(x[:], b.GPA); err != nil {
			t.Fatal(err)
		}
		readable = append(readable, b)
	}
	body := buf(t, rings[1], len(f))
	ctrl := &ctrlWorker{d: run.d, r: run, queue: run.act.Queues[2]}
	cmd := buf(t, rings[2], 3)
	for name, c := range map[string]struct {
		refill func() int
		serve  func()
	}{
		"transmit": {refiller(t, rings[1], []virtqtest.Buf{readable[0], body}, nil), func() { tx.drain() }},
		"segments": {refiller(t, rings[1], []virtqtest.Buf{readable[1], body}, nil), func() { tx.drain() }},
		"refused":  {refiller(t, rings[1], []virtqtest.Buf{readable[2], body}, nil), func() { tx.drain() }},
		"command":  {refiller(t, rings[2], []virtqtest.Buf{cmd}, []virtqtest.Buf{buf(t, rings[2], 1)}), func() { ctrl.drain() }},
		"receive": {refiller(t, rings[0], nil, []virtqtest.Buf{buf(t, rings[0], 1000)}), func() {
			rx := run.rx
			for v.left = batchOf / 2; v.left > 0; {
				rx.batch()
			}
		}},
	} {
		if name == "receive" {
			run.rx = run.d.newRX(run, 1)
		}
		var before, after runtime.MemStats
		total, frames := uint64(0), 0
		for i := range 50 {
			n := c.refill()
			runtime.ReadMemStats(&before)
			c.serve()
			runtime.ReadMemStats(&after)
			if i > 0 {
				total += after.Mallocs - before.Mallocs
				frames += n
			}
		}
		// The runtime allocates now and then for itself.
		if total > uint64(frames/20) {
			t.Errorf("%s: %d allocations in %d chains", name, total, frames)
		}
	}
}

func refiller(tb testing.TB, r *virtqtest.Ring, readable, writable []virtqtest.Buf) func() int {
	return func() int {
		if _, err := r.Collect(); err != nil {
			tb.Fatal(err)
		}
		for range batchOf {
			table, err := r.Alloc(uint32(16 * (len(readable) + len(writable))))
			if err != nil {
				tb.Fatal(err)
			}
			if _, err := r.AddTable(readable, writable, table); err != nil {
				tb.Fatal(err)
			}
		}
		r.Kick()
		return batchOf
	}
}
