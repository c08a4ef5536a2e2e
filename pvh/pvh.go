// Package pvh turns a kernel file into a guest that is ready to run: it loads
// an ELF image through its PVH note into guest RAM, lays out what the PVH boot
// protocol and the Intel MultiProcessor Specification want beside it, and
// answers with the first register values. Bytes in, bytes out: no ioctl.
//
// Sources: xen/include/public/arch-x86/hvm/start_info.h and elfnote.h (Xen),
// docs/misc/pvh.pandoc (Xen), System V ABI chapters 4 and 5 (ELF), Intel
// MultiProcessor Specification 1.4.
//
// Where things lie in guest RAM (all physical):
//
//	0x40E, 0x413   BIOS data area: segment of the EBDA, base memory in KiB
//	0x9000         boot page: start_info, memory map, module list, command line
//	0x9FC00        EBDA, 1 KiB: the MP floating pointer and configuration table
//	0xA0000        hole up to 1 MiB: not RAM to the guest
//	0xE0000        ACPI tables, if there are any
//	0xFFFF0        the reset vector, with them
//	p_paddr        the kernel's segments
//	top of RAM     modules, page aligned, below 4 GiB
//
// Pages below 0x9000 stay free for the real-mode code that starts further
// processors (NetBSD's lies at 0x2000, MP_TRAMPOLINE in x86/mpbiosvar.h).
package pvh

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

const (
	// bootPage holds start_info, the memory map, the module list and the
	// command line together: NetBSD copies the first, the second and the last
	// into one page of its own (amd64/locore.S, start_pvh).
	bootPage     = 0x9000
	bootPageSize = 0x1000

	// biosData is the BIOS data area, of which two words are written.
	biosData     = 0x400
	biosDataSize = 0x100

	// legacyHole to legacyHoleEnd is video memory and ROM on a PC.
	legacyHole    = 0xA_0000
	legacyHoleEnd = 0x10_0000

	// ACPIAddr is where Params.ACPI goes, if there is any: in a PC's BIOS, where a
	// guest also looks for an RSDP that it is not led to (ACPI 6.5 §5.2.5.1).
	ACPIAddr = 0xE_0000
	ACPISize = resetVector - ACPIAddr

	// resetVector is F000:FFF0, where a PC's BIOS begins.
	resetVector = 0xF_FFF0

	// MaxModules bounds Params.Modules.
	MaxModules = 16

	// moduleGap in bytes stays free between the kernel's end and the lowest
	// module: NetBSD puts its copy of start_info and its first page tables
	// there before it reads the memory map.
	moduleGap = 1 << 20
)

// File is an open file with the name errors call it by.
type File struct {
	R    io.ReaderAt
	Size int64  // bytes
	Name string // for messages
}

// Params say what the guest is to be told.
type Params struct {
	// Cmdline is the command line as Cmdline assembled it.
	Cmdline string
	// CPUs is the number of processors, 1 to MaxCPUs; APIC IDs count from 0.
	CPUs int
	// LevelPins has bit n set where IOAPIC pin n is level-triggered: the pins
	// of the virtio-mmio devices.
	LevelPins uint32
	// Modules are the initial RAM disks, in the order the guest sees.
	Modules []File
	// ACPI are tables made for ACPIAddr, the RSDP first, at most ACPISize bytes;
	// none is usual. start_info leads to them, and the map reserves their place.
	ACPI []byte
	// ResetCode is put at the reset vector, in reach of who leaves for a PC's BIOS
	// in real mode; 16 bytes at most, and only with ACPI.
	ResetCode []byte
	// FreshMemory says that all of mem still reads as zero, so that a BSS
	// need not be cleared and stays without host memory until it is used.
	FreshMemory bool
}

// Span is a run of guest physical addresses.
type Span struct {
	Addr uint64 // first byte
	Size uint64 // bytes
}

// End is the first address behind the span.
func (s Span) End() uint64 { return s.Addr + s.Size }

func (s Span) overlaps(o Span) bool { return s.Addr < o.End() && o.Addr < s.End() }

func (s Span) String() string { return fmt.Sprintf("%#x-%#x", s.Addr, s.End()-1) }

// Entry is a loaded guest.
type Entry struct {
	EIP       uint32 // physical entry point, 32-bit protected mode
	StartInfo uint32 // physical address of hvm_start_info: EBX at entry
	OS        string // what the kernel's notes call it: "NetBSD", "linux", or ""
	Gzip      bool   // the file was compressed
	Segments  []Span // by rising address, BSS included
	Modules   []Span // as in Params.Modules
	Map       []MapEntry
}

