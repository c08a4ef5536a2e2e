package pvh

import (
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

const (
	// fillChunk is the size in bytes of the buffer between two files.
	fillChunk = 64 << 10
	// fillMin is from how many bytes on the buffer pays.
	fillMin = 4 * fillChunk
)

// fill puts n bytes of f from offset off into guest RAM at gpa.
//
// Reading into the mapping costs a page fault for each page, which is most of
// the time that loading a kernel takes, so the pages are asked for at once
// before. Where RAM is a file, writing to that takes as long, and leaves pages
// unmapped that the guest never looks at; huge pages cannot be written that way.
// Little pieces gain nothing: they are read in place.
func fill(mem *guestmem.Memory, f File, off, gpa, n uint64) error {
	b, err := mem.Slice(gpa, n)
	if err != nil {
		return err
	}
	switch pos, inFile := fileOffset(mem, gpa); {
	case n < fillMin:
	case !inFile:
		mem.Populate(gpa, n)
	default:
		done, err := fillFile(mem, f, off, pos, n)
		if err != nil {
			return err
		}
		b, off = b[done:], off+done
	}
	return readFull(f.R, b, int64(off))
}

// fillFile goes as far as the file behind RAM takes writes.
func fillFile(mem *guestmem.Memory, f File, off, pos, n uint64) (done uint64, err error) {
	buf := make([]byte, fillChunk)
	ram := mem.File()
	for done < n {
		// Chunks end where pages do, so that none is written twice.
		p := buf[:min(n-done, fillChunk-(pos+done)%guestmem.PageSize)]
		if err := readFull(f.R, p, int64(off+done)); err != nil {
			return done, err
		}
		if _, err := ram.WriteAt(p, int64(pos+done)); err != nil {
			return done, nil // the caller writes the rest through the mapping
		}
		done += uint64(len(p))
	}
	return done, nil
}

// fileOffset is where gpa is in the file behind RAM, if there is one.
func fileOffset(mem *guestmem.Memory, gpa uint64) (uint64, bool) {
	if mem.File() == nil {
		return 0, false
	}
	for _, r := range mem.Ranges() {
		if gpa >= r.GPA && gpa < r.End() {
			return r.Offset + gpa - r.GPA, true
		}
	}
	return 0, false
}
