package ffs

import (
	"errors"
	"fmt"
	"math/bits"
)

// geometry says where everything is. Addresses and sizes are in fragments where
// nothing else is said; every area begins and ends at the border of a block.
//
// A group is: [data] superblock copy, group block, inodes, data. What is before
// the copy is room for boot blocks in group 0, and data in all others.
type geometry struct {
	block, fragment, frag int // bytes, bytes, fragments in a block
	pointers              int // addresses in an indirect block
	inodesPerBlock        int
	clusters              int // longest run of free blocks that groups count

	frags          int64 // of the whole file system
	groups         int64
	fragsPerGroup  int64
	inodesPerGroup int64

	// offsets within a group
	superFrag, groupFrag, inodeFrag, dataFrag int64

	groupBytes   int64 // fs_cgsize
	summaryBytes int64 // fs_cssize
}

// ErrSpace says that the contents do not fit into the size that was asked for.
var ErrSpace = errors.New("file system too small")

func roundUp[T int | int64](n, unit T) T { return (n + unit - 1) / unit * unit }

func ceilDiv[T int | int64](n, unit T) T { return (n + unit - 1) / unit }

func log2(n int) int { return bits.TrailingZeros(uint(n)) }

// units sets what depends on the sizes of block and fragment only.
func units(block, fragment int) (geometry, error) {
	power := func(n int) bool { return n > 0 && n&(n-1) == 0 }
	if !power(block) || block < 4096 || block > 32768 {
		return geometry{}, fmt.Errorf("a block of %d bytes: want a power of two from 4096 to 32768", block)
	}
	if !power(fragment) || fragment < sectorSize || fragment > block || block/fragment > maxFrag {
		return geometry{}, fmt.Errorf("a fragment of %d bytes: want a power of two, at least %d, an eighth of the block's %d at least", fragment, sectorSize, block)
	}
	g := geometry{
		block: block, fragment: fragment, frag: block / fragment,
		pointers: block / 8, inodesPerBlock: block / inodeSize,
		clusters: 65536 / block, // what one transfer takes (MAXPHYS), as newfs sets it
	}
	inFrags := func(n int) int64 { return int64(roundUp(ceilDiv(n, fragment), g.frag)) }
	g.superFrag = inFrags(superOffset + superRoom)
	g.groupFrag = g.superFrag + inFrags(superRoom)
	g.inodeFrag = g.groupFrag + int64(g.frag)
	return g, nil
}

// maxFile is the greatest size of a file, in bytes.
func (g *geometry) maxFile() int64 {
	size, level := int64(direct), int64(1)
	for range indirect {
		level *= int64(g.pointers)
		size += level
	}
	return size*int64(g.block) - 1
}

// cgSize is the size of a group's block in bytes (CGSIZE of fs.h).
func (g *geometry) cgSize(inodes, frags int64) int64 {
	return groupStruct + 4 + ceilDiv(inodes, 8) + ceilDiv(frags, 8) +
		int64(g.clusters)*4 + ceilDiv(frags/int64(g.frag), 8)
}