// Regs are the register values to start the boot processor with.
func (e *Entry) Regs() Regs { return bootRegs(e.EIP, e.StartInfo) }

// Load reads kernel into mem, places what the guest is told beside it, and
// says where to start. No copy of the kernel is kept. An error
// is an *Error: one line that names the file and the fact; guest RAM may have
// been written in part by then, and is of no further use.
func Load(mem *guestmem.Memory, kernel File, p Params) (*Entry, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	src, err := open(kernel, mem.Size())
	if err != nil {
		return nil, err
	}
	img, err := parse(src, kernel.Name)
	if err != nil {
		return nil, err
	}
	// A program that is no kernel is told so first; of a compressed file the
	// notes come out of what is loaded, so that it is unpacked once.
	if !src.compressed() {
		if err := img.readNotes(src); err != nil {
			return nil, err
		}
	}
	if err := img.place(mem); err != nil {
		return nil, err
	}
	if err := img.load(mem, src, p.FreshMemory); err != nil {
		return nil, err
	}
	if src.compressed() {
		if err := img.readNotes(src); err != nil {
			return nil, err
		}
	}
	if err := src.finish(); err != nil {
		return nil, img.readError(err)
	}
	e := &Entry{EIP: img.notes.entry, StartInfo: bootPage, OS: img.notes.os, Gzip: src.compressed()}
	for _, s := range img.segments {
		e.Segments = append(e.Segments, s.Span)
	}
	if err := checkLimit(p.Cmdline, e.OS); err != nil {
		return nil, err
	}
	e.Map = memoryMap(mem.Ranges(), len(p.ACPI) > 0)
	if e.Modules, err = loadModules(mem, p.Modules, img.lowEnd()); err != nil {
		return nil, err
	}
	rsdp := uint64(0)
	if len(p.ACPI) > 0 {
		rsdp = ACPIAddr
	}
	page, err := startInfo(p.Cmdline, rsdp, e.Map, e.Modules)
	if err != nil {
		return nil, err
	}
	ebda, err := MPTable(p.CPUs, p.LevelPins)
	if err != nil {
		return nil, err
	}
	for _, w := range []struct {
		addr uint64
		b    []byte
	}{
		{bootPage, page},
		{ebdaAddr, ebda},
		{ACPIAddr, p.ACPI},
		{resetVector, p.ResetCode},
		{biosData + 0x0E, []byte{ebdaAddr >> 4 & 0xFF, ebdaAddr >> 12}},
		{biosData + 0x13, []byte{ebdaAddr >> 10 & 0xFF, ebdaAddr >> 18}},
	} {
		if err := mem.WriteAt(w.b, w.addr); err != nil {
			return nil, fmt.Errorf("boot data: %w", err)
		}
	}
	return e, nil
}

func (p *Params) check() error {
	if p.CPUs < 1 || p.CPUs > MaxCPUs {
		return fail("", ErrParams, "%d processors: must be 1 to %d", p.CPUs, MaxCPUs)
	}
	if len(p.Modules) > MaxModules {
		return fail("", ErrParams, "%d modules: at most %d are possible", len(p.Modules), MaxModules)
	}
	if len(p.ACPI) > ACPISize {
		return fail("", ErrParams, "%d bytes of ACPI tables: at most %d", len(p.ACPI), ACPISize)
	}
	if len(p.ResetCode) > legacyHoleEnd-resetVector || len(p.ResetCode) > 0 && len(p.ACPI) == 0 {
		return fail("", ErrParams, "%d bytes at the reset vector, %d of ACPI tables: at most %d, and only with tables", len(p.ResetCode), len(p.ACPI), legacyHoleEnd-resetVector)
	}
	return checkText("kernel command line", p.Cmdline)
}

