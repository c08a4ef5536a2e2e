package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// DirOptions say how a folder becomes a tree.
type DirOptions struct {
	Limits Limits // Entries, Names, Bytes, Path and Depth count
	// KeepOwner takes the owners of the host; without it everything is root's,
	// group 0, as a user's files have a number that means nothing in a guest.
	KeepOwner bool
	// Devices takes character and block devices; without it one is an error.
	Devices bool
	// Skip says what is left out, with all below it; the path is as in tree.Walk.
	Skip func(path string, d fs.FileInfo) bool
}

// FromDir gives a folder of the host as a tree: modes, with set-user-ID bits,
// times to the nanosecond, hard links as hard links, symlinks as they are — none is
// ever followed, so nothing comes from outside of the folder. FIFOs are taken,
// sockets are left out, as what listened on them is not there.
//
// Contents stay where they are and are opened when they are read. A file that has
// changed by then (another inode, size or time) gives an error and not its bytes.
func FromDir(ctx context.Context, path string, o DirOptions) (*tree.Tree, error) {
	o.Limits.defaults()
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("folder %s: %w", path, pathless(err))
	}
	d := &dirReader{o: o, name: path, root: root, links: map[inode]*tree.Node{}}
	n, err := d.read(ctx)
	if err != nil {
		root.Close()
		return nil, err
	}
	return &tree.Tree{Root: n}, nil
}

// FromFile gives a regular file of the host as a node; a symlink at the end of
// the path is followed, as the path is the caller's. Owner and mode are as in
// FromDir without KeepOwner.
func FromFile(path string) (*tree.Node, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	n := tree.NewFile(perm(st.Mode()), nil)
	n.Mtime = st.ModTime().UnixNano()
	if st.Size() > 0 {
		n.Content = hostFile{path: path, st: stamp(st), open: func() (*os.File, error) { return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) }}
	}
	return n, nil
}

type inode struct{ dev, ino uint64 }

type dirReader struct {
	o            DirOptions
	name         string
	root         *os.Root // closed when the last content is forgotten
	links        map[inode]*tree.Node
	count        int
	names, bytes int64
}

func (d *dirReader) refuse(path, format string, args ...any) error {
	return &Error{d.name, path, fmt.Sprintf(format, args...), ErrEntry, nil}
}

func (d *dirReader) limit(path, format string, args ...any) error {
	return &Error{d.name, path, fmt.Sprintf(format, args...), ErrLimit, nil}
}

func (d *dirReader) fail(path string, err error) error {
	return &Error{d.name, path, pathless(err).Error(), nil, err}
}

// pathless takes off what an error repeats of the path.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func (d *dirReader) read(ctx context.Context) (*tree.Node, error) {
	st, err := d.root.Stat(".")
	if err != nil {
		return nil, d.fail(".", err)
	}
	n, err := d.node(".", st)
	if err != nil {
		return nil, err
	}
	return n, d.entries(ctx, d.root, ".", 0, n)
}

func (d *dirReader) entries(ctx context.Context, r *os.Root, path string, depth int, dir *tree.Node) error {
	if depth > d.o.Limits.Depth {
		return d.limit(path, "it is more than %d levels deep", d.o.Limits.Depth)
	}
	names, err := d.list(ctx, r, path)
	if err != nil {
		return err
	}
	for _, name := range names {
		at := name
		if path != "." {
			at = path + "/" + name
		}
		if len(at) > d.o.Limits.Path {
			return d.limit(at, "its name has more than %d bytes", d.o.Limits.Path)
		}
		st, err := r.Lstat(name)
		if err != nil {
			return d.fail(at, err)
		}
		if st.Mode()&fs.ModeSocket != 0 || d.o.Skip != nil && d.o.Skip(at, st) {
			continue
		}
		n, err := d.node(at, st)
		if err != nil {
			return err
		}
		switch n.Kind {
		case tree.Symlink:
			if n.Target == "" {
				if n.Target, err = r.Readlink(name); err != nil {
					return d.fail(at, err)
				}
			}
		case tree.Dir:
			if err := d.below(ctx, r, name, at, depth, n); err != nil {
				return err
			}
		}
		if err := dir.Set(name, n); err != nil {
			return d.refuse(at, "%v", err)
		}
	}
	return nil
}

