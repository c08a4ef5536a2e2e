package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Adopt makes a finished file of the host a content: it is hashed and renamed, not
// copied, and is gone from its path then. Nobody may write to it any more. A file
// of another file system is copied and removed. Holes are hashed as what they
// are, zeros; see Writer.Hole for what that costs.
func (s *Store) Adopt(ctx context.Context, path string) (Blob, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return Blob{}, s.errorf(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Blob{}, s.errorf(err)
	}
	if !st.Mode().IsRegular() {
		return Blob{}, s.errorf(fmt.Errorf("%s is not a regular file", path))
	}
	w, err := s.Create()
	if err != nil {
		return Blob{}, err
	}
	defer w.Close()
	if err := w.hash(ctx, f, st.Size()); err != nil {
		return Blob{}, s.errorf(fmt.Errorf("%s: %w", path, err))
	}
	b := Blob{s, w.Digest(), st.Size()}
	mode := st.Mode().Perm()
	if err := f.Chmod(filePerm); err != nil {
		return Blob{}, s.errorf(err)
	}
	err = rename(path, b)
	if errors.Is(err, unix.EXDEV) {
		return s.copyIn(ctx, f, path, st.Size())
	}
	if err != nil {
		return Blob{}, s.errorf(errors.Join(err, f.Chmod(mode)))
	}
	s.made(b)
	return b, nil
}

// hash takes in a file's bytes without keeping them.
func (w *Writer) hash(ctx context.Context, f *os.File, size int64) error {
	runs, err := Extents(f, size)
	if err != nil {
		return err
	}
	at := int64(0)
	for _, e := range runs {
		if err := w.zero(ctx, e.Off-at); err != nil {
			return err
		}
		n, err := io.Copy(w.h, ctxReader{ctx, io.NewSectionReader(f, e.Off, e.Len)})
		if err != nil {
			return err
		}
		if n < e.Len {
			return fmt.Errorf("%w: the file ends %d bytes early", io.ErrUnexpectedEOF, e.Len-n)
		}
		at = e.Off + e.Len
	}
	return w.zero(ctx, size-at)
}

// copyIn is Adopt across file systems.
func (s *Store) copyIn(ctx context.Context, f *os.File, path string, size int64) (Blob, error) {
	w, err := s.Create()
	if err != nil {
		return Blob{}, err
	}
	defer w.Close()
	runs, err := Extents(f, size)
	if err != nil {
		return Blob{}, s.errorf(err)
	}
	if err := w.runs(ctx, f, runs, size); err != nil {
		return Blob{}, err
	}
	b, err := w.Commit()
	if err != nil {
		return Blob{}, err
	}
	if err := os.Remove(path); err != nil {
		return Blob{}, s.errorf(err)
	}
	return b, nil
}
