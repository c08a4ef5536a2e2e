package ffs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// chunk is how much of a file is read and written at once, in bytes: a multiple
// of every block size.
const chunk = 1 << 20

// Write writes the file system. What w has not been written to must read as
// zeros: w is best an empty, sparse file. An error leaves it half written, as
// does the end of ctx. A Layout is written once, or several times one after the
// other.
func (l *Layout) Write(ctx context.Context, w io.WriterAt) error {
	wr := &writer{
		Layout: l, ctx: ctx, out: w,
		alloc:  allocator{frag: l.geo.frag},
		buf:    make([]byte, chunk),
		zeros:  make([]byte, l.geo.block),
		inodes: make([]byte, l.geo.block),
	}
	for i := range l.files {
		if err := wr.file(rootInode+int64(i), &l.files[i]); err != nil {
			return fmt.Errorf("%.200q: %w", l.files[i].path, err)
		}
	}
	if err := wr.flushInodes(rootInode + int64(len(l.files)) - 1); err != nil {
		return err
	}
	if wr.alloc.next != l.need {
		return fmt.Errorf("internal error: %d blocks were planned, %d written", l.need, wr.alloc.next)
	}
	return wr.tables()
}

// source gives an inode's bytes. Reads begin at multiples of the block size and
// follow each other.
type source interface {
	read(b []byte, off int64) error
}

// writer is one pass over the files.
type writer struct {
	*Layout
	ctx    context.Context
	out    io.WriterAt
	alloc  allocator
	buf    []byte // contents
	zeros  []byte // a block
	inodes []byte // the block of inodes that is being filled
	ind    [indirect]indirectBlock
}

// indirectBlock is one that is being filled. Heights count from the data.
type indirectBlock struct {
	buf   []byte
	open  bool
	level int   // of the tree: 0 single, 1 double, 2 triple
	index int64 // which of its height in the tree
	addr  int64
}

// file writes an inode and what belongs to it.
func (w *writer) file(ino int64, f *file) (err error) {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	n := f.node
	i := inode{
		mode: fileType(n.Kind) | n.Perm, links: uint16(f.links), uid: n.UID, gid: n.GID,
		size: f.size, mtime: n.Mtime, flags: n.Flags, gen: w.generation(ino),
	}
	var src source
	switch n.Kind {
	case tree.Dir:
		src = &dirSource{node: n, names: n.Names(), numbers: w.numbers, self: uint32(ino), parent: f.parent}
	case tree.Symlink:
		src = stringSource(n.Target)
		if len(f.runs) == 0 {
			i.inline = n.Target
		}
	case tree.CharDevice, tree.BlockDevice:
		i.direct[0] = int64(tree.Dev(n.Major, n.Minor))
	case tree.File:
		if len(f.runs) == 0 {
			break
		}
		r, err := n.Content.Open()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		src = contentSource{r, f.size}
	}
	if err := w.data(&i, f, src); err != nil {
		return err
	}
	return w.inode(ino, &i)
}

// generation tells a file from an earlier one with its number, for NFS. Any
// number above 0 does; newfs and the kernel take random ones.
func (l *Layout) generation(ino int64) uint32 {
	x := (le.Uint64(l.id[8:]) ^ uint64(ino)) * 0x9e3779b97f4a7c15
	return uint32(x>>33)>>1 + 1
}

// data writes an inode's bytes and sets its addresses.
func (w *writer) data(i *inode, f *file, src source) error {
	g := &w.geo
	block, frag := int64(g.block), int64(g.frag)
	tail := g.tail(f)
	end := ceilDiv(f.size, block)
	for _, r := range f.runs {
		for lo := r.lo; lo < r.hi; {
			if err := w.ctx.Err(); err != nil {
				return err
			}
			hi := min(r.hi, lo+chunk/block)
			n := min(hi*block, f.size) - lo*block
			b := w.buf[:(hi-lo)*block]
			if err := src.read(b[:n], lo*block); err != nil {
				return err
			}
			clear(b[n:])
			// Blocks that follow each other on the disk are written at once.
			from, at := lo, int64(-1)
			for ; lo < hi; lo++ {
				if tail > 0 && lo == end-1 {
					break
				}
				addr, err := w.block(i, lo)
				if err != nil {
					return err
				}
				if at >= 0 && addr == at+(lo-from)*frag {
					continue
				}
				if at >= 0 {
					if err := w.put(at, b[:(lo-from)*block]); err != nil {
						return err
					}
					b = b[(lo-from)*block:]
				}
				from, at = lo, addr
			}
			if at >= 0 {
				if err := w.put(at, b[:(lo-from)*block]); err != nil {
					return err
				}
				b = b[(lo-from)*block:]
			}
			if lo < hi {
				number, first := w.alloc.tail(tail)
				addr := g.addr(number) + int64(first)
				i.direct[lo] = addr
				i.sectors += int64(tail * g.fragment / sectorSize)
				if err := w.put(addr, b[:tail*g.fragment]); err != nil {
					return err
				}
				lo++
			}
		}
	}
	return w.closeIndirect(indirect)
}

