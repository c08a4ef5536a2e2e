package blk_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime/metrics"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/blk"
	"github.com/smolvmm/smolvmm/devices/blk/disk"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// What the fuzzer's bytes mean: flags, avail.idx, the descriptor table, the
// available ring, and the memory from fuzzMem on, where seeds keep indirect
// tables, headers and data.
const (
	fuzzQueue = 16
	fuzzDesc  = 0x1000
	fuzzAvail = 0x2000
	fuzzUsed  = 0x3000
	fuzzMem   = 0x4000
	fuzzRAM   = 1 << 20
	fuzzDisk  = 64<<10 + 512

	flagOverlay  = 1 << 0
	flagRO       = 1 << 1
	flagNoWCE    = 1 << 2 // CONFIG_WCE and FLUSH are not negotiated
	flagThrough  = 1 << 3 // writeback is cleared
	flagNoEvents = 1 << 4 // EVENT_IDX is not negotiated
	flagNoTables = 1 << 5 // INDIRECT_DESC is not negotiated
	flagTame     = 1 << 6 // addresses and lengths are cut to RAM, so that more chains pass the ring

	fuzzHead = 2 + 16*fuzzQueue + 2*fuzzQueue
)

// end is the driver's end of a fuzzed device.
type end struct{ fault error }

func (e *end) Used()           {}
func (e *end) ConfigChanged()  {}
func (e *end) Fault(err error) { e.fault = err }

// fuzzRig is kept from one input to the next: guest RAM and the image.
type fuzzRig struct {
	mem           *guestmem.Memory
	ram           []byte
	before        []byte
	image         []byte
	base, scratch *os.File
}

func newFuzzRig(tb testing.TB) *fuzzRig {
	r := &fuzzRig{mem: virtqtest.NewMemory(tb, fuzzRAM), before: make([]byte, fuzzRAM), image: make([]byte, fuzzDisk)}
	var err error
	if r.ram, err = r.mem.Slice(0, fuzzRAM); err != nil {
		tb.Fatal(err)
	}
	for i := range r.image {
		r.image[i] = byte(i>>9) + 1
	}
	r.base, r.scratch = memfd(tb), memfd(tb)
	return r
}

