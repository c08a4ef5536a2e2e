package mmio_test

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/mmio"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

func TestIdentity(t *testing.T) {
	g, _ := echoGuest(t, 16, 8)
	for off, want := range map[uint64]uint32{
		magicValue: 0x74726976, versionReg: 2, deviceID: virtqtest.EchoID, vendorID: 0x4c4f4d53,
		status: 0, interruptStatus: 0, queueReady: 0, queueNumMax: 16, configGeneration: 0,
		shmLenLow: 0xffffffff, shmLenHigh: 0xffffffff, shmBase: 0xffffffff, shmBaseH: 0xffffffff,
		// write-only, or not there
		deviceFeaturesSel: 0, driverFeatures: 0, driverFeaturesSel: 0, queueSel: 0, queueNum: 0, queueNotify: 0,
		interruptACK: 0, queueDescLow: 0, queueDescHigh: 0, queueDriverLow: 0, queueDriverHigh: 0,
		queueDeviceLow: 0, queueDeviceHigh: 0, shmSel: 0, queueReset: 0, 0x18: 0, 0xf8: 0, 0xc4: 0,
	} {
		if got := g.r(off); got != want {
			t.Errorf("register %#x reads %#x, want %#x", off, got, want)
		}
	}
	if got := g.offered(); got != version1|virtq.FeatureEventIdx|virtq.FeatureIndirectDesc {
		t.Errorf("features %#x offered", got)
	}
	for _, sel := range []uint32{2, 31, 1 << 31, 0xffffffff} {
		g.w(deviceFeaturesSel, sel)
		g.w(queueSel, sel)
		if g.r(deviceFeatures) != 0 || g.r(queueNumMax) != 0 || g.r(queueReady) != 0 {
			t.Errorf("selectors of %#x find something", sel)
		}
	}
}

// TestAccesses: only aligned words reach registers, and they leave no byte of a
// read as it was.
func TestAccesses(t *testing.T) {
	g, _ := echoGuest(t, 8)
	for _, n := range []int{1, 2, 3, 4, 8} {
		for off := uint64(0); off < config; off++ {
			p := bytes.Repeat([]byte{0xaa}, n)
			g.t.Read(off, p)
			if (off%4 != 0 || n != 4) && !bytes.Equal(p, make([]byte, n)) {
				t.Errorf("%d bytes at %#x read %x", n, off, p)
			}
		}
	}
	g.t.Write(status, []byte{1})
	g.t.Write(status, []byte{1, 0})
	g.t.Write(status, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	g.t.Write(status-1, []byte{0, 1, 0, 0})
	if g.r(status) != 0 {
		t.Errorf("status %#x by accesses that are none", g.r(status))
	}
}

func TestConfigSpace(t *testing.T) {
	g, _ := echoGuest(t, 8)
	g.t.Write(config, []byte{1})
	if g.r(config) != 0 {
		t.Error("configuration was written before DRIVER was set")
	}
	g.upTo(stateDriver)
	g.t.Write(config+1, []byte{1})
	g.t.Write(config+2, []byte{2, 3})
	g.t.Write(config+4, []byte{4, 5, 6, 7})
	p := make([]byte, 8)
	if g.t.Read(config, p); !bytes.Equal(p, []byte{0, 1, 2, 3, 4, 5, 6, 7}) {
		t.Errorf("configuration reads %x", p)
	}
	g.t.Write(config, []byte{9, 9, 9, 9, 9, 9, 9, 9})
	if g.t.Read(config+6, p[:4]); !bytes.Equal(p[:4], []byte{9, 9, 0, 0}) {
		t.Errorf("the end of configuration reads %x", p[:4])
	}
	if g.t.Read(mmio.RegionSize-1, p[:1]); p[0] != 0 {
		t.Errorf("beyond configuration reads %x", p[:1])
	}
}

// TestStatusTable writes every byte in every state and holds the outcome
// against the order of VirtIO 1.2 §3.1.1.
func TestStatusTable(t *testing.T) {
	g, _ := echoGuest(t, 8)
	forward := map[uint32]uint32{
		0: acknowledge, acknowledge: stateDriver, stateDriver: stateFeatures, stateFeatures: stateRunning,
	}
	for _, s := range []uint32{0, acknowledge, stateDriver, stateFeatures, stateRunning} {
		for v := range uint32(256) {
			g.upTo(s)
			if s == stateDriver {
				g.choose(g.offered())
			}
			want := s
			switch {
			case v == 0:
				want = 0
			case v&failed != 0:
				want = s | failed
			case v&^needsReset == forward[s] && forward[s] != 0:
				want = forward[s]
			}
			if g.w(status, v); g.r(status) != want {
				t.Errorf("status %#x, written %#x: %#x, want %#x", s, v, g.r(status), want)
			}
		}
	}
	g.upTo(acknowledge)
	g.w(status, acknowledge|failed)
	if g.w(status, stateDriver); g.r(status) != acknowledge|failed {
		t.Errorf("status %#x: a device given up goes on", g.r(status))
	}
}

func TestFeatures(t *testing.T) {
	for _, c := range []struct {
		name  string
		f     uint64
		extra uint32 // window 2
		ok    bool
	}{
		{"all", version1 | virtq.FeatureEventIdx | virtq.FeatureIndirectDesc, 0, true},
		{"VERSION_1 alone", version1, 0, true},
		{"none", 0, 0, false},
		{"without VERSION_1", virtq.FeatureEventIdx, 0, false},
		{"a low bit not offered", version1 | 1, 0, false},
		{"a high bit not offered", version1 | 1<<40, 0, false},
		{"a bit beyond 64", version1, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := echoGuest(t, 8)
			g.upTo(stateDriver)
			g.choose(c.f)
			g.w(driverFeaturesSel, 2)
			g.w(driverFeatures, c.extra)
			g.w(status, stateFeatures)
			if ok := g.r(status) == stateFeatures; ok != c.ok {
				t.Errorf("status %#x", g.r(status))
			}
		})
	}
	t.Run("before DRIVER", func(t *testing.T) {
		g, _ := echoGuest(t, 8)
		g.upTo(acknowledge)
		g.choose(version1)
		g.w(status, stateDriver)
		if g.w(status, stateFeatures); g.r(status) != stateDriver {
			t.Error("features chosen too early count")
		}
	})
	t.Run("after FEATURES_OK", func(t *testing.T) {
		g, dev := recording(t)
		g.upTo(stateDriver)
		g.choose(version1)
		g.w(status, stateFeatures)
		g.choose(g.offered())
		if g.w(status, stateRunning); dev.a.Features != version1 {
			t.Errorf("features %#x reached the device", dev.a.Features)
		}
	})
}

