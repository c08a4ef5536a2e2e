// Package ffs writes NetBSD's file system: FFSv2, also known as UFS2,
// little-endian, as the kernel has it (sys/ufs/ffs/fs.h) and newfs lays it out.
//
// A Layout is planned from a tree first, without reading contents: it says how
// large the file system will be. Then it is written in one pass, files in the
// order of their names, contents through a buffer of fixed size. The same tree
// and options give the same bytes. What is zero is not written: neither holes
// and free space nor blocks of zeros in files.
package ffs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder/tree"
)

const (
	// MaxSize bounds a file system, in bytes: what this package is tested with.
	MaxSize = 1 << 40
	// MaxLabel bounds a label, in bytes (MAXVOLLEN - 1).
	MaxLabel = 31
	// DefaultFree is the free space, in bytes, where nothing is said of sizes.
	DefaultFree = 64 << 20
	// DefaultDensity is the free space, in bytes, for which there is a free
	// inode: four fragments of 2 KiB, as newfs has it.
	DefaultDensity = 8192
)

// Options say how large a file system is made, and how.
type Options struct {
	// Size is the size in bytes; what is over a whole number of blocks stays
	// unused. 0 makes it as large as the contents and Free need.
	Size int64
	// Minimize makes it as small as the contents and Free allow; Size, if not 0,
	// is the most it may have then.
	Minimize bool
	// Free is the space to leave free, in bytes, where the size follows from the
	// contents. With neither Size nor Minimize 0 stands for DefaultFree.
	Free int64
	// FreeInodes is the least number of inodes to leave free.
	FreeInodes int64
	// Density is the number of free bytes for each free inode; 0 is DefaultDensity.
	Density int64
	// Block and Fragment are sizes in bytes: powers of two, a block from 4 KiB to
	// 32 KiB, a fragment an eighth of it to all of it. 0: blocks of 16 KiB, or
	// 32 KiB where the file system has 128 GiB or more; an eighth.
	Block, Fragment int
	// Label is the volume's name, at most MaxLabel bytes.
	Label string
	// Time is when the file system was made; the zero Time stands for the newest
	// time in the tree. Files have their own times.
	Time time.Time
	// Max is the most it may have whatever the contents, in bytes; 0 is MaxSize.
	Max int64
}

// largeSize is from where on newfs takes blocks of 32 KiB.
const largeSize = 128 << 30

// Info tells of a file system.
type Info struct {
	Size               int64    // bytes
	Free               int64    // bytes for files
	Inodes, FreeInodes int64    // inodes in all, and free
	Block, Fragment    int      // bytes
	Groups             int64    // cylinder groups
	ID                 [16]byte // from the tree's names, kinds, owners, modes, times and sizes
}

// Layout is a file system that is planned. It refers to the tree, which may not
// be changed until it is written.
type Layout struct {
	geo     geometry
	files   []file
	numbers map[*tree.Node]uint32
	need    int64 // data blocks
	free    int64 // bytes free in the file system as planned
	label   string
	time    int64 // seconds
	id      [32]byte
}

