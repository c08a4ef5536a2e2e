package guestmem

import (
	"errors"
	"math"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		size uint64
		want []Range
	}{
		{64 << 20, []Range{{0, 64 << 20, 0}}},
		{HoleStart, []Range{{0, HoleStart, 0}}},
		{HoleStart + PageSize, []Range{{0, HoleStart, 0}, {HoleEnd, PageSize, HoleStart}}},
		{64 << 30, []Range{{0, HoleStart, 0}, {HoleEnd, 64<<30 - HoleStart, HoleStart}}},
	} {
		got := Layout(c.size)
		if len(got) != len(c.want) {
			t.Fatalf("Layout(%#x) = %v, want %v", c.size, got, c.want)
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("Layout(%#x)[%d] = %v, want %v", c.size, i, got[i], c.want[i])
			}
		}
	}
}

func TestSizesRefused(t *testing.T) {
	for _, size := range []uint64{0, PageSize, 1<<20 + 1, 64<<30 + PageSize, math.MaxUint64} {
		if m, err := New(size, Shared); err == nil {
			m.Close()
			t.Errorf("New(%d) took a size it should refuse", size)
		}
	}
}

func TestSliceBounds(t *testing.T) {
	m, err := New(HoleStart+1<<20, Shared)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, c := range []struct {
		gpa, n uint64
		ok     bool
	}{
		{0, 0, true}, {0, 1, true}, {0, HoleStart, true},
		{0, HoleStart + 1, false}, {HoleStart - 1, 1, true}, {HoleStart - 1, 2, false},
		{HoleStart, 1, false}, {HoleEnd - 1, 1, false}, {HoleEnd - 1, 2, false},
		{HoleEnd, 1 << 20, true}, {HoleEnd, 1<<20 + 1, false}, {HoleEnd + 1<<20, 0, false},
		{math.MaxUint64, 1, false}, {math.MaxUint64, math.MaxUint64, false},
		{1, math.MaxUint64, false}, {0, math.MaxUint64, false},
	} {
		b, err := m.Slice(c.gpa, c.n)
		if (err == nil) != c.ok {
			t.Errorf("Slice(%#x, %#x): %v, want ok=%v", c.gpa, c.n, err, c.ok)
		}
		if err != nil && !errors.Is(err, ErrOutOfRange) {
			t.Errorf("Slice(%#x, %#x): %v is not ErrOutOfRange", c.gpa, c.n, err)
		}
		if err == nil && uint64(cap(b)) != c.n {
			t.Errorf("Slice(%#x, %#x) has capacity %d: it can be grown into its neighbour", c.gpa, c.n, cap(b))
		}
	}
}

func TestSameFileTwice(t *testing.T) {
	m, err := New(1<<20, Shared)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	fd, err := unix.Dup(int(m.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	n, err := FromFile(os.NewFile(uintptr(fd), "ram"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	w, err := m.Word32(0x1000)
	if err != nil {
		t.Fatal(err)
	}
	w.Store(0xfeedbeef)
	if v, err := n.Uint32(0x1000); err != nil || v != 0xfeedbeef {
		t.Fatalf("second mapping reads %#x, %v", v, err)
	}
	if err := m.File().Truncate(0); err == nil {
		t.Error("the size of guest RAM is not sealed")
	}
}

func TestWord32Alignment(t *testing.T) {
	m, err := New(1<<20, Shared)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for gpa, ok := range map[uint64]bool{0: true, 2: false, 4: true, 1<<20 - 4: true, 1<<20 - 2: false} {
		if _, err := m.Word32(gpa); (err == nil) != ok {
			t.Errorf("Word32(%#x): %v, want ok=%v", gpa, err, ok)
		}
	}
}

func TestCloseTwice(t *testing.T) {
	m, err := New(1<<20, Shared)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Slice(0, 1); err == nil {
		t.Error("a closed Memory still hands out slices")
	}
}

// TestPrivate: RAM that is this process's alone lies where KVM can map its huge
// pages as such, reads as zero, costs nothing before it is touched, and lasts until
// its last owner has closed it.
func TestPrivate(t *testing.T) {
	for _, pages := range []Pages{Transparent, Small} {
		m, err := New(64<<20+PageSize, pages)
		if err != nil {
			t.Fatal(err)
		}
		if m.File() != nil {
			m.Close()
			if b, err := os.ReadFile("/proc/sys/vm/overcommit_memory"); err == nil && b[0] == '2' {
				t.Skip("NOT RUN: this host counts all of private memory at once (vm.overcommit_memory=2), and may refuse it")
			}
			t.Fatal("private RAM has a file")
		}
		if m.Base(0)%hugeSize != 0 {
			t.Errorf("RAM lies at %#x, no multiple of a huge page", m.Base(0))
		}
		if got := resident(t, m); got != 0 {
			t.Errorf("%d bytes of fresh RAM are resident", got)
		}
		m.Populate(8<<20+100, 3*PageSize)
		least, most := 4*PageSize, 4*PageSize
		if pages == Transparent {
			most = hugeSize
		}
		if got := resident(t, m); got < least || got > most {
			t.Errorf("pages %d: %d bytes are resident, want %d to %d", pages, got, least, most)
		}
		m.Populate(64<<20, 2*PageSize) // no RAM: nothing happens
		second := m.Retain()
		if err := m.WriteAt([]byte{7}, m.Size()-1); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if err := second.ReadAt(b[:], second.Size()-1); err != nil || b[0] != 7 {
			t.Errorf("the second owner reads %d, %v", b[0], err)
		}
		if err := errors.Join(second.Close(), second.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Slice(0, 1); err == nil {
			t.Error("closed by all, and slices are still handed out")
		}
	}
}
