package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// maxContext bounds how many files one COPY takes: a file system has inodes for
// as many at most, and the tree is in memory.
const maxContext = 4 << 20

// buildContext is the folder that a build may read. Symbolic links that lead out
// of it do not (os.Root).
type buildContext struct {
	root   *os.Root
	fsys   fs.FS
	ignore []byte
	epoch  int64 // the time of all files, in nanoseconds; 0: their own

	mu      sync.Mutex
	digests map[fileID]string
}

// fileID is a version of a file of the host.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func openContext(dir string, ignore []byte) (*buildContext, error) {
	if dir == "" {
		return nil, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("build context %s: %w", dir, plain(err))
	}
	if _, err := dialect.ReadIgnore(ignore); err != nil {
		root.Close()
		return nil, fmt.Errorf(".dockerignore: %w", err)
	}
	return &buildContext{root: root, fsys: root.FS(), ignore: ignore, digests: map[fileID]string{}}, nil
}

func (c *buildContext) close() {
	if c != nil {
		c.root.Close()
	}
}

// openFile opens a file without waiting: that of a pipe would be for whoever
// writes to it, and nothing could end it.
func (c *buildContext) openFile(name string) (*os.File, error) {
	return c.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// errOutside is of a name whose links lead elsewhere.
var errOutside = errors.New("it leads out of the build context, which is all that a build sees")

// plain is a file's error without the path, which the message around it has.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) && !lost(err) {
		// Package os has no value for this error of a Root.
		if pe.Err.Error() == "path escapes from parent" {
			return errOutside
		}
		return pe.Err
	}
	return err
}

// hostFile is a file of the context. It is read when it is needed, and has to be
// then what it was when it was looked at first.
type hostFile struct {
	c    *buildContext
	name string
	id   fileID
}

func (h *hostFile) Size() int64 { return h.id.size }

func (h *hostFile) Open() (tree.ReadAtCloser, error) { return h.open() }

