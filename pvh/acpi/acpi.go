// Package acpi makes the few ACPI tables by which an operating system finds the
// machine's processors, interrupt controllers, virtio-mmio devices and serial
// port: what the MP table and the command line tell NetBSD, in the form that
// Linux distributions' kernels read. There is no AML that does anything, no fixed
// hardware, no power management: hardware-reduced ACPI (§4.1). Bytes in, bytes
// out.
//
// Source: ACPI Specification 6.5; the section of each structure stands at it.
package acpi

import (
	"encoding/binary"
	"fmt"
)

const (
	// MaxSize bounds the tables, in bytes: with the most processors and devices
	// they take a third of it.
	MaxSize = 16 << 10

	maxCPUs    = 32
	maxDevices = 24 // the pins of an IOAPIC

	lapicAddr  = 0xFEE0_0000
	ioapicAddr = 0xFEC0_0000

	oemID     = "SMOLVM"   // 6 bytes
	oemTable  = "MICROVM " // 8 bytes
	creatorID = "SMOL"     // 4 bytes

	headerSize = 36 // DESCRIPTION_HEADER, §5.2.6
)

// Machine is what the tables tell.
type Machine struct {
	// CPUs is the number of processors, 1 to 32; APIC IDs count from 0.
	CPUs int
	// Virtio are the virtio-mmio transports, 24 at most.
	Virtio []Virtio
	// COM1 is the base port of a 16550A with 8 ports, on the edge-triggered pin
	// COM1IRQ; 0 is none.
	COM1    uint16
	COM1IRQ uint32
	// RTC is the index port of an MC146818, its data port behind it, whose interrupt
	// is not there; 0 is none.
	RTC uint16
	// FwCfg is the selector's port of QEMU's firmware configuration device, its data
	// port behind it; 0 is none.
	FwCfg uint16
	// ResetPort takes the byte ResetValue to reset the machine; 0 is none.
	ResetPort  uint16
	ResetValue byte
}

// Virtio is one virtio-mmio transport.
type Virtio struct {
	Base uint32 // physical address of its registers
	Size uint32 // bytes
	Pin  uint32 // IOAPIC pin: level-triggered, active high
}

// Tables makes the tables for the guest physical address base, a multiple of 64
// below 4 GiB. The RSDP comes first.
func Tables(base uint32, m Machine) ([]byte, error) {
	switch {
	case base%64 != 0 || uint64(base)+MaxSize > 1<<32:
		return nil, fmt.Errorf("ACPI: tables at %#x: must be aligned and below 4 GiB", base)
	case m.CPUs < 1 || m.CPUs > maxCPUs:
		return nil, fmt.Errorf("ACPI: %d processors: must be 1 to %d", m.CPUs, maxCPUs)
	case len(m.Virtio) > maxDevices:
		return nil, fmt.Errorf("ACPI: %d devices: at most %d", len(m.Virtio), maxDevices)
	}
	for i, v := range m.Virtio {
		if v.Pin >= maxDevices {
			return nil, fmt.Errorf("ACPI: device %d has pin %d: the IOAPIC has %d", i, v.Pin, maxDevices)
		}
	}
	le := binary.LittleEndian
	b := make([]byte, 64) // the RSDP's place
	put := func(t []byte) (at uint32) {
		at = base + uint32(len(b))
		b = append(b, t...)
		b = append(b, make([]byte, -len(b)&63)...)
		return at
	}
	fadt := put(fadt(m, put(dsdt(m))))
	madt := put(madt(m))
	// XSDT (§5.2.8): 64-bit addresses of the others.
	xsdt := put(table("XSDT", 1, le.AppendUint64(le.AppendUint64(nil, uint64(fadt)), uint64(madt))))

	r := b[:36] // RSDP, §5.2.5.3
	copy(r, "RSD PTR ")
	copy(r[9:], oemID)
	r[15] = 2 // ACPI 2.0 and later
	le.PutUint32(r[20:], uint32(len(r)))
	le.PutUint64(r[24:], uint64(xsdt))
	r[8] = checksum(r[:20])
	r[32] = checksum(r)
	if len(b) > MaxSize {
		return nil, fmt.Errorf("ACPI: %d bytes of tables: at most %d", len(b), MaxSize)
	}
	return b, nil
}

// ResetCode is real-mode code that resets the machine by its reset port, for the
// reset vector: Linux on a hardware-reduced machine does not look at the FADT's
// reset register (arch/x86/kernel/reboot.c takes EFI, and where there is none
// the BIOS). nil where there is no port.
func ResetCode(m Machine) []byte {
	if m.ResetPort == 0 {
		return nil
	}
	return []byte{
		0xBA, byte(m.ResetPort), byte(m.ResetPort >> 8), // mov dx, port
		0xB0, m.ResetValue, // mov al, value
		0xEE,       // out dx, al
		0xF4,       // hlt
		0xEB, 0xFD, // jmp to the hlt
	}
}

