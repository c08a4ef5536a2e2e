package pvh

import (
	"encoding/binary"

	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// Layout of the PVH structures (xen/arch-x86/hvm/start_info.h), in bytes.
const (
	startMagic    = 0x336EC578 // XEN_HVM_START_MAGIC_VALUE
	startVersion  = 1          // with a memory map
	startInfoSize = 56         // struct hvm_start_info, version 1
	mapEntrySize  = 24         // struct hvm_memmap_table_entry
	modEntrySize  = 32         // struct hvm_modlist_entry
)

// Types of memory in the map (XEN_HVM_MEMMAP_TYPE_*, the E820 types of ACPI
// 6.4 table 15-374).
const (
	TypeRAM      = 1
	TypeReserved = 2
)

// MapEntry is a line of the memory map.
type MapEntry struct {
	Span
	Type uint32
}

// memoryMap tells the guest its RAM with a PC's holes: the EBDA is reserved,
// 0xA0000-0xFFFFF and what lies below 4 GiB without RAM are not mentioned, but for
// what a PC's BIOS has, where ACPI tables are there.
func memoryMap(ranges []guestmem.Range, acpi bool) []MapEntry {
	m := []MapEntry{
		{Span{0, ebdaAddr}, TypeRAM},
		{Span{ebdaAddr, ebdaSize}, TypeReserved},
	}
	if acpi {
		m = append(m, MapEntry{Span{ACPIAddr, legacyHoleEnd - ACPIAddr}, TypeReserved})
	}
	for i, r := range ranges {
		s := Span{r.GPA, r.Size}
		if i == 0 {
			s = Span{legacyHoleEnd, r.Size - legacyHoleEnd}
		}
		if s.Size > 0 {
			m = append(m, MapEntry{s, TypeRAM})
		}
	}
	return m
}

// startInfo makes the boot page: start_info, then the memory map, the modules
// and the command line with its NUL, which is there even when it is empty
// (NetBSD copies it unconditionally). rsdp is the RSDP's address, 0 without ACPI.
func startInfo(cmdline string, rsdp uint64, m []MapEntry, modules []Span) ([]byte, error) {
	mapAt := startInfoSize
	modAt := mapAt + len(m)*mapEntrySize
	cmdAt := modAt + len(modules)*modEntrySize
	end := cmdAt + len(cmdline) + 1
	if end > bootPageSize {
		return nil, fail("", ErrCmdline, "kernel command line of %d bytes: with the memory map it must fit one page, %d bytes too many", len(cmdline), end-bootPageSize)
	}
	b := make([]byte, end)
	le := binary.LittleEndian
	le.PutUint32(b[0:], startMagic)
	le.PutUint32(b[4:], startVersion)
	le.PutUint32(b[12:], uint32(len(modules)))
	if len(modules) > 0 {
		le.PutUint64(b[16:], uint64(bootPage+modAt))
	}
	le.PutUint64(b[24:], uint64(bootPage+cmdAt))
	le.PutUint64(b[32:], rsdp)
	le.PutUint64(b[40:], uint64(bootPage+mapAt))
	le.PutUint32(b[48:], uint32(len(m)))
	for i, e := range m {
		p := b[mapAt+i*mapEntrySize:]
		le.PutUint64(p[0:], e.Addr)
		le.PutUint64(p[8:], e.Size)
		le.PutUint32(p[16:], e.Type)
	}
	for i, s := range modules {
		p := b[modAt+i*modEntrySize:]
		le.PutUint64(p[0:], s.Addr)
		le.PutUint64(p[8:], s.Size)
	}
	copy(b[cmdAt:], cmdline)
	return b, nil
}
