package mmio_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/mmio"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// chip is one level-triggered IOAPIC pin behind KVM_IRQ_LINE, in the steps that KVM
// takes (Linux arch/x86/kvm/ioapic.c): an interrupt is delivered when the line is high
// and none awaits its EOI, which looks at the line again.
type chip struct {
	mu        sync.Mutex
	line      bool
	remoteIRR bool
	raises    int

	vector chan struct{} // to the guest
}

func (c *chip) Set(high bool) {
	c.mu.Lock()
	if high && !c.line {
		c.raises++
	}
	c.line = high
	c.deliver()
	c.mu.Unlock()
	// Whoever sets it can lose the processor on its way back.
	runtime.Gosched()
}

// deliver injects if it may; the caller holds mu.
func (c *chip) deliver() {
	if c.line && !c.remoteIRR {
		c.remoteIRR = true
		c.vector <- struct{}{} // room for one, and only one is on its way
	}
}

func (c *chip) eoi() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remoteIRR = false
	c.deliver()
}

func (c *chip) quiet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.line && !c.remoteIRR
}

// TestEOIRace lets two sources interrupt at any moment of the guest's handler
// and of the EOI. None may be lost: after every
// burst the sources wait until the guest has seen all of it. And it must end:
// behind the last one the pin falls silent.
func TestEOIRace(t *testing.T) {
	c := &chip{vector: make(chan struct{}, 1)}
	dev := &recorder{Echo: virtqtest.NewEcho(8)}
	tr, err := mmio.New(dev, virtqtest.NewMemory(t, 1<<20), c)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	g := &guest{tb: t, t: tr}
	g.upTo(stateRunning)

	var made, seen [2]atomic.Int64 // by source: used buffers, configuration
	var spurious, handled atomic.Int64
	stop := make(chan struct{})
	progress := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { // the guest
		for {
			select {
			case <-stop:
				return
			case <-c.vector:
			}
			// As Linux does it: read, acknowledge, then look.
			s := g.r(interruptStatus)
			if s == 0 {
				spurious.Add(1)
			}
			g.w(interruptACK, s)
			handled.Add(1)
			for i := range seen {
				if s&(1<<i) != 0 {
					seen[i].Store(made[i].Load())
				}
			}
			select {
			case progress <- struct{}{}:
			default:
			}
			c.eoi()
		}
	})
	defer wg.Wait()
	defer close(stop)

	rounds := 20_000
	if testing.Short() {
		rounds = 2_000
	}
	deadline := time.After(3 * virtqtest.Patience)
	for n := range rounds {
		var sources sync.WaitGroup
		for i, tell := range []func(){dev.a.Driver.Used, dev.a.Driver.ConfigChanged} {
			sources.Go(func() {
				for range 1 + (n+i)%3 {
					made[i].Add(1)
					tell()
				}
			})
		}
		sources.Wait()
		for seen[0].Load() != made[0].Load() || seen[1].Load() != made[1].Load() {
			select {
			case <-progress:
			case <-deadline:
				t.Fatalf("round %d: %d and %d made, %d and %d seen; interrupt status %d, line %v, remote IRR %v", n,
					made[0].Load(), made[1].Load(), seen[0].Load(), seen[1].Load(), g.r(interruptStatus), c.line, c.remoteIRR)
			}
		}
	}
	for !c.quiet() {
		select {
		case <-deadline:
			t.Fatal("the pin does not fall silent")
		default:
			runtime.Gosched()
		}
	}
	events := made[0].Load() + made[1].Load()
	t.Logf("%d events, %d raises, %d handler runs, %d of them for nothing", events, c.raises, handled.Load(), spurious.Load())
	if int64(c.raises) > 2*events || spurious.Load() > events {
		t.Errorf("%d raises and %d idle handler runs for %d events", c.raises, spurious.Load(), events)
	}
}

// TestPinCases: the pin is high exactly while InterruptStatus has a bit.
func TestPinCases(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(g *guest, a *devices.Activation)
		high  bool
		rises int64
	}{
		{"nothing has happened", func(*guest, *devices.Activation) {}, false, 0},
		{"used", func(_ *guest, a *devices.Activation) { a.Driver.Used() }, true, 1},
		{"twice before the handler", func(_ *guest, a *devices.Activation) { a.Driver.Used(); a.Driver.Used() }, true, 1},
		{"acknowledged", func(g *guest, a *devices.Activation) { a.Driver.Used(); g.w(interruptACK, 1) }, false, 1},
		{"another bit acknowledged", func(g *guest, a *devices.Activation) { a.Driver.Used(); g.w(interruptACK, 2) }, true, 1},
		{"one of two acknowledged", func(g *guest, a *devices.Activation) {
			a.Driver.Used()
			a.Driver.ConfigChanged()
			g.w(interruptACK, 1)
		}, true, 1},
		{"acknowledged for nothing", func(g *guest, _ *devices.Activation) { g.w(interruptACK, 3) }, false, 0},
		{"again behind the acknowledgement", func(g *guest, a *devices.Activation) {
			a.Driver.Used()
			g.w(interruptACK, 1)
			a.Driver.Used()
		}, true, 2},
		{"reset", func(g *guest, a *devices.Activation) { a.Driver.Used(); g.w(status, 0) }, false, 1},
		{"told of behind a reset", func(g *guest, a *devices.Activation) { g.w(status, 0); a.Driver.Used() }, false, 0},
		{"closed", func(g *guest, a *devices.Activation) {
			a.Driver.Used()
			if err := g.t.Close(); err != nil {
				t.Error(err)
			}
		}, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, dev := recording(t)
			g.upTo(stateRunning)
			c.do(g, &dev.a)
			if n := g.raised.Load(); g.level.Load() != c.high || n != c.rises {
				t.Errorf("the pin is high: %v, and went high %d times, want %v and %d", g.level.Load(), n, c.high, c.rises)
			}
		})
	}
}