// list reads a folder, a piece at a time: it may be larger than may be taken.
func (d *dirReader) list(ctx context.Context, r *os.Root, path string) ([]string, error) {
	f, err := r.Open(".")
	if err != nil {
		return nil, d.fail(path, err)
	}
	defer f.Close()
	var names []string
	for {
		if err := ctx.Err(); err != nil {
			return nil, d.fail(path, err)
		}
		more, err := f.Readdirnames(1024)
		for _, name := range more {
			d.names += int64(len(name))
		}
		if d.count += len(more); d.count > d.o.Limits.Entries || d.names > d.o.Limits.Names {
			return nil, d.limit(path, "the folder has more than %d entries, or names of more than %d bytes", d.o.Limits.Entries, d.o.Limits.Names)
		}
		names = append(names, more...)
		if errors.Is(err, io.EOF) {
			slices.Sort(names) // what is refused first is the same each time
			return names, nil
		}
		if err != nil {
			return nil, d.fail(path, err)
		}
	}
}

func (d *dirReader) below(ctx context.Context, r *os.Root, name, at string, depth int, n *tree.Node) error {
	sub, err := r.OpenRoot(name)
	if err != nil {
		return d.fail(at, err)
	}
	defer sub.Close()
	return d.entries(ctx, sub, at, depth+1, n)
}

// node gives what is known of a file without opening it; of a hard link that
// was met already, the same node.
func (d *dirReader) node(path string, st fs.FileInfo) (*tree.Node, error) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, d.refuse(path, "the host tells nothing of it")
	}
	id := inode{uint64(sys.Dev), sys.Ino}
	if n := d.links[id]; n != nil {
		return n, nil
	}
	n := &tree.Node{Perm: perm(st.Mode()), Mtime: st.ModTime().UnixNano()}
	if d.o.KeepOwner {
		n.UID, n.GID = sys.Uid, sys.Gid
	}
	switch m := st.Mode(); m & fs.ModeType {
	case 0:
		n.Kind = tree.File
		if size := st.Size(); size > math.MaxInt64-d.bytes || d.bytes+size > d.o.Limits.Bytes {
			return nil, d.limit(path, "the folder's files have more than %d bytes", d.o.Limits.Bytes)
		}
		if d.bytes += st.Size(); st.Size() > 0 {
			n.Content = hostFile{path: d.name + "/" + path, st: stamp(st), open: func() (*os.File, error) {
				return d.root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
			}}
		}
	case fs.ModeDir:
		n.Kind = tree.Dir
		return n, nil
	case fs.ModeSymlink:
		n.Kind, n.Perm = tree.Symlink, 0o777
	case fs.ModeNamedPipe:
		n.Kind = tree.FIFO
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		n.Kind = tree.BlockDevice
		if m&fs.ModeCharDevice != 0 {
			n.Kind = tree.CharDevice
		}
		if !d.o.Devices {
			return nil, d.refuse(path, "a %v is not taken here", n.Kind)
		}
		n.Major, n.Minor = unix.Major(uint64(sys.Rdev)), unix.Minor(uint64(sys.Rdev))
		if err := n.Check(); err != nil {
			return nil, d.refuse(path, "%v", err)
		}
	default:
		return nil, d.refuse(path, "its kind (%v) is not known", m.Type())
	}
	if sys.Nlink > 1 {
		d.links[id] = n
	}
	return n, nil
}

// perm gives a mode's bits as chmod(2) has them.
func perm(m fs.FileMode) uint16 {
	p := uint16(m.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		bit  uint16
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.mode != 0 {
			p |= b.bit
		}
	}
	return p
}

// identity tells whether a file is still the one that was seen.
type identity struct {
	inode
	size, mtime int64
	mode        fs.FileMode
}

func stamp(st fs.FileInfo) identity {
	id := identity{size: st.Size(), mtime: st.ModTime().UnixNano(), mode: st.Mode().Type()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		id.inode = inode{uint64(sys.Dev), sys.Ino}
	}
	return id
}

// hostFile is a file of the host as a content.
type hostFile struct {
	path string // for errors
	st   identity
	open func() (*os.File, error)
}

func (h hostFile) Size() int64 { return h.st.size }

func (h hostFile) Open() (tree.ReadAtCloser, error) { return h.file() }

func (h hostFile) file() (*os.File, error) {
	f, err := h.open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.path, pathless(err))
	}
	st, err := f.Stat()
	if err == nil && stamp(st) != h.st {
		err = errors.New("it changed while it was read")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", strings.TrimSuffix(h.path, "/."), err)
	}
	return f, nil
}

// minSparse is the size from which a file is asked for its holes: those of
// smaller ones are not worth opening it.
const minSparse = 64 << 10

// Extents gives the runs of data that the host's file system tells of.
func (h hostFile) Extents() ([]tree.Extent, error) {
	if h.st.size < minSparse {
		return []tree.Extent{{Off: 0, Len: h.st.size}}, nil
	}
	f, err := h.file()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return blob.Extents(f, h.st.size)
}