// table puts the header (§5.2.6) before a body.
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, headerSize, headerSize+len(body))
	copy(b, signature)
	le.PutUint32(b[4:], uint32(headerSize+len(body)))
	b[8] = revision
	copy(b[10:], oemID)
	copy(b[16:], oemTable)
	le.PutUint32(b[24:], 1) // OEM revision
	copy(b[28:], creatorID)
	le.PutUint32(b[32:], 1) // creator revision
	b = append(b, body...)
	b[9] = checksum(b)
	return b
}

// checksum is the byte that makes the sum of b zero.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}

// Flags of the FADT (§5.2.9, tables 5.10 and 5.11).
const (
	fadtSize = 276 // revision 6

	flagWBINVD      = 1 << 0 // the instruction works
	flagPowerButton = 1 << 4 // no fixed power button
	flagSleepButton = 1 << 5 // no fixed sleep button
	flagReset       = 1 << 10
	flagHeadless    = 1 << 12
	flagReduced     = 1 << 20

	bootLegacy = 1 << 0 // COM1 is on an ISA bus
	bootNoVGA  = 1 << 2

	rtcCentury = 0x32 // where the RTC keeps the century
)

// fadt is the FADT (§5.2.9), hardware-reduced: no PM registers, no SCI, no FACS.
// Bit 1 of IA-PC boot flags is clear: nobody has to look for a keyboard.
func fadt(m Machine, dsdt uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, fadtSize)
	flags := uint32(flagWBINVD | flagPowerButton | flagSleepButton | flagHeadless | flagReduced)
	if m.ResetPort != 0 {
		flags |= flagReset
		// Generic address (§5.2.3.2): system I/O, 8 bits at 0, byte access.
		b[116], b[117], b[118], b[119] = 1, 8, 0, 1
		le.PutUint64(b[120:], uint64(m.ResetPort))
		b[128] = m.ResetValue
	}
	b[108] = rtcCentury
	le.PutUint16(b[109:], bootLegacy|bootNoVGA)
	le.PutUint32(b[112:], flags)
	b[131] = 5 // minor version: 6.5
	le.PutUint64(b[140:], uint64(dsdt))
	copy(b[268:], oemTable) // hypervisor vendor identity
	return table("FACP", 6, b[headerSize:])
}

// madt is the MADT (§5.2.12): ISA interrupt n is pin n, as in the MP table; only
// the virtio pins among the first 16 need an override, since they are not as ISA
// has them.
func madt(m Machine) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, lapicAddr)
	b = le.AppendUint32(b, 1) // PCAT_COMPAT: there are 8259s as well
	for id := range m.CPUs {
		// Local APIC (§5.2.12.2), enabled.
		b = le.AppendUint32(append(b, 0, 8, byte(id), byte(id)), 1)
	}
	// IOAPIC (§5.2.12.3), its interrupts from 0.
	b = le.AppendUint32(append(b, 1, 12, byte(m.CPUs), 0), ioapicAddr)
	b = le.AppendUint32(b, 0)
	for _, v := range m.Virtio {
		if v.Pin < 16 {
			// Interrupt source override (§5.2.12.5): ISA, active high, level.
			b = le.AppendUint32(append(b, 2, 10, 0, byte(v.Pin)), v.Pin)
			b = le.AppendUint16(b, 1|3<<2)
		}
	}
	// Local APIC NMI (§5.2.12.7): LINT1 of all processors.
	b = append(b, 4, 6, 0xFF, 0, 0, 1)
	return table("APIC", 6, b)
}

// dsdt is the DSDT (§5.2.11.1): devices and where they are. Revision 2 has
// integers of 64 bits.
func dsdt(m Machine) []byte {
	var devices [][]byte
	for id := range m.CPUs {
		devices = append(devices, device(fmt.Sprintf("C%03X", id),
			name("_HID", str("ACPI0007")), name("_UID", integer(uint64(id)))))
	}
	if m.COM1 != 0 {
		devices = append(devices, device("COM1",
			name("_HID", eisaID("PNP0501")), name("_UID", integer(0)),
			name("_CRS", resources(ports(m.COM1, 8), interrupt(m.COM1IRQ, false)))))
	}
	if m.RTC != 0 {
		devices = append(devices, device("RTC",
			name("_HID", eisaID("PNP0B00")), name("_CRS", resources(ports(m.RTC, 2)))))
	}
	if m.FwCfg != 0 {
		// QEMU docs/specs/fw_cfg.rst, "ACPI Interface"; without the DMA register.
		devices = append(devices, device("FWCF",
			name("_HID", str("QEMU0002")), name("_CRS", resources(ports(m.FwCfg, 2)))))
	}
	for i, v := range m.Virtio {
		devices = append(devices, device(fmt.Sprintf("V%03X", i),
			name("_HID", str("LNRO0005")), name("_UID", integer(uint64(i))),
			name("_CRS", resources(memory32(v.Base, v.Size), interrupt(v.Pin, true)))))
	}
	return table("DSDT", 2, scope("_SB", devices...))
}
