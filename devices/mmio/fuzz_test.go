package mmio_test

import (
	"encoding/binary"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices/mmio"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// What a fuzzed guest does, one byte each, with operands behind it.
const (
	opWrite = iota // 16-bit offset, 32-bit value
	opRead         // 16-bit offset
	opWide         // 16-bit offset, length 0–15, bytes: a write of any width
	opPoke         // 16-bit guest address in 16-byte units, length, bytes
	opPost         // queue: a well-made request in the ring laid for it, with a kick
	opPause        // Quiesce and Resume
	opMove         // State, Restore into a new transport
	opACK          // InterruptACK of all there is
	opTake         // queue: collect, in a seed's own test until something came
	opCount
)

// play runs a program against a transport with an echo device behind it and says
// how many requests came back. patient makes opTake wait for the device.
func play(t *testing.T, mem *guestmem.Memory, prog []byte, patient bool) (completed int) {
	// Any call that does not come back is a bug to be seen with its stacks.
	watchdog := time.AfterFunc(virtqtest.Patience, func() {
		debug.SetTraceback("all")
		panic("a register access or a reset hangs")
	})
	defer watchdog.Stop()

	sizes := []uint16{8, 4}
	pin := make(chan struct{}, 1)
	var high atomic.Bool
	wire := line(func(now bool) {
		high.Store(now)
		if now {
			select {
			case pin <- struct{}{}:
			default:
			}
		}
	})
	dev := virtqtest.NewEcho(sizes...)
	tr, err := mmio.New(dev, mem, wire)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	var rings []*virtqtest.Ring
	for i, n := range sizes {
		r, err := virtqtest.NewRing(mem, fuzzRing(i), 0x4000, virtqtest.Options{Size: n, EventIdx: true, Indirect: true})
		if err != nil {
			t.Fatal(err)
		}
		rings = append(rings, r)
	}
	take := func(n int) []byte {
		n = min(n, len(prog))
		p := prog[:n]
		prog = prog[n:]
		return append(make([]byte, 0, 16), p...)
	}
	take16 := func() uint64 { p := take(2); return uint64(binary.LittleEndian.Uint16(p[:2:2])) }
	take1 := func() byte { p := take(1); return p[:1][0] }
	last := uint32(0)
	for steps := 0; len(prog) > 0 && steps < 2048; steps++ {
		switch take1() % opCount {
		case opWrite:
			off := take16() % mmio.RegionSize
			p := take(4)
			tr.Write(off, p[:4:4])
		case opRead:
			var p [4]byte
			tr.Read(take16()%mmio.RegionSize, p[:])
		case opWide:
			off := take16() % (mmio.RegionSize - 16)
			p := take(int(take1() & 15))
			tr.Write(off, p)
			tr.Read(off, p)
		case opPoke:
			gpa := take16() * 16 % (mem.Size() - 16)
			if err := mem.WriteAt(take(int(take1()&15)), gpa); err != nil {
				t.Fatal(err)
			}
		case opPost:
			i := int(take1()) % len(rings)
			if _, err := rings[i].AddIndirect([][]byte{[]byte("question")}, []uint32{4, 8}); err == nil && rings[i].Kick() {
				tr.Write(mmio.NotifyOffset, []byte{byte(i), 0, 0, 0})
			}
		case opPause:
			if err := tr.Quiesce(); err != nil {
				t.Fatal(err)
			}
			var isr [4]byte
			if tr.Read(interruptStatus, isr[:]); high.Load() != (isr[0] != 0) {
				t.Fatalf("interrupt status %d, and the pin is high: %v", isr[0], high.Load())
			}
			if err := tr.Resume(); err != nil {
				t.Fatal(err)
			}
		case opMove:
			if err := tr.Quiesce(); err != nil {
				t.Fatal(err)
			}
			state, err := tr.State()
			if err != nil {
				t.Fatal(err)
			}
			if err := tr.Close(); err != nil {
				t.Fatal(err)
			}
			dev = virtqtest.NewEcho(sizes...)
			if tr, err = mmio.New(dev, mem, wire); err != nil {
				t.Fatal(err)
			}
			if err := tr.Restore(state); err != nil {
				t.Fatalf("%s: %v", state, err)
			}
			if err := tr.Resume(); err != nil {
				t.Fatal(err)
			}
		case opACK:
			tr.Write(interruptACK, []byte{3, 0, 0, 0})
		case opTake:
			r := rings[int(take1())%len(rings)]
			us, err := r.Collect()
			for patient && err == nil && len(us) == 0 {
				if !r.EnableInterrupts() {
					<-pin
				}
				us, err = r.Collect()
			}
			completed += len(us)
			if err != nil {
				return completed // the program has broken its own books
			}
		}
		var p [4]byte
		tr.Read(status, p[:])
		now := binary.LittleEndian.Uint32(p[:])
		switch now &^ (needsReset | failed) {
		case 0, acknowledge, stateDriver, stateFeatures, stateRunning:
		default:
			t.Fatalf("status %#x behind %#x: none that a driver can reach", now, last)
		}
		last = now
	}
	return completed
}

func fuzzRing(i int) uint64 { return 0x10000 + 0x4000*uint64(i) }

// fuzzSeeds are programs with the requests they complete at the least.
func fuzzSeeds(tb testing.TB) map[string]struct {
	prog []byte
	want int
} {
	var p []byte
	w := func(off uint16, v uint32) {
		p = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(append(p, opWrite), off), v)
	}
	w64 := func(off uint16, v uint64) { w(off, uint32(v)); w(off+4, uint32(v>>32)) }
	r := func(off uint16) { p = binary.LittleEndian.AppendUint16(append(p, opRead), off) }
	mem := virtqtest.NewMemory(tb, 1<<20)
	initialise := func(broken bool) {
		for _, off := range []uint16{magicValue, versionReg, deviceID, vendorID} {
			r(off)
		}
		w(status, 0)
		w(status, acknowledge)
		w(status, stateDriver)
		for i := range uint32(2) {
			w(deviceFeaturesSel, i)
			r(deviceFeatures)
			w(driverFeaturesSel, i)
			w(driverFeatures, uint32((version1|virtq.FeatureEventIdx|virtq.FeatureIndirectDesc)>>(32*i)))
		}
		w(status, stateFeatures)
		for i, n := range []uint16{8, 4} {
			ring, err := virtqtest.NewRing(mem, fuzzRing(i), 0x4000, virtqtest.Options{Size: n})
			if err != nil {
				tb.Fatal(err)
			}
			w(queueSel, uint32(i))
			r(queueNumMax)
			w(queueNum, uint32(n))
			w64(queueDescLow, ring.Cfg.Desc)
			w64(queueDriverLow, ring.Cfg.Avail)
			if broken {
				w64(queueDeviceLow, 1<<63)
			} else {
				w64(queueDeviceLow, ring.Cfg.Used)
			}
			w(queueReady, 1)
			r(queueReady)
		}
		w(status, stateRunning)
		r(configGeneration)
		p = append(p, opWide, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8)
	}
	talk := func() {
		for i := range byte(2) {
			p = append(p, opPost, i, opTake, i)
			r(interruptStatus)
			w(interruptACK, 3)
			p = append(p, opACK)
		}
	}
	all := map[string]struct {
		prog []byte
		want int
	}{}
	done := func(name string, want int) {
		all[name] = struct {
			prog []byte
			want int
		}{p, want}
		p = nil
	}
	initialise(false)
	talk()
	done("request", 2)
	initialise(false)
	talk()
	p = append(p, opPause)
	talk()
	p = append(p, opMove)
	talk()
	done("request, pause, move", 6)
	initialise(false)
	talk()
	w(status, 0)
	done("reset", 2)
	initialise(true)
	w(status, stateRunning)
	p = append(p, opPost, 0)
	w(status, 0)
	done("ring outside RAM", 0)
	initialise(false)
	talk()
	// A descriptor at the first ring's start that leads nowhere, head 0.
	p = append(p, opPoke, 0, 0x10, 15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 1, 0, 9)
	p = append(p, opPost, 0, opPost, 0, opMove, opPause)
	w(queueNotify, 0)
	done("hostile ring", 2)
	for _, order := range [][]uint32{{driverOK, 15, 3, 1}, {1, 3, 3 | driverOK, 0x80, 0}, {1, 3, 11, 15, 11, 3, 1, 0}} {
		for _, v := range order {
			w(status, v)
		}
	}
	w(queueSel, 0xffffffff)
	w(queueNotify, 0xffffffff)
	done("out of order", 0)
	return all
}

func TestFuzzSeedsComplete(t *testing.T) {
	for name, s := range fuzzSeeds(t) {
		if got := play(t, virtqtest.NewMemory(t, 1<<20), s.prog, true); got < s.want {
			t.Errorf("%s: %d requests completed, want %d", name, got, s.want)
		}
	}
}

// FuzzRegisters plays hostile guests against registers, rings and pauses.
func FuzzRegisters(f *testing.F) {
	for _, s := range fuzzSeeds(f) {
		f.Add(s.prog)
	}
	mem := virtqtest.NewMemory(f, 1<<20)
	f.Fuzz(func(t *testing.T, prog []byte) {
		if len(prog) <= 1<<14 {
			play(t, mem, prog, false)
		}
	})
}
