package cpu

import (
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/pvh"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// TestPVHEntryPassesVMEntry: the state that a kernel is entered in passes the
// checks VT-x makes, and each check can fail.
func TestPVHEntryPassesVMEntry(t *testing.T) {
	r, s := Entry(kvm.Sregs{APICBase: 0xfee00900}, (&pvh.Entry{EIP: 0x200000, StartInfo: 0x1000}).Regs())
	if err := CheckEntry(r, s); err != nil {
		t.Fatal(err)
	}
	if s.APICBase != 0xfee00900 {
		t.Error("the APIC base was lost")
	}
	if r.RIP != 0x200000 || r.RBX != 0x1000 {
		t.Errorf("rip %#x rbx %#x", r.RIP, r.RBX)
	}
	for _, c := range []struct {
		name string
		bend func(r *kvm.Regs, s *kvm.Sregs)
		want string
	}{
		{"paging without protection", func(_ *kvm.Regs, s *kvm.Sregs) { s.CR0 = cr0PG }, "CR0.PG without"},
		{"LMA alone", func(_ *kvm.Regs, s *kvm.Sregs) { s.EFER = eferLMA }, "IA-32e mode without"},
		{"LME+PG without LMA", func(_ *kvm.Regs, s *kvm.Sregs) { s.EFER = eferLME; s.CR0 |= cr0PG }, "EFER.LMA"},
		{"PCIDE in 32-bit", func(_ *kvm.Regs, s *kvm.Sregs) { s.CR4 = cr4PCID }, "PCIDE"},
		{"CR3 too wide", func(_ *kvm.Regs, s *kvm.Sregs) { s.CR3 = 1 << 52 }, "CR3"},
		{"CS not accessed", func(_ *kvm.Regs, s *kvm.Sregs) { s.CS.Type = 0xa }, "CS type 10"},
		{"CS is data", func(_ *kvm.Regs, s *kvm.Sregs) { s.CS.Type = 7 }, "CS type 7"},
		{"CS at another level", func(_ *kvm.Regs, s *kvm.Sregs) { s.CS.DPL = 3 }, "CS.DPL"},
		{"CS unusable", func(_ *kvm.Regs, s *kvm.Sregs) { s.CS.Unusable = 1 }, "CS is unusable"},
		{"SS read-only", func(_ *kvm.Regs, s *kvm.Sregs) { s.SS.Type = 1 }, "SS type 1"},
		{"SS level", func(_ *kvm.Regs, s *kvm.Sregs) { s.SS.DPL = 3 }, "SS.DPL"},
		{"DS not accessed", func(_ *kvm.Regs, s *kvm.Sregs) { s.DS.Type = 2 }, "DS type 2"},
		{"ES absent", func(_ *kvm.Regs, s *kvm.Sregs) { s.ES.Present = 0 }, "ES is not present"},
		{"FS system", func(_ *kvm.Regs, s *kvm.Sregs) { s.FS.S = 0 }, "FS is a system"},
		{"GS limit and G", func(_ *kvm.Regs, s *kvm.Sregs) { s.GS.G = 0 }, "GS limit"},
		{"DS high base", func(_ *kvm.Regs, s *kvm.Sregs) { s.DS.Base = 1 << 32 }, "DS base"},
		{"TR available", func(_ *kvm.Regs, s *kvm.Sregs) { s.TR.Type = 9 }, "TR type 9"},
		{"TR absent", func(_ *kvm.Regs, s *kvm.Sregs) { s.TR.Present = 0 }, "TR is not"},
		{"TR unusable", func(_ *kvm.Regs, s *kvm.Sregs) { s.TR.Unusable = 1 }, "TR is unusable"},
		{"TR in LDT", func(_ *kvm.Regs, s *kvm.Sregs) { s.TR.Selector = 0x1c }, "TR selector"},
		{"TR limit with pages", func(_ *kvm.Regs, s *kvm.Sregs) { s.TR.G = 1 }, "TR limit"},
		{"LDT of another kind", func(_ *kvm.Regs, s *kvm.Sregs) { s.LDT.Unusable = 0 }, "LDTR"},
		{"GDT base", func(_ *kvm.Regs, s *kvm.Sregs) { s.GDT.Base = 1 << 63 }, "GDTR"},
		{"high RIP", func(r *kvm.Regs, _ *kvm.Sregs) { r.RIP = 1 << 32 }, "RIP"},
		{"flags bit 1", func(r *kvm.Regs, _ *kvm.Sregs) { r.RFLAGS = 0 }, "bit 1 is clear"},
		{"flags reserved", func(r *kvm.Regs, _ *kvm.Sregs) { r.RFLAGS |= 1 << 3 }, "reserved bits"},
		{"VM86 in real mode", func(r *kvm.Regs, s *kvm.Sregs) { r.RFLAGS |= flagsVM; s.CR0 = cr0ET }, "RFLAGS.VM"},
	} {
		br, bs := r, s
		c.bend(&br, &bs)
		if err := CheckEntry(br, bs); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// hostLeaves is a small host: every leaf that Build touches.
func hostLeaves() []kvm.CPUIDEntry {
	full := ^uint32(0)
	return []kvm.CPUIDEntry{
		{Function: 0, EAX: 0x16},
		{Function: 1, EAX: 0x806f8, EBX: 0xff10_0800, ECX: 0x7ffa_3203 | 1<<5 | 1<<28 | 1<<12 | 1<<29, EDX: 0x0f8b_fbff},
		{Function: 4, Index: 0, Flags: kvm.CPUIDSignificantIndex, EAX: 0xfc00_4121},
		{Function: 4, Index: 3, Flags: kvm.CPUIDSignificantIndex, EAX: 0xfc1f_c163},
		{Function: 4, Index: 4, Flags: kvm.CPUIDSignificantIndex},
		{Function: 7, Index: 0, Flags: kvm.CPUIDSignificantIndex, EBX: full, ECX: full, EDX: full},
		{Function: 7, Index: 1, Flags: kvm.CPUIDSignificantIndex, EAX: full},
		{Function: 0xb, Index: 0, Flags: kvm.CPUIDSignificantIndex, EDX: 77},
		{Function: 0xd, Index: 0, Flags: kvm.CPUIDSignificantIndex, EAX: 7},
		{Function: 0xd, Index: 1, Flags: kvm.CPUIDSignificantIndex, EAX: 0xf},
		{Function: 0x15, EAX: 2, EBX: 100, ECX: 25_000_000},
		{Function: 0x16, EAX: 2000},
		{Function: 0x1f, Index: 0, Flags: kvm.CPUIDSignificantIndex, EDX: 77},
		{Function: 0x4000_0000, EAX: 0x4000_0001, EBX: 0x4b4d564b, ECX: 0x564b4d56, EDX: 0x4d},
		{Function: 0x4000_0001, EAX: 0x0100_7efb},
		{Function: 0x8000_0000, EAX: 0x8000_001e},
		{Function: 0x8000_0001, ECX: full, EDX: full},
		{Function: 0x8000_0002, EAX: full}, {Function: 0x8000_0003, EAX: full}, {Function: 0x8000_0004, EAX: full},
		{Function: 0x8000_0007},
		{Function: 0x8000_0008, EAX: 0x3030, ECX: 0x7007},
		{Function: 0x8000_001d, Index: 3, Flags: kvm.CPUIDSignificantIndex, EAX: 0x3c163},
		{Function: 0x8000_001e, EAX: 9, EBX: 9, ECX: 9},
		{Function: 0x8000_0026, Index: 0, Flags: kvm.CPUIDSignificantIndex, EDX: 9},
	}
}

func build(t *testing.T, template string, id, n int) []kvm.CPUIDEntry {
	t.Helper()
	tm, err := ParseTemplate(template)
	if err != nil {
		t.Fatal(err)
	}
	return Build(Host{Supported: hostLeaves(), TSCKHz: 2_000_000, InvariantTSC: true}, tm, id, n)
}

func leaf(t *testing.T, es []kvm.CPUIDEntry, f, i uint32) kvm.CPUIDEntry {
	t.Helper()
	e := find(es, f, i)
	if e == nil {
		t.Fatalf("leaf %#x.%d is missing", f, i)
	}
	return *e
}

func TestBuildHost(t *testing.T) {
	es := build(t, "host", 3, 6)
	if e := leaf(t, es, 0x4000_0000, 0); e.EAX != 0x4000_0010 || e.EBX != 0x4b4d564b {
		t.Errorf("hypervisor leaf %+v", e)
	}
	if e := leaf(t, es, 0x4000_0010, 0); e.EAX != 2_000_000 || e.EBX != APICBusKHz {
		t.Errorf("timing leaf %+v", e)
	}
	if e := leaf(t, es, 1, 0); e.EBX != 0x0306_0800 || e.ECX>>31 != 1 || e.EDX>>28&1 != 1 {
		t.Errorf("leaf 1 %+v", e)
	}
	if v, s := leaf(t, es, 1, 0).ECX>>5&1, leaf(t, es, 0x8000_0001, 0).ECX>>2&1; v|s != 0 {
		t.Errorf("the guest may run guests: vmx %d, svm %d", v, s)
	}
	if e := leaf(t, es, 4, 0); e.EAX>>26 != 5 || e.EAX>>14&0xfff != 0 {
		t.Errorf("L1: %#x", e.EAX)
	}
	if e := leaf(t, es, 4, 3); e.EAX>>26 != 5 || e.EAX>>14&0xfff != 5 {
		t.Errorf("L3: %#x", e.EAX)
	}
	if e := leaf(t, es, 0xb, 1); e.EAX != 3 || e.EBX != 6 || e.EDX != 3 {
		t.Errorf("topology %+v", e)
	}
	if e := leaf(t, es, 0x8000_0008, 0); e.ECX != 0x3005 {
		t.Errorf("sizes %+v", e)
	}
	if e := leaf(t, es, 0x8000_0007, 0); e.EDX != invariantTSC {
		t.Errorf("power leaf %+v", e)
	}
	if e := leaf(t, es, 0x8000_001d, 3); e.EAX>>14&0xfff != 5 {
		t.Errorf("AMD's L3: %#x", e.EAX)
	}
	named := Build(Host{Supported: []kvm.CPUIDEntry{{Function: 0x8000_0002}, {Function: 0x8000_0003}}, Brand: "AMD EPYC 9654 96-Core"}, Template{}, 0, 1)
	if e := leaf(t, named, 0x8000_0003, 0); e.EAX != 0x726f_432d { // "-Cor"
		t.Errorf("brand %+v", e)
	}
	for _, f := range []uint32{0x15, 0x16, 0x1f, 0x8000_0026} {
		if find(es, f, 0) != nil {
			t.Errorf("leaf %#x is passed on", f)
		}
	}
	one := build(t, "", 0, 1)
	if e := leaf(t, one, 1, 0); e.EDX>>28&1 != 0 {
		t.Error("one CPU claims hyper-threading")
	}
}

func TestTemplates(t *testing.T) {
	es := build(t, "host,-smap,-xsave", 0, 1)
	l7 := leaf(t, es, 7, 0)
	if l7.EBX>>20&1 != 0 || l7.EBX>>5&1 != 0 || l7.EBX>>16&1 != 0 || l7.ECX>>3&1 != 0 {
		t.Errorf("smap, avx2, avx512f or pku survive: %+v", l7)
	}
	if l7.EBX>>7&1 != 1 {
		t.Error("smep fell though nobody asked")
	}
	l1 := leaf(t, es, 1, 0)
	for _, b := range []int{12, 26, 27, 28, 29} {
		if l1.ECX>>b&1 != 0 {
			t.Errorf("leaf 1 ECX bit %d survives xsave", b)
		}
	}
	if find(es, 0xd, 0) != nil {
		t.Error("leaf 0DH survives xsave")
	}
	base := build(t, "baseline", 0, 2)
	if e := leaf(t, base, 7, 0); e.EBX != 1<<7|1<<9 || e.ECX|e.EDX != 0 {
		t.Errorf("baseline leaf 7 %+v", e)
	}
	if e := leaf(t, base, 7, 1); e.EAX != 0 {
		t.Errorf("baseline leaf 7.1 %+v", e)
	}
	if e := leaf(t, base, 1, 0); e.ECX>>28&1 != 0 || e.ECX>>31 != 1 || e.EBX != 0x0002_0800 {
		t.Errorf("baseline leaf 1 %+v", e)
	}
	if e := leaf(t, base, 0x8000_0002, 0); e.EAX != 0x6c6f6d73 { // "smol"
		t.Errorf("baseline brand %#x", e.EAX)
	}
	for _, bad := range []string{"qemu64", "host,smap", "host,-nosuch", "host,", "baseline,+avx", ",-"} {
		if _, err := ParseTemplate(bad); (err == nil) != (bad == "host,") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestFeatureTable: every feature that falls with another is one itself.
func TestFeatureTable(t *testing.T) {
	for name, f := range features() {
		for _, n := range f.implies {
			if _, ok := features()[n]; !ok {
				t.Errorf("%s takes %q along, which is unknown", name, n)
			}
		}
		if f.bit > 31 || !strings.ContainsRune("abcd", rune(f.reg)) {
			t.Errorf("%s: register %c bit %d", name, f.reg, f.bit)
		}
	}
}

func FuzzParseTemplate(f *testing.F) {
	for _, s := range []string{"host", "host,-smap,-xsave", "baseline", "baseline,-aes", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tm, err := ParseTemplate(s)
		if err != nil {
			return
		}
		Build(Host{Supported: hostLeaves()}, tm, 0, 1)
	})
}
