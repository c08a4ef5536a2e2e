package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/smaps"
	"github.com/smolvmm/smolvmm/vmm"
)

// diagnose tells what a guest that hangs and its monitor are waiting for: the
// goroutines as they are, then each vCPU's registers, the interrupt controllers
// and the devices, from a state taken of the machine.
func diagnose(m *vmm.Machine) string {
	var b bytes.Buffer
	b.WriteString("\n== goroutines\n")
	_ = pprof.Lookup("goroutine").WriteTo(&b, 2)
	state := make(chan string, 1)
	go func() { state <- stateText(m) }()
	select {
	case s := <-state:
		b.WriteString(s)
	case <-time.After(10 * time.Second):
		b.WriteString("== the machine does not pause\n")
	}
	return b.String()
}

func stateText(m *vmm.Machine) string {
	if err := m.Pause(); err != nil {
		return fmt.Sprintf("== no state: %v\n", err)
	}
	s, err := m.Snapshot()
	if err != nil {
		return fmt.Sprintf("== no state: %v\n", err)
	}
	defer s.Close()
	var b strings.Builder
	b.WriteString("== state\n")
	for _, c := range s.CPUs {
		fmt.Fprintf(&b, "vCPU %d: mp_state=%v rip=%#x rflags=%#x rsp=%#x cr2=%#x cr3=%#x\n", c.ID, c.MPState, c.Regs.RIP, c.Regs.RFLAGS, c.Regs.RSP, c.Sregs.CR2, c.Sregs.CR3)
		reg := func(off int) uint32 { return binary.LittleEndian.Uint32(c.LAPIC.Regs[off:]) }
		// Intel SDM vol. 3A, table 11-1.
		fmt.Fprintf(&b, "  lapic: tpr=%#x lvt timer=%#x initial=%d current=%d", reg(0x80), reg(0x320), reg(0x380), reg(0x390))
		for i := range 8 {
			if isr, irr := reg(0x100+16*i), reg(0x200+16*i); isr|irr != 0 {
				fmt.Fprintf(&b, " isr%d=%#x irr%d=%#x", i, isr, i, irr)
			}
		}
		b.WriteByte('\n')
	}
	const ioapic = 2 // struct kvm_ioapic_state: base, select, id, irr, pad, then 24 entries
	chip := s.IRQChips[ioapic].Chip[:]
	fmt.Fprintf(&b, "ioapic: irr=%#x", binary.LittleEndian.Uint32(chip[16:]))
	for pin := range 24 {
		if e := binary.LittleEndian.Uint64(chip[24+8*pin:]); e&(1<<16) == 0 {
			fmt.Fprintf(&b, " %d:%#x", pin, e)
		}
	}
	b.WriteByte('\n')
	for name, d := range s.Devices {
		fmt.Fprintf(&b, "%s: %s\n", name, d)
	}
	return b.String()
}

// leftovers are what a boot must give back.
type leftovers struct {
	files, goroutines, threads, children int
	rss                                  uint64 // bytes
}

// maxGrowth is how much this process may grow over all boots, in bytes: the
// runtime's own affairs, and none of a guest's 64 MiB.
const maxGrowth = 48 << 20

// lookForLeftovers counts, and compares with before where there is a before. A
// goroutine that has given back what it had may not have been reaped yet.
func lookForLeftovers(before leftovers, compare bool) (now leftovers, err error) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		now.goroutines = runtime.NumGoroutine()
		if !compare || now.goroutines <= before.goroutines || time.Now().After(deadline) {
			break
		}
		runtime.Gosched()
	}
	for dir, n := range map[string]*int{"/proc/self/fd": &now.files, "/proc/self/task": &now.threads} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return now, err
		}
		*n = len(entries)
	}
	if now.children, err = children(); err != nil {
		return now, err
	}
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return now, err
	}
	if f := strings.Fields(string(statm)); len(f) > 1 {
		pages, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return now, err
		}
		now.rss = pages * uint64(os.Getpagesize())
	}
	var errs []error
	if now.children != 0 {
		errs = append(errs, fmt.Errorf("%d processes", now.children))
	}
	if _, err := smaps.Read(os.Getpid(), smaps.Smolvmm); err == nil {
		errs = append(errs, errors.New("guest RAM is still mapped"))
	}
	if compare {
		if now.files > before.files {
			errs = append(errs, fmt.Errorf("%d open files, %d before", now.files, before.files))
		}
		if now.goroutines > before.goroutines {
			var b bytes.Buffer
			_ = pprof.Lookup("goroutine").WriteTo(&b, 2)
			errs = append(errs, fmt.Errorf("%d goroutines, %d before:\n%s", now.goroutines, before.goroutines, b.String()))
		}
		if now.rss > before.rss+maxGrowth {
			errs = append(errs, fmt.Errorf("%d KiB resident, %d before", now.rss>>10, before.rss>>10))
		}
	}
	return now, errors.Join(errs...)
}

// children counts this process's children, zombies among them.
func children() (n int, err error) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		n += len(strings.Fields(string(b)))
	}
	return n, err
}
