// Package guestmem is the guest's RAM, mapped into the monitor, and the only place
// where a guest physical address becomes host bytes.
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
// found in the mapping, and in the file where there is one, from Offset.
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

// Pages is what RAM is made of.
type Pages int

const (
	// Transparent is private memory of this process in the host's transparent
	// huge pages, where it has them: a fault, and an entry of the second
	// level's tables, for 2 MiB instead of 4 KiB.
	Transparent Pages = iota
	// Small is the same in pages of 4 KiB: a guest costs what it touches, to the page.
	Small
	// Reserved is a memfd of 2 MiB pages of hugetlbfs, reserved on the host
	// beforehand. The size must be a multiple of 2 MiB.
	Reserved
	// Shared is a memfd, which can be mapped a second time and handed to
	// another process. It has huge pages where shmem_enabled is always.
	Shared
)

const (
	hugeSize = 2 << 20
	// smallEnd is where the transparent huge pages begin. What lies below is a
	// page or two of boot data, and all of the smallest guests.
	smallEnd = hugeSize
)

// Memory is the RAM of one guest. Its methods are safe for concurrent use;
// what the guest does to the same bytes at the same time is the guest's own
// affair, so callers copy a structure out before they judge it.
type Memory struct {
	file    *os.File // nil where RAM is this process's alone
	ranges  []Range
	maps    [][]byte
	size    uint64
	mapping []byte // one reservation for all ranges, with what is before and behind
	users   atomic.Int32
}

// New makes size bytes of RAM, mapped lazily: a page costs host memory when it is
// first touched.
func New(size uint64, pages Pages) (*Memory, error) {
	if err := checkSize(size, pages); err != nil {
		return nil, err
	}
	if pages == Transparent || pages == Small {
		m, err := private(size, pages)
		if !errors.Is(err, unix.ENOMEM) {
			return m, err
		}
		// A host that counts every private page as used (vm.overcommit_memory
		// 2) may still have room for those that the guest will touch.
	}
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if pages == Reserved {
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
		if pages == Reserved && errors.Is(err, unix.ENOMEM) {
			return nil, fmt.Errorf("guest RAM of %d MiB in huge pages: the host has too few free (see HugePages_Free in /proc/meminfo; raise vm.nr_hugepages): %w", size>>20, err)
		}
		return nil, err
	}
	return m, nil
}

// private makes anonymous RAM between two guards.
func private(size uint64, pages Pages) (*Memory, error) {
	// KVM maps a huge page as one where guest and host addresses agree modulo
	// its size, so there is room to move by as much.
	all, err := unix.Mmap(-1, 0, int(size+2*hugeSize), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("guest RAM: mmap of %d bytes: %w", size, err)
	}
	skip := hugeSize - uint64(addressOf(all))%hugeSize
	b := all[skip : skip+size : skip+size]
	if err := unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, errors.Join(fmt.Errorf("guest RAM: mprotect of %d bytes: %w", size, err), unix.Munmap(all))
	}
	// A kernel without huge pages refuses both, and goes on with small ones.
	small := b
	if pages == Transparent && size > smallEnd {
		small = b[:smallEnd]
		_ = unix.Madvise(b[smallEnd:], unix.MADV_HUGEPAGE)
	}
	_ = unix.Madvise(small, unix.MADV_NOHUGEPAGE)
	return memory(nil, all, b), nil
}

// memory is RAM in b, a part of the mapping all.
func memory(f *os.File, all, b []byte) *Memory {
	// Guest RAM has no place in a core dump of the monitor: it can hold secrets.
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	m := &Memory{file: f, ranges: Layout(uint64(len(b))), size: uint64(len(b)), mapping: all}
	for _, r := range m.ranges {
		m.maps = append(m.maps, b[r.Offset:r.Offset+r.Size:r.Offset+r.Size])
	}
	m.users.Store(1)
	return m
}

func checkSize(size uint64, pages Pages) error {
	unit := uint64(PageSize)
	if pages == Reserved {
		unit = hugeSize
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
	if err := checkSize(size, Shared); err != nil {
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
	return memory(f, b, b), nil
}

// onHugePages says whether f lies on hugetlbfs, as a memfd with MFD_HUGETLB does.
func onHugePages(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == unix.HUGETLBFS_MAGIC
}

// Retain gives a second owner of the memory, with a Close to call.
func (m *Memory) Retain() *Memory {
	m.users.Add(1)
	return m
}

// Close unmaps the memory and closes its file once every owner has called it. No
// slice taken from it may be used afterwards. One Close too many does nothing.
func (m *Memory) Close() error {
	for {
		n := m.users.Load()
		if n == 0 {
			return nil
		}
		if !m.users.CompareAndSwap(n, n-1) {
			continue
		}
		if n > 1 {
			return nil
		}
		break
	}
	m.maps = nil
	err := unix.Munmap(m.mapping)
	if m.file != nil {
		err = errors.Join(err, m.file.Close())
	}
	return err
}

// File is the file behind RAM, which stays owned by the Memory, or nil.
func (m *Memory) File() *os.File { return m.file }

// Populate makes the n bytes of RAM from gpa present, which takes less time all
// at once than a fault for each page. It is a wish: nothing depends on it.
func (m *Memory) Populate(gpa, n uint64) {
	start := gpa &^ (PageSize - 1)
	if b, err := m.Slice(start, n+gpa-start); err == nil {
		_ = unix.Madvise(b, unix.MADV_POPULATE_WRITE)
	}
}

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
