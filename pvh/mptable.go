package pvh

import "encoding/binary"

const (
	// MaxCPUs bounds the processors of a guest; the MP table of so many still
	// fits the EBDA.
	MaxCPUs = 32

	// ebdaAddr is the extended BIOS data area, the last KiB below 640 KiB:
	// the first place where the floating pointer is looked for (MP
	// Specification 1.4 §4).
	ebdaAddr = 0x9FC00
	ebdaSize = 0x400

	lapicAddr  = 0xFEE0_0000
	ioapicAddr = 0xFEC0_0000

	// IOAPICPins is the number of KVM's interrupt inputs (KVM_IOAPIC_NUM_PINS).
	IOAPICPins = 24

	lapicVersion  = 0x14 // as KVM's reads
	ioapicVersion = 0x11 // as KVM's reads

	// The table lies behind the EBDA's size byte and the floating pointer.
	mpPointerAt = 0x10
	mpTableAt   = 0x20
)

// Entry types and flags of the configuration table (MP Specification 1.4
// §4.3, tables 4-4 to 4-12).
const (
	mpProcessor = 0
	mpBus       = 1
	mpIOAPIC    = 2
	mpIOInt     = 3
	mpLocalInt  = 4

	mpEnabled = 1
	mpBootCPU = 2

	mpTypeInt    = 0
	mpTypeNMI    = 1
	mpTypeExtInt = 3

	mpConforms        = 0              // polarity and trigger as the bus has them: ISA is high, edge
	mpActiveHighLevel = 1 | 3<<2       // polarity active high, level-triggered
	mpCPUSignature    = 0x600          // family 6; the guest asks CPUID
	mpCPUFeatures     = 1 | 1<<9       // FPU and APIC (table 4-6)
	mpAllAPICs        = 0xFF           // every local APIC
	mpISA             = "ISA   "       // bus type
	mpOEM             = "SMOLVMM "     // 8 bytes
	mpProduct         = "microvm     " // 12 bytes
)

// MPTable makes the EBDA: its size in KiB in the first byte, the MP floating
// pointer and the configuration table (MP Specification 1.4). Processors have
// APIC IDs from 0; the IOAPIC's ID is the first one free. ISA interrupt n is
// pin n, as KVM routes it by default (default_routing in irq_comm.c), the
// cascade 2 left out; a pin whose bit is set in levelPins is level-triggered
// and active high.
func MPTable(cpus int, levelPins uint32) ([]byte, error) {
	if cpus < 1 || cpus > MaxCPUs {
		return nil, fail("", ErrParams, "%d processors: must be 1 to %d", cpus, MaxCPUs)
	}
	if levelPins>>IOAPICPins != 0 {
		return nil, fail("", ErrParams, "level-triggered pins %#x: the IOAPIC has %d", levelPins, IOAPICPins)
	}
	le := binary.LittleEndian
	b := make([]byte, mpTableAt, ebdaSize)
	b = append(b, make([]byte, 44)...) // configuration table header, §4.2
	entries := 0
	add := func(e ...byte) {
		b = append(b, e...)
		entries++
	}
	for id := range cpus {
		flags := byte(mpEnabled)
		if id == 0 {
			flags |= mpBootCPU
		}
		var e [20]byte
		e[0], e[1], e[2], e[3] = mpProcessor, byte(id), lapicVersion, flags
		le.PutUint32(e[4:], mpCPUSignature)
		le.PutUint32(e[8:], mpCPUFeatures)
		add(e[:]...)
	}
	const bus = 0
	add(append([]byte{mpBus, bus}, mpISA...)...)
	ioapic := byte(cpus)
	add(le.AppendUint32([]byte{mpIOAPIC, ioapic, ioapicVersion, mpEnabled}, ioapicAddr)...)
	for pin := range byte(IOAPICPins) {
		level := levelPins>>pin&1 != 0
		switch {
		case level:
			add(mpIOInt, mpTypeInt, mpActiveHighLevel, 0, bus, pin, ioapic, pin)
		case pin < 16 && pin != 2:
			add(mpIOInt, mpTypeInt, mpConforms, 0, bus, pin, ioapic, pin)
		}
	}
	// LINT0 takes a PIC's interrupts on the boot processor, LINT1 is NMI on
	// all (§3.6.2.2, virtual wire mode).
	add(mpLocalInt, mpTypeExtInt, mpConforms, 0, bus, 0, 0, 0)
	add(mpLocalInt, mpTypeNMI, mpConforms, 0, bus, 0, mpAllAPICs, 1)

	t := b[mpTableAt:]
	copy(t, "PCMP")
	le.PutUint16(t[4:], uint16(len(t)))
	t[6] = 4 // specification 1.4
	copy(t[8:], mpOEM)
	copy(t[16:], mpProduct)
	le.PutUint16(t[34:], uint16(entries))
	le.PutUint32(t[36:], lapicAddr)
	t[7] = checksum(t)

	p := b[mpPointerAt:mpTableAt] // floating pointer, §4.1
	copy(p, "_MP_")
	le.PutUint32(p[4:], ebdaAddr+mpTableAt)
	p[8] = 1 // length in 16 bytes
	p[9] = 4 // specification 1.4
	p[10] = checksum(p)

	b[0] = ebdaSize >> 10
	return append(b, make([]byte, ebdaSize-len(b))...), nil
}

// checksum is the byte that makes the sum of b zero.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}
