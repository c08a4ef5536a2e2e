package pvh

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"testing"

	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// prog is a program header of the images the tests build, written from the
// System V ABI's tables and not with the package's own constants.
type prog struct {
	typ                 uint32
	addr, memsz, offset uint64 // offset 0: where the builder puts the bytes
	filesz              uint64 // 0: len(data)
	align               uint64
	data                []byte
}

type elfSpec struct {
	bits     int // 32 or 64
	machine  uint16
	data     byte
	typ      uint16
	progs    []prog
	sections []prog // SHT types with their data
}

// build lays out header, program headers, data in order, section headers.
func (e elfSpec) build() []byte {
	if e.bits == 0 {
		e.bits = 64
	}
	if e.machine == 0 {
		e.machine = map[int]uint16{32: 3, 64: 62}[e.bits]
	}
	if e.data == 0 {
		e.data = 1
	}
	if e.typ == 0 {
		e.typ = 2
	}
	ehsize, phsize, shsize := 64, 56, 64
	if e.bits == 32 {
		ehsize, phsize, shsize = 52, 32, 40
	}
	le := binary.LittleEndian
	var body bytes.Buffer
	put := func(p prog) (uint64, uint64) {
		for body.Len()%8 != 0 {
			body.WriteByte(0)
		}
		off := uint64(ehsize + phsize*len(e.progs) + body.Len())
		body.Write(p.data)
		if p.offset != 0 {
			off = p.offset
		}
		n := uint64(len(p.data))
		if p.filesz != 0 {
			n = p.filesz
		}
		return off, n
	}
	var ph, sh []byte
	for _, p := range e.progs {
		off, n := put(p)
		memsz := p.memsz
		if memsz == 0 {
			memsz = n
		}
		if e.bits == 64 {
			ph = le.AppendUint32(ph, p.typ)
			ph = le.AppendUint32(ph, 7)
			for _, v := range []uint64{off, p.addr | 0xFFFFFFFF80000000, p.addr, n, memsz, p.align} {
				ph = le.AppendUint64(ph, v)
			}
		} else {
			for _, v := range []uint32{p.typ, uint32(off), uint32(p.addr) | 0xC0000000, uint32(p.addr), uint32(n), uint32(memsz), 7, uint32(p.align)} {
				ph = le.AppendUint32(ph, v)
			}
		}
	}
	for _, p := range e.sections {
		off, n := put(p)
		if e.bits == 64 {
			sh = le.AppendUint32(sh, 0)
			sh = le.AppendUint32(sh, p.typ)
			for _, v := range []uint64{0, 0, off, n, 0, p.align, 0} {
				sh = le.AppendUint64(sh, v)
			}
		} else {
			for _, v := range []uint32{0, p.typ, 0, 0, uint32(off), uint32(n), 0, 0, uint32(p.align), 0} {
				sh = le.AppendUint32(sh, v)
			}
		}
	}
	for body.Len()%8 != 0 {
		body.WriteByte(0)
	}
	shoff := uint64(ehsize + phsize*len(e.progs) + body.Len())
	if len(sh) == 0 {
		shoff = 0
	}
	h := append([]byte("\x7fELF"), byte(e.bits/32), e.data, 1)
	h = append(h, make([]byte, 9)...)
	h = le.AppendUint16(h, e.typ)
	h = le.AppendUint16(h, e.machine)
	h = le.AppendUint32(h, 1)
	if e.bits == 64 {
		for _, v := range []uint64{0xFFFFFFFF80001000, uint64(ehsize), shoff} {
			h = le.AppendUint64(h, v)
		}
	} else {
		for _, v := range []uint32{0xC0001000, uint32(ehsize), uint32(shoff)} {
			h = le.AppendUint32(h, v)
		}
	}
	h = le.AppendUint32(h, 0)
	for _, v := range []int{ehsize, phsize, len(e.progs), shsize, len(e.sections), 0} {
		h = le.AppendUint16(h, uint16(v))
	}
	out := append(h, ph...)
	out = append(out, body.Bytes()...)
	return append(out, sh...)
}

func note(owner string, typ uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(owner)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, typ)
	b = append(append(b, owner...), 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	b = append(b, desc...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func entryNote32(v uint32) []byte {
	return note("Xen", 18, binary.LittleEndian.AppendUint32(nil, v))
}

func entryNote64(v uint64) []byte {
	return note("Xen", 18, binary.LittleEndian.AppendUint64(nil, v))
}

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// pattern is n bytes none of which is zero.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)%251 + 1 ^ seed
		if b[i] == 0 {
			b[i] = seed
		}
	}
	return b
}

func pack(b []byte) []byte {
	var out bytes.Buffer
	z, _ := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func file(b []byte) File {
	return File{R: bytes.NewReader(b), Size: int64(len(b)), Name: "netbsd"}
}

// netbsd is an image shaped as NetBSD's: text at 2 MiB, data with a BSS, and
// the notes of locore.S.
func netbsd(bits int) elfSpec {
	return elfSpec{bits: bits, progs: []prog{
		{typ: 1, addr: 0x200000, data: pattern(0x3456, 0x11)},
		{typ: 1, addr: 0x300000, data: pattern(0x1001, 0x77), memsz: 0x9000},
		{typ: 4, align: 4, data: cat(note("Xen", 6, []byte("NetBSD\x00")), note("Xen", 5, []byte("xen-3.0\x00")), entryNote32(0x200010))},
	}}
}

func ram(t testing.TB, size uint64) *guestmem.Memory {
	t.Helper()
	m, err := guestmem.New(size, guestmem.Transparent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}