func TestEcho(t *testing.T) {
	before := runtime.NumGoroutine()
	g, dev := echoGuest(t, 16, 8)
	for round := range 3 {
		g.start()
		for i := range 200 {
			g.echo(i%2, fmt.Sprintf("round %d, request %d", round, i))
		}
		if dev.Served() != 200 {
			t.Errorf("%d served", dev.Served())
		}
	}
	g.w(status, 0)
	if g.r(status) != 0 || g.r(interruptStatus) != 0 || g.r(queueReady) != 0 || g.r(queueNumMax) != 16 {
		t.Error("not everything is reset")
	}
	// A worker that has said it is done may still be on its last instructions.
	for end := time.Now().Add(virtqtest.Patience); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines behind a reset, %d before", runtime.NumGoroutine(), before)
		}
	}
	if err := errors.Join(g.t.Close(), g.t.Close()); err != nil {
		t.Error(err)
	}
	g.w(status, acknowledge)
	g.w(queueNotify, 0)
	if g.r(status) != 0 {
		t.Error("a closed transport goes on")
	}
}

func TestQueueRegisters(t *testing.T) {
	good := virtq.Config{Size: 8, Desc: 0x1000, Avail: 0x2000, Used: 0x3000}
	t.Run("only between DRIVER and DRIVER_OK", func(t *testing.T) {
		for _, s := range []uint32{0, acknowledge, stateRunning} {
			g, _ := echoGuest(t, 8)
			g.upTo(s)
			if g.setQueue(0, good); g.r(queueReady) != 0 || g.r(status) != s {
				t.Errorf("status %#x: a queue was set up, status now %#x", s, g.r(status))
			}
		}
	})
	// NetBSD sets an interface up again in this order (virtio_reinit_start).
	t.Run("before the features", func(t *testing.T) {
		g, dev := recording(t)
		g.upTo(stateDriver)
		g.setQueue(0, good)
		g.setQueue(1, good)
		if g.w(queueReady, 0); g.r(queueReady) != 0 {
			t.Error("QueueReady cannot be cleared")
		}
		g.w(queueSel, 0)
		g.w(queueNum, 4)
		if g.r(queueReady) != 1 || g.r(queueNum) != 0 || g.r(status) != stateDriver {
			t.Errorf("ready %d, status %#x", g.r(queueReady), g.r(status))
		}
		g.choose(version1 | 1<<63)
		if g.w(status, stateFeatures); g.r(status) != stateDriver || g.r(queueReady) != 1 {
			t.Error("refused features are agreed on, or undo a queue")
		}
		g.choose(g.offered())
		g.w(status, stateFeatures)
		g.w(status, stateRunning)
		want := good
		want.EventIdx, want.Indirect = true, true
		if dev.a.Queues[0] == nil || dev.a.Queues[0].Config() != want || dev.a.Queues[1] != nil {
			t.Errorf("the device got %+v", dev.a.Queues)
		}
		g.upTo(stateDriver)
		if g.r(queueReady) != 0 {
			t.Error("a reset leaves a queue ready")
		}
		bad := good
		bad.Size = 6
		g.setQueue(0, bad)
		g.choose(g.offered())
		if g.w(status, stateFeatures); g.r(status) != stateFeatures|needsReset || g.r(queueReady) != 0 || g.t.Fault() == nil {
			t.Errorf("a bad queue: status %#x, ready %d, fault %v", g.r(status), g.r(queueReady), g.t.Fault())
		}
	})
	t.Run("stand still while ready", func(t *testing.T) {
		g, dev := recording(t)
		g.upTo(stateFeatures)
		g.setQueue(0, good)
		g.w(queueNum, 4)
		g.w64(queueDescLow, 0x9000)
		g.w(queueReady, 0)
		if g.r(queueReady) != 0 {
			t.Fatal("QueueReady cannot be cleared")
		}
		g.w(queueReady, 1)
		g.w(status, stateRunning)
		want := good
		want.EventIdx, want.Indirect = true, true
		if got := dev.a.Queues[0].Config(); got != want {
			t.Errorf("the device got %+v", got)
		}
		if len(dev.a.Queues) != 2 || dev.a.Queues[1] != nil || dev.a.Queues[0].Kick != g.t.Doorbell(0) {
			t.Error("activation is not what was agreed on")
		}
		if g.w(queueReady, 0); g.r(queueReady) != 1 {
			t.Error("a running queue was taken away")
		}
	})
	for name, edit := range map[string]func(*virtq.Config){
		"size 0":            func(c *virtq.Config) { c.Size = 0 },
		"size 6":            func(c *virtq.Config) { c.Size = 6 },
		"size over the max": func(c *virtq.Config) { c.Size = 16 },
		"desc misaligned":   func(c *virtq.Config) { c.Desc++ },
		"avail outside":     func(c *virtq.Config) { c.Avail = 1 << 40 },
		"used wraps":        func(c *virtq.Config) { c.Used = 1<<64 - 4 },
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := echoGuest(t, 8)
			g.upTo(stateFeatures)
			c := good
			edit(&c)
			g.setQueue(0, c)
			if g.r(status) != stateFeatures|needsReset || g.r(queueReady) != 0 || g.r(interruptStatus) != 2 || g.raised.Load() != 1 || g.t.Fault() == nil {
				t.Errorf("status %#x, ready %d, interrupt status %d, %d raised, fault %v", g.r(status), g.r(queueReady), g.r(interruptStatus), g.raised.Load(), g.t.Fault())
			}
			if g.w(status, stateRunning); g.r(status) != stateFeatures|needsReset {
				t.Errorf("a broken device starts: %#x", g.r(status))
			}
			g.start()
			g.echo(0, "mended")
		})
	}
	t.Run("size beyond 16 bits", func(t *testing.T) {
		g, _ := echoGuest(t, 8)
		g.upTo(stateFeatures)
		g.w64(queueDescLow, good.Desc)
		g.w64(queueDriverLow, good.Avail)
		g.w64(queueDeviceLow, good.Used)
		g.w(queueNum, 0x10008)
		if g.w(queueReady, 1); g.r(status)&needsReset == 0 {
			t.Error("a size of 65544 was cut to 8")
		}
	})
}

