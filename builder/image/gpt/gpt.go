// Package gpt writes GUID partition tables: the protective MBR, the primary and
// the backup table (UEFI Specification 2.10, section 5.3), for disks of 512-byte
// sectors. NetBSD makes a wedge of every entry and names it as the entry is
// named (sys/dev/dkwedge/dkwedge_gpt.c), so that root=NAME=… finds it.
package gpt

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

const (
	// Sector is the size of a sector in bytes.
	Sector = 512
	// Align is where partitions best begin, in bytes: a multiple of every
	// disk's and host's block.
	Align = 1 << 20

	entries      = 128
	entrySize    = 128
	tableSectors = entries * entrySize / Sector
	headerSize   = 92
	// firstUsable is the first sector behind MBR, header and table.
	firstUsable = 2 + tableSectors
	// MaxName bounds a partition's name, in UTF-16 units.
	MaxName = 36
)

// GUID is one as it is on the disk: the first three fields little-endian.
type GUID [16]byte

// NetBSDFFS is the type of partitions with NetBSD's FFS,
// 49F48D5A-B10E-11DC-B99B-0019D1879648 (sys/sys/disklabel_gpt.h).
func NetBSDFFS() GUID {
	return GUID{0x5a, 0x8d, 0xf4, 0x49, 0x0e, 0xb1, 0xdc, 0x11, 0xb9, 0x9b, 0x00, 0x19, 0xd1, 0x87, 0x96, 0x48}
}

// NewGUID gives the GUID that belongs to a seed: the same seed, the same GUID
// (RFC 9562, version 8).
func NewGUID(seed ...[]byte) GUID {
	h := sha256.New()
	for _, s := range seed {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write(s)
	}
	g := GUID(h.Sum(nil)[:16])
	g[7] = g[7]&0x0f | 0x80 // the version, in the upper half of the third field
	g[8] = g[8]&0x3f | 0x80 // the variant
	return g
}

// String is the usual form.
func (g GUID) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

// Partition is an entry.
type Partition struct {
	Type, ID  GUID
	Name      string
	Off, Size int64 // bytes, multiples of Sector
}

// Disk is a disk with its partitions.
type Disk struct {
	Size  int64 // bytes, a multiple of Sector
	ID    GUID
	Parts []Partition
}

// Overhead is what a table takes behind the last partition, in bytes.
const Overhead = (1 + tableSectors) * Sector

// Write writes the tables; nothing else on the disk is touched.
func Write(w io.WriterAt, d Disk) error {
	if err := d.check(); err != nil {
		return err
	}
	last := d.Size/Sector - 1
	table := d.table()
	mbr := protective(last)
	for _, part := range []struct {
		sector int64
		bytes  []byte
	}{
		{last - tableSectors, table},
		{last, d.header(table, last, 1, last-tableSectors)},
		{2, table},
		{1, d.header(table, 1, last, 2)},
		{0, mbr},
	} {
		if _, err := w.WriteAt(part.bytes, part.sector*Sector); err != nil {
			return err
		}
	}
	return nil
}

func (d *Disk) check() error {
	if d.Size%Sector != 0 || d.Size < (firstUsable+1)*Sector+Overhead {
		return fmt.Errorf("a partition table on a disk of %d bytes: want whole sectors, and more of them", d.Size)
	}
	if len(d.Parts) > entries {
		return fmt.Errorf("%d partitions: at most %d", len(d.Parts), entries)
	}
	for i, p := range d.Parts {
		if p.Off%Sector != 0 || p.Size%Sector != 0 || p.Size <= 0 || p.Off < firstUsable*Sector || p.Size > d.Size-Overhead-p.Off {
			return fmt.Errorf("partition %q of %d bytes at %d does not lie between the tables of a disk of %d bytes", p.Name, p.Size, p.Off, d.Size)
		}
		if n := len(utf16.Encode([]rune(p.Name))); n == 0 || n > MaxName {
			return fmt.Errorf("partition name %.80q: want 1 to %d characters", p.Name, MaxName)
		}
		for _, o := range d.Parts[:i] {
			if p.Off < o.Off+o.Size && o.Off < p.Off+p.Size {
				return fmt.Errorf("partitions %q and %q overlap", o.Name, p.Name)
			}
		}
	}
	return nil
}

// table is the partition entry array.
func (d *Disk) table() []byte {
	le := binary.LittleEndian
	b := make([]byte, entries*entrySize)
	for i, p := range d.Parts {
		e := b[i*entrySize:]
		copy(e, p.Type[:])
		copy(e[16:], p.ID[:])
		le.PutUint64(e[32:], uint64(p.Off/Sector))
		le.PutUint64(e[40:], uint64((p.Off+p.Size)/Sector-1))
		for j, u := range utf16.Encode([]rune(p.Name)) {
			le.PutUint16(e[56+2*j:], u)
		}
	}
	return b
}

func (d *Disk) header(table []byte, self, other, array int64) []byte {
	le := binary.LittleEndian
	b := make([]byte, Sector)
	copy(b, "EFI PART")
	le.PutUint32(b[8:], 0x00010000)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[24:], uint64(self))
	le.PutUint64(b[32:], uint64(other))
	le.PutUint64(b[40:], firstUsable)
	le.PutUint64(b[48:], uint64(d.Size/Sector-1-tableSectors-1))
	copy(b[56:], d.ID[:])
	le.PutUint64(b[72:], uint64(array))
	le.PutUint32(b[80:], entries)
	le.PutUint32(b[84:], entrySize)
	le.PutUint32(b[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:headerSize]))
	return b
}

// protective is an MBR that shows the whole disk as taken to whoever does not
// know GPT. last is the disk's last sector.
func protective(last int64) []byte {
	b := make([]byte, Sector)
	e := b[446:]
	copy(e[1:], []byte{0x00, 0x02, 0x00}) // cylinder, head, sector of sector 1
	e[4] = 0xee
	copy(e[5:], []byte{0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(last, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}
