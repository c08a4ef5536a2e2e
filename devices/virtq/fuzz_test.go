package virtq_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// What a fuzzed program does, one byte each, with operands behind it.
const (
	opAdd     = iota // one byte: readable buffers in the low bits, writable above
	opTable          // the same through an indirect table
	opKick           // publish
	opServe          // the device takes one and keeps it
	opPush           // the device gives the oldest back
	opPublish        // and publishes
	opEnable         // EnableKicks
	opDisable        // DisableKicks
	opCollect        // the driver takes what came back
	opPoke           // 16-bit offset into the rings, length, bytes
	opHead           // 16-bit head, raw
	opIdx            // 16-bit avail.idx, raw
	opDesc           // index, then 16 raw bytes
	opMove           // state out and into a new queue
	opDropped        // use while dropped
	opIRQ            // EnableInterrupts
	opCount
)

// fuzzRAM is one guest memory for all runs of a fuzzing process.
var fuzzRAM *guestmem.Memory

// runProgram plays a program against a queue and says how many requests came
// back. It fails the test when the queue breaks one of its promises.
func runProgram(t *testing.T, mem *guestmem.Memory, prog []byte) (completed int) {
	next := func() byte {
		if len(prog) == 0 {
			return 0
		}
		b := prog[0]
		prog = prog[1:]
		return b
	}
	next16 := func() uint16 { lo := next(); return uint16(lo) | uint16(next())<<8 }
	shape := next()
	o := virtqtest.Options{
		Size: 1 << (shape & 7), EventIdx: shape&8 != 0, Indirect: shape&16 != 0, OddAvail: shape&32 != 0,
	}
	const arena = 0x8000
	r, err := virtqtest.NewRing(mem, base, arena, o)
	if err != nil {
		t.Fatal(err)
	}
	q, err := virtq.New(mem, r.Cfg)
	if err != nil {
		t.Fatal(err)
	}
	limit := int(r.Cfg.Size) + max(int(r.Cfg.Size), virtq.DefaultMaxIndirect)
	var taken, spare []*virtq.Chain
	for steps := 0; len(prog) > 0 && steps < 4096; steps++ {
		switch op := next() % opCount; op {
		case opAdd, opTable:
			n := next()
			var rd [][]byte
			var wr []uint32
			for range n & 3 {
				rd = append(rd, []byte("readable bytes"))
			}
			for range n >> 2 & 3 {
				wr = append(wr, uint32(n>>4)+1)
			}
			if op == opTable {
				_, err = r.AddIndirect(rd, wr)
			} else {
				_, err = r.Add(rd, wr)
			}
			if err != nil && err != virtqtest.ErrFull {
				t.Fatal(err)
			}
		case opKick:
			r.Kick()
		case opServe:
			c := new(virtq.Chain)
			if len(spare) > 0 {
				c, spare = spare[len(spare)-1], spare[:len(spare)-1]
			}
			ok, err := q.PopInto(c)
			if err != nil {
				var f *virtq.Fault
				if ok || !errors.As(err, &f) || err.Error() == "" {
					t.Fatalf("PopInto: %v, %v", ok, err)
				}
				if _, again := q.Pop(); again != err {
					t.Fatalf("behind a fault: %v", again)
				}
			}
			if ok {
				checkChain(t, mem, c, limit)
				taken = append(taken, c)
			}
			if q.InFlight() != len(taken) || len(taken) > int(o.Size) {
				t.Fatalf("%d in flight, %d held, size %d", q.InFlight(), len(taken), o.Size)
			}
		case opPush:
			if len(taken) > 0 {
				c := taken[0]
				taken = taken[1:]
				n := c.CopyIn([]byte("written bytes, some of them"), 0)
				q.Push(c.Head(), uint32(n))
				spare = append(spare, c)
			}
		case opPublish:
			q.Publish()
		case opEnable:
			q.EnableKicks()
		case opDisable:
			q.DisableKicks()
		case opCollect:
			us, err := r.Collect()
			completed += len(us)
			if err != nil {
				return completed // the program has broken its own books
			}
		case opPoke:
			off, n := uint64(next16()), int(next()&15)
			p := make([]byte, n)
			for i := range p {
				p[i] = next()
			}
			if err := mem.WriteAt(p, base+off%arena); err != nil {
				t.Fatal(err)
			}
		case opHead:
			r.PushHead(next16())
		case opIdx:
			r.SetAvailIdx(next16())
		case opDesc:
			i := uint16(next()) % o.Size
			var d [16]byte
			for k := range d {
				d[k] = next()
			}
			if err := mem.WriteAt(d[:], r.Cfg.Desc+16*uint64(i)); err != nil {
				t.Fatal(err)
			}
		case opMove:
			s := q.State()
			js, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			var back virtq.State
			if err := json.Unmarshal(js, &back); err != nil || back != s {
				t.Fatalf("%s: %v", js, err)
			}
			moved, err := virtq.Restore(mem, back)
			if (err == nil) != (s.NextAvail == s.NextUsed) {
				t.Fatalf("%s: %v", js, err)
			}
			if err == nil {
				q = moved
			}
		case opDropped:
			q.Drop()
			if c, err := q.Pop(); c != nil || err == nil {
				t.Fatal("a dropped queue gave a chain")
			}
			if q.Publish() || q.EnableKicks() {
				t.Fatal("a dropped queue has news")
			}
			if err := q.Attach(mem); err != nil {
				t.Fatal(err)
			}
		case opIRQ:
			r.EnableInterrupts()
		}
	}
	return completed
}

