package boot

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Ports that the guests of this benchmark write.
const (
	portCOM1 = 0x3F8
	// portExit ends the machine: smolvmm's exit port, QEMU's isa-debug-exit where it is put there.
	portExit = 0x501
)

// mark is the byte that a guest's first instructions print. No kernel prints it, and it is ASCII so that a monitor
// that takes console bytes for characters passes it through.
const mark = 0x02

// Sizes in an ELF64 file, in bytes (System V ABI, chapters 4 and 5).
const (
	ehdrSize = 64
	phdrSize = 56
	// noteEntry is XEN_ELFNOTE_PHYS32_ENTRY (xen/elfnote.h).
	noteEntry = 18
)

// tinyBase is where the tiny guest is loaded: 1 MiB, where kernels are.
const tinyBase = 0x100000

// outMark prints mark: mov dx, COM1; mov al, mark; out dx, al. It keeps EBX, which points to start_info.
var outMark = []byte{0x66, 0xBA, portCOM1 & 0xFF, portCOM1 >> 8, 0xB0, mark, 0xEE}

// endCode writes 0 to the exit port and, where nobody answers there, waits for ever: mov dx, exit; xor al, al;
// out dx, al; then holdCode.
var endCode = append([]byte{0x66, 0xBA, portExit & 0xFF, portExit >> 8, 0x30, 0xC0, 0xEE}, holdCode...)

// holdCode waits for ever without using the processor: cli; hlt; jmp to the hlt.
var holdCode = []byte{0xFA, 0xF4, 0xEB, 0xFD}

// tinyGuest is a PVH kernel of a few bytes. Its third instruction prints mark; then it ends the machine, or holds.
func TinyGuest(hold bool) []byte {
	code := slices.Concat(outMark, endCode)
	if hold {
		code = slices.Concat(outMark, holdCode)
	}
	note := pvhNote(tinyBase)
	noteAt := uint64(ehdrSize + 2*phdrSize)
	codeAt := noteAt + uint64(len(note))
	var out []byte
	out = append(out, ehdr(tinyBase, ehdrSize, 2)...)
	// The note is first: some monitors look for it in every segment in turn, whatever its type.
	out = append(out, phdr(elf.PT_NOTE, noteAt, 0, uint64(len(note)), 4)...)
	out = append(out, phdr(elf.PT_LOAD, codeAt, tinyBase, uint64(len(code)), 1)...)
	out = append(out, note...)
	return append(out, code...)
}

// pvhNote is a note that gives the 32-bit physical entry.
func pvhNote(entry uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 4) // name, with its NUL
	b = binary.LittleEndian.AppendUint32(b, 4)    // descriptor
	b = binary.LittleEndian.AppendUint32(b, noteEntry)
	b = append(b, "Xen\x00"...)
	return binary.LittleEndian.AppendUint32(b, entry)
}

func ehdr(entry, phoff uint64, phnum uint16) []byte {
	h := make([]byte, ehdrSize)
	copy(h, elf.ELFMAG)
	h[elf.EI_CLASS], h[elf.EI_DATA], h[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	le := binary.LittleEndian
	le.PutUint16(h[16:], uint16(elf.ET_EXEC))
	le.PutUint16(h[18:], uint16(elf.EM_X86_64))
	le.PutUint32(h[20:], uint32(elf.EV_CURRENT))
	le.PutUint64(h[24:], entry)
	le.PutUint64(h[32:], phoff)
	le.PutUint16(h[52:], ehdrSize)
	le.PutUint16(h[54:], phdrSize)
	le.PutUint16(h[56:], phnum)
	return h
}

func phdr(t elf.ProgType, off, addr, size, align uint64) []byte {
	p := make([]byte, phdrSize)
	le := binary.LittleEndian
	le.PutUint32(p, uint32(t))
	le.PutUint32(p[4:], uint32(elf.PF_R|elf.PF_X))
	for i, v := range []uint64{off, addr, addr, size, size, align} {
		le.PutUint64(p[8+8*i:], v)
	}
	return p
}

// markKernel gives an ELF64 kernel a first few instructions that print mark and then jump to the kernel's own entry,
// with the registers of the PVH entry as they were but for EAX and EDX, which PVH leaves undefined. That makes the start
// of the same kernel visible from outside under any monitor.
func markKernel(kernel []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(kernel) < ehdrSize || string(kernel[:4]) != elf.ELFMAG {
		return nil, errors.New("not an ELF file")
	}
	if kernel[elf.EI_CLASS] != byte(elf.ELFCLASS64) || kernel[elf.EI_DATA] != byte(elf.ELFDATA2LSB) {
		return nil, errors.New("not a 64-bit little-endian ELF file")
	}
	phoff, phnum := le.Uint64(kernel[32:]), uint64(le.Uint16(kernel[56:]))
	if le.Uint16(kernel[54:]) != phdrSize || phnum == 0 || phoff > uint64(len(kernel)) || phnum*phdrSize > uint64(len(kernel))-phoff {
		return nil, errors.New("program headers outside the file")
	}
	headers := kernel[phoff : phoff+phnum*phdrSize]
	lowest, entryAt := ^uint64(0), uint64(0)
	for i := range phnum {
		p := headers[i*phdrSize:]
		off, paddr, filesz := le.Uint64(p[8:]), le.Uint64(p[24:]), le.Uint64(p[32:])
		switch elf.ProgType(le.Uint32(p)) {
		case elf.PT_LOAD:
			lowest = min(lowest, paddr)
		case elf.PT_NOTE:
			if off > uint64(len(kernel)) || filesz > uint64(len(kernel))-off {
				return nil, errors.New("a note outside the file")
			}
			if at, ok := findEntry(kernel[off : off+filesz]); ok {
				entryAt = off + at
			}
		}
	}
	if entryAt == 0 {
		return nil, errors.New("no PVH note")
	}
	stubAt := lowest&^0xFFF - 0x1000
	if lowest < tinyBase+0x1000 || stubAt > 1<<31 {
		return nil, fmt.Errorf("no room for the mark below the kernel, which is at %#x", lowest)
	}

	entry := le.Uint32(kernel[entryAt:])
	stub := slices.Concat(outMark, []byte{0xB8}, le.AppendUint32(nil, entry), []byte{0xFF, 0xE0}) // mov eax, entry; jmp eax
	out := slices.Clone(kernel)
	le.PutUint32(out[entryAt:], uint32(stubAt))
	// The stub and a longer table of program headers go to the end.
	fileAt := uint64(len(out))
	out = append(out, stub...)
	for len(out)%8 != 0 {
		out = append(out, 0)
	}
	le.PutUint64(out[32:], uint64(len(out)))
	le.PutUint16(out[56:], uint16(phnum+1))
	out = append(out, phdr(elf.PT_LOAD, fileAt, stubAt, uint64(len(stub)), 1)...)
	return append(out, headers...), nil
}

// findEntry gives the offset of the PVH entry within a run of notes.
func findEntry(notes []byte) (uint64, bool) {
	le := binary.LittleEndian
	pad := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for at := uint64(0); at+12 <= uint64(len(notes)); {
		namesz, descsz, kind := le.Uint32(notes[at:]), le.Uint32(notes[at+4:]), le.Uint32(notes[at+8:])
		name := at + 12
		desc := name + pad(namesz)
		end := desc + pad(descsz)
		if end > uint64(len(notes)) {
			return 0, false
		}
		if kind == noteEntry && namesz == 4 && string(notes[name:name+4]) == "Xen\x00" && descsz >= 4 {
			return desc, true
		}
		at = end
	}
	return 0, false
}
