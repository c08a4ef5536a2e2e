package net

import (
	"bytes"
	"encoding/binary"
	"runtime/metrics"
	"testing"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// What the fuzzer's bytes mean: flags, then for each of the five queues of two
// pairs avail.idx, then their descriptor tables and available rings, the frames
// for the guest, and the memory from fuzzMem on, where seeds keep indirect tables,
// headers and data.
const (
	fuzzQueues = 5
	fuzzSize   = 16
	fuzzArea   = 0x1000 // a queue's, within it:
	fuzzAvail  = 0x400
	fuzzUsed   = 0x800
	fuzzMem    = 0x8000
	fuzzRAM    = 1 << 18
	fuzzFrames = 6

	flagNoMrg    = 1 << 0
	flagNoEvents = 1 << 1 // EVENT_IDX is not negotiated
	flagNoTables = 1 << 2 // INDIRECT_DESC is not negotiated
	flagNoMQ     = 1 << 3
	flagPlain    = 1 << 4 // no offload is negotiated
	flagJumbo    = 1 << 5
	flagUnplug   = 1 << 6 // the link goes down between the two rounds
	flagTame     = 1 << 7 // addresses and lengths are cut to RAM, so that more chains pass the ring

	fuzzDescs     = 16 * fuzzSize
	fuzzFrameSpec = 12 + 2 + 1 // header, length, kind of address
	fuzzHead      = 1 + fuzzQueues*(1+fuzzDescs+2*fuzzSize) + fuzzFrames*fuzzFrameSpec
)

// wire is a network that keeps the frames apart from the heap's ups and downs.
type wire struct {
	mtu        int
	negotiated uint64
	frames     []packet
	bad        string
	sent       int
	buf        []byte
	run        [3][]byte
}

func (w *wire) MTU() int            { return w.mtu }
func (w *wire) Offloads() uint64    { return everything }
func (w *wire) Negotiated(f uint64) { w.negotiated = f }
func (w *wire) OnReady(func())      {}
func (w *wire) Pop()                { w.frames = w.frames[1:] }

// Send holds a frame to what the Backend interface promises of it.
func (w *wire) Send(h *Header, frame [][]byte) {
	n := 0
	for _, b := range frame {
		if len(b) == 0 {
			w.bad = "an empty run"
		}
		n += copy(w.buf[n:], b)
	}
	le := binary.LittleEndian
	longest := w.mtu + 14 + 4
	if h[1] != 0 {
		longest = maxGSOFrame
		if bit := map[byte]uint64{1: FeatureHostTSO4, 4: FeatureHostTSO6}[h[1]]; bit == 0 || w.negotiated&bit == 0 || h[0] != 1 || le.Uint16(h[4:]) == 0 {
			w.bad = "segmentation that was not negotiated"
		}
	}
	if n < 14 || n > longest {
		w.bad = "a frame of a length that is not allowed"
	}
	if h[0] > 1 || h[0] == 1 && (w.negotiated&FeatureCSum == 0 || int(le.Uint16(h[6:]))+int(le.Uint16(h[8:]))+2 > n) {
		w.bad = "a checksum that was not negotiated"
	}
	w.sent++
}

func (w *wire) Next() (*Header, [][]byte, bool) {
	if len(w.frames) == 0 {
		return nil, nil, false
	}
	p := &w.frames[0]
	cut := len(p.frame) / 3
	w.run = [3][]byte{p.frame[:cut], nil, p.frame[cut:]}
	return &p.h, w.run[:], true
}

// fuzzRig is kept from one input to the next.
type fuzzRig struct {
	mem    *guestmem.Memory
	ram    []byte
	before []byte
	bells  [fuzzQueues]*devices.Doorbell
	wire   wire
	data   []byte
	sample [1]metrics.Sample
}

func newFuzzRig(tb testing.TB) *fuzzRig {
	r := &fuzzRig{mem: virtqtest.NewMemory(tb, 1<<20), before: make([]byte, fuzzRAM), data: frameTo(testMAC, 70000),
		sample: [1]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}}
	var err error
	if r.ram, err = r.mem.Slice(0, fuzzRAM); err != nil {
		tb.Fatal(err)
	}
	for i := range r.bells {
		if r.bells[i], err = devices.NewDoorbell(); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { r.bells[i].Close() })
	}
	r.wire.buf = make([]byte, 1<<17)
	return r
}

