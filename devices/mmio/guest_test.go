package mmio_test

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/mmio"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// Registers as a driver's header has them (VirtIO 1.2 §4.2.2, table 4.1),
// written down a second time on purpose.
const (
	magicValue, versionReg, deviceID, vendorID       = 0x00, 0x04, 0x08, 0x0c
	deviceFeatures, deviceFeaturesSel                = 0x10, 0x14
	driverFeatures, driverFeaturesSel                = 0x20, 0x24
	queueSel, queueNumMax, queueNum, queueReady      = 0x30, 0x34, 0x38, 0x44
	queueNotify                                      = 0x50
	interruptStatus, interruptACK                    = 0x60, 0x64
	status                                           = 0x70
	queueDescLow, queueDescHigh                      = 0x80, 0x84
	queueDriverLow, queueDriverHigh                  = 0x90, 0x94
	queueDeviceLow, queueDeviceHigh                  = 0xa0, 0xa4
	shmSel, shmLenLow, shmLenHigh, shmBase, shmBaseH = 0xac, 0xb0, 0xb4, 0xb8, 0xbc
	queueReset                                       = 0xc0
	configGeneration                                 = 0xfc
	config                                           = 0x100
)

const (
	acknowledge, driver, driverOK, featuresOK, needsReset, failed = 1, 2, 4, 8, 64, 128

	version1 = 1 << 32
)

// guest drives a transport as a kernel does, registers and rings.
type guest struct {
	tb     testing.TB
	mem    *guestmem.Memory
	t      *mmio.Transport
	raised atomic.Int64
	pin    chan struct{} // it went high, or is at an EOI, as an event
	level  atomic.Bool
	rings  []*virtqtest.Ring
}

func newGuest(tb testing.TB, dev devices.Virtio, mem *guestmem.Memory) *guest {
	tb.Helper()
	g := &guest{tb: tb, mem: mem, pin: make(chan struct{}, 1)}
	t, err := mmio.New(dev, mem, line(func(high bool) {
		if !g.level.Swap(high) && high {
			g.raised.Add(1)
			g.eoi()
		}
	}))
	if err != nil {
		tb.Fatal(err)
	}
	g.t = t
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	return g
}

// line is a devices.Line.
type line func(high bool)

func (l line) Set(high bool) { l(high) }

// eoi is the end of an interrupt, upon which a level-triggered pin that is still
// high interrupts again.
func (g *guest) eoi() {
	if !g.level.Load() {
		return
	}
	select {
	case g.pin <- struct{}{}:
	default:
	}
}

func (g *guest) r(off uint64) uint32 {
	p := bytes.Repeat([]byte{0xff}, 4)
	g.t.Read(off, p)
	return binary.LittleEndian.Uint32(p)
}

func (g *guest) w(off uint64, v uint32) {
	g.t.Write(off, binary.LittleEndian.AppendUint32(nil, v))
}

func (g *guest) w64(low uint64, v uint64) {
	g.w(low, uint32(v))
	g.w(low+4, uint32(v>>32))
}

func (g *guest) offered() (f uint64) {
	for i := range uint32(2) {
		g.w(deviceFeaturesSel, i)
		f |= uint64(g.r(deviceFeatures)) << (32 * i)
	}
	return f
}

func (g *guest) choose(f uint64) {
	for i := range uint32(2) {
		g.w(driverFeaturesSel, i)
		g.w(driverFeatures, uint32(f>>(32*i)))
	}
}

// upTo leads a device that has been reset through its states until it is in s.
func (g *guest) upTo(s uint32) {
	g.tb.Helper()
	g.w(status, 0)
	for _, next := range []uint32{acknowledge, driver, featuresOK, driverOK} {
		if g.r(status) == s {
			return
		}
		if next == featuresOK {
			g.choose(g.offered())
		}
		g.w(status, g.r(status)|next)
	}
	if g.r(status) != s {
		g.tb.Fatalf("status %#x, led to %#x", g.r(status), s)
	}
}

