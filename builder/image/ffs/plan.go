package ffs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"math"
	"strings"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// run is a run of a file's blocks.
type run struct{ lo, hi int64 }

// file is an inode to be.
type file struct {
	path   string // its first name
	node   *tree.Node
	links  int
	parent uint32 // a directory's
	size   int64  // of what is in blocks or inline
	runs   []run  // the blocks that are no holes
}

// maxRuns bounds the runs of all files, 16 MiB of them.
const maxRuns = 1 << 20

// planner walks a tree and finds what it needs.
type planner struct {
	geo     geometry // units only
	files   []file   // files[i] is inode rootInode+i
	numbers map[*tree.Node]uint32
	dirs    []uint32 // the directories on the way to where the walk is
	alloc   allocator
	runs    int
	newest  int64
	sum     hash.Hash
	buf     []byte
}

func newPlanner(geo geometry) *planner {
	return &planner{geo: geo, numbers: map[*tree.Node]uint32{}, alloc: allocator{frag: geo.frag}, newest: math.MinInt64, sum: sha256.New()}
}

// visit is called for every name.
func (p *planner) visit(path string, n *tree.Node) error {
	if err := p.add(path, n); err != nil {
		return fmt.Errorf("%.200q: %w", path, err)
	}
	return nil
}

func (p *planner) add(path string, n *tree.Node) error {
	depth := 0
	if path != "." {
		depth = 1 + strings.Count(path, "/")
	}
	ino, known := p.numbers[n]
	p.identify(path, n, ino)
	if known {
		return p.link(ino)
	}
	if err := n.Check(); err != nil {
		return err
	}
	if n.Flags&ownFlags != 0 {
		return fmt.Errorf("st_flags %#x has flags that only a file system itself sets (%#x)", n.Flags, ownFlags)
	}
	if len(p.files) >= 1<<31-rootInode {
		return errors.New("too many files: at most 2^31 inodes")
	}
	ino = uint32(rootInode + len(p.files))
	f := file{path: path, node: n, links: 1, size: n.Size()}
	all := true
	switch n.Kind {
	case tree.Dir:
		f.links = 2
		f.parent = rootInode
		if depth > 0 {
			f.parent = p.dirs[depth-1]
			if err := p.link(f.parent); err != nil {
				return err
			}
		}
		p.dirs = append(p.dirs[:depth], ino)
		if f.size = dirSize(n.Names()); f.size > maxDirSize {
			return fmt.Errorf("a directory of %d bytes: at most %d", f.size, maxDirSize)
		}
	case tree.Symlink:
		f.size = int64(len(n.Target))
		all = f.size >= maxInline
	case tree.File:
		all = false
		if f.size > p.geo.maxFile() {
			return fmt.Errorf("a file of %d bytes: at most %d", f.size, p.geo.maxFile())
		}
		if err := p.extents(&f); err != nil {
			return err
		}
	}
	if all && f.size > 0 {
		f.runs = []run{{0, ceilDiv(f.size, int64(p.geo.block))}}
	}
	p.numbers[n] = ino
	p.files = append(p.files, f)
	p.newest = max(p.newest, n.Mtime)
	p.count(&f)
	return nil
}

// link counts one more name of an inode.
func (p *planner) link(ino uint32) error {
	f := &p.files[ino-rootInode]
	if f.links++; f.links > maxLinks {
		return fmt.Errorf("more than %d links to %.200q", maxLinks, f.path)
	}
	return nil
}

// identify takes what is known without reading contents into the file system's
// identity.
func (p *planner) identify(path string, n *tree.Node, ino uint32) {
	b := p.buf[:0]
	for _, v := range []uint64{
		uint64(len(path)), uint64(len(n.Target)), uint64(ino), uint64(n.Kind), uint64(n.Perm), uint64(n.UID), uint64(n.GID),
		uint64(n.Mtime), uint64(n.Flags), uint64(n.Size()), uint64(n.Major), uint64(n.Minor),
	} {
		b = le.AppendUint64(b, v)
	}
	b = append(append(b, path...), n.Target...)
	p.sum.Write(b)
	p.buf = b
}

// extents turns a file's runs of bytes into runs of blocks.
func (p *planner) extents(f *file) error {
	extents, err := tree.Extents(f.node.Content)
	if err != nil {
		return err
	}
	block := int64(p.geo.block)
	for _, e := range extents {
		if e.Off+e.Len > f.size {
			return fmt.Errorf("a file of %d bytes has an extent up to %d", f.size, e.Off+e.Len)
		}
		r := run{e.Off / block, ceilDiv(e.Off+e.Len, block)}
		if last := len(f.runs) - 1; last >= 0 && f.runs[last].hi >= r.lo {
			f.runs[last].hi = r.hi
			continue
		}
		if p.runs++; p.runs > maxRuns {
			return fmt.Errorf("the files have more than %d holes", maxRuns)
		}
		f.runs = append(f.runs, r)
	}
	return nil
}

// count allocates what a file takes, as the pass that writes will.
func (p *planner) count(f *file) {
	tail := p.geo.tail(f)
	n := p.geo.indirects(f.runs)
	for _, r := range f.runs {
		n += r.hi - r.lo
	}
	if tail > 0 {
		n--
	}
	p.alloc.blocks(n)
	if tail > 0 {
		p.alloc.tail(tail)
	}
}

// tail gives the number of fragments in which a file ends, 0 where it ends with
// a whole block or a hole. Only files without indirect blocks end in fragments.
func (g *geometry) tail(f *file) int {
	blocks := ceilDiv(f.size, int64(g.block))
	if blocks > direct || len(f.runs) == 0 || f.runs[len(f.runs)-1].hi < blocks {
		return 0
	}
	return ceilDiv(int(f.size%int64(g.block)), g.fragment) % g.frag
}

// indirects counts the indirect blocks over runs of blocks.
func (g *geometry) indirects(runs []run) int64 {
	pointers := int64(g.pointers)
	var last [indirect][indirect]int64 // one past the last block counted: of each tree, at each height
	n := int64(0)
	for _, r := range runs {
		base, span := int64(direct), int64(1)
		for level := range indirect {
			span *= pointers
			lo, hi := max(r.lo, base)-base, min(r.hi, base+span)-base
			base += span
			if lo >= hi {
				continue
			}
			width := int64(1)
			for height := range level + 1 {
				width *= pointers
				from, to := max(lo/width, last[level][height]), (hi-1)/width+1
				n += to - from
				last[level][height] = to
			}
		}
	}
	return n
}
