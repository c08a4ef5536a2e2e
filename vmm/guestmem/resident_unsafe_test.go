package guestmem

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resident counts the bytes of m's only range that the host has given pages to.
func resident(t *testing.T, m *Memory) (n int) {
	t.Helper()
	b, err := m.Slice(0, m.Size())
	if err != nil {
		t.Fatal(err)
	}
	in := make([]byte, (len(b)+PageSize-1)/PageSize)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, m.Base(0), uintptr(len(b)), uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, p := range in {
		n += int(p&1) * PageSize
	}
	return n
}
