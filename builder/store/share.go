package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/maphash"
	"io"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// An image's disk has the files of its tree. The archive of a tree therefore says
// where on the disk each content is, as far as it is there, instead of repeating
// it:
//
//	for each content, by ascending digest:
//	  uvarint 0               it is an entry of the archive
//	  uvarint 1+n, n runs     it is n runs of the disk's bytes, all else zeros
//	run:
//	  uvarint zeros before it, bytes; uvarint offset on the disk; uvarint length
//
// What the disk's file system is does not matter here: contents are found by their
// bytes, in units that every file system aligns its blocks to.
const (
	shareUnit = 2048 // bytes: the smallest fragment that builder/image gives a file
	// maxUnits bounds the index of a disk: 4 GiB of data, some 100 MiB of memory.
	maxUnits = 2 << 20
	// shareStep is how much is compared at once, bytes.
	shareStep = 32 * shareUnit
	// maxShared bounds the map in an archive, bytes: a run has ten, a file of usual
	// size one or two runs.
	maxShared = 16 << 20
)

// run is a piece of a content that is on the disk.
type run struct{ off, disk, n int64 } // bytes

// sharer finds contents on a disk.
type sharer struct {
	seed  maphash.Seed
	units map[uint64]uint32 // by their bytes' hash; the first of several
	disk  tree.ReadAtCloser
	size  int64
	a, b  [shareStep]byte
}

// newSharer reads a disk.
func newSharer(ctx context.Context, disk blob.Blob) (*sharer, error) {
	runs, err := tree.Extents(disk)
	if err != nil {
		return nil, err
	}
	s := &sharer{seed: maphash.MakeSeed(), units: map[uint64]uint32{}, size: disk.Size()}
	if s.disk, err = disk.Open(); err != nil {
		return nil, err
	}
	for _, e := range runs {
		for at := e.Off / shareUnit * shareUnit; at < e.Off+e.Len && len(s.units) < maxUnits; at += shareStep {
			if err := ctx.Err(); err != nil {
				s.disk.Close()
				return nil, err
			}
			n, err := read(s.disk, s.a[:min(shareStep, s.size-at)], at)
			if err != nil {
				s.disk.Close()
				return nil, err
			}
			for i := 0; i+shareUnit <= n; i += shareUnit {
				u := s.a[i : i+shareUnit]
				if bytes.Equal(u, zeros[:shareUnit]) {
					continue
				}
				h := maphash.Bytes(s.seed, u)
				if _, ok := s.units[h]; !ok {
					s.units[h] = uint32((at + int64(i)) / shareUnit)
				}
			}
		}
	}
	return s, nil
}

// read is ReadAt that is content with the end of a file.
func read(r io.ReaderAt, b []byte, off int64) (int, error) {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		err = nil
	}
	return n, err
}

// find gives the runs that a content is made of; false: it is not all there.
func (s *sharer) find(ctx context.Context, c blob.Blob) (runs []run, ok bool, err error) {
	extents, err := tree.Extents(c)
	if err != nil {
		return nil, false, err
	}
	f, err := c.Open()
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	end := int64(0)
	for _, e := range extents {
		at := max(e.Off/shareUnit*shareUnit, end)
		for at < e.Off+e.Len {
			if err := ctx.Err(); err != nil {
				return nil, false, err
			}
			piece := s.a[:min(shareStep, c.Size()-at)]
			if _, err := read(f, piece, at); err != nil {
				return nil, false, err
			}
			n := 0
			if len(runs) > 0 {
				if last := &runs[len(runs)-1]; last.off+last.n == at {
					if n, err = s.same(piece, last.disk+last.n); err != nil {
						return nil, false, err
					}
					last.n += int64(n)
				}
			}
			if n == 0 {
				r, zero, err := s.look(piece[:min(shareUnit, len(piece))])
				if err != nil || !zero && r.n == 0 {
					return nil, false, err
				}
				if !zero {
					r.off = at
					runs = append(runs, r)
				}
				n = min(shareUnit, len(piece))
			}
			at += int64(n)
		}
		end = at
	}
	return runs, true, nil
}

