package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// Writer takes a content that is not in the store yet. One goroutine uses it.
type Writer struct {
	store *Store
	f     *os.File // locked, so that nobody sweeps it away
	h     hash.Hash
	size  int64
	tail  bool // the end is a hole
	zeros []byte
	err   error
}

// Create begins a content. Close must be called, after Commit too.
func (s *Store) Create() (*Writer, error) {
	for {
		f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "")
		if err != nil {
			return nil, s.errorf(err)
		}
		var st unix.Stat_t
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			return nil, s.errorf(err)
		}
		if st.Nlink == 0 { // swept away before it had its lock
			f.Close()
			continue
		}
		return &Writer{store: s, f: f, h: sha256.New()}, nil
	}
}

// Write appends bytes.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.more(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.f.WriteAt(p, w.size)
	w.h.Write(p[:n])
	w.size += int64(n)
	if n > 0 {
		w.tail = false
	}
	if err != nil {
		w.err = w.store.errorf(err)
	}
	return n, w.err
}

// Hole appends n zeros that take no room. They are hashed all the same: a
// gigabyte takes about a second.
func (w *Writer) Hole(ctx context.Context, n int64) error {
	if n < 0 {
		w.err = w.store.errorf(fmt.Errorf("a hole of %d bytes", n))
	}
	if err := w.more(n); err != nil {
		return err
	}
	if w.zeros == nil {
		w.zeros = make([]byte, 64<<10)
	}
	for left := n; left > 0; {
		if err := ctx.Err(); err != nil {
			w.err = w.store.errorf(err)
			return w.err
		}
		step := min(left, int64(len(w.zeros)))
		w.h.Write(w.zeros[:step])
		left -= step
	}
	w.size += n
	w.tail = w.tail || n > 0
	return nil
}

func (w *Writer) more(n int64) error {
	if w.err == nil && w.f == nil {
		w.err = w.store.errorf(fs.ErrClosed)
	}
	if w.err == nil && n > math.MaxInt64-w.size {
		w.err = w.store.errorf(unix.EFBIG)
	}
	return w.err
}

// Size is the number of bytes so far.
func (w *Writer) Size() int64 { return w.size }

// Digest is that of the bytes so far: who expects another need not commit.
func (w *Writer) Digest() string { return tree.DigestPrefix + hex.EncodeToString(w.h.Sum(nil)) }

// Commit puts the content under its digest. See Store.Sync for when it is on disk.
func (w *Writer) Commit() (Blob, error) {
	if err := w.more(0); err != nil {
		return Blob{}, err
	}
	b := Blob{w.store, tree.DigestPrefix + hex.EncodeToString(w.h.Sum(nil)), w.size}
	if err := w.install(b); err != nil {
		w.Close()
		return Blob{}, w.store.errorf(err)
	}
	w.f.Close()
	w.f = nil
	return b, nil
}

func (w *Writer) install(b Blob) error {
	if w.tail {
		if err := w.f.Truncate(w.size); err != nil {
			return err
		}
	}
	if err := w.f.Chmod(filePerm); err != nil {
		return err
	}
	// One that is there is replaced: should it be damaged, it is no more.
	err := os.Rename(w.f.Name(), b.Path())
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(b.Path()), dirPerm); err != nil {
			return err
		}
		err = os.Rename(w.f.Name(), b.Path())
	}
	return err
}

// Close drops what was not committed.
func (w *Writer) Close() error {
	if w.f == nil {
		return nil
	}
	err := errors.Join(os.Remove(w.f.Name()), w.f.Close())
	w.f = nil
	return err
}

// Put brings a content into the store, holes as holes. One that is not what its
// own Digest says is ErrDamaged.
func (s *Store) Put(ctx context.Context, c tree.Content) (Blob, error) {
	if b, ok := c.(Blob); ok && b.store.dir == s.dir {
		return b, nil
	}
	w, err := s.Create()
	if err != nil {
		return Blob{}, err
	}
	defer w.Close()
	if c != nil {
		if err := w.fill(ctx, c); err != nil {
			return Blob{}, err
		}
	}
	if d, ok := c.(tree.Digester); ok {
		if got := tree.DigestPrefix + hex.EncodeToString(w.h.Sum(nil)); got != d.Digest() {
			return Blob{}, s.errorf(fmt.Errorf("%w: what should be %s is %s", ErrDamaged, d.Digest(), got))
		}
	}
	return w.Commit()
}

func (w *Writer) fill(ctx context.Context, c tree.Content) error {
	runs, err := tree.Extents(c)
	if err != nil {
		return err
	}
	r, err := c.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	for _, e := range runs {
		if err := w.Hole(ctx, e.Off-w.size); err != nil {
			return err
		}
		n, err := io.Copy(w, ctxReader{ctx, io.NewSectionReader(r, e.Off, e.Len)})
		if err != nil {
			return err
		}
		if n < e.Len {
			return fmt.Errorf("%w: the file ends %d bytes early", io.ErrUnexpectedEOF, e.Len-n)
		}
	}
	return w.Hole(ctx, c.Size()-w.size)
}

// Import brings the contents of all files of a tree into the store and makes the
// nodes refer to them there, so that the tree no longer depends on what it was
// made of.
func (s *Store) Import(ctx context.Context, t *tree.Tree) error {
	return t.Walk(func(path string, n *tree.Node) error {
		if n.Kind != tree.File || n.Content == nil {
			return nil
		}
		if n.Content.Size() == 0 {
			n.Content = nil
			return nil
		}
		b, err := s.Put(ctx, n.Content)
		if err != nil {
			return fmt.Errorf("%.200q: %w", path, err)
		}
		n.Content = b
		return nil
	})
}
