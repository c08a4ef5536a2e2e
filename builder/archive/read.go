package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// Read lays a tar archive over a tree: plain, or compressed by gzip, xz or zstd,
// which its first bytes tell. Directories are joined, everything else replaces
// what has its name. GNU's and PAX's extensions for long names, sparse files and
// times are understood, and the PAX record SCHILY.fflags of BSD's file flags;
// runs of zeros become holes. Sparse and compressed, an archive may still be
// read in little memory: contents go to o.Blobs as they come.
//
// Refused, with the name of the entry: names and hard links that are absolute or
// have "..", entries below a symlink, a name twice, kinds that are not in tree,
// and what is beyond the limits. Symlinks may point anywhere: they are contents.
// An archive must be complete up to its end marker.
//
// After an error the tree is laid over in part. r is not read any more after
// Read has returned, but may have been read past the archive's end.
func Read(ctx context.Context, r io.Reader, into *tree.Tree, o Options) error {
	o.defaults()
	s := &source{ctx: ctx, r: r}
	rd := &reader{o: o, s: s, into: into, mine: map[string]*tree.Node{}}
	z, done, err := unpack(s)
	if err != nil {
		return rd.fail(ErrFormat, err)
	}
	defer done()
	rd.in = &limited{r: z, s: s, l: &rd.o.Limits}
	if err := rd.entries(ctx); err != nil {
		return err
	}
	if err := rd.end(); err != nil {
		return err
	}
	if o.Owners == ByName {
		return rd.byName()
	}
	return nil
}

type reader struct {
	o     Options
	s     *source
	in    *limited
	into  *tree.Tree
	mine  map[string]*tree.Node // what came from this archive, taken or not
	named []named               // owners by name
	entry string                // the one being read, for errors

	entriesRead   int
	bytes, names  int64
	memory        int64
	buf, zeroRuns []byte
}

type named struct {
	n           *tree.Node
	user, group string
}

// fail names the archive and the entry, and says whose fault it was.
func (r *reader) fail(kind, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	if source := r.s.failed(); source != nil { // not the archive's fault
		return &Error{r.o.Name, r.entry, source.Error(), nil, source}
	}
	text := err.Error()
	switch {
	case errors.Is(err, errTooLong):
		kind, text = ErrLimit, fmt.Sprintf("it unpacks to more than %d bytes", r.o.Limits.Bytes)
	case errors.Is(err, errTooDense):
		kind, text = ErrLimit, fmt.Sprintf("it unpacks to more than %d times its size", r.o.Limits.Ratio)
	case errors.Is(err, xz.ErrMemlimit):
		kind, text = ErrLimit, fmt.Sprintf("its dictionary needs more memory than %d MiB: pack it with xz -9 at most", maxDict>>20)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		kind, text = ErrLimit, fmt.Sprintf("its window needs more memory than %d MiB: pack it without --ultra and --long", maxWindow>>20)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, xz.ErrBuf):
		kind, text = ErrCorrupt, "it is cut short or corrupt"
	case errors.Is(err, tar.ErrHeader):
		kind, text = ErrCorrupt, "there is no tar archive in it, or a corrupt one"
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, xz.ErrData), errors.Is(err, zstd.ErrCRCMismatch):
		kind, text = ErrCorrupt, "it is corrupt: "+text
	}
	if kind == ErrCorrupt && r.entry != "" {
		return &Error{r.o.Name, "", fmt.Sprintf("%s, at or after entry %.200q", text, r.entry), kind, err}
	}
	return &Error{r.o.Name, r.entry, text, kind, err}
}

// refuse is about the entry at hand.
func (r *reader) refuse(format string, args ...any) error {
	return &Error{r.o.Name, r.entry, fmt.Sprintf(format, args...), ErrEntry, nil}
}

func (r *reader) limit(format string, args ...any) error {
	return &Error{r.o.Name, r.entry, fmt.Sprintf(format, args...), ErrLimit, nil}
}

