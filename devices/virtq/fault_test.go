package virtq_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

func TestFaults(t *testing.T) {
	type ring = virtqtest.Ring
	const buf = base + 0x40000 // well inside RAM, aligned
	one := func(addr uint64, n uint32, flags, next uint16) func(*ring) {
		return func(r *ring) {
			r.SetDesc(0, addr, n, flags, next)
			r.PushHead(0)
		}
	}
	// table makes descriptor 0 point at an indirect table of n entries, all
	// of them these.
	table := func(n int, addr uint64, l uint32, flags, next uint16) func(*ring) {
		return func(r *ring) {
			for i := range n {
				if err := virtqtest.PutDesc(r.Mem, buf+uint64(16*i), addr, l, flags, next); err != nil {
					panic(err)
				}
			}
			one(buf, uint32(16*n), virtqtest.Indirect, 0)(r)
		}
	}
	for _, c := range []struct {
		name string
		do   func(*ring)
		want string // part of the fault, "" for a good chain
	}{
		{"good", one(buf, 512, 0, 0), ""},
		{"unknown flags", one(buf, 512, 0xfff0, 0), ""},
		{"head out of table", func(r *ring) { r.PushHead(8) }, "chain 8: descriptor 8: index beyond a table of 8"},
		{"head 65535", func(r *ring) { r.PushHead(65535) }, "index beyond"},
		{"next out of table", one(buf, 1, virtqtest.Next, 8), "descriptor 8: index beyond a table of 8"},
		{"loop to itself", one(buf, 1, virtqtest.Next, 0), "a loop"},
		{"loop of two", func(r *ring) {
			r.SetDesc(1, buf, 1, virtqtest.Next, 0)
			one(buf, 1, virtqtest.Next, 1)(r)
		}, "a loop"},
		{"whole table", func(r *ring) {
			for i := range uint16(7) {
				r.SetDesc(i, buf, 1, virtqtest.Next, i+1)
			}
			r.SetDesc(7, buf, 1, 0, 0)
			r.PushHead(0)
		}, ""},
		{"zero length", one(buf, 0, 0, 0), "zero length"},
		{"zero length writable", one(buf, 0, virtqtest.Write, 0), "zero length"},
		{"ends with RAM", one(ram-1, 1, 0, 0), ""},
		{"past RAM", one(ram-1, 2, 0, 0), "buffer: guest address 0xfffff, 2 bytes: outside guest RAM"},
		{"far out", one(1<<52, 1, virtqtest.Write, 0), "outside guest RAM"},
		{"wraps", one(math.MaxUint64, 2, 0, 0), "outside guest RAM"},
		{"wraps to RAM", one(math.MaxUint64-3, 512, 0, 0), "outside guest RAM"},
		{"longest", one(0, math.MaxUint32, 0, 0), "outside guest RAM"},
		{"write then read", func(r *ring) {
			r.SetDesc(1, buf, 1, 0, 0)
			one(buf, 1, virtqtest.Next|virtqtest.Write, 1)(r)
		}, "descriptor 1: device-readable behind device-writable"},

		{"indirect", table(3, buf+0x1000, 16, 0, 0), ""},
		{"indirect, WRITE ignored", func(r *ring) {
			table(1, buf+0x1000, 16, 0, 0)(r)
			r.SetDesc(0, buf, 16, virtqtest.Indirect|virtqtest.Write, 0)
		}, ""},
		{"indirect behind a direct one", func(r *ring) {
			table(1, buf+0x1000, 16, 0, 0)(r)
			r.SetDesc(1, buf, 16, virtqtest.Indirect, 0)
			r.SetDesc(0, buf, 8, virtqtest.Next, 1)
		}, ""},
		{"indirect with NEXT", one(buf, 16, virtqtest.Indirect|virtqtest.Next, 1), "INDIRECT and NEXT together"},
		{"indirect of nothing", one(buf, 0, virtqtest.Indirect, 0), "indirect table of 0 bytes"},
		{"indirect of 15", one(buf, 15, virtqtest.Indirect, 0), "indirect table of 15 bytes"},
		{"indirect longest", one(buf, math.MaxUint32&^15, virtqtest.Indirect, 0), "at most 1024"},
		{"indirect of 1024", table(1024, buf+0x10000, 1, 0, 0), ""},
		{"indirect of 1025", table(1025, buf+0x10000, 1, 0, 0), "indirect table of 1025 descriptors: at most 1024"},
		{"indirect outside", one(ram-16, 32, virtqtest.Indirect, 0), "indirect table: guest address"},
		{"indirect wraps", one(math.MaxUint64&^15, 32, virtqtest.Indirect, 0), "indirect table: guest address"},
		{"nested", table(2, buf, 32, virtqtest.Indirect, 0), "INDIRECT inside an indirect table"},
		{"indirect loop", table(4, buf+0x1000, 1, virtqtest.Next, 0), "a loop"},
		{"indirect next outside", table(4, buf+0x1000, 1, virtqtest.Next, 4), "index beyond a table of 4"},
		{"indirect zero length", table(1, buf, 0, 0, 0), "zero length"},
		{"indirect write then read", func(r *ring) {
			table(1, buf+0x1000, 16, 0, 0)(r)
			r.SetDesc(1, buf, 16, virtqtest.Indirect, 0)
			r.SetDesc(0, buf, 8, virtqtest.Next|virtqtest.Write, 1)
		}, "device-readable behind device-writable"},

		{"avail.idx one too far", func(r *ring) { r.SetAvailIdx(9) }, "avail.idx 9 is 9 ahead"},
		{"avail.idx behind", func(r *ring) { r.SetAvailIdx(65535) }, "avail.idx 65535"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, q := pair(t, virtqtest.Options{Size: 8, Indirect: true})
			c.do(r)
			r.Kick()
			ch, err := q.Pop()
			if c.want == "" {
				if err != nil || ch == nil {
					t.Fatalf("Pop: %v, %v", ch, err)
				}
				if n := sum(ch.Readable()) + sum(ch.Writable()); n != ch.ReadLen()+ch.WriteLen() || n == 0 {
					t.Errorf("runs hold %d bytes, lengths say %d and %d", n, ch.ReadLen(), ch.WriteLen())
				}
				return
			}
			var f *virtq.Fault
			if !errors.As(err, &f) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Pop: %v, want a fault with %q", err, c.want)
			}
			if _, again := q.Pop(); again != err {
				t.Errorf("the fault did not stick: %v", again)
			}
			if q.InFlight() != 0 {
				t.Errorf("%d in flight behind a fault", q.InFlight())
			}
		})
	}
}

