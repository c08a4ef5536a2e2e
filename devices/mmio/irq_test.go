package mmio_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices/mmio"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// chip is one level-triggered IOAPIC pin behind a resampling irqfd, in the steps
// that KVM takes (Linux virt/kvm/eventfd.c, arch/x86/kvm/ioapic.c): the line stays
// asserted until the EOI; the EOI first deasserts it, then signals the resamplefd,
// and only then clears remote IRR and looks at the line again.
type chip struct {
	mu        sync.Mutex
	line      bool
	remoteIRR bool
	raises    int

	vector   chan struct{} // to the guest
	resample chan struct{} // an eventfd: signals add up to one
}

func (c *chip) raise() {
	c.mu.Lock()
	c.raises++
	c.line = true
	c.deliver()
	c.mu.Unlock()
	// Whoever raises can lose the processor on its way back.
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
	c.line = false
	c.mu.Unlock()
	runtime.Gosched()
	select {
	case c.resample <- struct{}{}:
	default:
	}
	runtime.Gosched()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remoteIRR = false
	c.deliver()
}

func (c *chip) quiet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.line && !c.remoteIRR && len(c.resample) == 0
}

// TestEOIRace lets two sources interrupt at any moment of the guest's handler
// and of the EOI's way through KVM and monitor. None may be lost: after every
// burst the sources wait until the guest has seen all of it. And it must end:
// behind the last one the pin falls silent.
func TestEOIRace(t *testing.T) {
	c := &chip{vector: make(chan struct{}, 1), resample: make(chan struct{}, 1)}
	dev := &recorder{Echo: virtqtest.NewEcho(8)}
	tr, err := mmio.New(dev, virtqtest.NewMemory(t, 1<<20), c.raise)
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
	wg.Go(func() { // the monitor, at its resamplefd
		for {
			select {
			case <-stop:
				return
			case <-c.resample:
				tr.Resample()
			}
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

// TestResampleCases are the four moments around an EOI, one by one.
func TestResampleCases(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(g *guest, used func())
		raise int64
	}{
		{"acknowledged before the EOI", func(g *guest, used func()) { used(); g.w(interruptACK, 1); g.t.Resample() }, 1},
		{"not acknowledged", func(g *guest, used func()) { used(); g.t.Resample() }, 2},
		{"again between acknowledgement and EOI", func(g *guest, used func()) { used(); g.w(interruptACK, 1); used(); g.t.Resample() }, 3},
		{"again behind everything", func(g *guest, used func()) { used(); g.w(interruptACK, 1); g.t.Resample(); used() }, 2},
		{"twice before the handler", func(g *guest, used func()) { used(); used(); g.w(interruptACK, 1); g.t.Resample() }, 1},
		{"EOI of another device's interrupt", func(g *guest, used func()) { g.t.Resample() }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, dev := recording(t)
			g.upTo(stateRunning)
			c.do(g, dev.a.Driver.Used)
			if n := g.raised.Load(); n != c.raise {
				t.Errorf("raised %d times, want %d", n, c.raise)
			}
		})
	}
}
