package vmm_test

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
)

var moves = flag.Int("moves", 10, "how many times TestMoves moves each guest")

// guest is a machine under way whose end a waiting test hears of.
type guest struct {
	m    *vmm.Machine
	out  *console
	exit chan vmm.Exit
}

// launch runs m. Whatever ends it wakes those who wait for its console.
func launch(t *testing.T, m *vmm.Machine, out *console) *guest {
	t.Helper()
	g := &guest{m: m, out: out, exit: make(chan vmm.Exit, 1)}
	go func() {
		e, err := m.Run(context.Background())
		if err != nil {
			e.Detail = "host: " + err.Error()
		}
		if e.End != vmm.EndStopped || err != nil {
			fmt.Fprintf(out, "\nthe machine ended: %v\n%s\n", e, e.Registers)
		}
		g.exit <- e
		if e.End != vmm.EndStopped || err != nil {
			out.end()
		}
	}()
	return g
}

// clocks are what a guest's clocks showed at a time of the host's.
type clocks struct {
	at   time.Time
	took time.Duration // over reading them, at most
	tsc  []uint64      // of each vCPU
	kvm  uint64        // kvmclock, ns
	rate uint32        // TSC kHz
}

// msrTSC is IA32_TIME_STAMP_COUNTER (Intel SDM vol. 4, table 2-2).
const msrTSC = 0x10

func clocksOf(t *testing.T, s *vmm.State, began time.Time) clocks {
	t.Helper()
	c := clocks{at: time.Now(), took: time.Since(began), kvm: s.Clock}
	for _, v := range s.CPUs {
		c.rate = v.TSCKHz
		for _, m := range v.MSRs {
			if m.Index == msrTSC {
				c.tsc = append(c.tsc, m.Data)
			}
		}
	}
	if len(c.tsc) != len(s.CPUs) || c.rate == 0 {
		t.Fatalf("a state without TSCs: %d of %d, %d kHz", len(c.tsc), len(s.CPUs), c.rate)
	}
	return c
}

// TestMoves carries a guest through many machines, each made from the last
// one's state: it goes on counting under its timer, writes its disk and reads it
// back, and its clocks neither stop, go back, nor run ahead.
func TestMoves(t *testing.T) {
	for _, cpus := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) {
			cfg, out := demoConfig(t, "count,every=16")
			cfg.CPUs = cpus
			cfg.Disks = []vmm.Disk{{Path: scratch(t, 16<<20)}}
			m, err := vmm.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { m.Close() }()
			const progress = `demo: count n=\d+ ticks=\d+\n`
			g := launch(t, m, out)
			at := out.wait(t, progress, 0)
			var last clocks
			var slowest time.Duration
			for i := range *moves {
				began := time.Now()
				if err := m.Pause(); err != nil {
					t.Fatalf("move %d: %v\n%s", i, err, out)
				}
				s, err := m.Snapshot()
				if err != nil {
					t.Fatalf("move %d: %v", i, err)
				}
				now := clocksOf(t, s, began)
				checkInterrupts(t, s)
				if i > 0 {
					compareClocks(t, i, last, now)
				}
				last = now
				if err := m.Close(); err != nil {
					t.Fatalf("move %d: %v", i, err)
				}
				if e := <-g.exit; e.End != vmm.EndStopped {
					t.Fatalf("move %d: %+v", i, e)
				}
				at = len(out.String())
				if m, err = vmm.Restore(cfg, s); err != nil {
					t.Fatalf("move %d: %v", i, err)
				}
				if err := s.Close(); err != nil {
					t.Fatalf("move %d: %v", i, err)
				}
				g = launch(t, m, out)
				if err := m.Resume(); err != nil {
					t.Fatalf("move %d: %v", i, err)
				}
				slowest = max(slowest, time.Since(began))
				at = out.wait(t, progress, at)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			<-g.exit
			checkCounts(t, out.String())
			t.Logf("%d moves, the slowest %v from pause to resume", *moves, slowest.Round(time.Millisecond/10))
		})
	}
}

// checkInterrupts looks for a pin that waits for an EOI which no processor will
// give: Remote IRR set (82093AA datasheet §3.2.4), and its vector neither
// requested nor in service anywhere. Such a pin never interrupts again.
func checkInterrupts(t *testing.T, s *vmm.State) {
	t.Helper()
	const ioapic, redirection, pins, remoteIRR = 2, 24, 24, 1 << 14 // struct kvm_ioapic_state, linux/kvm.h
	const isr, irr = 0x100, 0x200                                   // of the local APIC's registers
	for pin := range pins {
		entry := binary.LittleEndian.Uint64(s.IRQChips[ioapic].Chip[redirection+8*pin:])
		if entry&remoteIRR == 0 {
			continue
		}
		vector := int(entry & 0xff)
		known := false
		for _, c := range s.CPUs {
			at := vector/32*16 + vector%32/8
			known = known || (c.LAPIC.Regs[isr+at]|c.LAPIC.Regs[irr+at])>>(vector%8)&1 != 0
		}
		if !known {
			t.Errorf("pin %d (%#x) waits for the EOI of vector %#x, which no processor has", pin, entry, vector)
		}
	}
}

// compareClocks holds what the guest's clocks made of the time between two
// moves against the host's: never back, never more than passed, and one TSC for
// all vCPUs. What passes while a guest is nowhere may or may not count.
func compareClocks(t *testing.T, move int, a, b clocks) {
	t.Helper()
	passed := b.at.Sub(a.at)
	if d := time.Duration(b.kvm - a.kvm); b.kvm <= a.kvm || d > passed+a.took {
		t.Errorf("move %d: kvmclock went from %d to %d ns while %v passed", move, a.kvm, b.kvm, passed)
	}
	for i := range b.tsc {
		if apart := time.Duration(float64(int64(b.tsc[i]-b.tsc[0])) / float64(b.rate) * 1e6); apart.Abs() > b.took {
			t.Errorf("move %d: vCPU %d's TSC is %v from vCPU 0's, read within %v", move, i, apart, b.took)
		}
		d := time.Duration(float64(b.tsc[i]-a.tsc[i]) / float64(b.rate) * 1e6)
		if b.tsc[i] <= a.tsc[i] || d > passed+a.took {
			t.Errorf("move %d: vCPU %d's TSC went from %d to %d (%v at %d kHz) while %v passed", move, i, a.tsc[i], b.tsc[i], d, b.rate, passed)
		}
	}
}

// checkCounts holds the guest's report against itself: its count and its timer
// ticks never go back, and no check of its own failed.
func checkCounts(t *testing.T, out string) {
	t.Helper()
	var lastN, lastTicks uint64
	for _, f := range regexp.MustCompile(`demo: count n=(\d+) ticks=(\d+)`).FindAllStringSubmatch(out, -1) {
		n, _ := strconv.ParseUint(f[1], 10, 64)
		ticks, _ := strconv.ParseUint(f[2], 10, 64)
		if n != lastN+16 || ticks < lastTicks {
			t.Errorf("n=%d ticks=%d after n=%d ticks=%d", n, ticks, lastN, lastTicks)
		}
		lastN, lastTicks = n, ticks
	}
	if lastN == 0 || lastTicks == 0 || strings.Contains(out, "FAIL") || strings.Contains(out, "machine ended") {
		t.Errorf("n=%d ticks=%d:\n%s", lastN, lastTicks, out)
	}
}
