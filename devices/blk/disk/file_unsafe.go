package disk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxIovecs is IOV_MAX: the most runs that one preadv or pwritev takes
// (linux/uio.h, UIO_MAXIOV).
const maxIovecs = 1024

// vector is room for the iovecs of one transfer, kept from one to the next so
// that a request costs no allocation (x/sys allocates beyond 8 runs).
type vector struct{ iov []unix.Iovec }

// load fills the vector with the bytes of bufs from byte pos of run i on, at
// most n bytes and maxIovecs runs.
func (v *vector) load(bufs [][]byte, i int, pos, n int64) {
	v.iov = v.iov[:0]
	for ; i < len(bufs) && n > 0 && len(v.iov) < maxIovecs; i++ {
		b := bufs[i][pos:]
		pos = 0
		if len(b) == 0 {
			continue
		}
		k := min(int64(len(b)), n)
		iov := unix.Iovec{Base: &b[0]}
		iov.SetLen(int(k))
		v.iov = append(v.iov, iov)
		n -= k
	}
}

// call makes one preadv or pwritev of what was loaded.
func (v *vector) call(trap uintptr, fd int, off int64) (int64, error) {
	if len(v.iov) == 0 {
		return 0, nil
	}
	// The kernel joins the offset from two halves; on a 64-bit one the low
	// half holds all of it (man 2 preadv, "C library/kernel differences").
	n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&v.iov[0])), uintptr(len(v.iov)), uintptr(off), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int64(n), nil
}

// drop forgets the buffers: guest RAM may go away between transfers.
func (v *vector) drop() {
	clear(v.iov)
	v.iov = v.iov[:0]
}

// blkDiscard is BLKDISCARD (linux/fs.h): drops n bytes from off of a block
// device, both multiples of its logical block size.
func blkDiscard(fd int, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}
