// Package bus says which device answers which port or guest physical address.
package bus

import (
	"fmt"
	"slices"
	"sort"

	"github.com/smolvmm/smolvmm/devices"
)

// Range is an address range and the device that answers it.
type Range struct {
	Base, Size uint64
	Name       string
	Device     devices.Region
	readMany   interface{ ReadMany(uint64, []byte) }
	writeMany  interface{ WriteMany(uint64, []byte) }
}

// Bus is an address space: ports or memory-mapped I/O. It is built before the
// machine runs and only read afterwards.
type Bus struct{ ranges []Range }

// Add puts a device at [base, base+size). Overlap is an error.
func (b *Bus) Add(name string, base, size uint64, d devices.Region) error {
	if size == 0 || base+size < base {
		return fmt.Errorf("%s: range %#x+%#x is empty or wraps", name, base, size)
	}
	i := sort.Search(len(b.ranges), func(i int) bool { return b.ranges[i].Base >= base })
	if i < len(b.ranges) && b.ranges[i].Base < base+size {
		return fmt.Errorf("%s at %#x overlaps %s", name, base, b.ranges[i].Name)
	}
	if i > 0 && b.ranges[i-1].Base+b.ranges[i-1].Size > base {
		return fmt.Errorf("%s at %#x overlaps %s", name, base, b.ranges[i-1].Name)
	}
	r := Range{Base: base, Size: size, Name: name, Device: d}
	r.readMany, _ = d.(interface{ ReadMany(uint64, []byte) })
	r.writeMany, _ = d.(interface{ WriteMany(uint64, []byte) })
	b.ranges = slices.Insert(b.ranges, i, r)
	return nil
}

// Find gives the range that holds the whole access, or nil: an access that
// straddles an edge belongs to no one.
func (b *Bus) Find(addr uint64, n int) *Range {
	lo, hi := 0, len(b.ranges)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		r := &b.ranges[mid]
		switch {
		case addr < r.Base:
			hi = mid
		case addr-r.Base >= r.Size:
			lo = mid + 1
		case uint64(n) > r.Size-(addr-r.Base):
			return nil
		default:
			return r
		}
	}
	return nil
}

// Read answers a read; what no device claims reads as ones, like an open bus.
func (b *Bus) Read(addr uint64, p []byte) (claimed bool) {
	fill(p)
	r := b.Find(addr, len(p))
	if r == nil {
		return false
	}
	r.Device.Read(addr-r.Base, p)
	return true
}

// Write delivers a write; one that no device claims is lost.
func (b *Bus) Write(addr uint64, p []byte) (claimed bool) {
	r := b.Find(addr, len(p))
	if r == nil {
		return false
	}
	r.Device.Write(addr-r.Base, p)
	return true
}

// ReadString answers a string input of len(p)/size accesses.
func (b *Bus) ReadString(addr uint64, size int, p []byte) (claimed bool) {
	fill(p)
	r := b.Find(addr, size)
	if r == nil {
		return false
	}
	if size == 1 && r.readMany != nil {
		r.readMany.ReadMany(addr-r.Base, p)
		return true
	}
	for ; len(p) >= size; p = p[size:] {
		r.Device.Read(addr-r.Base, p[:size])
	}
	return true
}

// WriteString delivers a string output of len(p)/size accesses.
func (b *Bus) WriteString(addr uint64, size int, p []byte) (claimed bool) {
	r := b.Find(addr, size)
	if r == nil {
		return false
	}
	if size == 1 && r.writeMany != nil {
		r.writeMany.WriteMany(addr-r.Base, p)
		return true
	}
	for ; len(p) >= size; p = p[size:] {
		r.Device.Write(addr-r.Base, p[:size])
	}
	return true
}

func fill(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}