func (r *reader) entries(ctx context.Context) error {
	t := tar.NewReader(r.in)
	for {
		if err := ctx.Err(); err != nil {
			return &Error{r.o.Name, r.entry, err.Error(), nil, err}
		}
		before := r.in.n // all of the entry before has been read but its padding
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			// Without the end marker, a block of zeros, an archive that was cut
			// between two entries would look whole.
			if r.in.n-before < tarBlock || r.in.zeros < tarBlock {
				return r.fail(ErrCorrupt, io.ErrUnexpectedEOF)
			}
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are checked here
			return r.fail(ErrCorrupt, err)
		}
		r.entry = h.Name
		if r.entriesRead++; r.entriesRead > r.o.Limits.Entries {
			return r.limit("the archive has more than %d entries", r.o.Limits.Entries)
		}
		if r.names += int64(len(h.Name) + len(h.Linkname)); r.names > r.o.Limits.Names {
			return r.limit("the archive's names have more than %d bytes", r.o.Limits.Names)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			if err := r.global(h); err != nil {
				return err
			}
			continue
		}
		if err := r.take(ctx, t, h); err != nil {
			return err
		}
	}
}

// end reads what follows the last entry, so that checksums at the end of the
// compressed archive are checked.
func (r *reader) end() error {
	if _, err := io.Copy(io.Discard, r.in); err != nil {
		return r.fail(ErrCorrupt, err)
	}
	return nil
}

// global passes over comments (git-archive has one) and refuses what would
// change the entries that follow.
func (r *reader) global(h *tar.Header) error {
	for k := range h.PAXRecords {
		if k != "comment" && !strings.Contains(k, ".") {
			return r.refuse("a global header for %.40q of all that follows: pack it without", k)
		}
	}
	return nil
}

// path checks a name of the archive and gives it as the tree has it. ok is
// false for what Strip takes off altogether.
func (r *reader) path(name, what string) (path string, ok bool, err error) {
	if strings.HasPrefix(name, "/") {
		return "", false, r.refuse("%s is absolute", what)
	}
	var names []string
	for name := range strings.SplitSeq(name, "/") {
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			return "", false, r.refuse(`%s leads up with ".."`, what)
		}
		if err := tree.CheckName(name); err != nil {
			return "", false, r.refuse("%s: a file cannot be called %.40q", what, name)
		}
		if names = append(names, name); len(names) > r.o.Limits.Depth+r.o.Strip {
			return "", false, r.limit("%s is more than %d levels deep", what, r.o.Limits.Depth)
		}
	}
	if r.o.Strip > 0 {
		if len(names) <= r.o.Strip {
			return "", false, nil
		}
		names = names[r.o.Strip:]
	}
	if path = strings.Join(names, "/"); len(path) > r.o.Limits.Path {
		return "", false, r.limit("%s has more than %d bytes", what, r.o.Limits.Path)
	}
	if path == "" {
		path = "."
	}
	return path, true, nil
}

// take reads an entry and puts it where it belongs.
func (r *reader) take(ctx context.Context, t *tar.Reader, h *tar.Header) error {
	path, ok, err := r.path(h.Name, "its name")
	if err != nil {
		return err
	}
	if !ok {
		return r.skip(t, h.Size)
	}
	if h.Typeflag == tar.TypeLink {
		return r.link(path, h)
	}
	n, err := r.node(h)
	if err != nil {
		return err
	}
	if old := r.mine[path]; old != nil && (old.Kind != tree.Dir || n.Kind != tree.Dir) {
		return r.refuse("it is in the archive twice")
	}
	if n.Kind == tree.File {
		// Also when it is not taken: a hard link that is may refer to it.
		if n.Content, err = r.content(ctx, t, h.Size); err != nil {
			return err
		}
	}
	if r.o.Owners == ByName && (h.Uname != "" || h.Gname != "") {
		r.named = append(r.named, named{n, h.Uname, h.Gname})
	}
	return r.put(path, n)
}

