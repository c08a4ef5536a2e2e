package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// Write writes a tree as a tar archive: the same tree, the same bytes. Entries
// come in the order of tree.Walk, the root as "./"; a node's first name has its
// content, the others are hard links to it. It is ustar where that can say it and
// PAX (POSIX.1-2001) where not, with SCHILY.fflags for BSD's file flags. Holes are
// written as zeros. A socket, which tar does not know, is an error, as is a flag
// without a name. name is the archive's, for errors.
func Write(ctx context.Context, w io.Writer, t *tree.Tree, name string) error {
	z := tar.NewWriter(w)
	first := map[*tree.Node]string{}
	err := t.Walk(func(path string, n *tree.Node) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := header(path, n)
		if err != nil {
			return &Error{name, path, err.Error(), ErrEntry, err}
		}
		if old, ok := first[n]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, old, 0
		} else if n.Kind != tree.Dir {
			first[n] = path
		}
		if err := z.WriteHeader(h); err != nil {
			return &Error{name, path, err.Error(), nil, err}
		}
		if h.Typeflag == tar.TypeReg && n.Size() > 0 {
			if err := copyContent(ctx, z, n.Content); err != nil {
				return &Error{name, path, err.Error(), nil, err}
			}
		}
		return nil
	})
	if err == nil {
		err = z.Close()
	}
	var e *Error
	if err != nil && !errors.As(err, &e) {
		err = &Error{name, "", err.Error(), nil, err}
	}
	return err
}

func header(path string, n *tree.Node) (*tar.Header, error) {
	h := &tar.Header{Name: path, Mode: int64(n.Perm), Uid: int(n.UID), Gid: int(n.GID), ModTime: time.Unix(0, n.Mtime)}
	switch n.Kind {
	case tree.Dir:
		h.Typeflag, h.Name = tar.TypeDir, path+"/"
	case tree.File:
		h.Typeflag, h.Size = tar.TypeReg, n.Size()
	case tree.Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.Target
	case tree.FIFO:
		h.Typeflag = tar.TypeFifo
	case tree.CharDevice, tree.BlockDevice:
		h.Typeflag = tar.TypeChar
		if n.Kind == tree.BlockDevice {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(n.Major), int64(n.Minor)
	default:
		return nil, fmt.Errorf("a %v cannot be in a tar archive", n.Kind)
	}
	if n.Flags != 0 {
		names, rest := formatFlags(n.Flags)
		if rest != 0 {
			return nil, fmt.Errorf("its file flags %#x have no name", rest)
		}
		h.PAXRecords = map[string]string{fflags: names}
	}
	if n.Mtime%1e9 != 0 {
		h.Format = tar.FormatPAX // elsewhere times have no fractions
	}
	// Bytes that are no UTF-8 are more than PAX can say; GNU's names take them.
	if strings.ToValidUTF8(h.Name+h.Linkname, "") != h.Name+h.Linkname {
		h.Format = tar.FormatGNU
		if h.PAXRecords != nil {
			return nil, errors.New("a name that is not UTF-8 and file flags cannot be together in a tar archive")
		}
		h.ModTime = h.ModTime.Truncate(time.Second)
	}
	return h, nil
}

func copyContent(ctx context.Context, w io.Writer, c tree.Content) error {
	r, err := c.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	in := &source{ctx: ctx, r: io.NewSectionReader(r, 0, c.Size())}
	n, err := io.CopyBuffer(w, in, make([]byte, 64<<10))
	if err == nil && n != c.Size() {
		err = fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, n, c.Size())
	}
	return err
}