// recorder is a device that keeps its activation and does what a test says.
type recorder struct {
	*virtqtest.Echo
	a        devices.Activation
	activate func(devices.Activation) error
	reset    func()
}

func (r *recorder) Activate(a devices.Activation) error {
	r.a = a
	if r.activate != nil {
		return r.activate(a)
	}
	return nil
}

func (r *recorder) Reset() {
	if r.reset != nil {
		r.reset()
	}
}

func recording(t *testing.T) (*guest, *recorder) {
	dev := &recorder{Echo: virtqtest.NewEcho(8, 8)}
	return newGuest(t, dev, virtqtest.NewMemory(t, 1<<20)), dev
}

func TestActivateFails(t *testing.T) {
	g, dev := recording(t)
	dev.activate = func(devices.Activation) error { return errors.New("no more disks") }
	g.upTo(stateFeatures)
	g.w(status, stateRunning)
	if g.r(status) != stateRunning|needsReset || g.r(interruptStatus) != 2 || g.raised.Load() != 1 {
		t.Errorf("status %#x, interrupt status %d, %d raised", g.r(status), g.r(interruptStatus), g.raised.Load())
	}
	if err := g.t.Fault(); err == nil || !strings.Contains(err.Error(), "no more disks") {
		t.Errorf("fault %v", err)
	}
}

