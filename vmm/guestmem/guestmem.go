// Package guestmem is the guest's RAM: a memfd mapped into the monitor, and the
// only place where a guest physical address becomes host bytes.
//
// Every access is checked, overflow-safe, against the memory map; an address
// outside RAM is an *AccessError, never a fault. The package is a leaf: it
// imports the standard library and x/sys only.
package guestmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// PageSize is the unit of guest memory in bytes (Intel SDM vol. 3A §4.3).
	PageSize = 4096

	// HoleStart and HoleEnd bound the window below 4 GiB that never holds RAM:
	// virtio-mmio devices, the IOAPIC (0xFEC00000), the local APICs
	// (0xFEE00000) and KVM's private pages live there.
	HoleStart = 0xC000_0000
	HoleEnd   = 0x1_0000_0000

	// MinSize and MaxSize bound the RAM of one guest, in bytes.
	MinSize = 1 << 20
	MaxSize = 64 << 30
)

// Range is a run of guest RAM: Size bytes from guest physical address GPA,
// found in the backing file from Offset.
type Range struct {
	GPA    uint64
	Size   uint64
	Offset uint64
}

// End is the first guest physical address behind the range.
func (r Range) End() uint64 { return r.GPA + r.Size }

// Layout splits size bytes of RAM around the hole below 4 GiB.
func Layout(size uint64) []Range {
	if size <= HoleStart {
		return []Range{{GPA: 0, Size: size}}
	}
	return []Range{
		{GPA: 0, Size: HoleStart},
		{GPA: HoleEnd, Size: size - HoleStart, Offset: HoleStart},
	}
}

// ErrOutOfRange is wrapped by every *AccessError.
var ErrOutOfRange = errors.New("outside guest RAM")

// AccessError says which access missed RAM.
type AccessError struct {
	GPA uint64 // first byte of the access
	Len uint64 // bytes
}

func (e *AccessError) Error() string {
	return fmt.Sprintf("guest address %#x, %d bytes: %v", e.GPA, e.Len, ErrOutOfRange)
}

// Unwrap gives ErrOutOfRange.
func (e *AccessError) Unwrap() error { return ErrOutOfRange }

// Options are what New takes besides the size.
type Options struct {
	// HugePages backs RAM with 2 MiB pages of hugetlbfs: the size must then
	// be a multiple of 2 MiB and the pages must be reserved on the host.
	HugePages bool
}

// Memory is the RAM of one guest. Its methods are safe for concurrent use;
// what the guest does to the same bytes at the same time is the guest's own
// affair, so callers copy a structure out before they judge it.
type Memory struct {
	file    *os.File
	ranges  []Range
	maps    [][]byte
	size    uint64
	mapping []byte // one reservation for all ranges, in file order
	closed  atomic.Bool
}

// New makes size bytes of RAM in a sealed-size memfd of its own, mapped
// lazily: a page costs host memory when it is first touched.
func New(size uint64, opt Options) (*Memory, error) {
	if err := checkSize(size, opt); err != nil {
		return nil, err
	}
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if opt.HugePages {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate("smolvmm-ram", flags)
	if err != nil {
		return nil, fmt.Errorf("guest RAM: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "smolvmm-ram")
	if err := f.Truncate(int64(size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("guest RAM of %d bytes: %w", size, err)
	}
	// The size is sealed so that no later holder of the fd can shrink the
	// file under the mapping and turn a guest access into SIGBUS.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		f.Close()
		return nil, fmt.Errorf("guest RAM: seal size: %w", err)
	}
	m, err := FromFile(f, size)
	if err != nil {
		f.Close()
		if opt.HugePages && errors.Is(err, unix.ENOMEM) {
			return nil, fmt.Errorf("guest RAM of %d MiB in huge pages: the host has too few free (see HugePages_Free in /proc/meminfo; raise vm.nr_hugepages): %w", size>>20, err)
		}
		return nil, err
	}
	return m, nil
}

func checkSize(size uint64, opt Options) error {
	unit := uint64(PageSize)
	if opt.HugePages {
		unit = 2 << 20
	}
	switch {
	case size < MinSize || size > MaxSize:
		return fmt.Errorf("guest RAM of %d bytes: must be between 1 MiB and 64 GiB", size)
	case size%unit != 0:
		return fmt.Errorf("guest RAM of %d bytes: must be a multiple of %d", size, unit)
	}
	return nil
}

// FromFile maps the size bytes of RAM that f holds from offset 0, laid out by
// Layout, and takes f over: Close closes it.
func FromFile(f *os.File, size uint64) (*Memory, error) {
	if err := checkSize(size, Options{}); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("guest RAM: %w", err)
	}
	if uint64(st.Size()) < size {
		return nil, fmt.Errorf("guest RAM: file holds %d bytes, %d wanted", st.Size(), size)
	}
	flags := unix.MAP_SHARED
	if !onHugePages(f) {
		// Huge pages are reserved here and now: one that is missing later
		// would be a SIGBUS in the middle of a guest's life.
		flags |= unix.MAP_NORESERVE
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, fmt.Errorf("guest RAM: mmap of %d bytes: %w", size, err)
	}
	// Guest RAM has no place in a core dump of the monitor: it can hold secrets.
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	m := &Memory{file: f, ranges: Layout(size), size: size, mapping: b}
	for _, r := range m.ranges {
		m.maps = append(m.maps, b[r.Offset:r.Offset+r.Size:r.Offset+r.Size])
	}
	return m, nil
}

// onHugePages says whether f lies on hugetlbfs, as a memfd with MFD_HUGETLB does.
func onHugePages(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == unix.HUGETLBFS_MAGIC
}

// Close unmaps the memory and closes its file. No slice taken from it may be
// used afterwards. A second Close does nothing.
func (m *Memory) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	m.maps = nil
	return errors.Join(unix.Munmap(m.mapping), m.file.Close())
}

// File is the backing file; it stays owned by the Memory.
func (m *Memory) File() *os.File { return m.file }

// Size is the amount of RAM in bytes.
func (m *Memory) Size() uint64 { return m.size }

// Ranges are the runs of RAM by rising address.
func (m *Memory) Ranges() []Range { return append([]Range(nil), m.ranges...) }

// Slice gives the n bytes of RAM from gpa in place. A run may not span the
// hole. The slice is dropped before a pause: see the package devices.
func (m *Memory) Slice(gpa, n uint64) ([]byte, error) {
	for i := range m.maps {
		r := &m.ranges[i]
		if off := gpa - r.GPA; gpa >= r.GPA && off < r.Size && n <= r.Size-off {
			return m.maps[i][off : off+n : off+n], nil
		}
	}
	return nil, &AccessError{GPA: gpa, Len: n}
}

// ReadAt fills p from guest physical address gpa, or fails as a whole.
func (m *Memory) ReadAt(p []byte, gpa uint64) error {
	b, err := m.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, b)
	return nil
}

// WriteAt stores p at guest physical address gpa, or fails as a whole.
func (m *Memory) WriteAt(p []byte, gpa uint64) error {
	b, err := m.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(b, p)
	return nil
}

// Uint16 reads a little-endian word.
func (m *Memory) Uint16(gpa uint64) (uint16, error) {
	b, err := m.Slice(gpa, 2)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(b), nil
}

// Uint32 reads a little-endian word.
func (m *Memory) Uint32(gpa uint64) (uint32, error) {
	b, err := m.Slice(gpa, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// Uint64 reads a little-endian word.
func (m *Memory) Uint64(gpa uint64) (uint64, error) {
	b, err := m.Slice(gpa, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}
