package acpi

import "encoding/binary"

// Opcodes of AML (ACPI 6.5 §20.3), and the resource descriptors of §6.4 that are
// used here.
const (
	opZero   = 0x00
	opOne    = 0x01
	opName   = 0x08
	opByte   = 0x0A
	opWord   = 0x0B
	opDWord  = 0x0C
	opString = 0x0D
	opQWord  = 0x0E
	opScope  = 0x10
	opBuffer = 0x11
	opExt    = 0x5B // prefix of opcodes of two bytes
	opDevice = 0x82 // behind opExt

	resIO        = 0x47 // small item, I/O port, 7 bytes (§6.4.2.5)
	resEnd       = 0x79 // small item, end tag (§6.4.2.9)
	resMemory32  = 0x86 // large item, fixed location 32-bit memory (§6.4.3.4)
	resInterrupt = 0x89 // large item, extended interrupt (§6.4.3.6)
)

// maxPackage bounds what packageLength can say (§20.2.4).
const maxPackage = 1<<28 - 1

// packageLength is PkgLength (§20.2.4) for a body of n bytes: it counts itself.
// The lead byte has 6 bits of length where it is alone, else 4 and the number of
// bytes that follow.
func packageLength(n int) []byte {
	if n+1 < 1<<6 {
		return []byte{byte(n + 1)}
	}
	for more := 1; more < 4; more++ {
		total := n + 1 + more
		if total < 1<<(4+8*more) {
			b := []byte{byte(more)<<6 | byte(total&0xF)}
			for rest := total >> 4; len(b) <= more; rest >>= 8 {
				b = append(b, byte(rest))
			}
			return b
		}
	}
	panic("acpi: a package beyond 2^28 bytes") // a page of tables never has one
}

func packaged(op []byte, body []byte) []byte {
	return append(append(op, packageLength(len(body))...), body...)
}

// integer is the shortest encoding of a constant (§20.2.3, ComputationalData).
func integer(v uint64) []byte {
	le := binary.LittleEndian
	switch {
	case v == 0:
		return []byte{opZero}
	case v == 1:
		return []byte{opOne}
	case v < 1<<8:
		return []byte{opByte, byte(v)}
	case v < 1<<16:
		return le.AppendUint16([]byte{opWord}, uint16(v))
	case v < 1<<32:
		return le.AppendUint32([]byte{opDWord}, uint32(v))
	}
	return le.AppendUint64([]byte{opQWord}, v)
}

// str is a String: ASCII without NUL, closed by one.
func str(s string) []byte { return append(append([]byte{opString}, s...), 0) }

// segment is a NameSeg: four characters, filled up with underscores (§20.2.2).
func segment(name string) []byte {
	b := []byte("____")
	copy(b, name)
	return b
}

// name is DefName: an object with a value (§20.2.5.1).
func name(n string, value []byte) []byte {
	return append(append([]byte{opName}, segment(n)...), value...)
}

// scope is DefScope of a name that is there from the start (§20.2.5.1, §5.3.1).
func scope(n string, terms ...[]byte) []byte {
	return packaged([]byte{opScope}, join(segment(n), terms))
}

// device is DefDevice (§20.2.5.2).
func device(n string, terms ...[]byte) []byte {
	return packaged([]byte{opExt, opDevice}, join(segment(n), terms))
}

func join(first []byte, rest [][]byte) []byte {
	for _, r := range rest {
		first = append(first, r...)
	}
	return first
}

// eisaID is EISAID("PNP0501"), three letters and four hexadecimal digits in 32
// bits, big-endian (§19.3.4 and ASL's EISAID macro, §19.6.37).
func eisaID(id string) []byte {
	hex := func(c byte) uint32 {
		if c >= 'A' {
			return uint32(c-'A') + 10
		}
		return uint32(c - '0')
	}
	v := uint32(id[0]&0x1F)<<26 | uint32(id[1]&0x1F)<<21 | uint32(id[2]&0x1F)<<16
	for i := range 4 {
		v |= hex(id[3+i]) << (12 - 4*i)
	}
	return integer(uint64(v>>24 | v>>8&0xFF00 | v<<8&0xFF_0000 | v<<24))
}

// resources is a buffer with a resource template; the end tag's checksum of zero
// says that there is none.
func resources(items ...[]byte) []byte {
	b := append(join(nil, items), resEnd, 0)
	return packaged([]byte{opBuffer}, append(integer(uint64(len(b))), b...))
}

// memory32 is Memory32Fixed, readable and writable.
func memory32(base, size uint32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint16([]byte{resMemory32}, 9)
	b = append(b, 1)
	return le.AppendUint32(le.AppendUint32(b, base), size)
}

// ports is IO with 16-bit decoding, at that place and no other.
func ports(base uint16, size byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint16([]byte{resIO, 1}, base)
	return append(le.AppendUint16(b, base), 1, size)
}

// interrupt is Interrupt: the device consumes it, active high, alone.
func interrupt(gsi uint32, level bool) []byte {
	le := binary.LittleEndian
	flags := byte(1) // consumer; level-triggered, active high
	if !level {
		flags |= 1 << 1
	}
	return le.AppendUint32(append(le.AppendUint16([]byte{resInterrupt}, 6), flags, 1), gsi)
}
