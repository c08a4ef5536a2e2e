package acpi

import (
	"bytes"
	"encoding/binary"
	"testing"
)

const testBase = 0xE_0000

// pins are those of the machine's virtio devices.
var pins = []uint32{5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}

func machine(cpus, devices int) Machine {
	m := Machine{CPUs: cpus, COM1: 0x3F8, COM1IRQ: 4, RTC: 0x70, FwCfg: 0x510, ResetPort: 0xCF9, ResetValue: 6}
	for i := range devices {
		m.Virtio = append(m.Virtio, Virtio{Base: 0xFEB0_0000 + uint32(i)<<12, Size: 0x1000, Pin: pins[i]})
	}
	return m
}

// at gives the table at a physical address, its header checked.
func at(t *testing.T, b []byte, addr uint64, signature string, revision byte) []byte {
	t.Helper()
	le := binary.LittleEndian
	if addr < testBase || addr%64 != 0 || addr-testBase+headerSize > uint64(len(b)) {
		t.Fatalf("%s is at %#x", signature, addr)
	}
	p := b[addr-testBase:]
	n := le.Uint32(p[4:])
	if uint64(n) > uint64(len(p)) {
		t.Fatalf("%s of %d bytes, %d are there", signature, n, len(p))
	}
	p = p[:n]
	if string(p[:4]) != signature || p[8] != revision || checksum(p) != 0 || string(p[10:24]) != "SMOLVMMICROVM " {
		t.Fatalf("header % x: want %s, revision %d, sum 0", p[:headerSize], signature, revision)
	}
	return p
}

// TestTables follows the tables as an operating system does: from the RSDP to the
// XSDT, from there to FADT and MADT, and to the DSDT.
func TestTables(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct{ cpus, devices, overrides int }{{1, 0, 0}, {2, 3, 3}, {32, 17, 9}} {
		m := machine(c.cpus, c.devices)
		b, err := Tables(testBase, m)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:8]) != "RSD PTR " || checksum(b[:20]) != 0 || checksum(b[:36]) != 0 || b[15] != 2 || le.Uint32(b[20:]) != 36 || le.Uint32(b[16:]) != 0 {
			t.Fatalf("RSDP % x", b[:36])
		}
		xsdt := at(t, b, le.Uint64(b[24:]), "XSDT", 1)
		if len(xsdt) != headerSize+16 {
			t.Fatalf("XSDT of %d bytes", len(xsdt))
		}
		fadt := at(t, b, le.Uint64(xsdt[36:]), "FACP", 6)
		flags := le.Uint32(fadt[112:])
		if len(fadt) != 276 || fadt[131] != 5 || flags&(1<<20) == 0 || flags&1 == 0 || flags&(1<<10) == 0 || le.Uint16(fadt[109:]) != 5 {
			t.Errorf("FADT % x", fadt)
		}
		if !bytes.Equal(fadt[116:129], []byte{1, 8, 0, 1, 0xF9, 0x0C, 0, 0, 0, 0, 0, 0, 6}) {
			t.Errorf("reset register % x", fadt[116:129])
		}
		// A reduced machine has no register blocks (§5.2.9).
		for i, c := range fadt[46:104] {
			if c != 0 {
				t.Errorf("FADT byte %d is %#x", 46+i, c)
			}
		}
		at(t, b, le.Uint64(fadt[140:]), "DSDT", 2)
		checkMADT(t, at(t, b, le.Uint64(xsdt[44:]), "APIC", 6), m, c.overrides)
	}
}

func checkMADT(t *testing.T, madt []byte, m Machine, overrides int) {
	t.Helper()
	le := binary.LittleEndian
	if le.Uint32(madt[36:]) != 0xFEE0_0000 || le.Uint32(madt[40:]) != 1 {
		t.Errorf("MADT begins % x", madt[36:44])
	}
	cpus, ioapics, got, nmis := 0, 0, 0, 0
	for p := madt[44:]; len(p) > 0; p = p[p[1]:] {
		switch e := p[:p[1]]; {
		case e[0] == 0 && len(e) == 8:
			if int(e[2]) != cpus || int(e[3]) != cpus || le.Uint32(e[4:]) != 1 {
				t.Errorf("processor % x", e)
			}
			cpus++
		case e[0] == 1 && len(e) == 12:
			if int(e[2]) != m.CPUs || le.Uint32(e[4:]) != 0xFEC0_0000 || le.Uint32(e[8:]) != 0 {
				t.Errorf("IOAPIC % x", e)
			}
			ioapics++
		case e[0] == 2 && len(e) == 10:
			if pin := m.Virtio[got].Pin; e[2] != 0 || uint32(e[3]) != pin || le.Uint32(e[4:]) != pin || le.Uint16(e[8:]) != 0xD {
				t.Errorf("override % x", e)
			}
			got++
		case e[0] == 4 && len(e) == 6:
			if e[2] != 0xFF || le.Uint16(e[3:]) != 0 || e[5] != 1 {
				t.Errorf("NMI % x", e)
			}
			nmis++
		default:
			t.Fatalf("entry % x", e)
		}
	}
	if cpus != m.CPUs || ioapics != 1 || got != overrides || nmis != 1 {
		t.Errorf("%d processors, %d IOAPICs, %d overrides, %d NMIs", cpus, ioapics, got, nmis)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		base uint32
		m    Machine
	}{
		{testBase + 4, machine(1, 0)}, {0xFFFF_FFC0, machine(1, 0)}, {testBase, machine(0, 0)}, {testBase, machine(33, 0)},
		{testBase, Machine{CPUs: 1, Virtio: make([]Virtio, 25)}}, {testBase, Machine{CPUs: 1, Virtio: []Virtio{{Pin: 24}}}},
	} {
		if b, err := Tables(c.base, c.m); err == nil || b != nil {
			t.Errorf("%#x, %+v was accepted", c.base, c.m)
		}
	}
}

