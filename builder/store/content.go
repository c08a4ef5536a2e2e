package store

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// File is a file of the host as a content, holes as holes. It must not change
// while it is used.
type File struct {
	path string
	size int64
}

// OpenFile gives a regular file as a content.
func OpenFile(path string) (File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return File{}, err
	}
	if !st.Mode().IsRegular() {
		return File{}, fmt.Errorf("%s is not a regular file", path)
	}
	return File{path, st.Size()}, nil
}

// Size is the number of bytes when the file was looked at.
func (f File) Size() int64 { return f.size }

// Open opens the file.
func (f File) Open() (tree.ReadAtCloser, error) { return os.Open(f.path) }

// Extents gives the runs of data.
func (f File) Extents() ([]tree.Extent, error) {
	o, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return blob.Extents(o, f.size)
}

// zeroBlock is the smallest run of zeros that becomes a hole: a page, and the
// block of most file systems.
const zeroBlock = 4096

// sparse writes a stream into a content, whole blocks of zeros as holes.
type sparse struct {
	ctx  context.Context
	w    *blob.Writer
	hole int64 // zeros not written yet
	pos  int64
}

var zeros [zeroBlock]byte

// Write takes bytes; the last zeros are kept back until more comes, or flush.
func (s *sparse) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, zero := s.block(p[done:])
		for done+n < len(p) { // neighbours of the same kind in one go
			pos := s.pos
			s.pos += int64(n)
			m, z := s.block(p[done+n:])
			s.pos = pos
			if z != zero {
				break
			}
			n += m
		}
		if zero {
			s.hole += int64(n)
		} else {
			if err := s.flush(); err != nil {
				return done, err
			}
			if _, err := s.w.Write(p[done : done+n]); err != nil {
				return done, err
			}
		}
		done += n
		s.pos += int64(n)
	}
	return done, nil
}

// block is the length of what p has of the block at pos, and whether it is zeros.
func (s *sparse) block(p []byte) (n int, zero bool) {
	n = min(zeroBlock-int(s.pos%zeroBlock), len(p))
	return n, bytes.Equal(p[:n], zeros[:n])
}

func (s *sparse) flush() error {
	if s.hole == 0 {
		return s.ctx.Err()
	}
	err := s.w.Hole(s.ctx, s.hole)
	s.hole = 0
	return err
}