func TestDeviceFault(t *testing.T) {
	g, _ := echoGuest(t, 8)
	g.start()
	g.rings[0].PushHead(77)
	g.rings[0].Kick()
	g.w(queueNotify, 0)
	<-g.pin
	if g.r(status) != stateRunning|needsReset || g.r(interruptStatus)&2 == 0 {
		t.Errorf("status %#x, interrupt status %d", g.r(status), g.r(interruptStatus))
	}
	g.start()
	g.echo(0, "after the reset")
}

// TestResetMeetsInterrupts resets a device whose worker says everything a worker
// can say until the moment it has stopped, and some of it later.
func TestResetMeetsInterrupts(t *testing.T) {
	g, dev := recording(t)
	var wg sync.WaitGroup
	var stop chan struct{}
	dev.activate = func(a devices.Activation) error {
		mine := make(chan struct{})
		stop = mine
		wg.Go(func() {
			for {
				a.Driver.Used()
				a.Driver.ConfigChanged()
				a.Driver.Fault(errors.New("of no matter"))
				select {
				case <-mine:
					return
				default:
				}
			}
		})
		return nil
	}
	dev.reset = func() {
		if stop != nil {
			close(stop)
			stop = nil
		}
		wg.Wait()
	}
	for range 500 {
		g.upTo(stateFeatures)
		g.w(status, stateRunning)
		<-g.pin
		old := dev.a.Driver
		g.w(status, 0)
		old.Used()
		old.ConfigChanged()
		old.Fault(errors.New("too late"))
		if g.r(status) != 0 || g.r(interruptStatus) != 0 {
			t.Fatalf("status %#x, interrupt status %d behind a reset", g.r(status), g.r(interruptStatus))
		}
	}
}

func TestConfigGeneration(t *testing.T) {
	g, dev := recording(t)
	g.upTo(stateRunning)
	before := g.r(configGeneration)
	dev.a.Driver.ConfigChanged()
	if g.r(configGeneration) == before || g.r(interruptStatus) != 2 {
		t.Errorf("generation %d, was %d; interrupt status %d", g.r(configGeneration), before, g.r(interruptStatus))
	}
	g.w(interruptACK, 0xfffffffd)
	if g.r(interruptStatus) != 2 {
		t.Error("an acknowledgement of other bits cleared this one")
	}
	g.w(interruptACK, 2)
	if g.r(interruptStatus) != 0 {
		t.Error("not acknowledged")
	}
}

func TestNewRefusesSizes(t *testing.T) {
	for _, n := range []uint16{0, 3, 65535} {
		if _, err := mmio.New(virtqtest.NewEcho(8, n), virtqtest.NewMemory(t, 1<<20), line(func(bool) {})); err == nil {
			t.Errorf("a queue of %d was taken", n)
		}
	}
}
