// Package cpu is a virtual CPU: what it shows the guest (CPUID), the state in
// which it enters a kernel, its run loop and how that is interrupted, and the
// state that moves it to another machine.
package cpu

import (
	"errors"
	"fmt"

	"github.com/smolvmm/smolvmm/pvh"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// Control register and flag bits (Intel SDM vol. 3A §2.5, vol. 1 §3.4.3).
const (
	cr0PE = 1 << 0
	cr0ET = 1 << 4
	cr0PG = 1 << 31

	cr4PAE  = 1 << 5
	cr4PCID = 1 << 17

	eferLME = 1 << 8
	eferLMA = 1 << 10

	flagsFixed = 1 << 1
	flagsVM    = 1 << 17
)

// Entry is the state in which the boot processor enters a kernel: base, its
// state after reset, whose APIC base and the like stay, under the registers
// that the boot protocol wants.
func Entry(base kvm.Sregs, r pvh.Regs) (kvm.Regs, kvm.Sregs) {
	s := base
	for _, seg := range []struct {
		to   *kvm.Segment
		from pvh.Segment
	}{
		{&s.CS, r.CS}, {&s.DS, r.DS}, {&s.ES, r.ES}, {&s.FS, r.FS}, {&s.GS, r.GS}, {&s.SS, r.SS},
		{&s.TR, r.TR}, {&s.LDT, r.LDT},
	} {
		f := seg.from
		*seg.to = kvm.Segment{
			Base: f.Base, Limit: f.Limit, Selector: f.Selector, Type: f.Type, Present: bit(f.Present), DPL: f.DPL,
			DB: bit(f.DB), S: bit(f.S), L: bit(f.L), G: bit(f.G), Unusable: bit(f.Unusable),
		}
	}
	s.GDT = kvm.DTable{Base: r.GDT.Base, Limit: r.GDT.Limit}
	s.IDT = kvm.DTable{Base: r.IDT.Base, Limit: r.IDT.Limit}
	s.CR0, s.CR2, s.CR3, s.CR4, s.EFER = r.CR0, 0, r.CR3, r.CR4, r.EFER
	return kvm.Regs{RIP: r.RIP, RBX: r.RBX, RFLAGS: r.RFLAGS}, s
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// What firmware would have left in two MSRs (Intel SDM vol. 4): memory is
// write-back wherever no MTRR says otherwise, and string instructions are fast.
// Without them Linux takes its caches for disabled and drops REP MOVSB.
const (
	msrMiscEnable  = 0x1a0
	miscFastString = 1 << 0
	msrMTRRDefType = 0x2ff
	mtrrEnabledWB  = 1<<11 | 6
)

// SetMSRs puts them into a fresh vCPU. A KVM without one of them (AMD has no
// MISC_ENABLE) refuses it, and the guest is none the worse.
func SetMSRs(c *kvm.VCPU) {
	_ = c.SetMSRs([]kvm.MSREntry{{Index: msrMTRRDefType, Data: mtrrEnabledWB}})
	if old, err := c.MSRs([]uint32{msrMiscEnable}); err == nil && len(old) == 1 {
		_ = c.SetMSRs([]kvm.MSREntry{{Index: msrMiscEnable, Data: old[0].Data | miscFastString}})
	}
}

// CheckEntry holds a state against the checks that VT-x makes of guest state on
// VM entry (Intel SDM vol. 3C §27.3.1). AMD's SVM and software KVMs let most of
// these pass, so a state that only ever ran there proves nothing.
func CheckEntry(r kvm.Regs, s kvm.Sregs) error {
	var errs []error
	bad := func(cond bool, format string, args ...any) {
		if cond {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	long := s.EFER&eferLMA != 0

	// §27.3.1.1 Checks on guest control registers, debug registers and MSRs.
	bad(s.CR0&cr0PG != 0 && s.CR0&cr0PE == 0, "CR0.PG without CR0.PE")
	bad(long && (s.CR0&cr0PG == 0 || s.CR4&cr4PAE == 0), "IA-32e mode without paging or CR4.PAE")
	bad(!long && s.CR4&cr4PCID != 0, "CR4.PCIDE outside IA-32e mode")
	bad(long != (s.EFER&eferLME != 0 && s.CR0&cr0PG != 0), "EFER.LMA is not EFER.LME and CR0.PG")
	bad(s.CR3>>52 != 0, "CR3 %#x beyond the physical address width", s.CR3)

	// §27.3.1.2 Checks on guest segment registers (unrestricted guest, not virtual-8086).
	bad(s.CS.Unusable != 0, "CS is unusable")
	bad(s.CS.Type != 3 && s.CS.Type&0b1001 != 0b1001, "CS type %d is not accessed code", s.CS.Type)
	bad(s.CS.Type&0b1100 == 0b1000 && s.CS.DPL != s.SS.DPL, "CS.DPL %d is not SS.DPL %d", s.CS.DPL, s.SS.DPL)
	bad(long && s.CS.L != 0 && s.CS.DB != 0, "CS.L and CS.D together")
	bad(s.SS.Unusable == 0 && s.SS.Type != 3 && s.SS.Type != 7, "SS type %d is not accessed read/write data", s.SS.Type)
	bad(s.SS.DPL != uint8(s.SS.Selector&3), "SS.DPL %d is not the selector's RPL", s.SS.DPL)
	bad(s.SS.Selector&3 != s.CS.Selector&3, "SS.RPL is not CS.RPL")
	for _, g := range []struct {
		name string
		seg  kvm.Segment
	}{{"CS", s.CS}, {"SS", s.SS}, {"DS", s.DS}, {"ES", s.ES}, {"FS", s.FS}, {"GS", s.GS}} {
		if g.seg.Unusable != 0 {
			continue
		}
		bad(g.seg.S != 1, "%s is a system segment", g.name)
		bad(g.seg.Present != 1, "%s is not present", g.name)
		bad(g.seg.Type&1 == 0, "%s type %d is not accessed", g.name, g.seg.Type)
		bad(g.seg.Type&0b1010 == 0b1000, "%s is unreadable code", g.name)
		bad(g.seg.Base>>32 != 0, "%s base %#x above 4 GiB", g.name, g.seg.Base)
		granularity(bad, g.name, g.seg)
	}
	bad(s.TR.Unusable != 0, "TR is unusable")
	bad(s.TR.Type != 11 && (long || s.TR.Type != 3), "TR type %d is not a busy TSS", s.TR.Type)
	bad(s.TR.S != 0 || s.TR.Present != 1, "TR is not a present system segment")
	bad(s.TR.Selector&4 != 0, "TR selector %#x points into the LDT", s.TR.Selector)
	granularity(bad, "TR", s.TR)
	if s.LDT.Unusable == 0 {
		bad(s.LDT.Type != 2 || s.LDT.S != 0 || s.LDT.Present != 1, "LDTR is neither unusable nor a present LDT")
		bad(s.LDT.Selector&4 != 0, "LDTR selector %#x points into the LDT", s.LDT.Selector)
		granularity(bad, "LDTR", s.LDT)
	}

	// §27.3.1.3 Checks on guest descriptor-table registers.
	bad(!canonical(s.GDT.Base) || !canonical(s.IDT.Base), "GDTR or IDTR base is not canonical")

	// §27.3.1.4 Checks on guest RIP, RFLAGS and SSP.
	bad((!long || s.CS.L == 0) && r.RIP>>32 != 0, "RIP %#x above 4 GiB outside 64-bit mode", r.RIP)
	const reservedFlags = 0xffff_ffff_ffc0_8028
	bad(r.RFLAGS&reservedFlags != 0, "RFLAGS %#x has reserved bits", r.RFLAGS)
	bad(r.RFLAGS&flagsFixed == 0, "RFLAGS bit 1 is clear")
	bad(r.RFLAGS&flagsVM != 0 && (long || s.CR0&cr0PE == 0), "RFLAGS.VM in the wrong mode")
	return errors.Join(errs...)
}

// granularity holds limit and G against each other: a limit whose low 12 bits
// are not all ones needs G = 0, one above 1 MiB needs G = 1.
func granularity(bad func(bool, string, ...any), name string, g kvm.Segment) {
	bad(g.G == 1 && g.Limit&0xfff != 0xfff, "%s limit %#x with page granularity", name, g.Limit)
	bad(g.G == 0 && g.Limit>>20 != 0, "%s limit %#x with byte granularity", name, g.Limit)
}

func canonical(a uint64) bool { return int64(a<<16)>>16 == int64(a) }