const (
	stateDriver   = acknowledge | driver
	stateFeatures = stateDriver | featuresOK
	stateRunning  = stateFeatures | driverOK
)

// layRings makes a ring for every queue, from base on, 64 KiB each.
func (g *guest) layRings(base uint64) {
	g.tb.Helper()
	g.rings = nil
	for i := range uint32(g.t.Queues()) {
		g.w(queueSel, i)
		r, err := virtqtest.NewRing(g.mem, base+0x10000*uint64(i), 0x10000, virtqtest.Options{
			Size: uint16(g.r(queueNumMax)), EventIdx: true, Indirect: true,
		})
		if err != nil {
			g.tb.Fatal(err)
		}
		g.rings = append(g.rings, r)
	}
}

func (g *guest) setQueue(i uint32, c virtq.Config) {
	g.w(queueSel, i)
	g.w(queueNum, uint32(c.Size))
	g.w64(queueDescLow, c.Desc)
	g.w64(queueDriverLow, c.Avail)
	g.w64(queueDeviceLow, c.Used)
	g.w(queueReady, 1)
}

// start initialises everything, as VirtIO 1.2 §3.1.1 has it.
func (g *guest) start() {
	g.tb.Helper()
	g.upTo(stateFeatures)
	g.layRings(0x10000)
	for i, r := range g.rings {
		if g.w(queueSel, uint32(i)); g.r(queueReady) != 0 {
			g.tb.Fatalf("queue %d is ready before it was set up", i)
		}
		g.setQueue(uint32(i), r.Cfg)
		if g.r(queueReady) != 1 {
			g.tb.Fatalf("queue %d is not ready: %v", i, g.t.Fault())
		}
	}
	g.w(status, stateRunning)
	if g.r(status) != stateRunning {
		g.tb.Fatalf("status %#x after DRIVER_OK: %v", g.r(status), g.t.Fault())
	}
}

// post sends a request without waiting.
func (g *guest) post(i int, text string) {
	g.tb.Helper()
	if _, err := g.rings[i].Add([][]byte{[]byte(text)}, []uint32{uint32(len(text))}); err != nil {
		g.tb.Fatal(err)
	}
	if g.rings[i].Kick() {
		g.w(queueNotify, uint32(i))
	}
}

// wait takes the next completed requests, by interrupt: handler, EOI.
func (g *guest) wait(i int) []virtqtest.Used {
	g.tb.Helper()
	deadline := time.After(virtqtest.Patience)
	for {
		us, err := g.rings[i].Collect()
		if err != nil {
			g.tb.Fatal(err)
		}
		if len(us) > 0 {
			return us
		}
		if g.rings[i].EnableInterrupts() {
			continue
		}
		select {
		case <-g.pin:
			g.w(interruptACK, g.r(interruptStatus))
			g.eoi()
		case <-deadline:
			g.tb.Fatalf("no interrupt within %v: status %#x, interrupt status %#x, fault %v", virtqtest.Patience, g.r(status), g.r(interruptStatus), g.t.Fault())
		}
	}
}

func (g *guest) echo(i int, text string) {
	g.tb.Helper()
	g.post(i, text)
	if us := g.wait(i); len(us) != 1 || string(us[0].Joined()) != text {
		g.tb.Fatalf("%v came back for %q", us, text)
	}
}

// settle leaves no interrupt behind: a request can be back before the device
// has come to the point of interrupting for it.
func (g *guest) settle() {
	g.tb.Helper()
	if err := g.t.Quiesce(); err != nil {
		g.tb.Fatal(err)
	}
	g.w(interruptACK, 3)
	select {
	case <-g.pin:
	default:
	}
	if err := g.t.Resume(); err != nil {
		g.tb.Fatal(err)
	}
}

func echoGuest(tb testing.TB, sizes ...uint16) (*guest, *virtqtest.Echo) {
	tb.Helper()
	dev := virtqtest.NewEcho(sizes...)
	return newGuest(tb, dev, virtqtest.NewMemory(tb, 1<<20)), dev
}