// divide lays out groups over a number of blocks, with room for at least a number
// of inodes, as few groups as the bitmaps in a group's one block allow. What is
// over and too little for a group is left out: blocks() says what is used.
func (g geometry) divide(blocks, inodes int64) (geometry, error) {
	frag := int64(g.frag)
	if blocks < 1 {
		return g, fmt.Errorf("%w: it has no block of %d bytes", ErrSpace, g.block)
	}
	unit := max(1, 8/frag) // a group's bitmap has whole bytes
	for groups := max(1, blocks*frag/int64(g.block*8)); ; groups++ {
		perGroup := roundUp(ceilDiv(blocks, groups), unit)
		g.groups = ceilDiv(blocks, perGroup)
		g.fragsPerGroup = perGroup * frag
		g.inodesPerGroup = roundUp(ceilDiv(inodes, g.groups), int64(g.inodesPerBlock))
		if g.cgSize(g.inodesPerGroup, g.fragsPerGroup) > int64(g.block) {
			if groups > blocks {
				return g, fmt.Errorf("%w: %d bytes have no room for %d inodes", ErrSpace, blocks*int64(g.block), inodes)
			}
			continue
		}
		g.dataFrag = g.inodeFrag + g.inodesPerGroup/int64(g.inodesPerBlock)*frag
		g.frags = blocks * frag
		if last := g.frags - (g.groups-1)*g.fragsPerGroup; last < g.dataFrag+frag {
			// The last group would be metadata only, or less.
			g.groups--
			g.frags -= last
			if g.groups == 0 {
				return g, fmt.Errorf("%w: %d bytes are less than one group of %d inodes takes", ErrSpace, blocks*int64(g.block), inodes)
			}
			if g.groups*g.inodesPerGroup < inodes {
				continue
			}
		}
		break
	}
	if g.groups*g.inodesPerGroup >= 1<<31 {
		return g, fmt.Errorf("%d inodes: at most 2^31", g.groups*g.inodesPerGroup)
	}
	g.groupBytes = roundUp(g.cgSize(g.inodesPerGroup, g.fragsPerGroup), int64(g.fragment))
	g.summaryBytes = roundUp(g.groups*summarySize, int64(g.fragment))
	if g.first(0) >= g.end(0) {
		return g, fmt.Errorf("%w: %d bytes leave no room behind the tables", ErrSpace, blocks*int64(g.block))
	}
	return g, nil
}

// size is the file system's size in bytes.
func (g *geometry) size() int64 { return g.frags * int64(g.fragment) }

// summaryBlocks is what the groups' summaries take at the beginning of group 0's data.
func (g *geometry) summaryBlocks() int64 { return ceilDiv(g.summaryBytes, int64(g.block)) }

// first is where the data behind a group's tables begins, as a fragment of the group.
func (g *geometry) first(group int64) int64 {
	if group == 0 {
		return g.dataFrag + g.summaryBlocks()*int64(g.frag)
	}
	return g.dataFrag
}

// end is the number of fragments of a group.
func (g *geometry) end(group int64) int64 {
	return min(g.fragsPerGroup, g.frags-group*g.fragsPerGroup)
}

// before is the number of data blocks in front of a group's tables.
func (g *geometry) before(group int64) int64 {
	if group == 0 {
		return 0
	}
	return g.superFrag / int64(g.frag)
}

// capacity is the number of data blocks that files can have.
func (g *geometry) capacity() int64 {
	n := int64(0)
	for group := range g.groups {
		n += g.before(group) + (g.end(group)-g.first(group))/int64(g.frag)
	}
	return n
}

// dataFrags is fs_dsize: what is neither boot area nor tables nor summaries.
func (g *geometry) dataFrags() int64 {
	return g.frags - g.superFrag - g.groups*(g.dataFrag-g.superFrag) - g.summaryBytes/int64(g.fragment)
}

// addr gives the address of the n'th data block, all groups' data blocks counted
// in the order of their addresses.
func (g *geometry) addr(n int64) int64 {
	frag := int64(g.frag)
	if d := (g.end(0) - g.first(0)) / frag; n < d {
		return g.first(0) + n*frag
	} else {
		n -= d
	}
	before := g.before(1)
	each := before + (g.fragsPerGroup-g.dataFrag)/frag
	group, n := 1+n/each, n%each
	if n < before {
		return group*g.fragsPerGroup + n*frag
	}
	return group*g.fragsPerGroup + g.dataFrag + (n-before)*frag
}

// inodeAddr gives the address of the block that has an inode.
func (g *geometry) inodeAddr(ino int64) int64 {
	group, n := ino/g.inodesPerGroup, ino%g.inodesPerGroup
	return group*g.fragsPerGroup + g.inodeFrag + n/int64(g.inodesPerBlock)*int64(g.frag)
}