// TestNothing: what a machine lacks is not told.
func TestNothing(t *testing.T) {
	if c := ResetCode(Machine{}); c != nil {
		t.Errorf("reset without a port: % x", c)
	}
	b, err := Tables(testBase, Machine{CPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("COM1")) || bytes.Contains(b, []byte("RTC_")) || bytes.Contains(b, []byte("QEMU")) || bytes.Contains(b, []byte("LNRO")) {
		t.Error("a device is there that the machine lacks")
	}
	if fadt := bytes.Index(b, []byte("FACP")); b[fadt+113]&(1<<2) != 0 || b[fadt+116] != 0 {
		t.Error("a reset register is there that the machine lacks")
	}
}

func TestResetCode(t *testing.T) {
	if got := ResetCode(machine(1, 0)); !bytes.Equal(got, []byte{0xBA, 0xF9, 0x0C, 0xB0, 0x06, 0xEE, 0xF4, 0xEB, 0xFD}) {
		t.Errorf("% x", got)
	}
}

func TestPackageLength(t *testing.T) {
	for _, c := range []struct {
		n    int
		want []byte
	}{
		{0, []byte{1}}, {62, []byte{63}}, {63, []byte{0x41, 0x04}}, {64, []byte{0x42, 0x04}},
		{0xFFF - 2, []byte{0x4F, 0xFF}}, {0xFFF - 1, []byte{0x81, 0x00, 0x01}}, {0xFFFFF - 3, []byte{0x8F, 0xFF, 0xFF}},
		{0xFFFFF - 2, []byte{0xC1, 0, 0, 1}}, {maxPackage - 4, []byte{0xCF, 0xFF, 0xFF, 0xFF}},
	} {
		if got := packageLength(c.n); !bytes.Equal(got, c.want) {
			t.Errorf("%#x: % x, want % x", c.n, got, c.want)
		}
	}
}

func TestEncoding(t *testing.T) {
	for _, c := range []struct {
		what string
		got  []byte
		want []byte
	}{
		{"0", integer(0), []byte{0}},
		{"1", integer(1), []byte{1}},
		{"byte", integer(0xFF), []byte{0x0A, 0xFF}},
		{"word", integer(0x100), []byte{0x0B, 0, 1}},
		{"dword", integer(0x1_0000), []byte{0x0C, 0, 0, 1, 0}},
		{"qword", integer(0x1_0000_0000), []byte{0x0E, 0, 0, 0, 0, 1, 0, 0, 0}},
		{"string", str("AB"), []byte{0x0D, 'A', 'B', 0}},
		{"EISAID", eisaID("PNP0501"), []byte{0x0C, 0x41, 0xD0, 0x05, 0x01}},
		{"EISAID with letters", eisaID("ACPABCD"), []byte{0x0C, 0x04, 0x70, 0xAB, 0xCD}},
		{"name", name("_U", integer(1)), []byte{0x08, '_', 'U', '_', '_', 1}},
		{"device", device("A", name("B", integer(0))), []byte{0x5B, 0x82, 11, 'A', '_', '_', '_', 8, 'B', '_', '_', '_', 0}},
		{"scope", scope("_SB"), []byte{0x10, 5, '_', 'S', 'B', '_'}},
		{"no resources", resources(), []byte{0x11, 5, 0x0A, 2, 0x79, 0}},
		{"ports", ports(0x3F8, 8), []byte{0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8}},
		{"memory", memory32(0xFEB0_0000, 0x1000), []byte{0x86, 9, 0, 1, 0, 0, 0xB0, 0xFE, 0, 0x10, 0, 0}},
		{"level", interrupt(23, true), []byte{0x89, 6, 0, 1, 1, 23, 0, 0, 0}},
		{"edge", interrupt(4, false), []byte{0x89, 6, 0, 3, 1, 4, 0, 0, 0}},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s: % x, want % x", c.what, c.got, c.want)
		}
	}
}