// checkChain holds a chain against what every device relies on.
func checkChain(t *testing.T, mem *guestmem.Memory, c *virtq.Chain, limit int) {
	if n := len(c.Readable()) + len(c.Writable()); n == 0 || n > limit {
		t.Fatalf("chain of %d runs, at most %d", n, limit)
	}
	var total [2]uint64
	for i, runs := range [][][]byte{c.Readable(), c.Writable()} {
		for _, b := range runs {
			if len(b) == 0 || cap(b) != len(b) || uint64(len(b)) > mem.Size() {
				t.Fatalf("run of %d bytes with room for %d", len(b), cap(b))
			}
			total[i] += uint64(len(b))
		}
	}
	if total != [2]uint64{c.ReadLen(), c.WriteLen()} || total[0]+total[1] > 1<<32 {
		t.Fatalf("runs hold %v bytes, lengths say %d and %d", total, c.ReadLen(), c.WriteLen())
	}
	var p [64]byte
	if n := c.CopyOut(p[:], 0); uint64(n) != min(64, c.ReadLen()) {
		t.Fatalf("%d bytes copied of %d", n, c.ReadLen())
	}
}

// seeds are programs with the requests they complete at the least.
func seeds() map[string]struct {
	prog []byte
	want int
} {
	type seed = struct {
		prog []byte
		want int
	}
	trip := []byte{opKick, opServe, opPush, opPublish, opCollect}
	all := map[string]seed{}
	for name, shape := range map[string]byte{"flags": 3, "event": 3 | 8, "indirect": 4 | 8 | 16, "odd": 2 | 8 | 16 | 32} {
		add := byte(opAdd)
		if shape&16 != 0 {
			add = opTable
		}
		var p []byte
		p = append(p, shape)
		for range 5 {
			p = append(p, opDisable, opIRQ, add, 0x10|2<<2|1, opAdd, 0x21)
			p = append(p, trip...)
			p = append(p, opEnable)
			p = append(p, trip[1:]...)
			p = append(p, opMove, opDropped)
		}
		all[name] = seed{p, 10}
	}
	good := []byte{3 | 8, opAdd, 0x15}
	good = append(good, trip...)
	with := func(more ...byte) seed { return seed{append(append([]byte{}, good...), more...), 1} }
	desc := func(i byte, addr uint64, n uint32, flags, next uint16) []byte {
		d := []byte{opDesc, i}
		d = binary.LittleEndian.AppendUint64(d, addr)
		d = binary.LittleEndian.AppendUint32(d, n)
		d = binary.LittleEndian.AppendUint16(d, flags)
		d = binary.LittleEndian.AppendUint16(d, next)
		return append(d, opHead, i, 0, opKick, opServe, opPush, opPublish)
	}
	all["loop"] = with(desc(1, base, 1, virtqtest.Next, 1)...)
	all["outside"] = with(desc(1, 1<<40, 16, 0, 0)...)
	all["wraps"] = with(desc(1, 1<<64-8, 16, virtqtest.Write, 0)...)
	all["zero"] = with(desc(1, base, 0, 0, 0)...)
	all["whole RAM"] = with(desc(1, 0, ram, virtqtest.Write, 0)...)
	all["runaway"] = with(opIdx, 0xff, 0x7f, opServe)
	all["backwards"] = with(opIdx, 0, 0, opServe)
	all["bad head"] = with(opHead, 0xff, 0xff, opKick, opServe)
	nested := with(desc(1, base, 32, virtqtest.Indirect, 0)...)
	nested.prog[0] |= 16
	all["table is the rings"] = nested
	return all
}

func TestFuzzSeedsComplete(t *testing.T) {
	mem := virtqtest.NewMemory(t, ram)
	for name, s := range seeds() {
		if got := runProgram(t, mem, s.prog); got < s.want {
			t.Errorf("%s: %d requests completed, want %d", name, got, s.want)
		}
	}
}

// FuzzQueue plays programs of driver, device and hostile memory writes.
func FuzzQueue(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s.prog)
	}
	f.Fuzz(func(t *testing.T, prog []byte) {
		if len(prog) > 1<<14 {
			return
		}
		if fuzzRAM == nil {
			var err error
			if fuzzRAM, err = guestmem.New(ram, guestmem.Transparent); err != nil {
				t.Fatal(err)
			}
		}
		runProgram(t, fuzzRAM, prog)
	})
}

// FuzzConfig makes queues at any address and of any size, and uses them once.
func FuzzConfig(f *testing.F) {
	f.Add(uint16(256), uint64(0x1000), uint64(0x2000), uint64(0x3000), uint16(0), uint16(0), true, true, uint32(0))
	f.Add(uint16(8), uint64(ram-128), uint64(ram-22), uint64(ram-72), uint16(7), uint16(7), false, true, uint32(1))
	f.Fuzz(func(t *testing.T, size uint16, desc, avail, used uint64, na, nu uint16, event, indirect bool, most uint32) {
		if fuzzRAM == nil {
			var err error
			if fuzzRAM, err = guestmem.New(ram, guestmem.Transparent); err != nil {
				t.Fatal(err)
			}
		}
		s := virtq.State{Config: virtq.Config{
			Size: size, Desc: desc, Avail: avail, Used: used, EventIdx: event, Indirect: indirect, MaxIndirect: most,
		}, NextAvail: na, NextUsed: nu}
		q, err := virtq.Restore(fuzzRAM, s)
		if err != nil {
			return
		}
		if size&(size-1) != 0 || desc%16 != 0 || avail%2 != 0 || used%4 != 0 {
			t.Fatalf("%+v was taken", s)
		}
		for range 4 {
			c, err := q.Pop()
			if err != nil || c == nil {
				break
			}
			q.Push(c.Head(), 0)
			q.Publish()
		}
		q.EnableKicks()
		q.DisableKicks()
	})
}