func (h *hostFile) open() (*os.File, error) {
	f, err := h.c.openFile(h.name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || idOf(info) != h.id) {
		err = fmt.Errorf("%s changed while it was being read", h.name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Extents finds the holes of the host's file.
func (h *hostFile) Extents() ([]tree.Extent, error) {
	f, err := h.open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return blob.Extents(f, h.id.size)
}

// digest reads the file once a build.
func (h *hostFile) digest() (string, error) {
	h.c.mu.Lock()
	d, ok := h.c.digests[h.id]
	h.c.mu.Unlock()
	if ok {
		return d, nil
	}
	r, err := h.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(r, 0, h.id.size))
	if err == nil && n != h.id.size {
		err = fmt.Errorf("%s changed while it was being read", h.name)
	}
	if err != nil {
		return "", err
	}
	d = tree.DigestPrefix + hex.EncodeToString(sum.Sum(nil))
	h.c.mu.Lock()
	h.c.digests[h.id] = d
	h.c.mu.Unlock()
	return d, nil
}

// known is a host's file whose digest was computed: what is stored of it later
// has to have that, so that a file that changes cannot get under another's digest.
type known struct {
	*hostFile
	sum string
}

func (k known) Digest() string { return k.sum }

func idOf(info fs.FileInfo) fileID {
	id := fileID{size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.dev, id.ino, id.mtime, id.ctime = uint64(st.Dev), st.Ino, st.Mtim, st.Ctim
	}
	return id
}

// sourceSet is what one source of a COPY stands for: a file, or a folder's
// contents.
type sourceSet struct {
	name string // as written, for errors
	base string // the last element of its path
	node *tree.Node
}

// sources finds what a pattern of a COPY names in the context. exclude is the
// COPY's own.
func (c *buildContext) sources(pattern string, exclude *dialect.Patterns) ([]sourceSet, error) {
	if c == nil {
		return nil, errors.New("the build has no context")
	}
	clean := strings.TrimPrefix(path.Clean("/"+pattern), "/")
	if clean == "" {
		clean = "."
	}
	names := []string{clean}
	if strings.ContainsAny(clean, "*?[\\") {
		if _, err := fs.Stat(c.fsys, clean); err != nil {
			var gerr error
			if names, gerr = fs.Glob(c.fsys, clean); gerr != nil {
				return nil, fmt.Errorf("%s: %w", pattern, gerr)
			}
		}
	}
	// A matcher keeps state: each COPY has its own.
	ignore, err := dialect.ReadIgnore(c.ignore)
	if err != nil {
		return nil, fmt.Errorf(".dockerignore: %w", err)
	}
	var out []sourceSet
	for _, name := range names {
		w := &contextWalk{c: c, ignore: ignore, exclude: exclude, links: map[fileID]*tree.Node{}}
		n, err := w.source(name)
		if err != nil {
			return nil, err
		}
		if n != nil {
			out = append(out, sourceSet{name, path.Base(name), n})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: nothing in the build context fits%s", pattern, c.why(clean, ignore))
	}
	return out, nil
}

// why tells what .dockerignore has to do with it.
func (c *buildContext) why(name string, ignore *dialect.Patterns) string {
	if _, err := fs.Stat(c.fsys, name); err != nil {
		return ""
	}
	if out, _ := ignore.Match(name); out {
		return " (.dockerignore leaves it out)"
	}
	return ""
}

type contextWalk struct {
	c               *buildContext
	ignore, exclude *dialect.Patterns
	links           map[fileID]*tree.Node
	n               int
}

// out says whether a path is left out. Patterns of --exclude are of the source
// folder's contents and of the context's paths alike, as Docker has them.
func (w *contextWalk) out(name, below string) (bool, error) {
	if name != "." {
		if out, err := w.ignore.Match(name); err != nil || out {
			return out, err
		}
	}
	if below == "" || below == "." {
		return false, nil
	}
	return w.exclude.Match(below)
}

// source gives the node of a COPY's source; a link that is one itself is
// followed, within the context.
func (w *contextWalk) source(name string) (*tree.Node, error) {
	info, err := w.c.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: there is no such file in the build context", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, plain(err))
	}
	below := ""
	if !info.IsDir() {
		below = path.Base(name)
	}
	if out, err := w.out(name, below); err != nil || out && (!info.IsDir() || !w.ignore.Negated()) {
		return nil, err
	}
	return w.node(name, below, info, false)
}

func (w *contextWalk) node(name, below string, info fs.FileInfo, ignored bool) (*tree.Node, error) {
	if w.n++; w.n > maxContext {
		return nil, fmt.Errorf("%s: more than %d files", name, maxContext)
	}
	n := &tree.Node{Perm: permOf(info.Mode()), Mtime: info.ModTime().UnixNano()}
	if w.c.epoch != 0 {
		n.Mtime = w.c.epoch // keys do not count times, so the result may not depend on them
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		id := idOf(info)
		if old := w.links[id]; old != nil {
			return old, nil
		}
		n.Kind = tree.File
		if id.size > 0 {
			h := &hostFile{w.c, name, id}
			sum, err := h.digest()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, plain(err))
			}
			n.Content = known{h, sum}
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			w.links[id] = n
		}
	case mode&fs.ModeSymlink != 0:
		target, err := w.c.root.Readlink(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, plain(err))
		}
		n.Kind, n.Perm, n.Target = tree.Symlink, 0o777, target
	case mode.IsDir():
		n.Kind = tree.Dir
		if err := w.entries(n, name, below, ignored); err != nil {
			return nil, err
		}
	case mode&fs.ModeDevice != 0:
		return nil, fmt.Errorf("%s is a device: COPY takes files, folders and symbolic links", name)
	case mode&fs.ModeNamedPipe != 0:
		return nil, fmt.Errorf("%s is a pipe: COPY takes files, folders and symbolic links", name)
	case mode&fs.ModeSocket != 0:
		return nil, fmt.Errorf("%s is a socket: COPY takes files, folders and symbolic links; .dockerignore can leave it out", name)
	default:
		return nil, fmt.Errorf("%s: %v: COPY takes files, folders and symbolic links", name, mode.Type())
	}
	return n, nil
}

func (w *contextWalk) entries(dir *tree.Node, name, below string, ignored bool) error {
	list, err := fs.ReadDir(w.c.fsys, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, plain(err))
	}
	for _, e := range list {
		full, inner := path.Join(name, e.Name()), path.Join(below, e.Name())
		out, err := w.out(full, inner)
		if err != nil {
			return fmt.Errorf("%s: %w", full, err)
		}
		// A folder that is left out may have something that is taken in again.
		if out && (!e.IsDir() || !w.ignore.Negated() && !w.exclude.Negated()) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return fmt.Errorf("%s: %w", full, plain(err))
		}
		child, err := w.node(full, inner, info, out)
		if err != nil {
			return err
		}
		if out && child.Len() == 0 {
			continue
		}
		if err := dir.Set(e.Name(), child); err != nil {
			return fmt.Errorf("%s: %w", full, err)
		}
	}
	return nil
}

// permOf gives the mode bits as a file system has them.
func permOf(m fs.FileMode) uint16 {
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

// include is dialect's: the context first, then the including file's folder.
func (c *buildContext) include(name, from string, limit int64) ([]byte, error) {
	if c == nil {
		return nil, errors.New("the build has no context")
	}
	b, err := c.readFile(name, limit)
	if errors.Is(err, fs.ErrNotExist) && path.Dir(from) != "." {
		if b, err2 := c.readFile(path.Join(path.Dir(from), name), limit); err2 == nil {
			return b, nil
		}
	}
	return b, err
}

func (c *buildContext) readFile(name string, limit int64) ([]byte, error) {
	f, err := c.openFile(path.Clean(name))
	if err != nil {
		return nil, plain(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("it is no regular file"))
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("it has more than %d bytes", limit)
	}
	return b, err
}