func memfd(tb testing.TB) *os.File {
	fd, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
	if err != nil {
		tb.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	tb.Cleanup(func() { f.Close() })
	return f
}

// run puts one input before a fresh device and gives what it did.
func (r *fuzzRig) run(tb testing.TB, in []byte) (blk.Stats, error) {
	var head [fuzzHead]byte
	rest := in[copy(head[:], in):]
	clear(r.ram)
	copy(r.ram[fuzzDesc:], head[2:2+16*fuzzQueue])
	copy(r.ram[fuzzAvail+4:], head[2+16*fuzzQueue:])
	binary.LittleEndian.PutUint16(r.ram[fuzzAvail+2:], uint16(head[1]))
	if head[0]&flagTame != 0 {
		for d := r.ram[fuzzDesc:][:16*fuzzQueue]; len(d) > 0; d = d[16:] {
			clear(d[3:8])   // address below 16 MiB
			clear(d[10:12]) // length below 64 KiB
			d[2] &= fuzzRAM>>16 - 1
		}
	}
	copy(r.ram[fuzzMem:], rest)
	copy(r.before, r.ram)

	if _, err := r.base.WriteAt(r.image, 0); err != nil {
		tb.Fatal(err)
	}
	o := disk.Options{File: dup(tb, r.base), ReadOnly: head[0]&flagRO != 0}
	if head[0]&flagOverlay != 0 {
		if err := r.scratch.Truncate(0); err != nil {
			tb.Fatal(err)
		}
		o.ReadOnly, o.Overlay, o.OverlayFile = false, true, dup(tb, r.scratch)
	}
	b, err := disk.Open(o)
	if err != nil {
		tb.Fatal(err)
	}
	dev := blk.New(blk.Config{Backend: b})
	defer dev.Close()
	features := dev.Features()
	if head[0]&flagNoWCE != 0 {
		features &^= 1<<9 | 1<<11
	}
	if head[0]&flagNoEvents != 0 {
		features &^= virtq.FeatureEventIdx
	}
	if head[0]&flagNoTables != 0 {
		features &^= virtq.FeatureIndirectDesc
	}
	if head[0]&flagThrough != 0 {
		dev.WriteConfig(32, []byte{0})
	}
	q, err := virtq.New(r.mem, virtq.Config{
		Size: fuzzQueue, Desc: fuzzDesc, Avail: fuzzAvail, Used: fuzzUsed,
		EventIdx: features&virtq.FeatureEventIdx != 0, Indirect: features&virtq.FeatureIndirectDesc != 0,
	})
	if err != nil {
		tb.Fatal(err)
	}
	e := &end{}
	dev.Drain(devices.Activation{Mem: r.mem, Features: features, Queues: []*devices.Queue{{Queue: q}}, Driver: e})
	r.check(tb, e, head[1], o)
	return dev.Stats(), e.fault
}

// check holds what a device did to its guest and files against the rules.
func (r *fuzzRig) check(tb testing.TB, e *end, avail byte, o disk.Options) {
	le := binary.LittleEndian
	allowed, overlaps := r.writable()
	used := int(le.Uint16(r.ram[fuzzUsed+2:]))
	if !overlaps {
		if used > int(avail) || e.fault == nil && used != int(avail) {
			tb.Errorf("%d of %d requests came back, fault %v", used, avail, e.fault)
		}
		for i := range min(used, fuzzQueue) {
			el := r.ram[fuzzUsed+4+8*i:]
			if id, n := le.Uint32(el), le.Uint32(el[4:]); id >= fuzzQueue || n > blk.MaxTransfer+1 {
				tb.Errorf("used element %d, %d bytes", id, n)
			}
		}
		for page := 0; page < fuzzRAM; page += 4096 {
			if bytes.Equal(r.ram[page:page+4096], r.before[page:page+4096]) {
				continue
			}
			for at := page; at < page+4096; at++ {
				if r.ram[at] != r.before[at] && !inAny(allowed, uint64(at)) {
					tb.Fatalf("byte %#x of guest memory changed, which no descriptor lets the device write", at)
				}
			}
		}
	}
	st, err := r.base.Stat()
	if err != nil || st.Size() != fuzzDisk {
		tb.Errorf("the image has %d bytes (%v)", st.Size(), err)
	}
	if o.ReadOnly || o.Overlay {
		got := make([]byte, fuzzDisk)
		if _, err := r.base.ReadAt(got, 0); err != nil || !bytes.Equal(got, r.image) {
			tb.Errorf("an image that is not to be written was (%v)", err)
		}
	}
}

type span struct{ lo, hi uint64 }

func inAny(s []span, at uint64) bool {
	for _, x := range s {
		if at >= x.lo && at < x.hi {
			return true
		}
	}
	return false
}

// writable gives what descriptors, in any table, let the device write, and
// whether some of that lies over the tables and rings themselves: then the
// device may have seen others than these.
func (r *fuzzRig) writable() (spans []span, overlaps bool) {
	le := binary.LittleEndian
	fixed := []span{{fuzzUsed, fuzzUsed + 4 + 8*fuzzQueue + 2}}
	tables := []span{{fuzzDesc, fuzzMem}}
	table := func(lo, hi uint64, indirect bool) {
		for at := lo; at+16 <= hi; at += 16 {
			addr, n, flags := le.Uint64(r.before[at:]), uint64(le.Uint32(r.before[at+8:])), le.Uint16(r.before[at+12:])
			if addr >= fuzzRAM || n > fuzzRAM-addr {
				continue
			}
			if flags&virtqtest.Indirect == 0 && flags&virtqtest.Write != 0 {
				spans = append(spans, span{addr, addr + n})
			}
			if flags&virtqtest.Indirect != 0 && indirect {
				tables = append(tables, span{addr, addr + n})
			}
		}
	}
	table(fuzzDesc, fuzzDesc+16*fuzzQueue, true)
	for _, t := range tables[1:] {
		table(t.lo, t.hi, false)
	}
	for _, s := range spans {
		for _, t := range tables {
			overlaps = overlaps || s.lo < t.hi && t.lo < s.hi
		}
	}
	return append(spans, fixed...), overlaps
}

// input builds a seed: requests laid out one behind the other.
type input struct {
	flags  byte
	descs  []byte
	avail  []byte
	memory []byte
}

func (s *input) put(p []byte) (gpa uint64) {
	for len(s.memory)%16 != 0 {
		s.memory = append(s.memory, 0)
	}
	gpa = fuzzMem + uint64(len(s.memory))
	s.memory = append(s.memory, p...)
	return gpa
}

func desc(addr uint64, n int, flags, next uint16) []byte {
	b := binary.LittleEndian.AppendUint64(nil, addr)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = binary.LittleEndian.AppendUint16(b, flags)
	return binary.LittleEndian.AppendUint16(b, next)
}

// add appends a request of readable runs and writable lengths.
func (s *input) add(indirect bool, readable [][]byte, writable ...int) *input {
	var table []byte
	first := uint16(len(s.descs) / 16)
	if indirect {
		first = 0
	}
	n := len(readable) + len(writable)
	for i := range n {
		flags, next := uint16(virtqtest.Next), first+uint16(i)+1
		if i == n-1 {
			flags, next = 0, 0
		}
		if i < len(readable) {
			table = append(table, desc(s.put(readable[i]), len(readable[i]), flags, next)...)
		} else {
			w := writable[i-len(readable)]
			table = append(table, desc(s.put(make([]byte, w)), w, flags|virtqtest.Write, next)...)
		}
	}
	s.avail = binary.LittleEndian.AppendUint16(s.avail, uint16(len(s.descs)/16))
	if indirect {
		table = desc(s.put(table), len(table), virtqtest.Indirect, 0)
	}
	s.descs = append(s.descs, table...)
	return s
}

func (s *input) bytes() []byte {
	b := make([]byte, fuzzHead)
	b[0], b[1] = s.flags, byte(len(s.avail)/2)
	copy(b[2:2+16*fuzzQueue], s.descs)
	copy(b[2+16*fuzzQueue:], s.avail)
	return append(b, s.memory...)
}

// fuzzSeeds complete each type of request, on each kind of disk.
func fuzzSeeds() [][]byte {
	data := bytes.Repeat([]byte("written "), 128)
	var seeds [][]byte
	for _, flags := range []byte{0, flagOverlay, flagNoWCE, flagOverlay | flagThrough, flagRO, flagNoEvents, flagNoTables, flagOverlay | flagNoEvents, flagTame, flagTame | flagOverlay} {
		seed := func() *input { return &input{flags: flags} }
		ind := flags&flagNoTables == 0
		for _, s := range []*input{
			seed().add(false, [][]byte{blk.Header(blk.TypeIn, 3)}, 1024, 1),
			seed().add(ind, [][]byte{blk.Header(blk.TypeIn, 0)}, 100, 412, 1),
			seed().add(false, [][]byte{blk.Header(blk.TypeOut, 7), data}, 1),
			seed().add(ind, [][]byte{blk.Join(blk.Header(blk.TypeOut, 1), data[:512])}, 1).add(ind, [][]byte{blk.Header(blk.TypeIn, 1)}, 513),
			seed().add(false, [][]byte{blk.Header(blk.TypeFlush, 0)}, 1),
			seed().add(ind, [][]byte{blk.Header(blk.TypeGetID, 0)}, 20, 1),
			seed().add(false, [][]byte{blk.Header(blk.TypeDiscard, 0), blk.Segs(8, 16, 0)}, 1),
			seed().add(ind, [][]byte{blk.Header(blk.TypeWriteZeroes, 0), blk.Segs(9, 17, 1, 0, 1, 0)}, 1),
			seed().add(false, [][]byte{blk.Header(99, 0)}, 1).add(false, [][]byte{blk.Header(blk.TypeIn, 1<<60)}, 512, 1),
			seed().add(false, [][]byte{blk.Header(blk.TypeOut, 0)[:9], blk.Header(blk.TypeOut, 2)[9:], data[:300], data[300:1024]}, 1).
				add(false, [][]byte{blk.Header(blk.TypeFlush, 0)}, 1).add(ind, [][]byte{blk.Header(blk.TypeIn, 2)}, 1024, 1),
		} {
			seeds = append(seeds, s.bytes())
		}
	}
	return seeds
}

// TestFuzzSeeds: the seeds do the work that they are there for.
func TestFuzzSeeds(t *testing.T) {
	r := newFuzzRig(t)
	var sum blk.Stats
	for i, s := range fuzzSeeds() {
		st, fault := r.run(t, s)
		if fault != nil {
			t.Errorf("seed %d: %v", i, fault)
		}
		for _, c := range []struct{ to, from *blk.Count }{
			{&sum.Read, &st.Read}, {&sum.Write, &st.Write}, {&sum.Flush, &st.Flush},
			{&sum.Discard, &st.Discard}, {&sum.WriteZeroes, &st.WriteZeroes}, {&sum.GetID, &st.GetID},
		} {
			c.to.Requests += c.from.Requests
			c.to.Bytes += c.from.Bytes
			c.to.Errors += c.from.Errors
		}
	}
	for name, c := range map[string]blk.Count{
		"read": sum.Read, "write": sum.Write, "discard": sum.Discard, "write zeroes": sum.WriteZeroes, "get id": sum.GetID,
	} {
		if c.Requests < 7 || c.Bytes == 0 || c.Errors != 0 {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if sum.Flush.Requests < 8 {
		t.Errorf("flush: %+v", sum.Flush)
	}
}

// maxFuzzAlloc bounds what one input may make the process allocate, the
// opening of its disk included.
const maxFuzzAlloc = 1 << 20

// FuzzDevice puts any descriptors, rings and request bytes before a device over
// real files. The monitor must live, the guest get no byte written that it has
// not asked for, and neither an image that is only read nor one's size change.
func FuzzDevice(f *testing.F) {
	for _, s := range fuzzSeeds() {
		f.Add(s)
	}
	r := newFuzzRig(f)
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 64<<10 {
			return
		}
		metrics.Read(sample)
		before := sample[0].Value.Uint64()
		r.run(t, in)
		metrics.Read(sample)
		if n := sample[0].Value.Uint64() - before; n > maxFuzzAlloc {
			t.Errorf("%d bytes allocated", n)
		}
	})
}
