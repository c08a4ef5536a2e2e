package pvh

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
)

// ELF constants (System V ABI, chapters 4 and 5).
const (
	elfClass32   = 1
	elfClass64   = 2
	elfData2LSB  = 1
	elfTypeExec  = 2
	elfTypeDyn   = 3
	elfMach386   = 3
	elfMachX8664 = 62
	ptLoad       = 1
	ptNote       = 4
	shtNote      = 7

	// maxHeaders bounds the program headers read; kernels have fewer than 20.
	maxHeaders = 128
	// maxSections bounds the section headers looked at for notes.
	maxSections = 1024
)

// segment is a PT_LOAD: filesz bytes from offset of the file, at Span.Addr,
// zeros behind them.
type segment struct {
	Span
	index  int // of the program header
	offset uint64
	filesz uint64
}

// noteArea is a run of notes in the file.
type noteArea struct {
	off, size uint64
	align     uint64 // 4 or 8
}

// image is what the headers of a kernel say, checked.
type image struct {
	name     string
	segments []segment // not empty, by rising address
	areas    []noteArea
	shoff    uint64
	shnum    uint16
	shentsz  uint16
	wide     bool // ELF64
	notes    notes
}

func (img *image) readError(err error) error {
	switch {
	case errors.Is(err, errShort):
		return fail(img.name, ErrTruncated, "truncated kernel: %v", err)
	case errors.Is(err, errTooLong):
		return fail(img.name, ErrCompressed, "compressed kernel: %v", err)
	}
	return fail(img.name, ErrFormat, "cannot be read: %v", err)
}

// parse reads and checks the ELF header and the program headers.
func parse(src source, name string) (*image, error) {
	img := &image{name: name}
	var h [64]byte
	if err := src.readAt(h[:52], 0); err != nil {
		return nil, img.readError(err)
	}
	if string(h[:4]) != "\x7fELF" {
		return nil, fail(name, ErrNotELF, "not an ELF kernel (inside gzip)")
	}
	class, data, machine := h[4], h[5], binary.LittleEndian.Uint16(h[18:])
	switch {
	case data != elfData2LSB:
		return nil, fail(name, ErrMachine, "an ELF file that is not little-endian: not for x86")
	case class == elfClass64 && machine == elfMachX8664:
		img.wide = true
	case class == elfClass32 && machine == elfMach386:
	case class != elfClass32 && class != elfClass64:
		return nil, fail(name, ErrMachine, "an ELF file of unknown class %d", class)
	default:
		return nil, fail(name, ErrMachine, "an ELF%d file for machine %d: wanted is x86-64 (ELF64) or i386 (ELF32)", 32*int(class), machine)
	}
	if t := binary.LittleEndian.Uint16(h[16:]); t != elfTypeExec && t != elfTypeDyn {
		return nil, fail(name, ErrFormat, "an ELF file of type %d, not an executable kernel", t)
	}
	le := binary.LittleEndian
	var phoff uint64
	var phentsize, phnum uint16
	if img.wide {
		if err := src.readAt(h[52:64], 52); err != nil {
			return nil, img.readError(err)
		}
		phoff, phentsize, phnum = le.Uint64(h[32:]), le.Uint16(h[54:]), le.Uint16(h[56:])
		img.shoff, img.shentsz, img.shnum = le.Uint64(h[40:]), le.Uint16(h[58:]), le.Uint16(h[60:])
	} else {
		phoff, phentsize, phnum = uint64(le.Uint32(h[28:])), le.Uint16(h[42:]), le.Uint16(h[44:])
		img.shoff, img.shentsz, img.shnum = uint64(le.Uint32(h[32:])), le.Uint16(h[46:]), le.Uint16(h[48:])
	}
	want := uint16(32)
	if img.wide {
		want = 56
	}
	switch {
	case phnum == 0:
		return nil, fail(name, ErrFormat, "an ELF file without program headers: not a kernel")
	case phnum > maxHeaders:
		return nil, fail(name, ErrFormat, "%d program headers: at most %d are read", phnum, maxHeaders)
	case phentsize != want:
		return nil, fail(name, ErrFormat, "program headers of %d bytes: %d expected", phentsize, want)
	}
	table := make([]byte, int(phnum)*int(phentsize))
	if err := src.readAt(table, phoff); err != nil {
		return nil, img.readError(err)
	}
	for i := range int(phnum) {
		if err := img.header(src, i, table[i*int(phentsize):][:phentsize]); err != nil {
			return nil, err
		}
	}
	if len(img.segments) == 0 {
		return nil, fail(name, ErrFormat, "an ELF file without loadable segments: not a kernel")
	}
	slices.SortStableFunc(img.segments, func(a, b segment) int { return cmp.Compare(a.Addr, b.Addr) })
	return img, nil
}