// same is how many bytes of p, in whole units or to its end, are on the disk at off.
func (s *sharer) same(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, nil
	}
	got, err := read(s.disk, s.b[:min(int64(len(p)), s.size-off)], off)
	if err != nil {
		return 0, err
	}
	n := 0
	for n < got {
		u := min(shareUnit, len(p)-n)
		if n+u > got || !bytes.Equal(p[n:n+u], s.b[n:n+u]) {
			break
		}
		n += u
	}
	return n, nil
}

// look finds a unit, or the last bytes of a content, with zeros behind them.
func (s *sharer) look(u []byte) (r run, zero bool, err error) {
	var padded [shareUnit]byte
	copy(padded[:], u)
	if padded == [shareUnit]byte{} {
		return r, true, nil
	}
	at, ok := s.units[maphash.Bytes(s.seed, padded[:])]
	if !ok {
		return r, false, nil
	}
	off := int64(at) * shareUnit
	n, err := s.same(u, off)
	if err != nil || n < len(u) {
		return r, false, err
	}
	return run{disk: off, n: int64(n)}, false, nil
}

// shared writes the map of contents, by ascending digest, and gives those that are
// not on the disk.
func (s *sharer) shared(ctx context.Context, contents []blob.Blob) (table []byte, own []blob.Blob, err error) {
	var entry []byte
	for _, c := range contents {
		runs, ok, err := s.find(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		entry = binary.AppendUvarint(entry[:0], uint64(len(runs))+1)
		end := int64(0)
		for _, r := range runs {
			entry = binary.AppendUvarint(entry, uint64(r.off-end))
			entry = binary.AppendUvarint(entry, uint64(r.disk))
			entry = binary.AppendUvarint(entry, uint64(r.n))
			end = r.off + r.n
		}
		if !ok || len(table)+len(entry) > maxShared/2 {
			entry, own = append(entry[:0], 0), append(own, c)
		}
		table = append(table, entry...)
	}
	return table, own, nil
}

// sharedReader reads a map that is not trusted.
type sharedReader struct {
	b    []byte
	disk int64 // bytes
}

// next gives the runs of the next content, of size bytes; false: it is an entry of
// the archive.
func (s *sharedReader) next(size int64) (runs []run, ok bool, err error) {
	n, err := s.uvarint()
	if err != nil || n == 0 {
		return nil, false, err
	}
	end := int64(0)
	for range n - 1 { // each takes three bytes of the map at least
		var v [3]int64
		for i := range v {
			if v[i], err = s.uvarint(); err != nil {
				return nil, false, err
			}
		}
		gap, disk, length := v[0], v[1], v[2]
		if gap > size-end || length == 0 || length > size-end-gap || disk > s.disk || length > s.disk-disk {
			return nil, false, refused("the tree has a file of %d bytes with %d bytes at %d of a disk of %d", size, length, disk, s.disk)
		}
		runs = append(runs, run{end + gap, disk, length})
		end += gap + length
	}
	return runs, true, nil
}

func (s *sharedReader) uvarint() (int64, error) {
	v, n := binary.Uvarint(s.b)
	if n <= 0 || v > 1<<62 {
		return 0, refused("the map of the tree's files on the disk is damaged")
	}
	s.b = s.b[n:]
	return int64(v), nil
}

// runReader reads a content of size bytes that is runs of a disk.
type runReader struct {
	disk io.ReaderAt
	runs []run
	at   int64
	size int64
}

func (r *runReader) Read(p []byte) (int, error) {
	if r.at == r.size {
		return 0, io.EOF
	}
	for len(r.runs) > 0 && r.runs[0].off+r.runs[0].n == r.at {
		r.runs = r.runs[1:]
	}
	p = p[:min(int64(len(p)), r.size-r.at)]
	var err error
	switch {
	case len(r.runs) == 0:
		clear(p)
	case r.at < r.runs[0].off:
		p = p[:min(int64(len(p)), r.runs[0].off-r.at)]
		clear(p)
	default:
		in := r.at - r.runs[0].off
		p = p[:min(int64(len(p)), r.runs[0].n-in)]
		var n int
		n, err = read(r.disk, p, r.runs[0].disk+in)
		p = p[:n]
	}
	r.at += int64(len(p))
	return len(p), err
}
