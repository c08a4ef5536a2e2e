package virtq_test

import (
	"encoding/binary"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

func TestNoAllocations(t *testing.T) {
	for name, b := range map[string]*bench{"direct": newBench(t, false), "indirect": newBench(t, true)} {
		b.once(t)
		if n := testing.AllocsPerRun(1000, func() { b.once(t) }); n != 0 {
			t.Errorf("%s: %v allocations a request", name, n)
		}
	}
}

// bench posts the same three-part request again and again without the mock's
// own allocations.
type bench struct {
	q         *virtq.Queue
	avail     []byte
	word      guestmem.Word32
	usedEvent []byte
	idx       uint16
	heads     uint16
}

func newBench(t testing.TB, indirect bool) *bench {
	r, q := pair(t, virtqtest.Options{Size: 256, EventIdx: true, Indirect: true})
	data := uint64(base + 0x40000)
	rd := []virtqtest.Buf{{GPA: data, Len: 16}}
	wr := []virtqtest.Buf{{GPA: data + 0x1000, Len: 4096}, {GPA: data + 0x8000, Len: 1}}
	b := &bench{q: q}
	var err error
	if indirect {
		b.heads, err = r.AddTable(rd, wr, virtqtest.Buf{GPA: data + 0x10000, Len: 48})
	} else {
		b.heads, err = r.AddBufs(rd, wr)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b.avail, err = r.Mem.Slice(r.Cfg.Avail, 4+2*256+2); err != nil {
		t.Fatal(err)
	}
	if b.word, err = r.Mem.Word32(r.Cfg.Avail); err != nil {
		t.Fatal(err)
	}
	b.usedEvent = b.avail[4+2*256:]
	return b
}

func (b *bench) once(t testing.TB) {
	binary.LittleEndian.PutUint16(b.avail[4+2*(b.idx%256):], b.heads)
	binary.LittleEndian.PutUint16(b.usedEvent, b.idx)
	b.idx++
	b.word.Store(uint32(b.idx) << 16)
	c, err := b.q.Pop()
	if err != nil || c == nil || c.WriteLen() != 4097 {
		t.Fatalf("Pop: %v, %v", c, err)
	}
	b.q.Push(c.Head(), 4097)
	if !b.q.Publish() {
		t.Fatal("no interrupt")
	}
	if b.q.EnableKicks() {
		t.Fatal("more of nothing")
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, indirect := range []bool{false, true} {
		b.Run(map[bool]string{false: "direct", true: "indirect"}[indirect], func(b *testing.B) {
			x := newBench(b, indirect)
			b.ReportAllocs()
			for b.Loop() {
				x.once(b)
			}
		})
	}
}
