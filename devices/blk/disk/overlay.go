package disk

import (
	"os"

	"github.com/smolvmm/smolvmm/devices/blk"
)

// Overlay is a disk over an image that it never writes. See the package's
// comment for its file.
type Overlay struct {
	base *Raw
	f    store
	file *os.File // what f writes
	g    geometry
	m    *blockMap

	// durable says that the file has a name, so that a power cut leaves it.
	// An unlinked file is gone then whatever was flushed: its flushes do
	// nothing, and its header and map are written by Freeze alone.
	durable  bool
	header   bool // the file has its header
	lost     error
	noPunch  bool
	noZero   bool
	fillRoom [blockLen]byte
	zeroRoom [1][]byte
}

var (
	_ blk.Backend = (*Overlay)(nil)
	_ Files       = (*Overlay)(nil)
)

// Size is the disk's size in bytes: the base's.
func (o *Overlay) Size() int64 { return o.g.size }

// BlockSize is the base's logical block size in bytes.
func (o *Overlay) BlockSize() uint32 { return o.base.block }

// ReadOnly is false: that the base is never written is not the guest's affair.
func (o *Overlay) ReadOnly() bool { return false }

// Serial is the disk's identity.
func (o *Overlay) Serial() string { return o.base.serial }

// Files gives the base and the file of changes.
func (o *Overlay) Files() (image, overlay *os.File) { return o.base.f.f, o.file }

// ReadV fills bufs from the disk at off: each run of blocks from where it is.
func (o *Overlay) ReadV(bufs [][]byte, off int64) error {
	n := total(bufs)
	if err := inside(o.g.size, off, n); err != nil {
		return err
	}
	end := off + n
	for skip := int64(0); off < end; {
		k, present := o.m.run(off/blockLen, (end+blockLen-1)/blockLen)
		stop := min(end, (off/blockLen+k)*blockLen)
		var err error
		if present {
			err = o.f.readv(bufs, skip, stop-off, o.g.data+off)
		} else {
			err = o.base.f.readv(bufs, skip, stop-off, off)
		}
		if err != nil {
			return err
		}
		skip += stop - off
		off = stop
	}
	return nil
}

// WriteV stores bufs in the overlay at off. A block covered in part is first
// completed from the base. Blocks become visible when all is written: after an
// error, those that were in the base still are.
func (o *Overlay) WriteV(bufs [][]byte, off int64) error {
	n := total(bufs)
	if err := inside(o.g.size, off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	end := off + n
	first, last := off/blockLen, (end-1)/blockLen
	if !o.m.has(first) {
		if err := o.fill(first*blockLen, off); err != nil {
			return err
		}
	}
	if !o.m.has(last) {
		if err := o.fill(end, min((last+1)*blockLen, o.g.size)); err != nil {
			return err
		}
	}
	if err := o.f.writev(bufs, 0, n, o.g.data+off); err != nil {
		return err
	}
	o.m.set(first, last+1)
	return nil
}

// fill copies less than a block from the base into the overlay.
func (o *Overlay) fill(off, end int64) error {
	if off == end {
		return nil
	}
	p := o.fillRoom[:end-off]
	if err := o.base.f.read(p, off); err != nil {
		return err
	}
	return o.f.write(p, o.g.data+off)
}

// Flush makes durable what has been written, the data before the map. As with
// Raw, one that has failed fails for good.
func (o *Overlay) Flush() error {
	if !o.durable {
		return nil
	}
	if o.lost != nil {
		return o.lost
	}
	if o.lost = o.f.sync(); o.lost != nil || len(o.m.dirty) == 0 {
		return o.lost
	}
	// A page that cannot be written stays dirty, for the next flush.
	if err := o.m.save(o.f); err != nil {
		return err
	}
	o.lost = o.f.sync()
	return o.lost
}

// Discard makes whole blocks holes, which read as zeroes; blocks covered in
// part keep their data. Where the file cannot make holes it does nothing.
func (o *Overlay) Discard(off, n int64) error {
	if err := inside(o.g.size, off, n); err != nil {
		return err
	}
	first, end := o.whole(off, n)
	if first >= end || o.noPunch {
		return nil
	}
	done, err := o.blank(first, end, punchHole)
	if err == nil && !done {
		o.noPunch = true
	}
	return err
}

// WriteZeroes makes n bytes from off read as zeroes, with unmap without taking
// space for whole blocks.
func (o *Overlay) WriteZeroes(off, n int64, unmap bool) error {
	if err := inside(o.g.size, off, n); err != nil {
		return err
	}
	first, end := o.whole(off, n)
	if first >= end {
		return o.plainZeroes(off, off+n)
	}
	done := false
	var err error
	if unmap && !o.noPunch {
		done, err = o.blank(first, end, punchHole)
		o.noPunch = err == nil && !done
	}
	if err == nil && !done && !o.noZero {
		done, err = o.blank(first, end, zeroRange)
		o.noZero = err == nil && !done
	}
	if err != nil {
		return err
	}
	if !done {
		return o.plainZeroes(off, off+n)
	}
	if err := o.plainZeroes(off, first*blockLen); err != nil {
		return err
	}
	return o.plainZeroes(min(end*blockLen, off+n), off+n)
}

// whole gives the blocks that n bytes from off cover entirely; the last block
// of the disk may be a short one.
func (o *Overlay) whole(off, n int64) (first, end int64) {
	end = (off + n) / blockLen
	if off+n == o.g.size {
		end = o.g.blocks
	}
	return (off + blockLen - 1) / blockLen, end
}

// blank makes whole blocks zero with fallocate, and says whether it could.
func (o *Overlay) blank(first, end int64, mode uint32) (done bool, err error) {
	off, stop := first*blockLen, min(end*blockLen, o.g.size)
	// Blocks not in the map may hold what a write before a power cut left, so
	// they are blanked like the rest.
	if err := o.f.fallocate(mode, o.g.data+off, stop-off); err != nil {
		if unsupported(err) {
			return false, nil
		}
		return false, err
	}
	o.m.set(first, end)
	return true, nil
}

func (o *Overlay) plainZeroes(off, end int64) error {
	for off < end {
		k := min(end-off, int64(len(zeroes)))
		o.zeroRoom[0] = zeroes[:k]
		if err := o.WriteV(o.zeroRoom[:], off); err != nil {
			return err
		}
		off += k
	}
	return nil
}

// Freeze writes header and map, so that whoever opens the same file next sees
// this disk. Of a file without a name it makes nothing durable.
func (o *Overlay) Freeze() error {
	if err := o.Flush(); err != nil {
		return err
	}
	if !o.header {
		fp, err := fingerprintOf(o.base)
		if err != nil {
			return err
		}
		if err := o.f.write(encodeHeader(o.g, fp), 0); err != nil {
			return err
		}
		o.header = true
	}
	return o.m.save(o.f)
}

// Close flushes a file that has a name, and closes both files.
func (o *Overlay) Close() error {
	err := o.Flush()
	if e := o.f.close(); err == nil {
		err = e
	}
	if e := o.base.Close(); err == nil {
		err = e
	}
	return err
}
