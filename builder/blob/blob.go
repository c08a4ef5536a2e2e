package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// Blob is a content in a store. It is a tree.Content that knows its digest and
// its holes.
type Blob struct {
	store  *Store
	digest string
	size   int64
}

// Digest is "sha256:" and 64 hex digits.
func (b Blob) Digest() string { return b.digest }

// Size is the number of bytes, holes included.
func (b Blob) Size() int64 { return b.size }

// Path is the file that has the content. It is to be read only.
func (b Blob) Path() string { return b.store.path(b.digest) }

// Open opens the content. One that was removed is ErrGone, a file that is not as long
// as it was ErrDamaged.
func (b Blob) Open() (tree.ReadAtCloser, error) { return b.open() }

func (b Blob) open() (*os.File, error) {
	f, err := os.Open(b.Path())
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err != nil {
		return nil, b.store.errorf(err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() != b.size {
		err = fmt.Errorf("%w: %s has %d bytes instead of %d", ErrDamaged, b.digest, st.Size(), b.size)
	}
	if err != nil {
		f.Close()
		return nil, b.store.errorf(err)
	}
	return f, nil
}

const (
	// minSparse is the size from which a file is asked for its holes: those of
	// smaller ones are not worth a system call.
	minSparse = 64 << 10
	// maxExtents bounds the runs of data that are told apart; what lies behind
	// them counts as data.
	maxExtents = 1 << 20
)

// Extents gives the runs of data as the host's file system has them.
func (b Blob) Extents() ([]tree.Extent, error) {
	if b.size == 0 {
		return nil, nil
	}
	if b.size < minSparse {
		return []tree.Extent{{Off: 0, Len: b.size}}, nil
	}
	f, err := b.open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	runs, err := Extents(f, b.size)
	if err != nil {
		return nil, b.store.errorf(err)
	}
	return runs, nil
}

// Extents gives the runs of data in the first size bytes of a file of the host,
// from SEEK_DATA and SEEK_HOLE (lseek(2)). A file system that does not know
// holes has one run. The file's offset is moved.
func Extents(f *os.File, size int64) ([]tree.Extent, error) {
	var runs []tree.Extent
	fd := int(f.Fd())
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // holes up to the end
			return runs, nil
		case errors.Is(err, unix.EINVAL), len(runs) == maxExtents:
			return append(runs, tree.Extent{Off: at, Len: size - at}), nil
		case err != nil:
			return nil, err
		case data >= size:
			return runs, nil
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		hole = min(hole, size)
		if hole <= data {
			return nil, fmt.Errorf("%s changed while it was read", f.Name())
		}
		runs = append(runs, tree.Extent{Off: data, Len: hole - data})
		at = hole
	}
	return runs, nil
}
