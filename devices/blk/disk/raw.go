package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/blk"
)

// Raw is a disk whose bytes are those of a file or block device.
type Raw struct {
	f       *osFile
	size    int64
	block   uint32 // logical block size in bytes
	device  bool   // a block device, else a regular file
	ro      bool
	serial  string
	noPunch bool  // this file cannot make holes
	noZero  bool  // this file cannot zero a range
	lost    error // a flush has failed: see Flush
}

var (
	_ blk.Backend = (*Raw)(nil)
	_ Files       = (*Raw)(nil)
)

// newRaw checks that f can back a disk. f stays the caller's if it cannot.
func newRaw(f *os.File, ro bool, serial string) (*Raw, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	r := &Raw{f: newOSFile(f), ro: ro, serial: serial, size: st.Size, block: blk.SectorSize}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return nil, unix.EISDIR
	case unix.S_IFBLK:
		r.device = true
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, err
		}
		r.size = size
		n, err := unix.IoctlGetInt(r.f.fd, unix.BLKSSZGET)
		if err != nil {
			return nil, fmt.Errorf("BLKSSZGET: %w", err)
		}
		r.block = uint32(n)
	default:
		return nil, errors.New("neither a regular file nor a block device")
	}
	if err := checkAccess(f, !ro); err != nil {
		return nil, err
	}
	switch {
	case r.size == 0:
		return nil, errors.New("empty (0 bytes): give it a size first, with truncate -s 1G FILE")
	case r.size%blk.SectorSize != 0:
		return nil, fmt.Errorf("%d bytes: a disk is a multiple of %d; round it up with truncate -s %%%d FILE", r.size, blk.SectorSize, blk.SectorSize)
	}
	return r, nil
}

// checkAccess makes sure that an open file can be used as asked.
func checkAccess(f *os.File, write bool) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	mode := flags & unix.O_ACCMODE
	switch {
	case flags&unix.O_PATH != 0:
		return errors.New("opened with O_PATH: open it for reading and writing")
	case write && mode != unix.O_RDWR:
		return errors.New("not open for reading and writing")
	case mode == unix.O_WRONLY:
		return errors.New("not open for reading")
	case write && flags&unix.O_APPEND != 0:
		// Linux appends with pwrite too on such a file, whatever the offset.
		return errors.New("opened with O_APPEND: writes would go to its end")
	case flags&unix.O_DIRECT != 0:
		return errors.New("opened with O_DIRECT: guest buffers are not aligned for it")
	}
	return nil
}

// Size is the disk's size in bytes, a multiple of 512, as it was at Open.
func (r *Raw) Size() int64 { return r.size }

// BlockSize is the logical block size in bytes: 512 for files, the device's own
// for block devices.
func (r *Raw) BlockSize() uint32 { return r.block }

// ReadOnly says that writes fail.
func (r *Raw) ReadOnly() bool { return r.ro }

// Serial is the disk's identity.
func (r *Raw) Serial() string { return r.serial }

// Files gives the image's file.
func (r *Raw) Files() (image, overlay *os.File) { return r.f.f, nil }

// ReadV fills bufs from the disk at off.
func (r *Raw) ReadV(bufs [][]byte, off int64) error {
	n := total(bufs)
	if err := inside(r.size, off, n); err != nil {
		return err
	}
	return r.f.readv(bufs, 0, n, off)
}

// WriteV stores bufs on the disk at off.
func (r *Raw) WriteV(bufs [][]byte, off int64) error {
	n := total(bufs)
	if err := r.writable(off, n); err != nil {
		return err
	}
	return r.f.writev(bufs, 0, n, off)
}

func (r *Raw) writable(off, n int64) error {
	if r.ro {
		return unix.EROFS
	}
	return inside(r.size, off, n)
}

// Flush makes durable what has been written. When it has failed once it fails
// for good: Linux reports a lost page once and then forgets it, so that a later
// fdatasync would say yes to data that is gone.
func (r *Raw) Flush() error {
	if r.ro {
		return nil
	}
	if r.lost == nil {
		r.lost = r.f.sync()
	}
	if r.lost != nil || r.device {
		return r.lost
	}
	var st unix.Stat_t
	if err := unix.Fstat(r.f.fd, &st); err != nil {
		return err
	}
	if st.Size < r.size {
		return errTruncated
	}
	return nil
}

// Discard gives space back. It is a hint: where the file cannot make holes it
// does nothing, and on a block device it leaves out blocks covered in part.
func (r *Raw) Discard(off, n int64) error {
	if err := r.writable(off, n); err != nil {
		return err
	}
	if r.noPunch {
		return nil
	}
	bs := int64(r.block)
	first, end := (off+bs-1)/bs*bs, (off+n)/bs*bs
	if first >= end {
		return nil
	}
	var err error
	if r.device {
		err = r.f.discardDevice(first, end-first)
	} else {
		err = r.f.fallocate(punchHole, first, end-first)
	}
	if err != nil && unsupported(err) {
		r.noPunch, err = true, nil
	}
	return err
}

// WriteZeroes makes n bytes from off read as zeroes. With unmap their space is
// given back if the file can; without, it is kept or taken.
func (r *Raw) WriteZeroes(off, n int64, unmap bool) error {
	if err := r.writable(off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if unmap && !r.noPunch {
		err := r.f.fallocate(punchHole, off, n)
		if err == nil || !unsupported(err) {
			return err
		}
		// EINVAL is about this range of a block device, not about all of it.
		r.noPunch = !errors.Is(err, unix.EINVAL)
	}
	if !r.noZero {
		err := r.f.fallocate(zeroRange, off, n)
		if err == nil || !unsupported(err) {
			return err
		}
		r.noZero = !errors.Is(err, unix.EINVAL)
	}
	return writeZeroes(r.f, off, n)
}

// writeZeroes stores zeroes the plain way.
func writeZeroes(s store, off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if err := s.write(zeroes[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Freeze has nothing to do: all that was written is in the file.
func (r *Raw) Freeze() error { return nil }

// Close closes the file, which gives the lock up.
func (r *Raw) Close() error { return r.f.close() }

// inside checks that n bytes from off lie on a disk of size bytes.
func inside(size, off, n int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%d bytes at %d: behind the end of a disk of %d bytes", n, off, size)
	}
	return nil
}