// block gives a file's block a place, and its indirect blocks too.
func (w *writer) block(i *inode, n int64) (int64, error) {
	g := &w.geo
	sectors := int64(g.block / sectorSize)
	i.sectors += sectors
	if n < direct {
		i.direct[n] = g.addr(w.alloc.blocks(1))
		return i.direct[n], nil
	}
	pointers := int64(g.pointers)
	n -= direct
	level, width := 0, pointers
	for n >= width {
		n -= width
		width *= pointers
		level++
	}
	// width is now what a block at the height of the tree covers.
	slot := &i.indirect[level]
	for height := level; height >= 0; height-- {
		b := &w.ind[height]
		index := n / width
		if !b.open || b.level != level || b.index != index {
			if err := w.closeIndirect(height + 1); err != nil {
				return 0, err
			}
			if b.buf == nil {
				b.buf = make([]byte, g.block)
			}
			clear(b.buf)
			*b = indirectBlock{b.buf, true, level, index, g.addr(w.alloc.blocks(1))}
			i.sectors += sectors
			if height == level {
				*slot = b.addr
			} else {
				up := &w.ind[height+1]
				put64(up.buf, int(index%pointers)*8, b.addr)
			}
		}
		width /= pointers
	}
	addr := g.addr(w.alloc.blocks(1))
	put64(w.ind[0].buf, int(n%pointers)*8, addr)
	return addr, nil
}

// closeIndirect writes the indirect blocks below a height that are being filled.
func (w *writer) closeIndirect(below int) error {
	for height := range below {
		b := &w.ind[height]
		if !b.open {
			continue
		}
		b.open = false
		if err := w.put(b.addr, b.buf); err != nil {
			return err
		}
	}
	return nil
}

// put writes at an address, but for what is zero.
func (w *writer) put(addr int64, b []byte) error {
	off := addr * int64(w.geo.fragment)
	begin := -1 // of what is not written yet
	for at := 0; at < len(b); at += len(w.zeros) {
		part := b[at:min(len(b), at+len(w.zeros))]
		switch zero := bytes.Equal(part, w.zeros[:len(part)]); {
		case !zero && begin < 0:
			begin = at
		case zero && begin >= 0:
			if err := w.writeAt(b[begin:at], off+int64(begin)); err != nil {
				return err
			}
			begin = -1
		}
	}
	if begin < 0 {
		return nil
	}
	return w.writeAt(b[begin:], off+int64(begin))
}

func (w *writer) writeAt(b []byte, off int64) error {
	_, err := w.out.WriteAt(b, off)
	return err
}

// inode puts an inode into its block; they come in the order of their numbers.
func (w *writer) inode(ino int64, i *inode) error {
	at := int(ino%w.geo.inodesPerGroup) % w.geo.inodesPerBlock
	if at == 0 {
		if err := w.flushInodes(ino - 1); err != nil {
			return err
		}
	}
	i.put(w.inodes[at*inodeSize:])
	return nil
}

// flushInodes writes the block of inodes that ends with one.
func (w *writer) flushInodes(last int64) error {
	err := w.put(w.geo.inodeAddr(last), w.inodes)
	clear(w.inodes)
	return err
}

type stringSource string

func (s stringSource) read(b []byte, off int64) error {
	_, err := strings.NewReader(string(s)).ReadAt(b, off)
	return err
}

type contentSource struct {
	r    io.ReaderAt
	size int64
}

func (c contentSource) read(b []byte, off int64) error {
	n, err := c.r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it ends at %d of %d bytes", io.ErrUnexpectedEOF, off+int64(n), c.size)
	}
	return err
}