func sum(runs [][]byte) (n uint64) {
	for _, b := range runs {
		n += uint64(len(b))
	}
	return n
}

func TestIndirectNotNegotiated(t *testing.T) {
	r, q := pair(t, virtqtest.Options{Size: 8})
	if _, err := r.AddIndirect([][]byte{{1}}, nil); err != nil {
		t.Fatal(err)
	}
	r.Kick()
	if _, err := q.Pop(); err == nil || !strings.Contains(err.Error(), "not negotiated") {
		t.Fatalf("Pop: %v", err)
	}
}

// TestTotalLength needs a guest of more than 1 GiB, of which nothing is touched.
func TestTotalLength(t *testing.T) {
	mem := virtqtest.NewMemory(t, 2<<30)
	for _, c := range []struct {
		last uint32
		ok   bool
	}{{1 << 30, true}, {1<<30 + 1, false}} {
		r, err := virtqtest.NewRing(mem, base, 0x10000, virtqtest.Options{Size: 8})
		if err != nil {
			t.Fatal(err)
		}
		q, err := virtq.New(mem, r.Cfg)
		if err != nil {
			t.Fatal(err)
		}
		gib := virtqtest.Buf{GPA: 0x100000, Len: 1 << 30}
		if _, err := r.AddBufs([]virtqtest.Buf{gib, gib}, []virtqtest.Buf{gib, {GPA: 0x100000, Len: c.last}}); err != nil {
			t.Fatal(err)
		}
		r.Kick()
		ch, err := q.Pop()
		if (err == nil) != c.ok {
			t.Errorf("3 GiB and %d bytes: %v", c.last, err)
		}
		if c.ok && (ch.ReadLen() != 2<<30 || ch.WriteLen() != 2<<30) {
			t.Errorf("lengths %d and %d", ch.ReadLen(), ch.WriteLen())
		}
	}
}

// TestRunaway takes chains without giving any back: a device never holds more
// than the queue has descriptors, however often the driver posts.
func TestRunaway(t *testing.T) {
	r, q := pair(t, virtqtest.Options{Size: 8})
	r.SetDesc(0, base, 1, 0, 0)
	taken := 0
	for range 100 {
		r.PushHead(0)
		r.Kick()
		ok, err := q.PopInto(new(virtq.Chain))
		if err != nil {
			if taken != 8 || !strings.Contains(err.Error(), "8 requests in flight") {
				t.Fatalf("after %d chains: %v", taken, err)
			}
			return
		}
		if ok {
			taken++
		}
	}
	t.Fatalf("%d chains taken from a queue of 8", taken)
}