// run puts one input before a fresh device, serves every ring twice on this
// goroutine, and gives what the device did.
func (r *fuzzRig) run(tb testing.TB, in []byte) (Stats, error) {
	var head [fuzzHead]byte
	rest := in[copy(head[:], in):]
	flags, idx, at := head[0], head[1:1+fuzzQueues], head[1+fuzzQueues:]
	clear(r.ram)
	copy(r.ram[fuzzMem:], rest)
	for i := range fuzzQueues {
		q := r.ram[i*fuzzArea:]
		copy(q, at[:fuzzDescs])
		if flags&flagTame != 0 {
			for d := q[:fuzzDescs]; len(d) > 0; d = d[16:] {
				clear(d[3:8])   // address below 16 MiB
				clear(d[10:12]) // length below 64 KiB
				d[2] &= fuzzRAM>>16 - 1
			}
		}
		binary.LittleEndian.PutUint16(q[fuzzAvail+2:], uint16(idx[i]))
		copy(q[fuzzAvail+4:], at[fuzzDescs:][:2*fuzzSize])
		at = at[fuzzDescs+2*fuzzSize:]
	}
	w := &r.wire
	w.mtu, w.bad, w.sent, w.frames = 1500, "", 0, w.frames[:0]
	if flags&flagJumbo != 0 {
		w.mtu = 65520
	}
	for range fuzzFrames {
		n := binary.LittleEndian.Uint16(at[12:])
		if at[14] != 0 {
			w.frames = append(w.frames, packet{Header(at), r.data[:n]})
		}
		at = at[fuzzFrameSpec:]
	}
	copy(r.before, r.ram)

	dev, err := New(Config{Backend: w, MAC: testMAC, QueuePairs: 2})
	if err != nil {
		tb.Fatal(err)
	}
	a := devices.Activation{Mem: r.mem, Features: dev.Features()}
	for bit, f := range map[byte]uint64{
		flagNoMrg: featureMrgRxBuf, flagNoEvents: virtq.FeatureEventIdx, flagNoTables: virtq.FeatureIndirectDesc,
		flagNoMQ: featureMQ, flagPlain: offloadBits,
	} {
		if flags&bit != 0 {
			a.Features &^= f
		}
	}
	w.negotiated = a.Features & offloadBits
	for i := range uint64(fuzzQueues) {
		q, err := virtq.New(r.mem, virtq.Config{
			Size: fuzzSize, Desc: i * fuzzArea, Avail: i*fuzzArea + fuzzAvail, Used: i*fuzzArea + fuzzUsed,
			EventIdx: a.Features&virtq.FeatureEventIdx != 0, Indirect: a.Features&virtq.FeatureIndirectDesc != 0,
		})
		if err != nil {
			tb.Fatal(err)
		}
		a.Queues = append(a.Queues, &devices.Queue{Queue: q, Kick: r.bells[i]})
	}
	e := &silent{}
	a.Driver = e
	metrics.Read(r.sample[:])
	allocated := r.sample[0].Value.Uint64()
	r.serve(dev, &a, flags&flagUnplug != 0)
	metrics.Read(r.sample[:])
	if n := r.sample[0].Value.Uint64() - allocated; n > maxFuzzAlloc {
		tb.Errorf("%d bytes allocated", n)
	}
	r.check(tb, dev, &a, idx, e.fault)
	return dev.Stats(), e.fault
}

// serve is what the workers do, in turn.
func (r *fuzzRig) serve(dev *Device, a *devices.Activation, unplug bool) {
	run := newRun(dev, a)
	ctrl, pairs := dev.ctrlIndex(a.Features), 1
	if a.Features&featureMQ != 0 {
		pairs = 2
	}
	c := &ctrlWorker{d: dev, r: run, queue: a.Queues[ctrl]}
	rx := dev.newRX(run, pairs)
	for range 2 {
		c.drain()
		for i := range pairs {
			dev.newTX(run, a.Queues[2*i+1], uint32(i)).drain()
		}
		for why := again; why == again; {
			var q *rxRing
			if why, q, _ = rx.batch(); why == starved && q.EnableKicks() {
				why = again
			}
		}
		if unplug {
			dev.SetLink(false)
		}
	}
	rx.giveBack()
}