// put sets a node, or joins a directory with the one that is there.
func (r *reader) put(path string, n *tree.Node) error {
	r.mine[path] = n
	if r.o.Filter != nil && !r.o.Filter(path, n) {
		return nil
	}
	old, err := r.into.Lookup(path)
	switch {
	case err == nil && old.Kind == tree.Dir && n.Kind == tree.Dir:
		old.Perm, old.UID, old.GID, old.Mtime, old.Flags = n.Perm, n.UID, n.GID, n.Mtime, n.Flags
		r.mine[path] = old
		if k := len(r.named); k > 0 && r.named[k-1].n == n {
			r.named[k-1].n = old
		}
		return nil
	case err == nil && old.Kind == tree.Dir:
		return r.refuse("a %v in the place of a directory", n.Kind)
	case err == nil && n.Kind == tree.Dir:
		return r.refuse("a directory in the place of a %v", old.Kind)
	case errors.Is(err, tree.ErrNotDir):
		return r.refuse("it lies below something that is no directory (a symlink is not followed)")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return r.refuse("%v", err)
	}
	if err := r.into.Put(path, n); err != nil {
		return r.refuse("%v", err)
	}
	return nil
}

// link gives a node another name. Its target is a name of the archive, or of
// the tree it is laid over.
func (r *reader) link(path string, h *tar.Header) error {
	target, ok, err := r.path(h.Linkname, "the hard link's target")
	if err != nil {
		return err
	}
	var n *tree.Node
	if ok {
		if n = r.mine[target]; n == nil {
			if n, err = r.into.Lookup(target); err != nil {
				n = nil
			}
		}
	}
	switch {
	case n == nil:
		return r.refuse("a hard link to %.200q, which is not there", h.Linkname)
	case n.Kind == tree.Dir:
		return r.refuse("a hard link to a directory, %.200q", h.Linkname)
	case r.mine[path] == n:
		return nil // once more the same
	case r.mine[path] != nil:
		return r.refuse("it is in the archive twice")
	}
	return r.put(path, n)
}

// node gives what the header says of an entry that is no hard link.
func (r *reader) node(h *tar.Header) (*tree.Node, error) {
	n := &tree.Node{Perm: uint16(h.Mode & tree.MaxPerm)}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		n.Kind = tree.File
	case tar.TypeDir:
		n.Kind = tree.Dir
	case tar.TypeSymlink:
		n.Kind, n.Target = tree.Symlink, h.Linkname
	case tar.TypeFifo:
		n.Kind = tree.FIFO
	case tar.TypeChar, tar.TypeBlock:
		n.Kind = tree.CharDevice
		if h.Typeflag == tar.TypeBlock {
			n.Kind = tree.BlockDevice
		}
		if r.o.NoDevices {
			return nil, r.refuse("a %v is not taken here", n.Kind)
		}
		if h.Devmajor < 0 || h.Devmajor > tree.MaxMajor || h.Devminor < 0 || h.Devminor > tree.MaxMinor {
			return nil, r.refuse("NetBSD has no device %d,%d", h.Devmajor, h.Devminor)
		}
		n.Major, n.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	default:
		return nil, r.refuse("its type %q is not known", h.Typeflag)
	}
	if r.o.Owners != AllRoot {
		if h.Uid < 0 || int64(h.Uid) > math.MaxUint32 || h.Gid < 0 || int64(h.Gid) > math.MaxUint32 {
			return nil, r.refuse("its owner %d:%d is no number of a user and a group", h.Uid, h.Gid)
		}
		n.UID, n.GID = uint32(h.Uid), uint32(h.Gid)
	}
	var err error
	if n.Mtime, err = nanoseconds(h.ModTime); err != nil {
		return nil, r.refuse("its time: %v", err)
	}
	if s := h.PAXRecords[fflags]; s != "" {
		if n.Flags, err = parseFlags(s); err != nil {
			return nil, r.refuse("%v", err)
		}
	}
	if err := n.Check(); err != nil {
		return nil, r.refuse("%v", err)
	}
	return n, nil
}

