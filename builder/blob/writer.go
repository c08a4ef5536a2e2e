package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// small is the size up to which a content waits in memory until it is whole: most
// files of a system are smaller, and then cost few system calls.
const small = 64 << 10

// Writer takes a content that is not in the store yet. One goroutine uses it.
type Writer struct {
	store *Store
	buf   []byte   // all of it, while there is no file
	f     *os.File // locked, so that nobody sweeps it away
	h     hash.Hash
	size  int64
	tail  bool // the end is a hole
	over  bool
	zeros []byte
	err   error
}

// Create begins a content. Close must be called, after Commit too.
func (s *Store) Create() (*Writer, error) { return &Writer{store: s, h: sha256.New()}, nil }

// spill goes on in a file.
func (w *Writer) spill() error {
	for w.f == nil {
		f, err := os.CreateTemp(filepath.Join(w.store.dir, "tmp"), "")
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		if err == nil && st.Nlink > 0 { // it was not swept away before it had its lock
			_, err = f.WriteAt(w.buf, 0)
			w.f = f
		}
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			w.f = nil
			return err
		}
		if w.f == nil {
			f.Close()
		}
	}
	w.buf = nil
	return nil
}

// Write appends bytes.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.more(int64(len(p))); err != nil {
		return 0, err
	}
	var n int
	var err error
	if w.f == nil && len(w.buf)+len(p) <= small {
		n, w.buf = len(p), append(w.buf, p...)
	} else if err = w.spill(); err == nil {
		n, err = w.f.WriteAt(p, w.size)
	}
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
	if n == 0 {
		return nil
	}
	if err := w.spill(); err != nil {
		w.err = w.store.errorf(err)
		return w.err
	}
	if err := w.zero(ctx, n); err != nil {
		w.err = w.store.errorf(err)
		return w.err
	}
	w.size += n
	w.tail = true
	return nil
}

// zero hashes n zeros.
func (w *Writer) zero(ctx context.Context, n int64) error {
	if w.zeros == nil {
		w.zeros = make([]byte, 64<<10)
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		step := min(n, int64(len(w.zeros)))
		w.h.Write(w.zeros[:step])
		n -= step
	}
	return nil
}

func (w *Writer) more(n int64) error {
	if w.err == nil && w.over {
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
	install := w.installBuffer
	if w.f != nil {
		install = w.installFile
	}
	if err := install(b); err != nil {
		w.Close()
		return Blob{}, w.store.errorf(err)
	}
	if w.f != nil {
		w.f.Close()
	}
	w.over, w.f, w.buf = true, nil, nil
	w.store.made(b)
	return b, nil
}

// installBuffer writes what waited in memory. One that is there is compared with
// it, and replaced where it is damaged.
func (w *Writer) installBuffer(b Blob) error {
	if old, err := os.ReadFile(b.Path()); err == nil && bytes.Equal(old, w.buf) {
		return nil
	}
	for try := 0; ; try++ {
		temp := filepath.Join(w.store.dir, "tmp", strconv.FormatUint(rand.Uint64(), 36))
		err := writeNew(temp, w.buf)
		if err == nil {
			if err = os.Rename(temp, b.Path()); err == nil {
				return nil
			}
			os.Remove(temp)
		}
		again := errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist)
		if !again || try == 3 { // the folder is made once, a name is taken once in 2^64
			return err
		}
		if err := os.MkdirAll(filepath.Dir(b.Path()), dirPerm); err != nil {
			return err
		}
	}
}

// writeNew is os.WriteFile in as few system calls as may be, for a file that is
// not there yet.
func writeNew(path string, b []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, filePerm)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	for len(b) > 0 && err == nil {
		var n int
		if n, err = unix.Write(fd, b); errors.Is(err, unix.EINTR) {
			err = nil
		}
		b = b[max(n, 0):]
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		os.Remove(path)
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// installFile gives the file its name.
func (w *Writer) installFile(b Blob) error {
	if w.tail {
		if err := w.f.Truncate(w.size); err != nil {
			return err
		}
	}
	if err := w.f.Chmod(filePerm); err != nil {
		return err
	}
	return rename(w.f.Name(), b)
}

// rename gives a file a content's name. One that is there is replaced: should it be
// damaged, it is no more.
func rename(path string, b Blob) error {
	err := os.Rename(path, b.Path())
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(b.Path()), dirPerm); err != nil {
			return err
		}
		err = os.Rename(path, b.Path())
	}
	return err
}

// Close drops what was not committed.
func (w *Writer) Close() error {
	w.over, w.buf = true, nil
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
	return w.runs(ctx, r, runs, c.Size())
}

// runs takes in runs of data, and holes between them, up to a size.
func (w *Writer) runs(ctx context.Context, r io.ReaderAt, runs []tree.Extent, size int64) error {
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
	return w.Hole(ctx, size-w.size)
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