// header judges one program header.
func (img *image) header(src source, i int, p []byte) error {
	le := binary.LittleEndian
	typ := le.Uint32(p)
	var off, paddr, filesz, memsz, align uint64
	if img.wide {
		off, paddr, filesz, memsz, align = le.Uint64(p[8:]), le.Uint64(p[24:]), le.Uint64(p[32:]), le.Uint64(p[40:]), le.Uint64(p[48:])
	} else {
		off, paddr, filesz, memsz, align = uint64(le.Uint32(p[4:])), uint64(le.Uint32(p[12:])), uint64(le.Uint32(p[16:])), uint64(le.Uint32(p[20:])), uint64(le.Uint32(p[28:]))
	}
	if typ != ptLoad && typ != ptNote {
		return nil
	}
	if off+filesz < off {
		return fail(img.name, ErrFormat, "program header %d: offset %#x and size %#x wrap around", i, off, filesz)
	}
	if n, known := src.size(); known && off+filesz > n {
		return fail(img.name, ErrTruncated, "truncated kernel: program header %d wants bytes up to %d, the file has %d", i, off+filesz, n)
	}
	switch {
	case typ == ptNote:
		img.areas = append(img.areas, noteArea{off: off, size: filesz, align: noteAlign(align)})
	case memsz == 0 && filesz == 0:
	case filesz > memsz:
		return fail(img.name, ErrFormat, "segment %d has %#x bytes in the file for %#x in memory", i, filesz, memsz)
	case paddr+memsz < paddr:
		return fail(img.name, ErrFormat, "segment %d: address %#x and size %#x wrap around", i, paddr, memsz)
	default:
		img.segments = append(img.segments, segment{Span: Span{paddr, memsz}, index: i, offset: off, filesz: filesz})
	}
	return nil
}

// sectionNotes lists the SHT_NOTE sections, for a kernel whose linker made no
// PT_NOTE of them. A section table that makes no sense is taken as absent.
func (img *image) sectionNotes(src source) []noteArea {
	want := uint16(40)
	if img.wide {
		want = 64
	}
	if img.shoff == 0 || img.shentsz != want || img.shnum > maxSections {
		return nil
	}
	var areas []noteArea
	table := make([]byte, int(img.shnum)*int(want))
	if src.readAt(table, img.shoff) != nil {
		return nil
	}
	le := binary.LittleEndian
	for i := range int(img.shnum) {
		b := table[i*int(want):]
		if le.Uint32(b[4:]) != shtNote {
			continue
		}
		var a noteArea
		if img.wide {
			a = noteArea{off: le.Uint64(b[24:]), size: le.Uint64(b[32:]), align: noteAlign(le.Uint64(b[48:]))}
		} else {
			a = noteArea{off: uint64(le.Uint32(b[16:])), size: uint64(le.Uint32(b[20:])), align: noteAlign(uint64(le.Uint32(b[32:])))}
		}
		if a.off+a.size >= a.off {
			areas = append(areas, a)
		}
	}
	return areas
}

func noteAlign(a uint64) uint64 {
	if a == 8 {
		return 8
	}
	return 4
}