// nanoseconds since 1970, of the years that they can count.
func nanoseconds(t time.Time) (int64, error) {
	if t.IsZero() {
		return 0, nil
	}
	if s := t.Unix(); s < math.MinInt64/1_000_000_000 || s >= math.MaxInt64/1_000_000_000 {
		return 0, fmt.Errorf("%d seconds after 1970 cannot be counted", s)
	}
	return t.UnixNano(), nil
}

const (
	chunk = 256 << 10
	// grain is the least hole that is made of zeros, in bytes: a block of FFS.
	grain = 32 << 10
)

// content reads a file.
func (r *reader) content(ctx context.Context, t io.Reader, size int64) (tree.Content, error) {
	if err := r.count(size); err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, nil
	}
	if r.o.Blobs == nil {
		return r.inMemory(ctx, t, size)
	}
	w, err := r.o.Blobs.Create()
	if err != nil {
		return nil, r.fail(nil, err)
	}
	defer w.Close()
	if r.buf == nil {
		r.buf, r.zeroRuns = make([]byte, chunk), make([]byte, grain)
	}
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return nil, r.fail(nil, err)
		}
		b := r.buf[:min(left, chunk)]
		if _, err := io.ReadFull(t, b); err != nil {
			return nil, r.fail(ErrCorrupt, err)
		}
		if err := r.write(ctx, w, b, size >= 2*grain); err != nil {
			return nil, r.fail(nil, err)
		}
		left -= int64(len(b))
	}
	b, err := w.Commit()
	if err != nil {
		return nil, r.fail(nil, err)
	}
	return b, nil
}

// skip reads a file that nobody wants.
func (r *reader) skip(t io.Reader, size int64) error {
	if err := r.count(size); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, t); err != nil {
		return r.fail(ErrCorrupt, err)
	}
	return nil
}

func (r *reader) count(size int64) error {
	if r.bytes += size; size < 0 || size > r.o.Limits.Bytes || r.bytes > r.o.Limits.Bytes {
		return r.limit("the archive's files have more than %d bytes", r.o.Limits.Bytes)
	}
	return nil
}

// write writes a chunk, grains of zeros as holes.
func (r *reader) write(ctx context.Context, w *blob.Writer, b []byte, sparse bool) error {
	if !sparse {
		_, err := w.Write(b)
		return err
	}
	for len(b) > 0 {
		n, hole := 0, false
		for n < len(b) {
			g := min(grain, len(b)-n)
			zero := bytes.Equal(b[n:n+g], r.zeroRuns[:g])
			if n > 0 && zero != hole {
				break
			}
			hole = zero
			n += g
		}
		var err error
		if hole {
			err = w.Hole(ctx, int64(n))
		} else {
			_, err = w.Write(b[:n])
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// inMemory trusts the size as far as bytes come.
func (r *reader) inMemory(ctx context.Context, t io.Reader, size int64) (tree.Content, error) {
	if r.memory += size; r.memory > r.o.Limits.Memory {
		return nil, r.limit("the archive's files have more than the %d bytes that are kept in memory", r.o.Limits.Memory)
	}
	var b []byte
	for int64(len(b)) < size {
		if err := ctx.Err(); err != nil {
			return nil, r.fail(nil, err)
		}
		have, more := len(b), int(min(size-int64(len(b)), max(chunk, int64(len(b)))))
		b = slices.Grow(b, more)[:have+more]
		if _, err := io.ReadFull(t, b[have:]); err != nil {
			return nil, r.fail(ErrCorrupt, err)
		}
	}
	return tree.Bytes(slices.Clip(b)), nil
}

// byName gives entries the owners that their names have in the tree.
func (r *reader) byName() error {
	a, err := r.into.Accounts()
	if err != nil {
		r.entry = ""
		return r.fail(ErrEntry, err)
	}
	for _, e := range r.named {
		if uid, ok := a.UID(e.user); ok {
			e.n.UID = uid
		}
		if gid, ok := a.GID(e.group); ok {
			e.n.GID = gid
		}
	}
	return nil
}