// check holds what a device did to its guest against the rules.
func (r *fuzzRig) check(tb testing.TB, dev *Device, a *devices.Activation, idx []byte, fault error) {
	le := binary.LittleEndian
	if r.wire.bad != "" {
		tb.Errorf("the network got %s", r.wire.bad)
	}
	for i, q := range a.Queues {
		if n := q.InFlight(); n != 0 {
			tb.Errorf("queue %d: %d in flight", i, n)
		}
	}
	allowed, overlaps := r.writable()
	if overlaps {
		return
	}
	for i := range fuzzQueues {
		u := r.ram[i*fuzzArea+fuzzUsed:]
		used := int(le.Uint16(u[2:]))
		tx := i == 1 || i == 3
		if used > int(idx[i]) || tx && fault == nil && used != int(idx[i]) && (i < 3 || a.Features&featureMQ != 0) {
			tb.Errorf("queue %d: %d of %d came back, fault %v", i, used, idx[i], fault)
		}
		for j := range min(used, fuzzSize) {
			if id, n := le.Uint32(u[4+8*j:]), le.Uint32(u[8+8*j:]); id >= fuzzSize || tx && n != 0 || n > HeaderLen+longestToGuest {
				tb.Errorf("queue %d: used element %d, %d bytes", i, id, n)
			}
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

type span struct{ lo, hi uint64 }

func inAny(s []span, at uint64) bool {
	for _, x := range s {
		if at >= x.lo && at < x.hi {
			return true
		}
	}
	return false
}

// writable gives what descriptors, in any table, let the device write, and whether
// some of that lies over the tables and rings themselves: then the device may have
// seen others than these.
func (r *fuzzRig) writable() (spans []span, overlaps bool) {
	le := binary.LittleEndian
	tables := []span{{0, fuzzQueues * fuzzArea}}
	table := func(lo, hi uint64, indirect bool) {
		for at := lo; at+16 <= hi; at += 16 {
			addr, n, flags := le.Uint64(r.before[at:]), uint64(le.Uint32(r.before[at+8:])), le.Uint16(r.before[at+12:])
			if addr >= fuzzRAM {
				continue
			}
			n = min(n, fuzzRAM-addr) // the rest of RAM is not looked at
			if flags&virtqtest.Indirect == 0 && flags&virtqtest.Write != 0 {
				spans = append(spans, span{addr, addr + n})
			}
			if flags&virtqtest.Indirect != 0 && indirect {
				tables = append(tables, span{addr, addr + n})
			}
		}
	}
	for i := range uint64(fuzzQueues) {
		table(i*fuzzArea, i*fuzzArea+fuzzDescs, true)
	}
	for _, t := range tables[1:] {
		table(t.lo, t.hi, false)
	}
	for _, s := range spans {
		for _, t := range tables {
			overlaps = overlaps || s.lo < t.hi && t.lo < s.hi
		}
	}
	for i := range uint64(fuzzQueues) {
		spans = append(spans, span{i*fuzzArea + fuzzUsed, i*fuzzArea + fuzzUsed + 4 + 8*fuzzSize + 2})
	}
	return spans, overlaps
}

// maxFuzzAlloc bounds what one input may make a device allocate, in bytes: tables
// of 1,024 runs for the chains of the longest frames, and their growing.
const maxFuzzAlloc = 8 << 20

// FuzzDevice puts any rings, headers and commands before a device, and any frames
// behind it. The monitor must live, the guest get no byte written that it has not
// asked for, and the network see only what was negotiated.
func FuzzDevice(f *testing.F) {
	for _, s := range fuzzSeeds() {
		f.Add(s)
	}
	r := newFuzzRig(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 64<<10 {
			return
		}
		r.run(t, in)
	})
}