// Plan finds out how large the file system of a tree is and where what will be.
// It asks contents for their sizes and holes only. ErrSpace says that the tree
// does not fit.
func Plan(t *tree.Tree, o Options) (*Layout, error) {
	if t == nil || t.Root == nil || t.Root.Kind != tree.Dir {
		return nil, errors.New("a tree without a root directory")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	l, err := plan(t, o)
	if err == nil && o.Block == 0 && l.geo.size() >= largeSize && l.geo.block < 32768 {
		o.Block = 32768
		return plan(t, o)
	}
	return l, err
}

func plan(t *tree.Tree, o Options) (*Layout, error) {
	if o.Block == 0 {
		o.Block = 16384
		if o.Size >= largeSize && !o.Minimize {
			o.Block = 32768
		}
	}
	if o.Fragment == 0 {
		o.Fragment = o.Block / maxFrag
	}
	geo, err := units(o.Block, o.Fragment)
	if err != nil {
		return nil, err
	}
	p := newPlanner(geo)
	if err := t.Walk(p.visit); err != nil {
		return nil, err
	}
	l := &Layout{files: p.files, numbers: p.numbers, need: p.alloc.next, label: o.Label, time: o.Time.Unix()}
	if o.Time.IsZero() {
		l.time = p.newest / 1e9
	}
	if l.geo, err = o.fit(geo, l.need, rootInode+int64(len(l.files))); err != nil {
		return nil, err
	}
	l.free = (l.geo.capacity() - l.need) * int64(l.geo.block)
	for r, blocks := range p.alloc.part {
		l.free += int64(r) * int64(len(blocks)) * int64(l.geo.fragment)
	}
	p.sum.Write(l.super(summary{}))
	p.sum.Sum(l.id[:0])
	return l, nil
}

// Write plans a file system and writes it: see Plan and Layout.Write.
func Write(ctx context.Context, w io.WriterAt, t *tree.Tree, o Options) (Info, error) {
	l, err := Plan(t, o)
	if err != nil {
		return Info{}, err
	}
	return l.Info(), l.Write(ctx, w)
}

// Info tells what will be written.
func (l *Layout) Info() Info {
	inodes := l.geo.groups * l.geo.inodesPerGroup
	return Info{
		Size: l.geo.size(), Free: l.free,
		Inodes: inodes, FreeInodes: inodes - rootInode - int64(len(l.files)),
		Block: l.geo.block, Fragment: l.geo.fragment, Groups: l.geo.groups, ID: [16]byte(l.id[:]),
	}
}

func (o *Options) check() error {
	if o.Density == 0 {
		o.Density = DefaultDensity
	}
	if o.Max == 0 || o.Max > MaxSize {
		o.Max = MaxSize
	}
	if o.Size == 0 && !o.Minimize && o.Free == 0 {
		o.Free = DefaultFree
	}
	switch {
	case o.Size < 0 || o.Free < 0 || o.FreeInodes < 0 || o.Density < 0 || o.Max < 0:
		return fmt.Errorf("negative size: %d bytes, %d free, %d free inodes, one for %d bytes, at most %d bytes", o.Size, o.Free, o.FreeInodes, o.Density, o.Max)
	case o.Size > o.Max || o.Free > o.Max:
		return fmt.Errorf("a file system of %d bytes: at most %d", max(o.Size, o.Free), o.Max)
	case o.FreeInodes >= math.MaxInt32:
		return fmt.Errorf("%d free inodes: at most 2^31", o.FreeInodes)
	case len(o.Label) > MaxLabel || strings.ContainsFunc(o.Label, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }):
		return fmt.Errorf("label %.80q: want at most %d letters, digits and signs, no slash", o.Label, MaxLabel)
	}
	return nil
}

// fit finds the geometry: need is what the files take in blocks, used in inodes.
func (o *Options) fit(units geometry, need, used int64) (geometry, error) {
	block := int64(units.block)
	if o.Size != 0 && !o.Minimize {
		blocks := o.Size / block
		// As many inodes as the free space asks for, or fewer where files need its room.
		for more := max(0, (blocks-need)*block/o.Density-o.FreeInodes); ; more /= 2 {
			g, err := units.divide(blocks, used+o.FreeInodes+more)
			if err == nil && g.capacity() >= need {
				return g, nil
			}
			if more == 0 {
				break
			}
		}
		least, err := units.least(need, used+o.FreeInodes)
		if err != nil {
			return geometry{}, err
		}
		return geometry{}, fmt.Errorf("%w: %d bytes were asked for, the contents need %d", ErrSpace, o.Size, least.size())
	}
	g, err := units.least(need+ceilDiv(o.Free, block), used+max(o.FreeInodes, o.Free/o.Density))
	limit := o.Max
	if o.Size != 0 {
		limit = min(limit, o.Size)
	}
	if err == nil && g.size() > limit {
		err = fmt.Errorf("%w: the contents need %d bytes, at most %d are allowed", ErrSpace, g.size(), limit)
	}
	return g, err
}

// least finds the smallest geometry with so many data blocks and inodes.
func (g geometry) least(need, inodes int64) (geometry, error) {
	if need > MaxSize*2/int64(g.block) {
		return g, fmt.Errorf("%w: the contents need %d blocks of %d bytes, more than %d bytes", ErrSpace, need, g.block, int64(MaxSize))
	}
	// From the least that could be enough, up by what lacks: more groups have
	// more tables, and what is too little for a group of its own is left out.
	blocks := g.inodeFrag/int64(g.frag) + ceilDiv(inodes, int64(g.inodesPerBlock)) + need + 1
	for step := int64(0); ; step++ {
		got, err := g.divide(blocks, inodes)
		lack := int64(1)
		if err == nil {
			lack = need - got.capacity()
		} else if step > 10000 {
			return g, err
		}
		if err == nil && lack <= 0 {
			return got, nil
		}
		blocks += max(lack, 1)
	}
}
