package disk

import (
	"errors"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// zeroes is what is written where a hole cannot be made. It is never changed.
var zeroes [64 << 10]byte

// store is what an overlay needs of the file below it; a test puts a file
// there that loses power.
type store interface {
	// readv fills n bytes of bufs, from their byte skip on, from the file at
	// off, and writev stores them. Less than all is an error.
	readv(bufs [][]byte, skip, n, off int64) error
	writev(bufs [][]byte, skip, n, off int64) error
	read(p []byte, off int64) error
	write(p []byte, off int64) error
	sync() error
	// fallocate is fallocate(2).
	fallocate(mode uint32, off, n int64) error
	close() error
}

// Modes of fallocate(2). Neither changes the file's size.
const (
	punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE // reads as zeroes, space given back
	zeroRange = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE // reads as zeroes, space kept
)

// osFile is a file or block device. It is used by one goroutine at a time.
type osFile struct {
	f   *os.File
	fd  int
	vec vector
}

func newOSFile(f *os.File) *osFile { return &osFile{f: f, fd: int(f.Fd())} }

func (o *osFile) readv(bufs [][]byte, skip, n, off int64) error {
	return o.transfer(unix.SYS_PREADV, bufs, skip, n, off)
}

func (o *osFile) writev(bufs [][]byte, skip, n, off int64) error {
	return o.transfer(unix.SYS_PWRITEV, bufs, skip, n, off)
}

// transfer goes on after short transfers and signals until n bytes are done.
func (o *osFile) transfer(trap uintptr, bufs [][]byte, skip, n, off int64) error {
	defer runtime.KeepAlive(o.f)
	defer o.vec.drop()
	i := 0 // bufs[i][skip:] is next
	for n > 0 {
		for i < len(bufs) && skip >= int64(len(bufs[i])) {
			skip -= int64(len(bufs[i]))
			i++
		}
		if i == len(bufs) {
			return io.ErrShortBuffer
		}
		o.vec.load(bufs, i, skip, n)
		k, err := o.vec.call(trap, o.fd, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case k == 0 && trap == unix.SYS_PREADV:
			return errTruncated
		case k == 0:
			return io.ErrShortWrite
		}
		skip, n, off = skip+k, n-k, off+k
	}
	return nil
}

// errTruncated is a read behind the end of a file that was longer when it was
// opened.
var errTruncated = errors.New("the file ends before the disk does: it was truncated while in use")

func (o *osFile) read(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(o.fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errTruncated
		}
		p, off = p[n:], off+int64(n)
	}
	runtime.KeepAlive(o.f)
	return nil
}

func (o *osFile) write(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(o.fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrShortWrite
		}
		p, off = p[n:], off+int64(n)
	}
	runtime.KeepAlive(o.f)
	return nil
}

func (o *osFile) sync() error {
	return o.again(func() error { return unix.Fdatasync(o.fd) })
}

func (o *osFile) fallocate(mode uint32, off, n int64) error {
	return o.again(func() error { return unix.Fallocate(o.fd, mode, off, n) })
}

func (o *osFile) discardDevice(off, n int64) error {
	return o.again(func() error { return blkDiscard(o.fd, off, n) })
}

// again repeats what a signal interrupted.
func (o *osFile) again(call func() error) error {
	defer runtime.KeepAlive(o.f)
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (o *osFile) close() error {
	o.fd = -1
	return o.f.Close()
}

// unsupported says that the file system or device cannot do what fallocate was
// asked for; a block device says EINVAL to what its block size does not divide.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV)
}

// total is the number of bytes in bufs.
func total(bufs [][]byte) int64 {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}