// place judges the segments against RAM, each other and what Load puts beside
// them, before a byte is written.
func (img *image) place(mem *guestmem.Memory) error {
	ranges := mem.Ranges()
	var need uint64
	var worst *segment
	for i := range img.segments {
		s := &img.segments[i]
		if s.overlaps(Span{guestmem.HoleStart, guestmem.HoleEnd - guestmem.HoleStart}) {
			return fail(img.name, ErrOutsideRAM, "segment %d (%v) lies where the machine has its devices, not RAM, whatever the memory size", s.index, s.Span)
		}
		if s.overlaps(Span{legacyHole, legacyHoleEnd - legacyHole}) {
			return fail(img.name, ErrOutsideRAM, "segment %d (%v) lies in the hole between 640 KiB and 1 MiB", s.index, s.Span)
		}
		if !slices.ContainsFunc(ranges, func(r guestmem.Range) bool { return s.Addr >= r.GPA && s.End() <= r.End() }) {
			if s.End() > need {
				need, worst = s.End(), s
			}
		}
	}
	if worst != nil {
		if need > guestmem.HoleEnd {
			need -= guestmem.HoleEnd - guestmem.HoleStart
		}
		if need > guestmem.MaxSize {
			return fail(img.name, ErrOutsideRAM, "segment %d (%v) lies beyond the %d GiB a guest can have", worst.index, worst.Span, guestmem.MaxSize>>30)
		}
		mib := (need + 1<<20 - 1) >> 20
		return fail(img.name, ErrOutsideRAM, "segment %d (%v) does not fit into %d MiB of memory: it takes at least %d MiB (-m %d)",
			worst.index, worst.Span, mem.Size()>>20, mib, mib)
	}
	for i := range img.segments {
		s := &img.segments[i]
		if i > 0 && img.segments[i-1].overlaps(s.Span) {
			o := &img.segments[i-1]
			return fail(img.name, ErrOverlap, "segments %d (%v) and %d (%v) overlap", o.index, o.Span, s.index, s.Span)
		}
		for _, t := range []struct {
			Span
			what string
		}{
			{Span{biosData, biosDataSize}, "the BIOS data area"},
			{Span{bootPage, bootPageSize}, "start_info and the command line"},
			{Span{ebdaAddr, ebdaSize}, "the MP table"},
		} {
			if s.overlaps(t.Span) {
				return fail(img.name, ErrOverlap, "segment %d (%v) overlaps the place of %s (%v)", s.index, s.Span, t.what, t.Span)
			}
		}
	}
	return nil
}

// load reads the segments in file order, which a compressed file needs, and
// clears what the file does not fill.
func (img *image) load(mem *guestmem.Memory, src source, fresh bool) error {
	order := make([]*segment, len(img.segments))
	for i := range img.segments {
		order[i] = &img.segments[i]
	}
	slices.SortStableFunc(order, func(a, b *segment) int { return cmp.Compare(a.offset, b.offset) })
	for _, s := range order {
		b, err := mem.Slice(s.Addr, s.Size)
		if err != nil {
			return fmt.Errorf("%s: segment %d: %w", img.name, s.index, err)
		}
		if f, ok := src.(plainSource); ok {
			err = fill(mem, f.f, s.offset, s.Addr, s.filesz)
		} else {
			err = src.readAt(b[:s.filesz:s.filesz], s.offset)
		}
		if err != nil {
			return img.readError(fmt.Errorf("segment %d: %w", s.index, err))
		}
		if !fresh {
			clear(b[s.filesz:])
		}
	}
	return nil
}

// lowEnd is the end of the highest segment below 4 GiB.
func (img *image) lowEnd() uint64 {
	var end uint64
	for _, s := range img.segments {
		if s.Addr < guestmem.HoleStart {
			end = s.End()
		}
	}
	return end
}

// loadModules puts the modules below the top of low RAM, the last one highest.
func loadModules(mem *guestmem.Memory, files []File, kernelEnd uint64) ([]Span, error) {
	spans := make([]Span, len(files))
	top := mem.Ranges()[0].End()
	floor := max(kernelEnd, legacyHoleEnd) + moduleGap
	for i := len(files) - 1; i >= 0; i-- {
		f := files[i]
		switch {
		case f.Size <= 0:
			return nil, fail(f.Name, ErrFormat, "initrd is empty")
		case uint64(f.Size) > top || (top-uint64(f.Size))&^(guestmem.PageSize-1) < floor:
			return nil, fail(f.Name, ErrMemory, "initrd of %d bytes does not fit between the kernel and the top of low memory (%d MiB of RAM): give the guest more memory (-m)", f.Size, mem.Size()>>20)
		}
		top = (top - uint64(f.Size)) &^ (guestmem.PageSize - 1)
		spans[i] = Span{top, uint64(f.Size)}
	}
	for i, f := range files {
		if err := fill(mem, f, 0, spans[i].Addr, spans[i].Size); err != nil {
			return nil, fail(f.Name, ErrTruncated, "initrd cannot be read to its end: %v", err)
		}
	}
	return spans, nil
}
