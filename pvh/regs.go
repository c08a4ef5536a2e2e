package pvh

// Segment is a segment register with its hidden part, in the terms of Intel
// SDM vol. 3A §3.4.5.
type Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32 // bytes, as KVM and the VMCS have it: not scaled by G
	Type     uint8
	Present  bool
	DPL      uint8
	DB       bool // 32-bit
	S        bool // code or data, not system
	L        bool // 64-bit code
	G        bool // the limit is in pages
	Unusable bool
}

// Table is GDTR or IDTR.
type Table struct {
	Base  uint64
	Limit uint16
}

// Regs are the registers of the boot processor at the PVH entry; those not
// named here are zero.
type Regs struct {
	CS, DS, ES, FS, GS, SS, TR, LDT Segment
	GDT, IDT                        Table
	CR0, CR3, CR4, EFER             uint64
	RFLAGS, RIP, RBX                uint64
}

// Bits of CR0 and EFLAGS (Intel SDM vol. 3A §2.5, §2.3).
const (
	cr0PE     = 1 << 0
	cr0ET     = 1 << 4 // reads as 1 on every processor since the Pentium
	eflagsOne = 1 << 1 // always set
)

// bootRegs are the values that docs/misc/pvh.pandoc (Xen) demands: protected
// mode, paging off, flat 32-bit segments, a busy 32-bit TSS of limit 0x67,
// interrupts off, EBX the address of start_info. The descriptor tables are
// empty: a PVH kernel loads its own before it loads a segment. Types carry the
// accessed bit and DPL and RPL are 0, as the VM-entry checks want (Intel SDM
// vol. 3C §26.3.1.2).
func bootRegs(entry, startInfo uint32) Regs {
	flat := Segment{Selector: 0x10, Limit: 0xFFFF_FFFF, Type: 3, Present: true, DB: true, S: true, G: true}
	code := flat
	code.Selector, code.Type = 0x08, 11
	return Regs{
		CS: code, DS: flat, ES: flat, FS: flat, GS: flat, SS: flat,
		TR:     Segment{Selector: 0x18, Limit: 0x67, Type: 11, Present: true},
		LDT:    Segment{Unusable: true},
		CR0:    cr0PE | cr0ET,
		RFLAGS: eflagsOne,
		RIP:    uint64(entry),
		RBX:    uint64(startInfo),
	}
}
